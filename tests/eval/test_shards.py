"""Shards of a run, what each leaves, and the sum of it."""

import pytest

from dit8.eval.shards import WHOLE, Part, Shard, leave, merge, parse_shard
from dit8.models.generate import Timing
from dit8.models.types import Prompt
from dit8.quant.errors import UserError

PROMPTS = [Prompt(f"p{i}", "{}", (), 0) for i in range(11)]


def batches(prompts, batch):
    ids = [int(prompt.id[1:]) for prompt in prompts]
    return [tuple(ids[start : start + batch]) for start in range(0, len(ids), batch)]


@pytest.mark.parametrize("batch", [1, 2, 4, 11, 50])
@pytest.mark.parametrize("count", [1, 2, 3, 7])
def test_shards_deal_out_the_batches_of_the_whole(batch, count):
    whole = batches(PROMPTS, batch)
    parts = [batches(Shard(i, count).of(PROMPTS, batch), batch) for i in range(count)]
    assert sorted(sum(parts, [])) == whole
    assert max(map(len, parts)) - min(map(len, parts)) <= 1


def test_a_shard_splits_into_shards():
    pieces = Shard(1, 3).split(2)
    assert [str(piece) for piece in pieces] == ["1/6", "4/6"]
    ids = {p.id for piece in pieces for p in piece.of(PROMPTS, 1)}
    assert ids == {p.id for p in Shard(1, 3).of(PROMPTS, 1)}


def test_a_shard_is_read_from_the_command_line():
    assert parse_shard(None) == WHOLE and WHOLE.is_whole
    assert parse_shard("0/4") == Shard(0, 4) and not Shard(0, 4).is_whole
    assert parse_shard("0/1").is_whole


@pytest.mark.parametrize("text", ["4/4", "1", "a/b", "-1/4", "0/0", "1/2/3", ""])
def test_a_shard_of_another_form_is_refused(text):
    with pytest.raises(UserError, match=r"shard must look like 0/4, the first of four, up to 3/4"):
        parse_shard(text)


EARLY = Part(Timing((3.0,), (1.0, 1.0)), "2026-01-01T10:00:00+00:00", 5.0, ("NVIDIA H200",))
LATE = Part(Timing((4.0,), (2.0,)), "2026-01-01T12:00:00+00:00", 7.0, ("NVIDIA A100",))


def test_parts_are_summed_from_the_first_start(tmp_path):
    leave(LATE, Shard(0, 2), tmp_path)
    leave(EARLY, Shard(1, 2), tmp_path)
    whole, files = merge(Part(), tmp_path)
    assert sorted(whole.timing.image_ms) == [3.0, 4.0] and len(whole.timing.step_ms) == 3
    assert (whole.started, whole.seconds) == (EARLY.started, 12.0)
    assert whole.gpus == ("NVIDIA A100", "NVIDIA H200")
    assert len(files) == 2 and all(path.exists() for path in files)


@pytest.mark.parametrize("order", [(EARLY, LATE), (LATE, EARLY)])
def test_a_part_that_was_stopped_is_kept_with_its_second_half(tmp_path, order):
    for part in order:
        leave(part, Shard(0, 2), tmp_path)
    whole, (_,) = merge(Part(), tmp_path)
    assert (whole.started, whole.seconds, len(whole.timing.image_ms)) == (EARLY.started, 12.0, 2)


def test_one_kind_of_gpu_is_named_once_and_nothing_drawn_is_nothing(tmp_path):
    assert (EARLY + EARLY).gpus == ("NVIDIA H200",)
    assert merge(EARLY, tmp_path) == (EARLY, []) and Part() + Part() == Part()
