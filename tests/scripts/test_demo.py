"""scripts/demo.py: the main job, here on the tiny model."""

from pathlib import Path

import pytest
from PIL import Image

from dit8.scripts.demo import demo


def test_demo_writes_table_and_grid_and_draws_once(place, monkeypatch, capsys):
    options = tuple(o for o in [*place.evaluation, "steps=2"] if not o.startswith(("results", "n")))
    target = place.folder / "demo"
    document = demo(4, str(target), options)
    table = (target / "table.md").read_text()
    assert table in capsys.readouterr().out
    assert "Model mini, prompts mini_medium" in table and "latent_error" in table
    for variant in ("bf16", "int8", "fused_int8"):
        assert f"| {variant} " in table
    with Image.open(target / "grid.png") as grid:
        # a row of pictures a variant, and one of differences for the two quantized ones
        assert grid.size == (4 * (64 + 6) - 6, 5 * (64 + 24 + 6))
    assert set(document) == {"checkpoint", "table", "grid", "runs", "seconds"}
    assert document["table"] == str(target / "table.md")
    assert Path(document["checkpoint"]).parent.parent == place.checkpoints
    assert len(set(document["runs"].values())) == 3

    def refuse(*_, **__):
        raise AssertionError("a picture was drawn again")

    monkeypatch.setattr("dit8.models.generate.denoise", refuse)
    again = demo(4, str(target), options)
    assert again["runs"] == document["runs"]
    assert (target / "table.md").read_text() == table


@pytest.mark.parametrize("captions", ["2", "many"])
def test_one_sentence(run_here, one_sentence, captions):
    ended = run_here("demo", captions)
    one_sentence(ended, "demo", f"captions must be a number of at least 3, got '{captions}'")
