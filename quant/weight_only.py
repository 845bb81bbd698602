"""A linear whose weight is stored in few bits and computed with in the dtype of its input.

    y = x decode(tensors)^T + bias

What the tensors mean is the codec's affair (`quant.formats`): FP8, NF4 and the GGUF blocks all run
through this one class. It saves memory, not time: decoding comes on top of the product, in one pass
where `kernels.decode` has a kernel.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import nn

from dit8.quant.types import Codec

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


def _describe(tensor) -> str:
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
