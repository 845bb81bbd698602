import pytest

from dit8.eval.shards import WHOLE, Shard, parse_shard
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
