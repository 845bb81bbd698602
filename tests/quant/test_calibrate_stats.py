import dataclasses

import pytest
import torch

from dit8.quant.calibrate import (
    absmax,
    channel_crest,
    load_stats,
    max_crest,
    save_stats,
    step_absmax,
)
from dit8.quant.checkpoint.tensor_file import write_tensors
from dit8.quant.errors import UserError
from dit8.quant.types import ActStats

STATS = ActStats(
    step_absmax={"conditional/x": torch.tensor([[1.0, 2.0, 9.0], [4.0, 4.0, 4.0]])},
    rows={"conditional": 5},
    done=("b", "é"),
    total=3,
    model_key="m",
    prompts_key="p",
)


def test_absmax_is_over_steps_and_crest_per_step():
    assert torch.equal(absmax(STATS, "conditional/x"), torch.tensor([4.0, 4.0, 9.0]))
    crest = channel_crest(step_absmax(STATS, "conditional/x"))
    assert crest.tolist() == [4.5, 1.0]
    # the crest of the maxima over steps is only 9 / 4: the one bad step must not be averaged away
    assert max_crest(STATS, "conditional/x") == 4.5


def test_crest_of_dead_channels():
    # zeros stay out of the median: 8 / 2, not 8 / 0
    assert channel_crest(torch.tensor([0.0, 0.0, 0.0, 2.0, 8.0, 1.0])).item() == 4.0
    assert channel_crest(torch.zeros(2, 4)).tolist() == [1.0, 1.0]
    assert channel_crest(torch.tensor([1.0, 3.0])).item() == 1.5  # even count: mean of the middle


def test_statistics_survive_the_file(tmp_path):
    path = tmp_path / "deep" / "s.safetensors"
    save_stats(STATS, path)
    read = load_stats(path)
    assert torch.equal(read.step_absmax["conditional/x"], STATS.step_absmax["conditional/x"])
    blank = {"step_absmax": {}}
    assert dataclasses.replace(read, **blank) == dataclasses.replace(STATS, **blank)
    assert [entry.name for entry in path.parent.iterdir()] == ["s.safetensors"]


def test_refuses_what_is_no_statistics_file(tmp_path):
    path = tmp_path / "s.safetensors"
    with pytest.raises(UserError, match="no activation statistics 2 file.*scripts/calibrate.py"):
        load_stats(path)
    write_tensors(path, {}, "activation statistics 99", {})
    with pytest.raises(UserError, match="kind 'activation statistics 2', got .*99'; make it anew"):
        load_stats(path)


def test_refuses_an_activation_that_is_not_there():
    with pytest.raises(UserError, match="no activation 'conditional/y'.*calibrate the model"):
        absmax(STATS, "conditional/y")
