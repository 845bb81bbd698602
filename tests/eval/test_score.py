import dataclasses
import re

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dit8.eval.ledger import SCORES, read_table
from dit8.eval.run import Run, RunKey
from dit8.eval.score import (
    Outcome,
    Settings,
    check_values,
    measured_everywhere,
    outcome_document,
    read_entries,
    rows_of,
    score_run,
)
from dit8.eval.scorers import SCORERS
from dit8.quant.errors import UserError

RELATIVE = ("psnr", "ssim", "latent_error")


def key(run_id, variant):
    return RunKey(run_id, "mini", variant, "none", "torch", "float32", "torch-cpu", "mini_easy")


@pytest.fixture
def runs(make_sample, tmp_path):
    """Two runs of three pictures, of which the second differs by 5 codes and 10 % of latents."""

    def run(run_id, variant, shift, reference):
        samples = []
        for i in range(3):
            pixels = np.full((32, 32, 3), 100 + shift, dtype=np.uint8)
            pixels[i] = 7
            sample = make_sample(pixels, f"p{i}", i, folder=variant)
            latents = tmp_path / variant / f"{i}.safetensors"
            save_file({"latents": torch.full((4, 4), 1 + shift / 50)}, latents)
            samples.append(dataclasses.replace(sample, latents_path=latents))
        return Run(key(run_id, variant), tuple(samples), reference)

    return run("0" * 12, "bf16", 0, None), run("1" * 12, "int8", 5, "0" * 12)


@pytest.fixture
def ledger(tmp_path):
    return tmp_path / "scores.csv"


@dataclasses.dataclass(frozen=True)
class Stand:
    """A scorer whose answers the test chooses."""

    name: str
    answer: object = 0.5
    higher_is_better: bool = True
    unit: str = "u"
    bounds: tuple = (0.0, 1.0)
    preprocessing: str = "none"
    needs_reference: bool = False
    lacking: str | None = None
    score_text: str = "idea"
    facts: tuple = ()

    def obstacle(self):
        return self.lacking

    def identity(self):
        return {"score_text": self.score_text, **dict(self.facts)}

    def score(self, samples, references=None):
        if isinstance(self.answer, Exception):
            raise self.answer
        return np.broadcast_to(np.asarray(self.answer, dtype=np.float64), (len(samples),))


@pytest.fixture
def stand(monkeypatch):
    """Return a function that puts a scorer of the test's own among the scorers."""

    def put(name="stand", **how):
        monkeypatch.setitem(SCORERS, name, Stand(name, **how))
        return name

    return put


def forbid(stand, name):
    """Let a scorer fail when it is asked again."""
    scorer = SCORERS[name]
    shared = {key: getattr(scorer, key) for key in ("bounds", "needs_reference")}
    facts = tuple(scorer.identity().items())
    return stand(name, answer=AssertionError(f"{name} was computed again"), facts=facts, **shared)


def test_scores_become_rows_of_the_run(runs, ledger):
    reference, run = runs
    score_run(run, reference, [*RELATIVE, "seconds"], ledger)
    rows = read_table(ledger, SCORES)
    assert len(rows) == 12 and set(rows["run_id"]) == {run.key.run_id}
    assert set(rows["variant"]) == {"int8"}
    values = rows.set_index(["scorer", "prompt_id"])["value"]
    for i in range(3):
        assert values["latent_error", f"p{i}"] == pytest.approx(0.1)
        # 31 of 32 rows are off by 5 codes
        assert values["psnr", f"p{i}"] == pytest.approx(10 * np.log10(255**2 / (25 * 31 / 32)))
        assert values["seconds", f"p{i}"] == 1.5
    assert rows[rows["prompt_id"] == "p2"]["seed"].tolist() == [2] * 4


def test_the_reference_gets_no_relative_scores(runs, ledger):
    score_run(runs[0], None, [*RELATIVE, "seconds"], ledger)
    assert set(read_table(ledger, SCORES)["scorer"]) == {"seconds"}


def test_what_the_ledger_has_is_not_computed_again(runs, ledger, stand, capsys):
    reference, run = runs
    score_run(run, reference, ["ssim"], ledger)
    record = ledger.parent / "runs" / f"{run.key.run_id}.json"
    before = ledger.read_bytes(), record.read_bytes()
    record.unlink()  # rows older than the record are trusted
    forbid(stand, "ssim")
    assert score_run(run, reference, ["ssim"], ledger) == [Outcome("ssim", "measured")]
    record.write_bytes(before[1])
    (outcome,) = score_run(run, reference, ["ssim"], ledger, Settings(overwrite=True))
    assert outcome.status == "failed" and "ssim was computed again" in outcome.reason
    assert (ledger.read_bytes(), record.read_bytes()) == before


def test_rows_that_are_missing_are_added(runs, ledger):
    reference, run = runs
    first = dataclasses.replace(run, samples=run.samples[:1])
    score_run(first, reference, ["psnr"], ledger)
    score_run(run, reference, ["psnr"], ledger)
    assert read_table(ledger, SCORES)["prompt_id"].tolist() == ["p0", "p1", "p2"]


def test_a_row_that_differs_needs_overwrite_unless_it_is_a_time(runs, ledger, make_sample):
    reference, run = runs
    score_run(run, reference, ["psnr", "seconds"], ledger)
    make_sample(np.full((32, 32, 3), 120, dtype=np.uint8), "p0", 0, folder="int8")
    slower = tuple(dataclasses.replace(sample, seconds=2.5) for sample in run.samples)
    again = dataclasses.replace(run, samples=slower)
    # complete rows are trusted; one more picture makes the scorer look at all of them
    prompt = dataclasses.replace(slower[0].prompt, seed=9)
    longer = dataclasses.replace(
        again, samples=(*slower, dataclasses.replace(slower[0], prompt=prompt))
    )
    partners = (*reference.samples, dataclasses.replace(reference.samples[0], prompt=prompt))
    reference = dataclasses.replace(reference, samples=partners)
    failed, ended = score_run(longer, reference, ["psnr", "ssim"], ledger)
    assert (failed.status, ended.status) == ("failed", "measured")  # the others go on
    assert re.search("has other values for 1 rows.*pass overwrite", failed.reason)
    assert rows_of(ledger, [run.key.run_id], ["psnr"]).shape[0] == 3
    score_run(longer, reference, ["psnr"], ledger, Settings(overwrite=True))
    score_run(again, reference, ["seconds"], ledger)
    seconds = rows_of(ledger, [run.key.run_id], ["seconds"])
    assert seconds["value"].tolist() == [2.5] * 3


def test_reading_is_scored_with_the_asked_processes(runs, ledger, monkeypatch):
    asked = []

    def watch(paths, workers, threads, reader):
        asked.append((workers, reader))
        from dit8.eval.reading import Reading

        return [Reading(()) for _ in paths]

    monkeypatch.setattr("dit8.eval.scorers.ocr.read_files", watch)
    score_run(runs[0], None, ["ocr_exact", "ocr_ned"], ledger, Settings(readers=3))
    assert asked == [(3, "rapidocr"), (3, "rapidocr")]
    assert SCORERS["ocr_exact"].workers == 1  # the shared scorer stays as it was
    values = read_table(ledger, SCORES).groupby("scorer")["value"].mean()
    assert values.to_dict() == {"ocr_exact": 0.0, "ocr_ned": 1.0}


def test_an_unknown_scorer_is_refused_before_any_is_computed(runs, ledger):
    with pytest.raises(UserError, match="scorer 'fid' does not exist"):
        score_run(runs[0], None, ["seconds", "fid"], ledger)
    assert not ledger.exists()


def test_rows_of_picks_runs_and_scorers(runs, ledger):
    reference, run = runs
    score_run(reference, None, ["seconds"], ledger)
    score_run(run, reference, ["psnr", "seconds"], ledger)
    assert len(rows_of(ledger, [reference.key.run_id], ["seconds", "psnr"])) == 3
    assert len(rows_of(ledger, [run.key.run_id], ["psnr"])) == 3
    both = rows_of(ledger, [reference.key.run_id, run.key.run_id], ["seconds"])
    assert set(both["variant"]) == {"bf16", "int8"} and len(both) == 6


def test_what_the_scores_mean_is_recorded(runs, ledger):
    reference, run = runs
    score_run(run, reference, ["psnr", "latent_error"], ledger)
    entries = read_entries(ledger.parent / "runs", run.key.run_id)
    psnr = entries["psnr"]
    assert psnr["status"] == "measured" and psnr["pictures"] == 3
    assert psnr["direction"] == "higher is better" and psnr["unit"] == "dB"
    assert psnr["range"] == [0.0, 100.0] and psnr["needs_reference"] is True
    assert psnr["preprocessing"] == SCORERS["psnr"].preprocessing
    assert psnr["identity"] == SCORERS["psnr"].identity()
    assert entries["latent_error"]["direction"] == "lower is better"
    assert entries["latent_error"]["range"] == [0.0, None]


def test_cut_texts_are_recorded(runs, ledger, monkeypatch):
    @dataclasses.dataclass(frozen=True)
    class Reads(Stand):
        def text_record(self, samples):
            return {"score_text": self.score_text, "texts": len(samples), "tokens_cut": 7}

    monkeypatch.setitem(SCORERS, "stand", Reads("stand"))
    score_run(runs[0], None, ["stand"], ledger, Settings(score_text="caption_json"))
    entry = read_entries(ledger.parent / "runs", runs[0].key.run_id)["stand"]
    assert entry["text"] == {"score_text": "caption_json", "texts": 3, "tokens_cut": 7}
    assert entry["identity"] == {"score_text": "caption_json"}


def test_what_cannot_run_or_fails_does_not_stop_the_others(runs, ledger, stand, capsys):
    reference, run = runs
    names = [
        stand("absent", lacking="not measured: no weights; get them with x"),
        stand("refuses", answer=UserError("refuses: image p1 is damaged; delete it")),
        stand("breaks", answer=ZeroDivisionError("a bug")),
        stand("nan", answer=[0.5, np.nan, 0.5]),
        stand("beyond", answer=[0.5, 0.5, 1.5]),
        "psnr",
    ]
    outcomes = score_run(run, reference, names, ledger)
    assert outcomes[:2] == [
        Outcome("absent", "not measured", "no weights; get them with x"),
        Outcome("refuses", "failed", "refuses: image p1 is damaged; delete it"),
    ]
    reasons = {o.scorer: o.reason for o in outcomes if o.status == "failed"}
    assert reasons["breaks"] == "breaks: ZeroDivisionError: a bug"
    assert "ZeroDivisionError: a bug" in capsys.readouterr().err  # with its traceback
    assert reasons["nan"].startswith("nan: prompt p1 (seed 1) got nan, expected a number in [0, 1]")
    assert reasons["nan"].endswith(f"look at {run.samples[1].image_path}")
    assert reasons["beyond"].startswith("beyond: prompt p2 (seed 2) got 1.5, expected a number")
    assert outcomes[-1] == Outcome("psnr", "measured")
    assert set(read_table(ledger, SCORES)["scorer"]) == {"psnr"}  # no row of part of the pictures
    entries = read_entries(ledger.parent / "runs", run.key.run_id)
    assert entries["nan"]["status"] == "failed" and entries["nan"]["reason"] == reasons["nan"]
    assert entries["absent"]["reason"] == "no weights; get them with x"
    assert "identity" not in entries["absent"]


def test_another_number_of_values_is_the_scorers_mistake(runs):
    with pytest.raises(ValueError, match=r"stand: 3 values expected, got \(2,\)"):
        check_values(Stand("stand"), runs[0].samples, np.zeros(2))


def test_a_range_is_left_by_rounding_only(runs):
    check_values(Stand("stand"), runs[0].samples, np.array([-(2**-52), 1 + 2**-52, 1.0]))
    with pytest.raises(UserError, match=r"prompt p0 \(seed 0\) got -0.001, expected .* \[0, 1\]"):
        check_values(Stand("stand"), runs[0].samples, np.array([-0.001, 1.0, 1.0]))


def test_a_damaged_picture_fails_the_scorers_that_look_at_it(runs, ledger):
    reference, run = runs
    path = run.samples[1].image_path
    path.write_bytes(path.read_bytes()[:60])
    outcomes = score_run(run, reference, ["ssim", "latent_error", "psnr"], ledger)
    assert [o.status for o in outcomes] == ["failed", "measured", "failed"]
    assert all(f"image {path}: " in o.reason for o in outcomes if o.status == "failed")
    assert set(read_table(ledger, SCORES)["scorer"]) == {"latent_error"}


def test_a_picture_of_another_size_fails_its_scorers(runs, ledger, make_sample):
    reference, run = runs
    make_sample(np.zeros((48, 32, 3), dtype=np.uint8), "p0", 0, folder="int8")
    outcomes = score_run(run, reference, ["psnr", "seconds"], ledger)
    assert [o.status for o in outcomes] == ["failed", "measured"]
    assert "p0_0.png is 32x48 px, expected the size of its reference" in outcomes[0].reason


def test_a_missing_partner_stops_everything(runs, ledger):
    reference, run = runs
    fewer = dataclasses.replace(reference, samples=reference.samples[1:])
    with pytest.raises(UserError, match=r"psnr: 1 of 3 samples have no reference, p0 \(seed 0\)"):
        score_run(run, fewer, ["seconds", "psnr"], ledger)
    assert not ledger.exists()
    assert score_run(run, fewer, ["seconds"], ledger) == [Outcome("seconds", "measured")]


def test_reading_is_scored_where_a_text_is_expected(runs, ledger, monkeypatch):
    from dit8.eval.reading import Reading

    monkeypatch.setattr(
        "dit8.eval.scorers.ocr.read_files", lambda paths, *_: [Reading(())] * len(paths)
    )
    run = runs[0]
    first, *rest = run.samples
    silent = [dataclasses.replace(s, prompt=dataclasses.replace(s.prompt, texts=())) for s in rest]
    some = (first, *silent)
    mixed = dataclasses.replace(run, samples=some)
    assert score_run(mixed, None, ["ocr_ned"], ledger) == [Outcome("ocr_ned", "measured")]
    assert read_table(ledger, SCORES)["prompt_id"].tolist() == ["p0"]
    assert read_entries(ledger.parent / "runs", run.key.run_id)["ocr_ned"]["pictures"] == 1
    # complete, though it has one row for three pictures
    monkeypatch.setattr("dit8.eval.scorers.ocr.read_files", None)
    assert score_run(mixed, None, ["ocr_ned"], ledger) == [Outcome("ocr_ned", "measured")]
    none = dataclasses.replace(run, key=key("2" * 12, "bf16"), samples=some[1:])
    (outcome,) = score_run(none, None, ["ocr_ned"], ledger)
    assert outcome.status == "not measured"
    assert outcome.reason == "no prompt of this set expects a text; choose other prompts"


def test_rows_of_two_definitions_are_not_mixed(runs, ledger, stand):
    run, name = runs[0], stand(facts=(("environment", {"x": "1"}), ("sha256", "aa")))
    score_run(run, None, [name], ledger)
    stand(answer=0.7, facts=(("environment", {"x": "2"}), ("sha256", "aa")))
    assert score_run(run, None, [name], ledger) == [Outcome(name, "measured")]  # kept
    (outcome,) = score_run(run, None, [name], ledger, Settings(score_text="caption_json"))
    assert outcome.status == "failed"
    assert outcome.reason == (
        "stand: the rows of run 000000000000 were made with another definition (score_text was "
        "'idea', is 'caption_json'); keep that one, or pass overwrite to replace the rows"
    )
    stand(facts=(("sha256", "bb"),))
    (outcome,) = score_run(run, None, [name], ledger)
    assert "(sha256 was 'aa', is 'bb')" in outcome.reason
    # where the weights are gone the text is still compared, the rest cannot be
    stand(lacking="not measured: gone; get it")
    assert score_run(run, None, [name], ledger) == [Outcome(name, "measured")]
    (outcome,) = score_run(run, None, [name], ledger, Settings(score_text="content"))
    assert "score_text was 'idea', is 'content'" in outcome.reason
    assert set(read_table(ledger, SCORES)["value"]) == {0.5}
    stand(answer=0.7, facts=(("sha256", "bb"),))
    score_run(run, None, [name], ledger, Settings(overwrite=True))
    assert set(read_table(ledger, SCORES)["value"]) == {0.7}
    entry = read_entries(ledger.parent / "runs", run.key.run_id)[name]
    assert entry["identity"]["sha256"] == "bb"


def test_outcomes_of_a_run_and_its_reference_become_one_answer():
    reference = [Outcome("a", "measured"), Outcome("b", "not measured", "no weights")]
    run = [*reference, Outcome("c", "failed", "c: broke"), Outcome("d", "measured")]
    assert outcome_document(reference, run) == {
        "not_measured": {"b": "no weights"},
        "failed": {"c": "c: broke"},
    }
    assert measured_everywhere(["d", "c", "b", "a"], reference, run) == ["d", "a"]
    assert outcome_document(reference[:1]) == {"not_measured": {}, "failed": {}}
