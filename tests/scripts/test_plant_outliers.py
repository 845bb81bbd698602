"""scripts/plant_outliers.py derives a model that draws the same and is labelled."""

import json
import threading
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from dit8.eval.ledger import SCORES, read_table
from dit8.models.artifacts import open_model
from dit8.models.planted import plant_model
from dit8.quant.calibrate import load_stats
from dit8.quant.files import locked
from dit8.scripts.cli import compose


@pytest.fixture
def planting(place, tiny_model):
    """Overrides of the planted model; the later model.path wins over the natural one's."""
    target = place.folder / "planted"
    named = ["model=mini_planted", f"model.plant.source={tiny_model}", f"model.path={target}"]
    return target, lambda options: [*(o for o in options if "model.path" not in o), *named]


def test_planted_once_then_refused(place, planting, run_script, run_here, one_sentence):
    target, planted = planting
    ended = run_script("plant_outliers", *planted(place.common), cwd=place.folder)
    assert ended.code == 0, ended.stderr
    assert ended.lines == [f"model mini_planted is missing, planting it in {target}"]
    document = ended.document
    assert document["model"] == str(target) and len(document["key"]) == 12
    # 1 % of 128, 128, 128 and 256 (rounded to 1, 1, 1, 3) in two blocks, 4 of 416 text features
    assert document["channels"] == {"conditional": 16, "unconditional": 16}
    record = json.loads((target / "planted.json").read_text())
    assert record["factors"] == [8.0, 16.0, 32.0, 64.0]
    again = run_here("plant_outliers", *planted(place.common))
    one_sentence(again, "plant_outliers", "exists already; delete it or change model.path")


def test_two_jobs_plant_it_once(place, planting):
    """Who comes second waits and finds the folder, which is not planted over."""
    target, planted = planting
    config = compose("plant_outliers", planted(place.common)).model
    plan, found = asdict(config.plant), []
    source = Path(plan.pop("source"))
    with locked(target):
        thread = threading.Thread(target=lambda: found.append(open_model(config)))
        thread.start()
        thread.join(0.5)
        assert thread.is_alive() and not target.exists()
        plant_model(source, target, **plan)
    thread.join(30)
    assert found[0].folder == target


def test_a_model_without_a_plan_is_refused(place, run_here, one_sentence):
    ended = run_here("plant_outliers", *place.common, "model=mini")
    one_sentence(ended, "plant_outliers", "model mini has no plan.*use model=mini_planted")


def test_evaluation_labels_it_and_draws_what_the_natural_model_draws(
    place, drawn, planting, run_here
):
    target, planted = planting
    ended = run_here("evaluate", *planted(place.evaluation), "variant=int8")
    assert ended.code == 0, ended.stderr
    assert ended.lines[0] == f"model mini_planted is missing, planting it in {target}"
    assert "Model mini_planted, prompts mini_hard" in ended.stdout
    rows = read_table(place.results / "scores.csv", SCORES)
    assert set(rows["model"]) == {"mini_planted"}
    runs = {name: group["run_id"].iloc[0] for name, group in rows.groupby("variant")}
    assert runs["bf16"] != drawn.documents["bf16"]["run_id"]
    for path in drawn.folder("bf16").glob("*.safetensors"):
        natural = load_file(path)["latents"]
        assert torch.equal(load_file(place.out / runs["bf16"] / path.name)["latents"], natural)

    def crest(folder):
        (path,) = folder.glob("calibration-*")
        peaks = [t.amax(0) for t in load_stats(path).step_absmax.values()]
        return min(float(peak.max() / peak.median()) for peak in peaks)

    # every activation has a channel at least 8 times larger than before
    assert crest(place.folder / "checkpoints" / "mini_planted") > 4
    assert crest(drawn.place.checkpoints) < 2
