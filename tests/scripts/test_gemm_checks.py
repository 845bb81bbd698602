import pytest
import torch

from dit8.quant.errors import UserError
from dit8.scripts import gemm_checks
from dit8.scripts.gemm_checks import CLOSE, Checker, check_close, check_epilogue, poisoned
from dit8.scripts.gemm_paths import OWN, Declined, draw_operands, int_sums, scale_sums

PATHS = {path.name: path for path in OWN}


@pytest.fixture
def operands():
    return draw_operands(17, 48, 160, torch.device("cpu"))


def test_new_memory_is_full_of_nan_inside_only():
    with poisoned():
        assert torch.empty(4, dtype=torch.bfloat16).isnan().all()
        assert torch.zeros(1).new_empty(4).isnan().all()
        assert torch.are_deterministic_algorithms_enabled()
    assert not torch.are_deterministic_algorithms_enabled()


def test_poisoning_ends_where_a_path_raises():
    with pytest.raises(RuntimeError, match="inside"), poisoned():
        raise RuntimeError("inside")
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.parametrize("name", PATHS)
def test_every_path_here_passes(operands, name):
    path, checker = PATHS[name], Checker(operands, "tiny")
    calls = path.build(operands)
    for what, call in calls.items():
        assert checker.check(path, what, call).shape == (17, 48)


def test_two_eps_is_where_ours_ends():
    expected = torch.tensor([[1.0, -3.0, 0.0]])
    eps = torch.finfo(torch.bfloat16).eps
    good = (expected * (1 + 2 * eps)).bfloat16()
    check_epilogue(good, expected, "dit8", "tiny")
    with pytest.raises(UserError, match="dit8 at tiny must lie within 2 eps .* got 2 of 3 values"):
        check_epilogue((expected * (1 + 3 * eps)).bfloat16(), expected, "dit8", "tiny")


def test_a_value_that_was_not_written_is_found(operands):
    checker = Checker(operands, "tiny")
    right = checker.epilogue.bfloat16()

    def forgetful():
        out = torch.empty_like(right)
        out[:, 1:] = right[:, 1:]
        return out

    with pytest.raises(UserError, match="got 17 of 816 values"):
        checker.check(PATHS["dit8"], "gemm", forgetful)
    with pytest.raises(Declined, match="relative error nan"):
        checker.check(PATHS["fake_quant"], "gemm", forgetful)


def test_wrong_integers_end_the_run(operands, monkeypatch):
    def off_by_one(*arguments, out_dtype):
        out = int_sums(operands).to(out_dtype)
        out[3, 5] += 1
        return out

    monkeypatch.setattr(gemm_checks, "int8_gemm", off_by_one)
    with pytest.raises(UserError, match="integer sums at tiny must equal .* got 1 of 816"):
        Checker(operands, "tiny")


def test_scales_of_the_wrong_rows_do_not_pass_for_rounding(operands):
    product = operands.x @ operands.w.t()
    right = scale_sums(int_sums(operands), operands.x_scale, operands.w_scale)
    check_close(right, product)
    mixed = scale_sums(int_sums(operands), operands.x_scale.roll(1, 0), operands.w_scale)
    with pytest.raises(Declined, match=rf"at most {CLOSE} is rounding"):
        check_close(mixed, product)


def test_a_compiled_call_is_not_poisoned(operands):
    """It would be compiled a second time, under a setting it is not timed with."""
    checker = Checker(operands, "tiny")
    seen = []

    def call():
        seen.append(torch.are_deterministic_algorithms_enabled())
        return checker.product

    assert PATHS["fp8"].compiled == ("quant_gemm",)
    for what in ("gemm", "quant_gemm"):
        checker.check(PATHS["fp8"], what, call)
    assert seen == [True, False]
