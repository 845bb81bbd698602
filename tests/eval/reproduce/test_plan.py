"""eval/reproduce/plan.py: the steps of every table, what they share, what is refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from dit8.eval.gpus import load_peaks
from dit8.eval.reproduce import ablation, fidelity, frontier, quality, text
from dit8.eval.reproduce.estimate import load_measurements
from dit8.eval.reproduce.plan import LADDER, TABLES, plan_table
from dit8.eval.reproduce.runs import REAL, VARIANTS
from dit8.eval.reproduce.step import (
    Machine,
    Need,
    Part,
    Request,
    Step,
    merge,
    render,
    sum_up,
    total,
)
from dit8.quant.errors import UserError
from dit8.scripts.cli import compose

ROOT = Path(__file__).resolve().parents[3]
KNOWN = load_measurements(ROOT / "results", load_peaks(ROOT / "conf" / "gpus" / "peaks.csv"))
LAPTOP = Request(3, "mini", "cpu", Machine("cpu", "", None))
CARD = Request(3, "ideogram4", "cuda_24gb", Machine("cuda", "rtx3090", 24.0))
LARGE = Request(3, "ideogram4", "cuda", Machine("cuda", "h200", 141.0))


def plans():
    for request in (LAPTOP, CARD, LARGE):
        for table in TABLES:
            try:
                yield plan_table(replace(request, table=table), KNOWN)
            except UserError:
                continue


def values(words):
    return dict(word.split("=", 1) for word in words if "=" in word)


def test_every_command_is_one_that_its_script_takes():
    seen, composed = set(), set()
    for step in (step for plan in plans() for step in plan.steps):
        script = ROOT / step.words[0]
        seen.add(script.stem)
        if script.stem in ("evaluate", "quantize", "calibrate"):
            words = [word for word in step.words[1:] if word != "-m"]
            # Hydra's sweep: one job takes the first of every list
            composed.add((script.stem, *(w if "[" in w else w.split(",")[0] for w in words)))
        else:
            text = script.read_text(encoding="utf-8")
            for flag in (word for word in step.words if word.startswith("--")):
                assert f'"{flag}"' in text, f"{script.name} has no {flag}"
    for name, *words in composed:
        compose(name, words)
    assert seen == {"evaluate", "quantize", "calibrate", "bench_gemm", "bench_model", "tune",
                    "ablation", "deployment_map"}  # fmt: skip


def test_every_checkpoint_that_is_drawn_with_is_made_before():
    formats = {"int8": "recipe=smoothquant", "fused_int8": "recipe=smoothquant"}
    for request in (CARD, LARGE):
        for table in (3, 4, 5, 6, 7):
            steps = plan_table(replace(request, table=table), KNOWN).steps
            made = [word for step in steps for word in step.words if "quantize" in step.words[0]]
            (drawn, *_) = (values(step.words) for step in steps if "evaluate" in step.words[0])
            for variant in (*drawn["variant"].split(","), drawn["model.reference"]):
                assert formats.get(variant, f"format={variant}") in made
            for recipe in drawn.get("recipe", "smoothquant").split(","):
                assert f"recipe={recipe}" in made


def test_the_real_models_pictures_are_those_that_the_tables_look_for():
    for table in (3, 4, 5, 6, 7):
        words = plan_table(replace(CARD, table=table), KNOWN).steps[-1].words
        firsts = [w if "[" in w else w.split(",")[0] for w in words[2:]]
        config = compose("evaluate", firsts)
        drawn = (config.model.name, config.dtype, config.engine, config.model.reference)
        assert drawn == (REAL.model, REAL.dtype, REAL.engine, REAL.reference)
        assert config.size in (None, REAL.size_px)
        assert (config.prompts or config.model.prompts) == REAL.prompt_set


def test_what_exceeds_the_card_is_left_out_and_named():
    plan = plan_table(CARD, KNOWN)
    drawn = values(plan.steps[-1].words)["variant"]
    assert drawn == "fp8,nf4,fused_int8,q8_0,q4_k"
    assert plan.left_out == ("int8, whose measured peak of 24.9 GB exceeds the card",)
    assert "int8" in values(plan_table(LARGE, KNOWN).steps[-1].words)["variant"].split(",")
    ladder = plan_table(replace(CARD, table=6), KNOWN)
    assert values(ladder.steps[-1].words)["variant"] == "fused_int8"
    assert values(plan_table(replace(LARGE, table=6), KNOWN).steps[-1].words)["variant"] == "int8"


def test_scorers_that_cannot_run_are_left_out_only_where_the_table_stands_without():
    assert "lpips" in values(plan_table(replace(LAPTOP, table=5), KNOWN).steps[0].words)["scorers"]
    plan = plan_table(replace(LAPTOP, table=5), KNOWN, absent=["lpips"])
    assert values(plan.steps[0].words)["scorers"] == "[latent_error,psnr,ssim]"
    assert plan.left_out[0] == "lpips, which cannot run here (python scripts/doctor.py says why)"
    # eval/reproduce/runs.py takes the mini's rows from a GPU only
    assert plan.left_out[1].startswith("a place in the tables")
    graphics = replace(LAPTOP, table=5, hardware="cuda", machine=Machine("cuda", "h200", 141.0))
    assert plan_table(graphics, KNOWN).left_out == ()
    needs = {need for step in plan_table(CARD, KNOWN).steps for need in step.needs}
    assert {Need("scorer", "hpsv2"), Need("weights", "ideogram4"), Need("gpu", "cuda")} <= needs
    assert {Need("extra", "nf4"), Need("extra", "gguf")} <= needs


def test_table_4_draws_the_captions_and_the_sentences():
    steps = plan_table(replace(LAPTOP, table=4), KNOWN).steps
    assert [values(step.words).get("prompt_style") for step in steps] == [None, "raw"]


def test_times_follow_captions_steps_and_hardware():
    def seconds(request):
        return plan_table(request, KNOWN).steps[-1].seconds

    assert seconds(replace(LAPTOP, n=20)) == pytest.approx(seconds(LAPTOP) / 10)
    assert seconds(replace(LAPTOP, overrides=("steps=10",))) == pytest.approx(seconds(LAPTOP) / 2)
    assert seconds(replace(LAPTOP, overrides=("model.size=64",))) is None
    unknown = Machine("cuda", "", 24.0)
    step = plan_table(replace(CARD, machine=unknown), KNOWN).steps[-1]
    assert step.seconds is None and "no estimate" in render(
        plan_table(replace(CARD, machine=unknown), KNOWN)
    )
    # 300 captions by the papers' s/image; nobody timed q8_0 on that card
    step = plan_table(CARD, KNOWN).steps[-1]
    assert step.seconds == pytest.approx(300 * (172.9 + 164.5 + 156.5 + 203.0))
    assert step.unknown == ("q8_0",)
    shared = plan_table(replace(CARD, overrides=("hardware.devices=2",)), KNOWN).steps[-1]
    assert shared.seconds == pytest.approx(step.seconds / 2)
    assert "shared by 2 devices" in shared.basis and "shared" not in step.basis


def test_what_tables_share_is_made_once():
    three, five, six = (plan_table(replace(CARD, table=table), KNOWN) for table in (3, 5, 6))
    steps = merge([three, five, six])
    assert len({step.words for step in steps}) == len(steps)
    alone = total(three.steps)
    assert total(merge([three, five]))[:2] == alone[:2]
    ladder = steps[-1]
    # fused_int8 under smoothquant and the reference were drawn for table 3
    assert len(ladder.parts) == len(LADDER) - 1
    assert len(six.steps[-1].parts) == len(LADDER) + 1
    assert "nothing new is drawn" not in render(three)
    other = plan_table(replace(CARD, table=5, n=50), KNOWN)  # fewer captions: other pictures
    assert total(merge([three, other]))[0] > alone[0]


def test_a_large_card_times_random_weights_in_turn():
    steps = plan_table(replace(LARGE, table=1), KNOWN).steps
    assert [step.words[0] for step in steps] == ["scripts/tune.py", *["scripts/bench_model.py"] * 2]
    formats = " ".join(steps[-1].words)
    assert "stock bf16 fp8 nf4 q8_0 q4_k int8 --resolutions 1024 768" in formats
    assert formats.endswith("--images 5")
    # whole images at the measured steps, five rounds, both sizes: the limit leaves room for them
    ms = [KNOWN.step_ms["h200", name, "dit8", 1024] for name in formats.split()[3:9]]
    ms.append(KNOWN.step_ms["h200", "bf16", "stock", 1024])
    assert 1.5 * 5 * 48 * sum(ms) / 1e3 < steps[-1].seconds
    # table 9 is made of the same run
    assert plan_table(replace(LARGE, table=9), KNOWN).steps[-1] == steps[-1]
    assert all(need != Need("weights", "ideogram4") for step in steps for need in step.needs)
    steps = plan_table(replace(CARD, table=1), KNOWN).steps
    sizes = [values(step.words)["size"] for step in steps if "evaluate" in step.words[0]]
    assert sizes == ["1024", "768"]


def test_every_scorer_that_a_table_reads_is_in_its_plan():
    mini = replace(LAPTOP, hardware="cuda", machine=Machine("cuda", "h200", 141.0))
    read = {
        3: {"mini": quality.OF_MINI, "ideogram4": set(quality.SCORERS) - set(quality.OF_MINI)},
        4: dict.fromkeys(("mini", "ideogram4"), text.SCORERS),
        5: dict.fromkeys(("mini", "ideogram4"), fidelity.SCORERS),
        6: {"ideogram4": ablation.REAL_SCORERS},
        7: dict.fromkeys(("mini", "ideogram4"), (frontier.SCORER, frontier.EXACT)),
    }
    for table, models in read.items():
        for request in (mini, CARD):
            steps = plan_table(replace(request, table=table), KNOWN).steps
            for step in (step for step in steps if "evaluate" in step.words[0]):
                scored = set(values(step.words)["scorers"].strip("[]").split(","))
                assert set(models[request.model]) <= scored


def test_tiles_are_searched_once_before_anything_is_multiplied_fused():
    mini = replace(LAPTOP, hardware="cuda", machine=Machine("cuda", "h200", 141.0))
    for request, words in ((CARD, ("scripts/tune.py",)), (LARGE, ("scripts/tune.py",)),
                           (mini, ("scripts/tune.py", "--model", "mini"))):  # fmt: skip
        for table in (3, 4, 5, 7):
            steps = plan_table(replace(request, table=table), KNOWN).steps
            assert [step.words for step in steps].index(words) == 0
            assert sum("tune" in step.words[0] for step in steps) == 1
    for table in (1, 2, 6):
        assert plan_table(replace(CARD, table=table), KNOWN).steps[0].words == ("scripts/tune.py",)
    for request, table in ((LAPTOP, 3), (LARGE, 6), (mini, 6)):  # nothing fused there
        steps = plan_table(replace(request, table=table), KNOWN).steps
        assert not any("tune" in step.words[0] for step in steps)


@pytest.mark.parametrize("word", ["steps=12", "size=512", "sampler=turbo_12", "recipe=naive",
                                  "guidance=1", "dtype=float32", "engine=stock"])  # fmt: skip
def test_words_that_no_table_looks_for_are_planned_and_named(word):
    plan = plan_table(replace(CARD, overrides=(word,)), KNOWN)
    assert word in plan.steps[-1].words
    assert plan.left_out[-1] == f"a place in the tables, which take no row made with {word}"
    assert plan_table(replace(CARD, overrides=("readers=2",)), KNOWN).left_out[1:] == ()


def test_words_that_nothing_takes_and_too_few_captions_are_named():
    plan = plan_table(replace(CARD, table=2, overrides=("readers=2",)), KNOWN)
    assert plan.left_out == ("readers=2, which no command of this table takes",)
    mini = Request(5, "mini", "cuda", Machine("cuda", "h200", 141.0), n=20)
    assert "runs of more captions than 20" in plan_table(mini, KNOWN).left_out[-1]
    assert plan_table(replace(mini, n=200), KNOWN).left_out == ()


def test_what_a_card_of_24_gb_leaves_out_is_what_the_tables_call_oversized():
    drawn = values(plan_table(CARD, KNOWN).steps[-1].words)["variant"].split(",")
    assert set(VARIANTS) - set(drawn) == {*REAL.oversized, *REAL.unpublished}


def test_recipes_of_the_ladder_without_a_plan_have_a_command_of_their_own():
    command = ablation.direct_command("alpha_03")
    convert, draw = command.split(" && ")
    for line in (convert, draw):
        name, *words = line.removeprefix("python scripts/").replace(" -m ", " ").split()
        config = compose(name.removesuffix(".py"), words)
        assert (config.recipe.name, config.recipe.alpha) == ("alpha_03", 0.3)
    assert (config.dtype, config.engine, config.n) == (REAL.dtype, REAL.engine, 300)
    assert set(ablation.REAL_SCORERS) <= set(config.scorers)
    assert (config.sampler.name, config.sampler.steps) == (REAL.sampler, REAL.steps)
    assert config.model.guidance == REAL.guidance


def test_sums_say_when_they_are_not_all():
    step = Step((), "", (Part("a", "", 110.0, 2e9), Part("b", "", 10.0, 1e9)))
    unknown = Step((), "", (Part("c", "", None),))
    assert sum_up([step]) == "2 min, 3.0 GB on disk"
    assert sum_up([step, unknown]) == "2 min and what has no estimate, 3.0 GB on disk"
    assert sum_up([unknown]) == "no estimate, below 0.1 GB on disk"
    assert sum_up([]) == "0 s, below 0.1 GB on disk"


@pytest.mark.parametrize(
    ("request_", "pattern"),
    [
        (replace(LAPTOP, table=0), "table must be 1 to 9, got 0"),
        (replace(LAPTOP, model="flux"), "model must be mini or ideogram4, got 'flux'"),
        (replace(LAPTOP, table=1), "table 1 is about the full-size architecture, got model=mini"),
        (replace(CARD, table=8), r"table 8 calibrates .* \(120 GB\), got 24 GB; without one"),
        (replace(CARD, table=9, machine=Machine("cpu", "", None)), "table 9 .* no known card"),
        (replace(LAPTOP, table=6, overrides=("recipe=naive",)), "table 6 draws with its own recip"),
        (replace(LAPTOP, overrides=("steps=many",)), "steps must be a number, got 'many'"),
    ],
)
def test_what_cannot_be_planned_is_one_sentence(request_, pattern):
    with pytest.raises(UserError, match=pattern):
        plan_table(request_, KNOWN)
