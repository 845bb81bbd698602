import pytest
import torch

from dit8.eval.gemm_rows import PATHS
from dit8.kernels.int8_gemm import accumulate
from dit8.quant.int8 import quantize_weight
from dit8.quant.linear import Int8Linear
from dit8.scripts.gemm_paths import OWN, Declined, draw_operands, fp8_rows, int_sums

BUILD = {path.name: path.build for path in OWN}
CPU = torch.device("cpu")


@pytest.fixture
def operands():
    return draw_operands(20, 48, 160, CPU)


def test_operands_are_random_and_uneven(operands):
    assert operands.sizes == (20, 48, 160)
    assert operands.x.dtype == operands.w.dtype == torch.bfloat16
    assert (operands.codes == 0).float().mean() < 0.05
    assert operands.x_scale.max() / operands.x_scale.min() > 3
    assert torch.equal(operands.w_codes, quantize_weight(operands.w)[0])
    again = draw_operands(20, 48, 160, CPU)
    assert torch.equal(operands.x, again.x)


def test_a_clone_is_the_same_elsewhere(operands):
    clone = operands.clone()
    assert torch.equal(clone.w_codes, operands.w_codes)
    assert clone.w_codes.data_ptr() != operands.w_codes.data_ptr()
    assert clone.x.data_ptr() != operands.x.data_ptr()


@pytest.mark.parametrize("name", BUILD)
def test_a_path_makes_the_calls_that_the_table_lists(operands, name):
    assert tuple(BUILD[name](operands)) == PATHS[name]


def test_the_paths_are_the_linear_they_stand_for(operands):
    for name, gemm in (("dit8_quant", "fused"), ("fake_quant", "fake_quant")):
        linear = Int8Linear(operands.w_codes, operands.w_scale, gemm=gemm)
        assert torch.equal(BUILD[name](operands)["quant_gemm"](), linear(operands.x))


def test_unfused_is_fused_up_to_nothing_on_a_cpu(operands):
    """Same sums, same order of the scales, one rounding."""
    fused = BUILD["dit8"](operands)["gemm"]()
    for what in ("gemm", "quant_gemm"):
        assert torch.equal(BUILD["unfused"](operands)[what](), fused)


@pytest.mark.parametrize("m", [1, 16])
def test_few_rows_are_declined(m):
    for name in ("int_mm", "unfused"):
        with pytest.raises(Declined, match="takes more than 16 rows"):
            BUILD[name](draw_operands(m, 48, 64, CPU))


@pytest.mark.parametrize("m", [1, 17])
def test_sums_are_exact(m):
    operands = draw_operands(m, 48, 64, CPU)
    expected = accumulate(operands.codes, operands.w_codes)
    assert torch.equal(int_sums(operands), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("m", [1, 17])
def test_sums_are_exact_on_a_gpu(m):
    operands = draw_operands(m, 48, 64, torch.device("cuda"))
    expected = accumulate(operands.codes.cpu(), operands.w_codes.cpu())
    assert torch.equal(int_sums(operands).cpu(), expected)


def test_fp8_rows_use_the_whole_range():
    codes, scale = fp8_rows(torch.tensor([[1.0, -4.0], [0.0, 0.0]]).bfloat16())
    assert codes.float().tolist() == [[112.0, -448.0], [0.0, 0.0]]
    assert scale[0, 0] == pytest.approx(4 / 448)
    assert scale.isfinite().all() and scale.dtype == torch.float32
