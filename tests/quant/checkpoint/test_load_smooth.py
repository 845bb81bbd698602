import pytest
import torch

from dit8.quant.checkpoint.load import check_effective_weight
from dit8.quant.errors import UserError
from dit8.quant.int8 import quantize_weight
from dit8.quant.linear import Int8Linear
from dit8.quant.smoothquant import smoothing_scale

N, K = 64, 256


def make(outlier=1.0, seed=0):
    """Make a Gaussian weight and SmoothQuant's scale for an activation with a large channel."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(N, K, generator=generator)
    act = torch.rand(K, generator=generator) + 0.5
    act[7] *= outlier
    return weight, smoothing_scale(act, weight.abs().amax(dim=0), 0.5)


def linear(weight, scale, *, stored_inverse=False):
    codes, scales = quantize_weight(weight * scale)
    return Int8Linear(codes, scales, 1 / scale if stored_inverse else scale)


# A channel 10,000 times as large makes s 100 times, and the step of its rows as many times
# coarser: 27 % of the other weights, which is bad and yet the right reading.
@pytest.mark.parametrize("outlier", [1.0, 30.0, 1000.0, 10000.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_divisor_passes(outlier, dtype):
    weight, scale = make(outlier)
    check_effective_weight(linear(weight, scale), weight.to(dtype), "x", "file")


@pytest.mark.parametrize("outlier", [1.0, 30.0, 1000.0, 10000.0])
def test_the_factor_is_refused_with_both_distances(outlier):
    weight, scale = make(outlier)
    wrong = linear(weight, scale, stored_inverse=True)
    message = (
        r"load_quantized: layers.0 in a \(b\) must approximate the pipeline's weight once its "
        r"columns are divided by .smooth, got a relative difference of \d+\.\d\d \(the opposite "
        r"reading: 0\.\d\d\); invert the vectors$"
    )
    with pytest.raises(UserError, match=message):
        check_effective_weight(wrong, weight, "layers.0", "a (b)")


def test_a_factor_close_to_one_is_refused_with_the_weight_at_hand():
    """Read the wrong way it moves the weight by 20 to 50 %, as large outliers do read rightly."""
    weight, _ = make()
    scale = torch.linspace(0.8, 1.2, K)
    with pytest.raises(UserError, match=r"difference of 0.[2-4]\d .the opp.*; invert the vectors$"):
        check_effective_weight(linear(weight, scale, stored_inverse=True), weight, "x", "file")


def test_another_weight_is_refused():
    weight, scale = make(30.0)
    other, _ = make(30.0, seed=1)
    # two independent weights of one size are sqrt(2) apart
    with pytest.raises(UserError, match="difference of 1.4.*; quantize this model again$"):
        check_effective_weight(linear(weight, scale), other, "x", "file")


def test_without_the_weight_the_columns_tell():
    weight, scale = make(1000.0)
    meta = weight.to("meta")
    check_effective_weight(linear(weight, scale), meta, "x", "file")
    with pytest.raises(UserError, match="x.smooth in file must be the divisor of the activation, "):
        check_effective_weight(linear(weight, scale, stored_inverse=True), meta, "x", "file")


def test_without_the_weight_doubt_is_no_reason_to_refuse():
    """Scales near 1 leave both readings plausible."""
    weight, scale = make(1.0)
    meta = weight.to("meta")
    for is_inverse in (False, True):
        check_effective_weight(linear(weight, scale, stored_inverse=is_inverse), meta, "x", "file")
