import pytest
import torch

from dit8.quant.checkpoint.read import StoredWeight
from dit8.quant.errors import UserError
from dit8.quant.recipe import protected_count, rank_layers, rounding_damage


def test_rank_is_by_crest_then_damage_then_name():
    crests = {"a": 2.0, "b": 5.0, "c": 2.0, "d": 2.0, "e": 1.0}
    damages = {"a": 0.1, "b": 0.0, "c": 0.3, "d": 0.1, "e": 9.0}
    assert [layer.name for layer in rank_layers(crests, damages)] == ["b", "c", "a", "d", "e"]


@pytest.mark.parametrize(
    ("protect", "layers", "count"), [("half", 34, 17), ("half", 7, 3), (0, 8, 0), (8, 8, 8)]
)
def test_count(protect, layers, count):
    assert protected_count(protect, layers) == count


def test_count_refuses_more_than_there_are():
    with pytest.raises(UserError, match="protect must be at most 8.*got 9; use half"):
        protected_count(9, 8)


def test_damage_weighs_columns_by_their_input():
    # row maximum 127: the second column rounds to 0 and loses all, the first loses nothing
    weight = StoredWeight(torch.tensor([[127.0, 0.25]]))
    assert rounding_damage(weight, torch.tensor([1.0, 0.0])) == 0.0
    assert rounding_damage(weight, torch.tensor([0.0, 1.0])) == 1.0
    small = rounding_damage(weight, torch.tensor([1.0, 1.0]))
    large = rounding_damage(weight, torch.tensor([1.0, 100.0]))
    assert 0 < small < large < 1
