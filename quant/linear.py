"""Linears with quantized weights, and their exchange for stock ones: int8 and weight-only.

`Int8Linear`:

    y = (q(t(x)) wq^T) * x_scale * ws + bias,   t(x) = x / smooth, or x R, or x

with R the block-diagonal rotation of `kernels.hadamard` and q the rounding of `quant.int8`: one
scale per row from the row itself, or one calibrated scale for all rows. The codes are the same on
both paths: "fake_quant" turns them back into the compute dtype and multiplies there, "fused"
multiplies the integers (int8 x int8 -> int32) and applies both scales once, at the end.

`WeightOnlyLinear` stores the weight in few bits and computes in the dtype of its input:

    y = x decode(tensors)^T + bias

What the tensors mean is the codec's affair (`quant.formats`): FP8, NF4 and the GGUF blocks all run
through this one class. It saves memory, not time: decoding comes on top of the product, in one pass
where `kernels.decode` has a kernel.
"""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NoReturn

import torch
import torch.nn.functional as F
from torch import nn

from dit8.kernels.hadamard import LARGEST_GROUP, check_group, rotate
from dit8.kernels.int8_gemm import int8_gemm
from dit8.kernels.quant_rows import quant_rows
from dit8.quant.errors import UserError
from dit8.quant.int8 import dequantize, quantize_rows, quantize_static
from dit8.quant.types import Codec

GEMMS = ("fused", "fake_quant")
EXACT = ("ws", "smooth", "x_scale")  # buffers that stay fp32 when the module is cast


class Int8Linear(nn.Module):
    """Multiply by an int8 weight; each call quantizes its input once.

    Args:
        wq: (N, K) int8; with a rotation, the codes of the rotated weight W R.
        ws: (N,) fp32.
        smooth: (K,) fp32 divisor of the activation, or None (none, or folded).
        bias: (N,) floating, or None.
        gemm: "fused" or "fake_quant".
        rotation: group of R, a power of 4 that divides K; 0: no rotation.
        x_scale: () fp32 scale of every row, for t(x); None: a scale per row, from the row. The
            loader checks that it is positive.

    Raises:
        UserError: unknown `gemm`, or a rotation with `smooth`: the rotation already evens out the
            channels, and no known file has both.
        KernelError: a group that does not divide K.
        ValueError: shapes or dtypes disagree.

    The rotated activation stays fp32 until it is rounded to codes, like the smoothed one: the sums
    are fp32 anyway, and up to 16 times the largest x, which can overflow fp16. (Rounding it to
    bf16 in between changes nothing measurable: output error 1.0444 % against 1.0447 %.)

    Casting the module (`.to(dtype)`) leaves `ws`, `smooth` and `x_scale` in fp32: a bf16 scale
    would move every weight by up to 0.4 %. q, k and v each quantize the input they share; the
    fused engine avoids that, not this class.

    fake_quant dequantizes its weight in every call and keeps no copy. A kept one would be two to
    four times the int8 weight (18.6 GB per real branch in bf16), times measured with it would not
    be those of the unfused path that papers report, and it saves nothing at the mini's size:
    54 ms per forward of 256 rows with and without, fp32, one CPU core.

    >>> import dit8, torch
    >>> wq = torch.tensor([[127, 0], [0, -64]], dtype=torch.int8)
    >>> linear = dit8.Int8Linear(wq, ws=torch.tensor([0.01, 0.5]))
    >>> linear(torch.tensor([[2.0, 1.0]]))  # codes 127 and 64 of the scale 2 / 127
    tensor([[  2.5400, -32.2520]])
    """

    def __init__(
        self,
        wq: torch.Tensor,
        ws: torch.Tensor,
        smooth: torch.Tensor | None = None,
        bias: torch.Tensor | None = None,
        *,
        gemm: str = "fused",
        rotation: int = 0,
        x_scale: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        check_gemm(gemm)
        if wq.ndim != 2 or wq.dtype != torch.int8:
            raise ValueError(f"Int8Linear: wq must be (N, K) int8, got {_describe(wq)}")
        n, k = wq.shape
        if ws.shape != (n,) or ws.dtype != torch.float32:
            raise ValueError(f"Int8Linear: ws must be ({n},) float32, got {_describe(ws)}")
        if smooth is not None and (smooth.shape != (k,) or smooth.dtype != torch.float32):
            raise ValueError(f"Int8Linear: smooth must be ({k},) float32, got {_describe(smooth)}")
        if bias is not None and (bias.shape != (n,) or not bias.is_floating_point()):
            raise ValueError(f"Int8Linear: bias must be ({n},) floating, got {_describe(bias)}")
        if x_scale is not None and (x_scale.shape != () or x_scale.dtype != torch.float32):
            raise ValueError(f"Int8Linear: x_scale must be () float32, got {_describe(x_scale)}")
        if rotation:
            check_group(k, rotation)
            if smooth is not None:
                raise UserError(
                    f"Int8Linear: a rotated linear must have no smooth vector, got rotation "
                    f"{rotation} and smooth {_describe(smooth)}; keep one of the two"
                )
        self.register_buffer("wq", wq)
        self.register_buffer("ws", ws)
        self.register_buffer("smooth", smooth)
        self.register_buffer("bias", bias)
        self.register_buffer("x_scale", x_scale)
        self.out_features, self.in_features = n, k
        self.gemm, self.rotation = gemm, rotation

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute y (..., N) in x's dtype from x (..., K); NaN in a row that is not finite."""
        codes, x_scale = self._quantize(x)
        if self.gemm == "fused":
            return int8_gemm(codes, x_scale, self.wq, self.ws, self.bias, out_dtype=x.dtype)
        weight = dequantize(self.wq, self.ws[:, None], x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(dequantize(codes, x_scale, x.dtype), weight, bias)

    def _quantize(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return codes (..., K) and their scales (..., 1)."""
        per_row = self.x_scale is None
        if self.gemm == "fused" and per_row and self.rotation <= LARGEST_GROUP:
            return quant_rows(x, self.smooth, self.rotation)
        if self.rotation:
            x = rotate(x.float(), self.rotation)
        if not per_row:
            return quantize_static(x, self.x_scale, self.smooth)
        return (quant_rows if self.gemm == "fused" else quantize_rows)(x, self.smooth)

    def _apply(self, fn: Callable, recurse: bool = True) -> "Int8Linear":
        """Move with the module, but keep the scales in fp32."""
        exact = {name: getattr(self, name) for name in EXACT}
        super()._apply(fn, recurse)
        for name, tensor in exact.items():
            if tensor is not None:
                setattr(self, name, tensor.to(getattr(self, name).device))
        return self

    def extra_repr(self) -> str:
        """Name shape, path and what is done to the input, for print(model)."""
        smooth = "explicit" if self.smooth is not None else "none or folded"
        scale = "one, calibrated" if self.x_scale is not None else "per row"
        return (
            f"{self.in_features}, {self.out_features}, gemm={self.gemm}, smooth={smooth}, "
            f"rotation={self.rotation}, x_scale={scale}"
        )


def int8_linear(
    x: torch.Tensor, wq: torch.Tensor, ws: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Quantize x by rows, multiply by an int8 weight: y = (q(x) wq^T) * x_scale * ws + bias.

    Args:
        x: (..., K) fp32, fp16 or bf16.
        wq: (N, K) int8 codes.
        ws: (N,) fp32, a scale for each output channel.
        bias: (N,) floating, or None.

    Returns:
        (..., N) in x's dtype.

    Raises:
        ValueError: shapes or dtypes disagree.

    >>> import dit8, torch
    >>> from dit8.quant.int8 import quantize_rows
    >>> generator = torch.Generator().manual_seed(0)
    >>> x, w = torch.randn(2, 8, 64, generator=generator).unbind()
    >>> wq, ws = quantize_rows(w)
    >>> y = dit8.int8_linear(x, wq, ws.squeeze(-1))
    >>> y.shape, bool((y - x @ w.T).norm() < 0.02 * y.norm())
    (torch.Size([8, 8]), True)
    """
    codes, x_scale = quant_rows(x)
    return int8_gemm(codes, x_scale, wq, ws, bias, out_dtype=x.dtype)


def _describe(tensor: torch.Tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def check_gemm(gemm: str) -> None:
    """Refuse an unknown path.

    Raises:
        UserError: not one of GEMMS.
    """
    if gemm not in GEMMS:
        raise UserError(f"Int8Linear: gemm must be one of {', '.join(GEMMS)}, got {gemm!r}")


def check_swappable(module: nn.Module, names: Iterable[str]) -> None:
    """Make sure that every name is a stock linear.

    Raises:
        UserError: a name is missing or is something else, such as an Int8Linear.
    """
    found = dict(module.named_modules())
    for name in names:
        if type(found.get(name)) is not nn.Linear:
            raise UserError(
                f"swap_linears: {name} must be a torch.nn.Linear, got "
                f"{type(found.get(name)).__name__}; load the unquantized model first"
            )


def swap_linears(module: nn.Module, replacements: Mapping[str, nn.Module]) -> None:
    """Put each replacement in the place of the stock linear of that name, for good.

    All names are checked before the first exchange, so an error leaves the module as it was.
    Afterwards the module refuses diffusers' `save_pretrained`.

    Raises:
        UserError: a name is not a `torch.nn.Linear` of the module.
    """
    check_swappable(module, replacements)
    put_linears(module, replacements)
    refuse_saving(module, replacements.values())


def put_linears(module: nn.Module, linears: Mapping[str, nn.Module]) -> None:
    """Set the submodules of these names, without a check."""
    for name, linear in linears.items():
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, linear)


def refuse_saving(target: object, linears: Iterable[nn.Module]) -> None:
    """Make a diffusers model or pipeline say why it does not save these linears.

    diffusers would write their buffers under names that its own linears do not have, and load
    uninitialized weights from that folder. The refusal comes before any file is written, goes with
    copies and pickles, and leaves `state_dict` alone.

    Args:
        target: changed in place; left alone where there are no linears.
        linears: that it holds now.
    """
    names = ", ".join(sorted({type(linear).__name__ for linear in linears}))
    if names:
        target.save_pretrained = functools.partial(_refuse_saving, names)


def _refuse_saving(names: str, *_: Any, **__: Any) -> NoReturn:
    raise UserError(
        f"save_pretrained: diffusers can save stock linears only, got {names}, whose weights it "
        "would not find again; save a quantized model with python scripts/quantize.py "
        "recipe=<name> or format=<name>, whose file quant.checkpoint.load.load_quantized reads"
    )


Move = Callable[[torch.Tensor], torch.Tensor]


class WeightOnlyLinear(nn.Module):
    """Multiply by a weight that is decoded in each call.

    Args:
        codec: how the weight is stored.
        tensors: suffix -> tensor, as `codec.encode` returns them.
        shape: (N, K) of the weight.
        bias: (N,) floating, or None.

    Raises:
        ValueError: tensors or bias do not fit the shape.

    No decoded copy is kept. A bf16 one is two (FP8) to four (4-bit) times the stored weight, 18.6
    GB per branch of the real model, and with it the format would save nothing where it is
    meant to: in memory while running. Time and peak memory measured here are those of the format.

    Casting the module (`.to(dtype)`, `.half()`) changes no stored dtype: FP8 codes would become
    plain numbers, and a bf16 scale would move every weight by up to 0.4 %. The bias keeps its own
    dtype too, and is cast to the input's in each call.
    """

    def __init__(
        self,
        codec: Codec,
        tensors: Mapping[str, torch.Tensor],
        shape: tuple[int, int],
        bias: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = shape
        self.codec = codec
        specs = codec.specs(*shape)
        if set(tensors) != set(specs):
            raise ValueError(
                f"WeightOnlyLinear: {codec.name} must have the tensors {', '.join(sorted(specs))}, "
                f"got {', '.join(sorted(tensors)) or 'none'}"
            )
        if bias is not None and (bias.shape != shape[:1] or not bias.is_floating_point()):
            raise ValueError(
                f"WeightOnlyLinear: bias must be ({shape[0]},) floating, got {_describe(bias)}"
            )
        for suffix, spec in specs.items():
            tensor = tensors[suffix]
            fits = tensor.shape == spec.shape or (_is_text(tensor) and len(spec.shape) == 1)
            if not fits or tensor.dtype != spec.dtype:
                raise ValueError(
                    f"WeightOnlyLinear: {codec.name} tensor {suffix} must be {_describe(spec)}, "
                    f"got {_describe(tensor)}"
                )
            on_host = tensor.cpu() if _is_text(tensor) else tensor
            self.register_buffer(_buffer(suffix), on_host.contiguous())
        self.register_buffer("bias", bias)
        self._suffixes = tuple(specs)

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        """Return suffix -> stored tensor, as `codec.encode` made them."""
        return {suffix: getattr(self, _buffer(suffix)) for suffix in self._suffixes}

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute y (..., N) in x's dtype from x (..., K)."""
        weight = self.codec.decode(self.tensors, x.dtype)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return F.linear(x, weight, bias)

    def _apply(self, fn: Move, recurse: bool = True) -> "WeightOnlyLinear":
        """Move with the module and stay in the stored dtypes."""
        return super()._apply(lambda tensor: _move(tensor, fn), recurse)

    def extra_repr(self) -> str:
        """Name shape and format, for print(model)."""
        return (
            f"{self.in_features}, {self.out_features}, format={self.codec.name}, "
            f"bias={self.bias is not None}"
        )


def _move(tensor: torch.Tensor, fn: Move) -> torch.Tensor:
    """Apply `fn` to the bytes, which no cast touches: so there is no second copy to undo either."""
    if _is_text(tensor):
        return tensor  # read by the host in each call: on a GPU that would be a synchronization
    data = tensor.contiguous().flatten().view(torch.uint8)
    return fn(data).view(tensor.dtype).view(tensor.shape)


def _is_text(tensor: torch.Tensor) -> bool:
    """Tell a JSON text from weights, which have two dimensions, and scales, which are floating."""
    return tensor.ndim == 1 and tensor.dtype == torch.uint8


def _buffer(suffix: str) -> str:
    """Name a buffer; not `weight`, whose dtype other code takes for the compute dtype."""
    return "stored" + suffix.replace(".", "_")
