import pytest
import torch

from dit8.quant.errors import UserError
from dit8.quant.rounding import round_linears, round_weight


def test_rounding_follows_the_equation_half_to_even():
    # Q = 7 at 4 bits and rowmax 7, so s = 1 and codes are the rounded values
    weight = torch.tensor([[7.0, 0.5, 1.5, -2.5, 0.4], [-14.0, 1.0, 3.0, 5.0, 0.0]])
    expected = torch.tensor([[7.0, 0.0, 2.0, -2.0, 0.0], [-14.0, 0.0, 4.0, 4.0, 0.0]])
    assert torch.equal(round_weight(weight, 4), expected)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_a_row_takes_no_more_values_than_its_bits_allow(bits):
    weight = torch.randn(16, 2000)
    rounded = round_weight(weight, bits)
    most = 2**bits - 1  # symmetric: the code -2^(bits-1) is not used
    assert max(len(row.unique()) for row in rounded) <= most
    assert min(len(row.unique()) for row in rounded) > most // 2
    scale = weight.abs().amax(1, keepdim=True) / (2 ** (bits - 1) - 1)
    # half a step, and an fp32 rounding of the division and the product
    assert ((rounded - weight).abs() <= 0.5 * scale * (1 + 1e-5)).all()


def test_more_bits_lose_less():
    weight = torch.randn(32, 64)
    errors = [float((round_weight(weight, bits) - weight).norm()) for bits in range(2, 9)]
    assert errors == sorted(errors, reverse=True) and errors[-1] < 0.01 * errors[0]


def test_rows_of_zeros_and_dtypes_stay():
    weight = torch.zeros(2, 8, dtype=torch.bfloat16)
    weight[1, 3] = 0.75
    rounded = round_weight(weight, 4)
    assert rounded.dtype == torch.bfloat16 and torch.equal(rounded, weight)


@pytest.mark.parametrize("bits", [1, 9, 0])
def test_bits_out_of_range_are_refused(bits):
    with pytest.raises(UserError, match=f"bits must lie in 2..8, got {bits}"):
        round_weight(torch.ones(2, 2), bits)


def test_block_linears_are_rounded_in_place_and_the_projection_stays(tiny):
    branch = tiny.make_branch(0)
    before = {name: value.clone() for name, value in branch.state_dict().items()}
    assert round_linears(branch, tiny.architecture, 4) == 2 * 7
    blocks = {t for g in tiny.architecture.groups if g.role == "block" for t in g.targets}
    for name, value in branch.state_dict().items():
        linear = name.removesuffix(".weight")
        block = linear in blocks
        assert torch.equal(value, round_weight(before[name], 4) if block else before[name])
        assert torch.equal(value, before[name]) != block
