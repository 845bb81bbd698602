import pytest
import torch

from dit8.quant.calibrate import absmax
from dit8.quant.checkpoint.read import StoredWeight
from dit8.quant.errors import UserError
from dit8.quant.smoothquant import (
    column_absmax,
    fold,
    smoothing_scale,
    snap_power_of_two,
)
from dit8.quant.types import Group


def foldable(tiny):
    return [group for group in tiny.architecture.groups if group.source is not None]


def true_scales(tiny, stats, tensors, branch="conditional", alpha=0.5):
    return {
        group.name: smoothing_scale(
            absmax(stats, f"{branch}/{group.name}"),
            column_absmax([StoredWeight(tensors[f"{name}.weight"]) for name in group.targets]),
            alpha,
        )
        for group in foldable(tiny)
    }


def test_scale_follows_equation_4():
    act = torch.tensor([16.0, 4.0, 0.0, 9.0])
    weights = [
        torch.tensor([[1.0, -4.0, 2.0, 0.0], [0.5, 1.0, 1.0, 0.0]]),
        torch.tensor([[-4.0, 2.0, 1.0, 0.0]]),
    ]
    columns = column_absmax([StoredWeight(weight) for weight in weights])
    assert torch.equal(columns, torch.tensor([4.0, 4.0, 2.0, 0.0]))
    scale = smoothing_scale(act, columns, 0.5)
    # sqrt(16 / 4), sqrt(4 / 4), dead channel, dead column
    assert torch.allclose(scale, torch.tensor([2.0, 1.0, 1.0, 1.0]))
    scale = smoothing_scale(act, columns, 0.75)
    assert scale[0].item() == pytest.approx(16**0.75 / 4**0.25)
    assert torch.equal(smoothing_scale(act, columns, 1.0)[:2], act[:2])


def test_alpha_half_balances_activation_and_weight(tiny, tiny_stats):
    tensors = tiny.make_branch(0).state_dict()
    for group in foldable(tiny):
        act = absmax(tiny_stats, f"conditional/{group.name}")
        scale = true_scales(tiny, tiny_stats, tensors)[group.name]
        columns = torch.cat([tensors[f"{name}.weight"] for name in group.targets]).abs().amax(0)
        # SmoothQuant: at alpha = 0.5 both sides have the same largest magnitude per channel
        torch.testing.assert_close(act / scale, columns * scale, rtol=1e-5, atol=0)


def test_snap_is_exact_and_nearest_in_the_log_domain():
    scale = torch.tensor([1.0, 1.41, 1.42, 3.0, 0.7, 0.75, 2.0**-20, 1e-30, 5e20])
    snapped = snap_power_of_two(scale)
    assert torch.equal(snapped[:7], torch.tensor([1.0, 1.0, 2.0, 4.0, 0.5, 1.0, 2.0**-20]))
    assert torch.equal(torch.frexp(snapped)[0], torch.full((9,), 0.5))
    ratio = (scale.double() / snapped.double()).log2().abs()
    assert ratio.max() <= 0.5 + 1e-6  # sqrt(0.5) itself rounds to fp32


@pytest.mark.parametrize("has_text", [True, False], ids=["conditional", "unconditional"])
def test_true_scales_leave_the_fp64_forward_unchanged(tiny, tiny_stats, has_text):
    branch = tiny.make_branch(0, torch.float64)
    before = tiny.run_branch(branch, has_text=has_text)
    tensors = branch.state_dict()
    scales = true_scales(tiny, tiny_stats, tensors)
    assert all(scale.max() / scale.min() > 1.5 for scale in scales.values())  # they do something
    branch.load_state_dict(fold(tensors, foldable(tiny), scales, exact=False))
    after = tiny.run_branch(branch, has_text=has_text)
    error = (after - before).norm() / before.norm()
    assert error < 1e-9
    assert error > 0  # true scales are no powers of two: an untouched model would give 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_snapped_scales_leave_the_forward_equal_bit_for_bit(tiny, tiny_stats, dtype):
    branch = tiny.make_branch(0, dtype)
    before = tiny.run_branch(branch)
    tensors = {name: tensor.clone() for name, tensor in branch.state_dict().items()}
    scales = true_scales(tiny, tiny_stats, tensors)
    snapped = {name: snap_power_of_two(scale) for name, scale in scales.items()}
    assert all((scale != 1).any() for scale in snapped.values())
    branch.load_state_dict(fold(tensors, foldable(tiny), snapped, exact=True))
    w2 = "layers.0.feed_forward.w2.weight"
    assert not torch.equal(branch.state_dict()[w2], tensors[w2])
    assert torch.equal(tiny.run_branch(branch), before)


def test_unsnapped_scales_are_not_exact_in_bf16(tiny, tiny_stats):
    branch = tiny.make_branch(0, torch.bfloat16)
    before = tiny.run_branch(branch)
    tensors = branch.state_dict()
    scales = true_scales(tiny, tiny_stats, tensors)
    with pytest.raises(UserError, match="must fold without rounding.*smoothing_carrier=explicit"):
        fold(tensors, foldable(tiny), scales, exact=True)
    branch.load_state_dict(fold(tensors, foldable(tiny), scales, exact=False))
    assert not torch.equal(tiny.run_branch(branch), before)


def test_fed_and_feeding_layer_gets_columns_then_rows(tiny):
    torch.manual_seed(0)
    tensors = tiny.make_branch(0, torch.bfloat16).state_dict()
    norm, rows = (
        next(group for group in foldable(tiny) if group.name == name)
        for name in ("layers.0.feed_forward.up", "layers.0.feed_forward.w2")
    )
    scales = {norm.name: torch.rand(128) + 0.5, rows.name: torch.rand(256) + 0.5}
    w3 = tensors["layers.0.feed_forward.w3.weight"]
    columns_first = ((w3 * scales[norm.name]).bfloat16() / scales[rows.name][:, None]).bfloat16()
    rows_first = ((w3 / scales[rows.name][:, None]).bfloat16() * scales[norm.name]).bfloat16()
    assert not torch.equal(columns_first, rows_first)
    for order in ([norm, rows], [rows, norm]):
        folded = fold(tensors, order, scales, exact=False)
        assert torch.equal(folded["layers.0.feed_forward.w3.weight"], columns_first)


def test_fold_divides_a_bias_and_leaves_its_input_alone():
    tensors = {
        "a.weight": torch.ones(2, 3),
        "a.bias": torch.tensor([2.0, 8.0]),
        "b.weight": torch.ones(1, 2),
        "b.bias": torch.ones(1),
    }
    scales = {"x": torch.tensor([2.0, 4.0])}
    changed = fold(tensors, [Group("x", "a", "linear", ("b",))], scales, exact=True)
    assert torch.equal(changed["a.bias"], torch.tensor([1.0, 2.0]))
    assert torch.equal(changed["a.weight"], torch.tensor([[0.5] * 3, [0.25] * 3]))
    assert torch.equal(changed["b.weight"], torch.tensor([[2.0, 4.0]]))
    assert changed["b.bias"] is tensors["b.bias"]
    assert torch.equal(tensors["a.weight"], torch.ones(2, 3))


def test_scale_refuses_statistics_of_another_width():
    with pytest.raises(ValueError, match=r"act_absmax must be \(5,\) like the weight's columns"):
        smoothing_scale(torch.ones(4), torch.ones(5), 0.5)
    weights = [StoredWeight(torch.ones(3, 5)), StoredWeight(torch.ones(3, 4))]
    with pytest.raises(ValueError, match=r"weights must have one K, got \[4, 5\]"):
        column_absmax(weights)
