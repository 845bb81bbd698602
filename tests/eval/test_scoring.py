import dataclasses

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from eval.ledger import SCORES, read_table
from eval.records import RunKey
from eval.runs import Run
from eval.scorers import SCORERS
from eval.scoring import rows_of, score_run
from quant.errors import UserError

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


def forbid(monkeypatch, name):
    """Let a scorer fail when it is asked again."""

    class Forbidden:
        needs_reference = SCORERS[name].needs_reference

        def score(self, *_):
            raise AssertionError(f"{name} was computed again")

    Forbidden.name = name
    monkeypatch.setitem(SCORERS, name, Forbidden())


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


def test_what_the_ledger_has_is_not_computed_again(runs, ledger, monkeypatch):
    reference, run = runs
    score_run(run, reference, ["psnr"], ledger)
    before = ledger.read_bytes()
    forbid(monkeypatch, "psnr")
    score_run(run, reference, ["psnr"], ledger)
    assert ledger.read_bytes() == before
    with pytest.raises(AssertionError, match="psnr was computed again"):
        score_run(run, reference, ["psnr"], ledger, overwrite=True)


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
    longer = dataclasses.replace(again, samples=slower + (dataclasses.replace(slower[0], seed=9),))
    partners = (*reference.samples, dataclasses.replace(reference.samples[0], seed=9))
    reference = dataclasses.replace(reference, samples=partners)
    with pytest.raises(UserError, match="has other values for 1 rows.*pass overwrite"):
        score_run(longer, reference, ["psnr"], ledger)
    score_run(longer, reference, ["psnr"], ledger, overwrite=True)
    score_run(again, reference, ["seconds"], ledger)
    seconds = rows_of(ledger, [run.key.run_id], ["seconds"])
    assert seconds["value"].tolist() == [2.5] * 3


def test_reading_is_scored_with_the_asked_processes(runs, ledger, monkeypatch):
    asked = []

    def watch(paths, workers, threads):
        asked.append(workers)
        from eval.reading import Reading

        return [Reading(()) for _ in paths]

    monkeypatch.setattr("eval.scorers.ocr.read_files", watch)
    score_run(runs[0], None, ["ocr_exact", "ocr_ned"], ledger, readers=3)
    assert asked == [3, 3]
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
