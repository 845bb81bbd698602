"""scripts/train_mini.py: the rehearsal of all stages on a CPU, stopped and resumed."""

import csv
import json

import pytest
import torch

from dit8.models.generate import denoise
from dit8.models.pipeline import load_pipeline
from dit8.models.training import branch
from dit8.models.types import Prompt, Sampler
from dit8.scripts.cli import compose

CAPTION = '{"compositional_deconstruction":{"background":"red","elements":[]}}'
LOSS = "stage step samples loss lr samples_per_s seconds".split()
OCR = "stage tier step samples ocr_exact ocr_ned psnr_db n".split()
MAX_BYTES, MAX_FILE_BYTES = 56 * 2**20, 16 * 2**20


def table(path, columns):
    with open(path, newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == columns
    return rows


@pytest.mark.slow
def test_rehearsal_stops_resumes_and_ends_with_a_model(tmp_path, run_script, run_here):
    out = tmp_path / "training"
    pool = [f"pool.{tier}=8" for tier in ("slot", "easy", "medium", "hard")]
    batches = [f"{stage}.batch=4" for stage in ("vae", "conditional", "unconditional")]
    seconds = ["vae.seconds=1", "conditional.seconds=3", "unconditional.seconds=1"]
    options = [f"out={out}", "size=toy", "device=cpu", *pool, *batches, *seconds]
    options += ["conditional.every_seconds=1", "workers=1", "readers=1", "probe=1", "probe_steps=2"]

    stopped = run_script("train_mini", *options, "stop_after=conditional", cwd=tmp_path)
    assert stopped.code == 0, stopped.stderr
    assert stopped.document.pop("seconds") < 60
    assert stopped.document["stage"] == "unconditional"
    assert not (out / "mini").exists() and not (out / "unconditional.safetensors").exists()
    kept = {name: (out / f"{name}.safetensors").read_bytes() for name in ("vae", "conditional")}
    curve = (out / "loss.csv").read_text()

    resumed = run_here("train_mini", *options)
    assert resumed.code == 0, resumed.stderr
    assert resumed.document["stage"] == "done"
    assert resumed.stdout.startswith("stage unconditional, 0 s spent, on cpu\n")
    # what was trained before is not trained again, and the curve goes on below
    assert {name: (out / f"{name}.safetensors").read_bytes() for name in kept} == kept
    assert (out / "loss.csv").read_text().startswith(curve)

    losses = table(out / "loss.csv", LOSS)
    assert {row["stage"] for row in losses} == {"vae", "conditional", "unconditional"}
    assert all(float(row["loss"]) > 0 for row in losses)
    readings = table(out / "ocr.csv", OCR)
    assert {row["stage"] for row in readings} == {"reference", "reconstruction", "conditional"}
    assert {row["tier"] for row in readings} == {"easy", "medium", "hard"}
    steps = {int(row["step"]) for row in readings if row["stage"] == "conditional"}
    assert len(steps) >= 2  # at least one evaluation on the way, and the last

    record = json.loads((out / "run.json").read_text())
    assert record["stage"] == "done" and record["config"]["pool"]["hard"] == 8
    weights = list(out.glob("*.safetensors"))
    assert max(path.stat().st_size for path in weights) < MAX_FILE_BYTES
    assert sum(path.stat().st_size for path in weights) < MAX_BYTES
    assert not list(out.glob("*.partial"))

    pipeline = load_pipeline(out / "mini", "float32", "float32", torch.device("cpu"))
    assert type(pipeline).__name__ == "Ideogram4Pipeline"
    trained = torch.stack([p.abs().max() for p in pipeline.transformer.final_layer.parameters()])
    assert trained.max() > 0  # as built the output is zero
    model = compose("evaluate", []).model
    sampler = Sampler(
        "two", 2, model.guidance, model.final_guidance, 1, 0.0, 1.75, 64, model.max_sequence_length
    )
    (image,), latents = denoise(pipeline, [Prompt("a", CAPTION, (), 0)], sampler)
    assert image.size == (64, 64) and torch.isfinite(latents).all()


@pytest.mark.slow
def test_a_stage_in_the_middle_resumes_from_its_step(tmp_path, run_here, monkeypatch):
    """Stopped within a stage, training goes on from the last evaluation, not from its start."""
    out = tmp_path / "training"
    pool = [f"pool.{tier}=4" for tier in ("slot", "easy", "medium", "hard")]
    batches = [f"{stage}.batch=2" for stage in ("vae", "conditional", "unconditional")]
    options = [f"out={out}", "size=toy", "device=cpu", *pool, *batches, "workers=1", "readers=0"]
    options += ["probe=1", "probe_steps=1", "vae.seconds=0.1", "conditional.seconds=2.0"]
    options += ["conditional.every_seconds=0.2", "stop_after=conditional"]
    genuine, calls = branch.flow_loss, []

    def stops(*arguments):
        calls.append((out / "state.json").read_text())
        if json.loads(calls[-1])["step"] > 0:
            raise KeyboardInterrupt
        return genuine(*arguments)

    monkeypatch.setattr(branch, "flow_loss", stops)
    stopped = run_here("train_mini", *options)
    assert stopped.code == 130, stopped.stderr
    assert stopped.lines == ["train_mini: interrupted; the same command continues"]
    state = json.loads((out / "state.json").read_text())
    assert state["stage"] == "conditional" and 0.2 <= state["elapsed"] < 2.0

    monkeypatch.setattr(branch, "flow_loss", genuine)
    resumed = run_here("train_mini", *options)
    assert resumed.code == 0, resumed.stderr
    assert resumed.stdout.startswith(f"stage conditional, {state['elapsed']:.0f} s spent, on cpu\n")
    (row,) = [r for r in table(out / "loss.csv", LOSS) if r["stage"] == "conditional"]
    assert int(row["step"]) > state["step"]
