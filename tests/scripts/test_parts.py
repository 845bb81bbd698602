"""What the parts of a run leave, and the sum of it."""

import pytest

from dit8.eval.shards import Part, Shard, leave, merge
from dit8.models.generate import Timing

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
