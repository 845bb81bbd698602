"""The ways to compute one linear that need torch and this repository only.

All start from the same values: "gemm" from operands that are already quantized, "quant_gemm" from
the bf16 activation, with the weight quantized beforehand. What each leaves out says what it costs:

    bf16         cuBLAS: the anchor of every comparison
    fp8          cuBLASLt with a scale per row and channel: the other anchor; Inductor quantizes
    int_mm       torch._int_mm: int32 sums without scales, so a bound and not a linear
    unfused      torch._int_mm, then torch's own scaling: the sums go through memory as int32
    fake_quant   both operands dequantized, then cuBLAS: what Int8Linear(gemm="fake_quant") does
    dit8         this repository's kernel: scales in the epilogue
    dit8_quant   the same after its row quantization
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F

from dit8.kernels.int8_gemm import accumulate, int8_gemm
from dit8.kernels.quant_rows import quant_rows
from dit8.quant.int8 import dequantize, quantize_rows, quantize_weight
from dit8.scripts.timing import Call

FP8, FP8_MAX = torch.float8_e4m3fn, 448.0
INT_MM_ROWS = 17  # the fewest that torch._int_mm takes on CUDA
INT_MM_EVEN = 32  # rows come in multiples of it where nothing but the sums matters
RECOMPILE_LIMIT = (
    4096  # every shape is a build of its own, and the default of 8 falls back to eager
)


class Declined(Exception):
    """A path cannot run here, or not this shape; the message is the reason that is reported."""


@dataclass(frozen=True)
class Operands:
    """One linear's operands, as bf16 and as codes; w is the weight, so the product is x w^T."""

    x: torch.Tensor  # (M, K) bfloat16
    w: torch.Tensor  # (N, K) bfloat16
    codes: torch.Tensor  # (M, K) int8
    x_scale: torch.Tensor  # (M, 1) float32
    w_codes: torch.Tensor  # (N, K) int8
    w_scale: torch.Tensor  # (N,) float32

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Return M, N, K."""
        return *self.codes.shape[:1], *self.w_codes.shape

    def clone(self) -> "Operands":
        """Put the same values at other addresses."""
        return Operands(*(getattr(self, field.name).clone() for field in fields(self)))


def draw_operands(m: int, n: int, k: int, device: torch.device, seed: int = 0) -> Operands:
    """Draw Gaussian operands whose rows differ in size by up to 16 times.

    Random, because zeros draw less power and were timed 13 % faster in bf16; rows of different
    sizes, because a path that mixes up scales must not come out right.
    """
    generator = torch.Generator(device).manual_seed(seed)

    def draw(rows: int, deviation: float) -> torch.Tensor:
        values = torch.randn(rows, k, generator=generator, device=device, dtype=torch.bfloat16)
        sizes = torch.rand(rows, 1, generator=generator, device=device).mul_(4).sub_(2).exp2_()
        return values.mul_(sizes * deviation)

    x, w = draw(m, 1.0), draw(n, 0.02)
    return Operands(x, w, *quant_rows(x), *quantize_weight(w))


@dataclass(frozen=True)
class GemmPath:
    """One way to compute the product.

    Args:
        name: as in the column `path`.
        build: makes the calls, by what they contain ("gemm", "quant_gemm"); prepares the weight.
        is_ours: an error ends the run; another path's error is reported, and the run goes on.
        compiled: those of the calls that torch.compile makes, which must not be called under
            another global setting than they are timed with: it would compile them again.
        version: says what of another project was loaded; raises Declined where it cannot run.
    """

    name: str
    build: Callable[[Operands], Mapping[str, Call]]
    is_ours: bool = False
    compiled: tuple[str, ...] = ()
    version: Callable[[], str] | None = None


def int_sums(o: Operands) -> torch.Tensor:
    """Return the exact sums, (M, N) int32, by torch._int_mm, whatever M is."""
    if o.codes.device.type == "cpu":
        return accumulate(o.codes, o.w_codes)  # torch._int_mm where this CPU gets it right
    rows = o.codes.shape[0]
    padded = F.pad(o.codes, (0, 0, 0, -rows % INT_MM_EVEN))
    return torch._int_mm(padded, o.w_codes.t())[:rows]


def int_mm(codes: torch.Tensor, w_codes: torch.Tensor) -> torch.Tensor:
    """Return torch._int_mm's sums; on a CPU, a rehearsal, where it may be wrong: the exact ones."""
    return accumulate(codes, w_codes) if codes.is_cpu else torch._int_mm(codes, w_codes.t())


def scale_sums(sums: torch.Tensor, x_scale: torch.Tensor, w_scale: torch.Tensor) -> torch.Tensor:
    """Turn int32 sums into the product in fp32: row first, then column."""
    return sums.float().mul_(x_scale).mul_(w_scale)


def fp8_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Quantize rows to e4m3: (M, K) float8 and scales (M, 1) float32."""
    values = x.float()
    scale = (values.abs().amax(dim=1, keepdim=True) / FP8_MAX).clamp(min=1e-12)
    return (values / scale).to(FP8), scale


def compiled(function: Callable, **options) -> Callable:
    """Compile for every shape there is; without a graph break, so never eager behind one's back."""
    torch._dynamo.config.recompile_limit = RECOMPILE_LIMIT
    torch._dynamo.config.accumulated_recompile_limit = RECOMPILE_LIMIT
    return torch.compile(function, fullgraph=True, **options)


@functools.cache
def _compiled_fp8_rows() -> Callable:
    # eager, the quantization is five kernels and costs more than the product
    return compiled(fp8_rows, dynamic=True)


def _bf16(o: Operands) -> Mapping[str, Call]:
    return {"gemm": lambda: F.linear(o.x, o.w)}


def _fp8(o: Operands) -> Mapping[str, Call]:
    if o.x.device.type == "cuda" and torch.cuda.get_device_capability(o.x.device) < (8, 9):
        raise Declined("float8 products need compute capability 8.9 or newer")
    (x, x_scale), (w, w_scale) = fp8_rows(o.x), fp8_rows(o.w)
    w_scale = w_scale.t()  # (1, N)
    rows = _compiled_fp8_rows() if o.x.device.type == "cuda" else fp8_rows

    def product(x: torch.Tensor, x_scale: torch.Tensor) -> torch.Tensor:
        return torch._scaled_mm(
            x,
            w.t(),
            scale_a=x_scale,
            scale_b=w_scale,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )

    return {"gemm": lambda: product(x, x_scale), "quant_gemm": lambda: product(*rows(o.x))}


def _check_int_mm_rows(o: Operands) -> None:
    if o.codes.shape[0] < INT_MM_ROWS:
        raise Declined("torch._int_mm takes more than 16 rows")


def _int_mm(o: Operands) -> Mapping[str, Call]:
    _check_int_mm_rows(o)
    return {"gemm": lambda: int_mm(o.codes, o.w_codes)}


def _unfused(o: Operands) -> Mapping[str, Call]:
    _check_int_mm_rows(o)

    def product(codes: torch.Tensor, x_scale: torch.Tensor) -> torch.Tensor:
        sums = int_mm(codes, o.w_codes)
        return scale_sums(sums, x_scale, o.w_scale).to(torch.bfloat16)

    return {
        "gemm": lambda: product(o.codes, o.x_scale),
        "quant_gemm": lambda: product(*quant_rows(o.x)),
    }


def _fake_quant(o: Operands) -> Mapping[str, Call]:
    def product(codes: torch.Tensor, x_scale: torch.Tensor) -> torch.Tensor:
        weight = dequantize(o.w_codes, o.w_scale[:, None], torch.bfloat16)
        return F.linear(dequantize(codes, x_scale, torch.bfloat16), weight)

    return {
        "gemm": lambda: product(o.codes, o.x_scale),
        "quant_gemm": lambda: product(*quantize_rows(o.x)),
    }


def _dit8(o: Operands) -> Mapping[str, Call]:
    return {"gemm": lambda: int8_gemm(o.codes, o.x_scale, o.w_codes, o.w_scale)}


def _dit8_quant(o: Operands) -> Mapping[str, Call]:
    return {"quant_gemm": lambda: int8_gemm(*quant_rows(o.x), o.w_codes, o.w_scale)}


OWN = (
    GemmPath("bf16", _bf16, is_ours=True),  # the anchor: without it no other row says anything
    GemmPath("fp8", _fp8, compiled=("quant_gemm",)),
    GemmPath("int_mm", _int_mm),
    GemmPath("unfused", _unfused),
    GemmPath("fake_quant", _fake_quant),
    GemmPath("dit8", _dit8, is_ours=True),
    GemmPath("dit8_quant", _dit8_quant, is_ours=True),
)
