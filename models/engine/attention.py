"""Choose the attention kernel by measuring the ones that PyTorch has, once for each shape.

    o = softmax(q k^T / sqrt(d)) v

Which kernels take head_dim 256, and which is fastest, depends on the card and on PyTorch's version.
On an H200 the choice falls on cuDNN's (the kernels in results/bench/runs). So the candidates are
timed on the card itself, those that do not reproduce the exact result on a short sequence left out.
"""

import math
import statistics
import warnings
from collections.abc import Mapping

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from dit8.quant.errors import UserError

BACKENDS = {
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "math": SDPBackend.MATH,
}
FUSED = ("cudnn", "flash", "efficient")  # math keeps all (L, L) scores: 1.4 GB at full size
LENGTH_STEP = 256  # lengths are timed in steps: the order of the kernels changes slowly
CHECK_LENGTH = 512
FP32_DEVIATION = 1e-5  # sums of 512 values; TF32 would leave 5e-4
REPEATS = 7

# (GPU, batch, length, heads, head_dim, dtype) -> backend
_chosen: dict[tuple, str] = {}


def attend(
    q: torch.Tensor,  # (B, L, heads, d)
    k: torch.Tensor,  # (B, L, heads, d)
    v: torch.Tensor,  # (B, L, heads, d)
    backend: str | None,
) -> torch.Tensor:  # (B, L, heads * d)
    """Compute attention within each sample, without a mask.

    Args:
        q, k, v: of one dtype and device; may be views into one buffer of q, k and v.
        backend: a key of BACKENDS, or None for PyTorch's own choice.

    Returns:
        in q's dtype, row-major.

    Raises:
        RuntimeError: from PyTorch, if the backend cannot run these tensors.
    """
    parts = [tensor.transpose(1, 2) for tensor in (q, k, v)]
    if backend is None:
        out = F.scaled_dot_product_attention(*parts)
    else:
        with sdpa_kernel(BACKENDS[backend]):
            out = F.scaled_dot_product_attention(*parts)
    return out.transpose(1, 2).flatten(2)  # a view for the kernels that keep q's layout


def check_backend(name: str) -> None:
    """Refuse an unknown backend.

    Raises:
        UserError: not a key of BACKENDS.
    """
    if name not in BACKENDS:
        raise UserError(
            f"attention must be one of {', '.join(BACKENDS)}, got {name!r}; leave it out to have "
            "the fastest chosen"
        )


def choose_attention(
    batch: int, length: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Name the fastest backend for this shape; None, PyTorch's own choice, off CUDA.

    The first call for a shape on a GPU runs every candidate (about 0.1 s at full size) and waits
    for it, so it must come before a CUDA graph is captured.

    Args:
        batch: samples in one call.
        length: rows of a sample; rounded up to a multiple of 256.
        heads: heads of q, k and v.
        head_dim: channels a head.
        dtype: of q, k and v.
        device: where they are.

    Raises:
        UserError: no backend runs the shape and gives the right result.
    """
    if device.type != "cuda":
        return None
    length = math.ceil(length / LENGTH_STEP) * LENGTH_STEP
    key = (torch.cuda.get_device_name(device), batch, length, heads, head_dim, dtype)
    if key not in _chosen:
        _chosen[key] = fastest(measure(batch, length, heads, head_dim, dtype, device))
    return _chosen[key]


def fastest(times: Mapping[str, float]) -> str:
    """Pick the backend with the smallest time; the earlier one of BACKENDS if two are equal.

    Args:
        times: backend -> ms, without those that cannot run or are wrong.

    Raises:
        UserError: there is none.
    """
    if not times:
        raise UserError(
            "choose_attention: one of PyTorch's attention kernels must run on this GPU, got none "
            "for this shape; use engine=stock or another dtype"
        )
    return min(times, key=lambda name: (times[name], list(BACKENDS).index(name)))


def measure(
    batch: int, length: int, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> dict[str, float]:
    """Time the candidates that run and are right; backend -> median ms.

    The unfused one is timed only where no other is left.
    """
    times: dict[str, float] = {}
    limit = max(2 * torch.finfo(dtype).eps, FP32_DEVIATION)
    for name in BACKENDS:
        if name not in FUSED and times:
            continue
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # why a kernel declines, a paragraph for each
                if deviation(name, heads, head_dim, dtype, device) > limit:
                    continue
                parts = _operands(batch, length, heads, head_dim, dtype, device)
                times[name] = _milliseconds(name, parts)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # how PyTorch says that a kernel does not take these tensors
            continue
    return times


def deviation(
    backend: str, heads: int, head_dim: int, dtype: torch.dtype, device: torch.device
) -> float:
    """Compute a backend's relative error against fp64 on 512 random rows.

    Rounding the operands' products to bf16 leaves 0.3 %, less than one unit in the last place
    (eps, 0.8 %); a kernel that reads the wrong rows is off by about 140 %.
    """
    parts = _operands(1, CHECK_LENGTH, heads, head_dim, dtype, device)
    exact = attend(*(part.double() for part in parts), "math")
    return float((attend(*parts, backend).double() - exact).norm() / exact.norm())


def _operands(batch, length, heads, head_dim, dtype, device) -> tuple[torch.Tensor, ...]:
    """Make q, k and v as the engine has them: views into one buffer."""
    generator = torch.Generator(device).manual_seed(0)
    shape = (batch, length, 3, heads, head_dim)
    return torch.randn(shape, generator=generator, dtype=dtype, device=device).unbind(2)


def _milliseconds(backend: str, parts: tuple[torch.Tensor, ...]) -> float:
    durations = []
    for index in range(REPEATS + 2):  # the first two load the kernel and warm it up
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        attend(*parts, backend)
        end.record()
        end.synchronize()
        if index >= 2:
            durations.append(start.elapsed_time(end))
    return statistics.median(durations)
