"""Prove that a path computes the product before it is timed.

Ours: the integer sums equal torch._int_mm's, and the output lies within 2 eps of the fp32 epilogue
on the same codes (one rounding to bf16 is eps / 2; the rest is for the order of two fp32 products).
Any other: within CLOSE of the bf16 product. Outputs are allocated full of NaN, so that an element
that a kernel forgets to write cannot hold an earlier path's right answer.
"""

import contextlib
import warnings
from collections.abc import Iterator

import torch

from dit8.kernels.int8_gemm import int8_gemm
from dit8.quant.errors import UserError
from dit8.scripts.gemm_paths import Declined, GemmPath, Operands, int_sums, scale_sums
from dit8.scripts.timing import Call

# Relative L2 error of a Gaussian product: 0.04 with both operands in e4m3, 0.016 in int8 with the
# longest rows here. Scales of the wrong rows give about 1: draw_operands varies them by 16 times.
CLOSE = 0.06
EPS_FACTOR = 2


@contextlib.contextmanager
def poisoned() -> Iterator[None]:
    """Let every tensor that is allocated inside the `with` block come full of NaN.

    torch fills new memory so in its deterministic mode; integers get their largest value.
    """
    before = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # cuBLAS is named as not deterministic, which is no matter
        torch.use_deterministic_algorithms(True, warn_only=True)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before, warn_only=warn_only)


def check_integers(o: Operands, sums: torch.Tensor, where: str) -> None:
    """Make sure that the fused kernel adds up the same integers as torch._int_mm.

    With scales of 1 and fp32 out the kernel returns its sums, rounded where they pass 2^24.

    Raises:
        UserError: any differs.
    """
    ones_m, ones_n = torch.ones_like(o.x_scale), torch.ones_like(o.w_scale)
    with poisoned():
        found = int8_gemm(o.codes, ones_m, o.w_codes, ones_n, out_dtype=torch.float32)
    wrong = int((found != sums.float()).sum())
    if wrong:
        raise UserError(
            f"dit8's integer sums at {where} must equal torch._int_mm's, got {wrong} "
            f"of {found.numel()} that differ; do not use this build, run make test-gpu"
        )


def check_epilogue(out: torch.Tensor, expected: torch.Tensor, name: str, where: str) -> None:
    """Make sure that an output of ours lies within 2 eps of the fp32 epilogue.

    Args:
        out: (M, N) bfloat16.
        expected: (M, N) float32, the scaled sums.
        name, where: path and sizes, for the message.

    Raises:
        UserError: a value is further off, or is NaN.
    """
    bound = EPS_FACTOR * torch.finfo(out.dtype).eps
    error = (out.float() - expected).abs()
    wrong = int((~(error <= bound * expected.abs())).sum())  # a NaN is not <= anything
    if wrong:
        raise UserError(
            f"{name} at {where} must lie within {EPS_FACTOR} eps of the fp32 epilogue, "
            f"got {wrong} of {out.numel()} values that do not; do not use this build, run make "
            "test-gpu"
        )


def check_close(out: torch.Tensor, product: torch.Tensor) -> None:
    """Make sure that another path's output is the product, up to 8-bit rounding.

    Args:
        out: (M, N), in the product's unit.
        product: (M, N) bfloat16, by cuBLAS from the operands before quantization.

    Raises:
        Declined: it is not.
    """
    if out.shape != product.shape:
        raise Declined(f"wrong result: shape {tuple(out.shape)}, expected {tuple(product.shape)}")
    reference = product.float()
    error = float((out.float() - reference).norm() / reference.norm())
    if not error <= CLOSE:
        raise Declined(f"wrong result: relative error {error:.3g}, at most {CLOSE:g} is rounding")


class Checker:
    """Check the paths of one linear; holds what they are compared with.

    Args:
        o: the operands, of one copy.
        where: shape and M, for messages.

    Raises:
        UserError: the fused kernel's integer sums are wrong.
    """

    def __init__(self, o: Operands, where: str) -> None:
        self.operands, self.where = o, where
        sums = int_sums(o)
        check_integers(o, sums, where)
        self.epilogue = scale_sums(sums, o.x_scale, o.w_scale)
        self.product = torch.nn.functional.linear(o.x, o.w)

    def check(self, path: GemmPath, what: str, call: Call) -> torch.Tensor:
        """Run one call of a path and compare; returns its output.

        Raises:
            UserError: ours is wrong.
            Declined: another is.
        """
        with contextlib.nullcontext() if what in path.compiled else poisoned():
            out = call()
        if out.dtype == torch.int32:
            out = scale_sums(out, self.operands.x_scale, self.operands.w_scale)
        if path.name.startswith("dit8"):
            check_epilogue(out, self.epilogue, path.name, self.where)
        else:
            check_close(out, self.product)
        return out
