"""Linears that read the same rows as one product: q, k and v; w1 and w3.

    x [W1; W2; W3]^T = [x W1^T | x W2^T | x W3^T]

One product of N1 + N2 + N3 columns fills the card better than three and quantizes x once. The
weights are stacked once and the module's own linears become views of their rows, so a branch is in
memory once and its stock forward still runs.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from dit8.kernels.int8_gemm import int8_gemm
from dit8.kernels.quant_rows import quant_rows
from dit8.quant.linear import Int8Linear, WeightOnlyLinear

Codes = tuple[torch.Tensor, torch.Tensor]  # (M, K) int8 and (M,) fp32
Rows = torch.Tensor | Codes  # what a projection reads


@dataclass(frozen=True)
class Projection:
    """The linears that read one activation.

    Args:
        linear: computes the columns of all parts, in order.
        parts: the module's own linears. They are views into `linear`, or `linear` itself.
    """

    linear: nn.Module
    parts: tuple[nn.Module, ...]

    @property
    def takes_codes(self) -> bool:
        """Tell whether the integer product runs, on rows that each have a scale of their own."""
        return is_fused(self.linear)

    @property
    def input_change(self) -> dict[str, object]:
        """Return what the producer of the codes does to the activation first."""
        return {"smooth": self.linear.smooth, "rotation": self.linear.rotation}

    def from_values(self, x: torch.Tensor) -> torch.Tensor:
        """Compute (M, N) in x's dtype from values (M, K), quantizing them first where needed."""
        if self.takes_codes:
            return self(quant_rows(x, **self.input_change), x.dtype)
        return self.linear(x)

    def __call__(self, rows: Rows, dtype: torch.dtype) -> torch.Tensor:
        """Compute (M, N) of `dtype` from codes if `takes_codes`, else from values of `dtype`."""
        if not self.takes_codes:
            return self.linear(rows)
        codes, scale = rows
        linear = self.linear
        return int8_gemm(codes, scale, linear.wq, linear.ws, linear.bias, out_dtype=dtype)

    @property
    def is_stacked(self) -> bool:
        """Tell whether the parts are views of the rows of one weight."""
        return self.linear not in self.parts and not isinstance(self.linear, SideBySide)

    @property
    def is_shared(self) -> bool:
        """Tell whether the parts hold the weights that `linear` computes with."""
        if not self.is_stacked:
            return True
        name = "wq" if isinstance(self.linear, Int8Linear) else "weight"
        return 1 == len({_memory(getattr(one, name)) for one in (self.linear, *self.parts)})

    def share(self) -> None:
        """Make the parts views of the stacked weight's rows; again, after that has moved."""
        counts = [part.out_features for part in self.parts]
        if isinstance(self.linear, Int8Linear):
            rows = zip(self.linear.wq.split(counts), self.linear.ws.split(counts), strict=True)
            for part, (codes, scales) in zip(self.parts, rows, strict=True):
                part.wq, part.ws = codes, scales
                part.smooth, part.x_scale = self.linear.smooth, self.linear.x_scale
        else:
            rows = self.linear.weight.detach().split(counts)
            for part, weight in zip(self.parts, rows, strict=True):
                part.weight = nn.Parameter(weight, part.weight.requires_grad)


def _memory(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def is_fused(linear: nn.Module) -> bool:
    """Tell whether a linear runs as an integer product with a scale per row."""
    return isinstance(linear, Int8Linear) and linear.gemm == "fused" and linear.x_scale is None


def project(*parts: nn.Module) -> Projection:
    """Join linears that read the same rows; the parts' weights become views where they stack.

    Stock linears of one dtype stack, and int8 linears that change their input in the same way.
    Others run one after the other into one result.
    """
    if len(parts) == 1:
        return Projection(parts[0], parts)
    projection = Projection(_stack_stock(parts) or _stack_int8(parts) or SideBySide(parts), parts)
    if projection.is_stacked:
        projection.share()
    return projection


def _stack_stock(parts: Sequence[nn.Module]) -> nn.Linear | None:
    if any(type(part) is not nn.Linear or part.bias is not None for part in parts):
        return None
    if len({(part.weight.dtype, part.weight.device) for part in parts}) > 1:
        return None
    weight = torch.cat([part.weight.detach() for part in parts])
    linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    linear.weight = nn.Parameter(weight, requires_grad=False)
    return linear


def _stack_int8(parts: Sequence[nn.Module]) -> Int8Linear | None:
    if any(not isinstance(part, Int8Linear) or part.bias is not None for part in parts):
        return None
    first = parts[0]
    for part in parts[1:]:
        same = (part.gemm, part.rotation) == (first.gemm, first.rotation)
        if not same or any(
            not _equal(getattr(part, name), getattr(first, name)) for name in ("smooth", "x_scale")
        ):
            return None
    return Int8Linear(
        torch.cat([part.wq for part in parts]),
        torch.cat([part.ws for part in parts]),
        first.smooth,
        gemm=first.gemm,
        rotation=first.rotation,
        x_scale=first.x_scale,
    )


def _equal(a: torch.Tensor | None, b: torch.Tensor | None) -> bool:
    if a is None or b is None:
        return a is b
    return torch.equal(a, b)


class SideBySide(nn.Module):
    """Run linears that do not stack, each into its columns of one result.

    A weight-only linear decodes its weight in every call; the product then goes straight into
    place, which saves the copy of a stacked weight or of the result.
    """

    def __init__(self, parts: Sequence[nn.Module]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Compute (M, sum of N) from (M, K)."""
        counts = [part.out_features for part in self.parts]
        out = x.new_empty(x.shape[0], sum(counts))
        for part, columns in zip(self.parts, out.split(counts, dim=1), strict=True):
            if isinstance(part, WeightOnlyLinear) and part.bias is None:
                torch.mm(x, part.codec.decode(part.tensors, x.dtype).t(), out=columns)
            else:
                columns.copy_(part(x))
        return out
