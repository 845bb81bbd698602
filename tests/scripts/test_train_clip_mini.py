"""scripts/train_clip_mini.py and check_clip_mini.py: a rehearsal, resumed, checked, scored."""

import csv
import json

import numpy as np
import pytest

pytest.importorskip("open_clip", reason="needs the extra: pip install -e .[clip]")

import dataclasses  # noqa: E402

from dit8.conf.paths import ROOT  # noqa: E402
from dit8.eval.poster_ranking import Rank  # noqa: E402
from dit8.eval.scorers import SCORERS  # noqa: E402
from dit8.models.poster_drawing import draw_poster  # noqa: E402
from dit8.models.poster_variants import PERTURBATIONS  # noqa: E402
from dit8.models.posters import make_poster  # noqa: E402
from dit8.models.prompts import load_prompts  # noqa: E402
from dit8.models.training import clip  # noqa: E402
from dit8.models.types import Sample  # noqa: E402
from dit8.scripts.check_clip_mini import LEAST, posters_of, render  # noqa: E402

SMALL = "--size toy --groups 1 --fresh 1 --blurred 2 --pool 4 --probe 1 --workers 0 --device cpu"
LOSS = "step samples loss right scale lr samples_per_s seconds".split()
RANKS = "step tier kind n rate low high right drop".split()


def table(path, columns):
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == columns
    return rows


@pytest.fixture(scope="module")
def trained(tmp_path_factory, run_here):
    """A rehearsal that was interrupted after its first evaluation and then finished."""
    out = tmp_path_factory.mktemp("clip")
    options = [*SMALL.split(), "--out", str(out), "--every-seconds", "0.2"]
    genuine = clip.clip_loss

    def stops(*arguments):
        if (out / "state.json").exists():
            raise KeyboardInterrupt
        return genuine(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clip, "clip_loss", stops)
        stopped = run_here("train_clip_mini", *options, "--seconds", "60")
    state = json.loads((out / "state.json").read_text())
    left = [*options, "--seconds", f"{state['elapsed'] + 0.1}"]
    return out, stopped, state, run_here("train_clip_mini", *left)


def test_an_interrupted_training_goes_on_from_its_last_evaluation(trained):
    out, stopped, state, resumed = trained
    assert stopped.code == 130, stopped.stderr
    assert stopped.lines == ["train_clip_mini: interrupted; the same command continues"]
    assert 0.2 <= state["elapsed"] < 60 and state["step"] >= 2
    assert resumed.code == 0, resumed.stderr
    assert resumed.document["steps"] > state["step"]
    assert resumed.document["folder"] == str(out / "clip_mini")
    (row,) = table(out / "loss.csv", LOSS)
    assert int(row["step"]) == resumed.document["steps"] and float(row["loss"]) > 0
    ranks = table(out / "ranks.csv", RANKS)
    assert {row["step"] for row in ranks} == {str(state["step"]), row["step"]}
    assert {(row["tier"], row["kind"]) for row in ranks} == {
        (tier, kind) for tier in ("easy", "medium", "hard") for kind in PERTURBATIONS
    }
    assert json.loads((out / "run.json").read_text())["size"] == "toy"


def test_the_card_says_what_was_done(trained):
    out, _, _, resumed = trained
    card = (out / "clip_mini" / "README.md").read_text()
    assert f"{resumed.document['steps']} steps of 1 groups" in card
    assert "$" not in card and "2 layers of width 64, patches of 32 px" in card


def test_a_finished_training_only_writes_its_folder_again(trained, run_here, tmp_path):
    out, _, state, resumed = trained
    options = [*SMALL.split(), "--out", str(out), "--seconds", f"{state['elapsed'] + 0.1}"]
    again = run_here("train_clip_mini", *options, "--folder", str(tmp_path / "again"))
    assert again.code == 0, again.stderr
    assert again.document["steps"] == resumed.document["steps"]
    name = "open_clip_model.safetensors"
    assert (tmp_path / "again" / name).read_bytes() == (out / "clip_mini" / name).read_bytes()


def test_the_scorer_takes_the_folder(trained, tmp_path):
    folder = trained[0] / "clip_mini"
    scorer = dataclasses.replace(SCORERS["clip_mini"], backbone=f"local-dir:{folder}")
    assert scorer.obstacle() is None
    samples = []
    for prompt in load_prompts(ROOT / "prompts" / "mini_medium.jsonl")[:3]:
        path = tmp_path / f"{prompt.id}.png"
        draw_poster(make_poster("medium", prompt.seed, held_out=True)).save(path)
        samples.append(Sample(prompt, path, None, 0.0))
    values = scorer.score(samples)
    assert np.isfinite(values).all() and (values >= 0).all()
    # the mini's prompts have no idea, and their content is cut nowhere
    assert scorer.text_record(samples) == {
        "score_text": "content",
        "texts": 3,
        "texts_truncated": 0,
        "tokens_cut": 0,
    }


def test_the_check_writes_rows_and_page(trained, run_here, tmp_path):
    folder, results = trained[0] / "clip_mini", tmp_path / "results"
    options = ["--folder", str(folder), "--results", str(results), "--n", "2"]
    ended = run_here("check_clip_mini", *options, "--sets", "mini_easy", "mini_hard")
    assert ended.code == 0, ended.stderr
    rows = table(results / "mini" / "clip_mini.csv", ["set", *RANKS[2:]])
    assert [(row["set"], row["kind"]) for row in rows] == [
        (name, kind) for name in ("mini_easy", "mini_hard") for kind in PERTURBATIONS
    ]
    page = (results / "tables" / "clip_mini.md").read_text()
    assert page.count("| mini_hard |") == 5 and page in ended.stdout
    assert ended.document["rows"] == 10 and len(ended.document["sha256"]) == 64


def test_without_a_model_the_check_says_so(run_here, tmp_path):
    ended = run_here("check_clip_mini", "--folder", str(tmp_path), "--n", "1")
    assert ended.code == 2
    assert "clip_mini not measured" in ended.lines[0] and len(ended.lines) == 1


def test_only_what_is_surely_ranked_is_judged():
    import pandas as pd

    def row(kind, low, name="mini_easy"):
        rank = Rank(kind, 200, 0.95, low, 0.99, 41.25, 3.21)
        return {"set": name} | dataclasses.asdict(rank)

    rows = [row(kind, LEAST) for kind in PERTURBATIONS if kind != "letter"]
    rows += [row("letter", LEAST - 0.001), row("moved", 0.5, "mini_hard")]
    page = render(pd.DataFrame(rows))
    assert "| mini_easy | another word | 200 | 95.0 [90.0, 99.0] | 41.2 | 3.2 | yes |" in page
    assert "| mini_easy | another letter | 200 | 95.0 [89.9, 99.0] | 41.2 | 3.2 | no |" in page
    judged = "another word, another colour, blurred by 3 px"
    assert page.endswith(f"\nJudged on every set: {judged}.\n")


def test_the_posters_are_the_prompts(monkeypatch):
    prompts = load_prompts(ROOT / "prompts" / "mini_hard.jsonl")[:5]
    assert [p.texts for p in posters_of("mini_hard", prompts)] == [p.texts for p in prompts]
    with pytest.raises(AssertionError, match="hard-000: the poster's seed is not the prompt's"):
        posters_of("mini_hard", [dataclasses.replace(prompts[0], seed=1)])


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (["--groups", "0"], "--groups must be positive, got 0; correct it"),
        (["--every-seconds", "-1"], "--every-seconds must be positive, got -1.0; correct it"),
        (["--groups", "2", "--blurred", "17"], "--blurred must be in [0, 16] and --workers 0 or"),
    ],
)
def test_a_wrong_number_is_named(run_here, tmp_path, option, message):
    ended = run_here("train_clip_mini", "--out", str(tmp_path / "none"), *option)
    assert ended.code == 2 and message in ended.lines[0]
    assert not (tmp_path / "none").exists()
