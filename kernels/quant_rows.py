"""Row-wise symmetric int8 quantization of activations, optionally smoothed or rotated first.

    v[m, k]     = x[m, k] / smooth[k], or (x R)[m, k] with R of kernels.hadamard, or x[m, k]
    scale[m]    = max_k |v[m, k]| / 127
    codes[m, k] = clamp(round_half_to_even(v[m, k] / scale[m]), -127, 127)

SmoothQuant, arXiv:2211.10438, eq. 1 (symmetric absmax quantization, here one step per token) and
eq. 3 (the divisor `smooth`); the rotation is that of ConvRot, arXiv:2512.03673.

Everything between the load and the code is fp32, whatever the dtype of x. With the scale and the
quotient in bf16, as one published kernel has it, the quotient carries 8 bits: above 64 it is
rounded to halves before it is rounded to integers, and 9 % of the codes change. Measured on bf16
rows of 512, that is 7 % more error for Gaussian and 19 % more for uniform values (32 % where the
scale that multiplies back is the fp32 one).

Why one kernel: a row is read from memory once and leaves as bytes, 3 bytes a value; as separate
torch ops the same row is written and read back as fp32 several times. A rotation apart from it
would write and read the row once more in fp32: 8 bytes a value for 3.
"""

import torch

from dit8.kernels.backend import backend_name, needs_dispatcher
from dit8.kernels.hadamard import LARGEST_GROUP, is_group, rotate

X_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def quant_rows_reference(
    x: torch.Tensor,  # (M, K) bfloat16, float16 or float32
    smooth: torch.Tensor | None = None,  # (K,) float32
    rotation: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:  # (M, K) int8, (M,) float32
    """Compute the equations above in plain torch.

    One core of an AMD EPYC: 0.17 ms for x (400, 768) bf16, against 0.25 ms for the product with a
    (256, 768) weight that it feeds. `abs().amax()` because it is vectorized: 0.04 ms, where
    `aminmax` takes 0.72 and `vector_norm(inf)` 0.91.
    """
    v = x.to(torch.float32)
    if smooth is not None:
        v = v / smooth
    if rotation:
        v = rotate(v, rotation)
    absmax = v.abs().amax(dim=1)
    scale = absmax / 127
    # An all-zero row, and one so small that its step is no longer an fp32 number, gets zero codes.
    scale.masked_fill_(scale == 0, 1.0)
    broken = ~absmax.isfinite()
    scale.masked_fill_(broken, float("nan"))
    codes = (v / scale[:, None]).round_().clamp_(-127, 127).to(torch.int8)
    # Asking first saves 0.1 ms on a CPU; on a GPU it would wait, which a CUDA graph cannot hold.
    if x.device.type != "cpu" or broken.any():
        codes.masked_fill_(broken[:, None], 0)  # the cast of NaN to an integer is undefined
    return codes.contiguous(), scale  # a transposed x makes transposed codes


def describe(tensor: torch.Tensor) -> str:
    """Render a tensor for an error message: `(4, 256) int8`."""
    return f"{tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"


def check_before_codes(
    op: str, x: torch.Tensor, smooth: torch.Tensor | None, rotation: int
) -> None:
    """Make sure that a row of K values may be smoothed or rotated; every quantizing op asks this.

    Args:
        op: its name, for the message.
        x: (..., K), what the codes are made for.
        smooth: as the op got it.
        rotation: as the op got it.

    Raises:
        ValueError: `smooth` does not fit x, the rotation does not fit K, or both are given.
    """
    k = x.shape[-1]
    if rotation:
        if rotation > LARGEST_GROUP or not is_group(k, rotation):
            raise ValueError(
                f"{op}: rotation must be 0 or a power of 4 from 4 to {LARGEST_GROUP} that divides "
                f"K={k}, got {rotation}; pass the layer's `.rotation` unchanged"
            )
        if smooth is not None:
            raise ValueError(
                f"{op}: smooth must be None beside rotation={rotation}, got {describe(smooth)}; "
                "keep one of the two"
            )
    if smooth is None:
        return
    if smooth.dtype != torch.float32 or smooth.shape != (k,):
        raise ValueError(
            f"{op}: smooth must be (K,) float32 with K={k}, got {describe(smooth)}; "
            "pass the layer's `.smooth` vector unchanged"
        )
    if smooth.device != x.device:
        raise ValueError(
            f"{op}: smooth must be on {x.device} like x, got {smooth.device}; "
            "move the layer and its input to one device"
        )


def _check(x: torch.Tensor, smooth: torch.Tensor | None, rotation: int) -> None:
    """Raise ValueError on the first argument that breaks the signature of `quant_rows`."""
    if x.dtype not in X_DTYPES or x.ndim == 0:
        raise ValueError(
            f"quant_rows: x must be (..., K) bfloat16, float16 or float32, got {describe(x)}; "
            "pass the layer's input before quantization"
        )
    if x.shape[-1] == 0:
        raise ValueError(f"quant_rows: x must have K >= 1 columns, got {describe(x)}; check x")
    check_before_codes("quant_rows", x, smooth, rotation)


@torch.library.custom_op("dit8::quant_rows", mutates_args=(), device_types="cpu")
def _quant_rows(
    x: torch.Tensor, smooth: torch.Tensor | None, rotation: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    return quant_rows_reference(x, smooth, rotation)


@_quant_rows.register_kernel("cuda")
def _quant_rows_cuda(x, smooth, rotation=0):
    backend_name(x.device)  # raises where the kernel cannot run: there is no other path to take
    from dit8.kernels.quant_rows_triton import choose_config, launch

    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    scale = torch.empty(x.shape[0], dtype=torch.float32, device=x.device)
    with torch.cuda.device(x.device):
        launch(x, smooth, rotation, codes, scale, choose_config(x.shape[1], rotation))
    return codes, scale


@_quant_rows.register_fake
def _quant_rows_fake(x, smooth, rotation=0):
    codes = torch.empty(x.shape, dtype=torch.int8, device=x.device)
    return codes, torch.empty(x.shape[0], dtype=torch.float32, device=x.device)


def quant_rows(
    x: torch.Tensor,  # (..., K) bfloat16, float16 or float32
    smooth: torch.Tensor | None = None,  # (K,) float32
    rotation: int = 0,
) -> tuple[torch.Tensor, torch.Tensor]:  # (..., K) int8, (..., 1) float32
    """Quantize each row of x to int8 with its own scale.

    scale[m] = max_k |v[m, k]| / 127 and codes = round half to even of v / scale, in fp32, for
    v = x / smooth, x R or x; SmoothQuant, arXiv:2211.10438, eq. 1 and 3.

    Args:
        x: (..., K) bfloat16, float16 or float32; rows may be strided.
        smooth: (K,) float32, positive: what each input channel is divided by first, or None.
        rotation: order of the Hadamard matrix that every group of columns is multiplied by first,
            a power of 4 up to 256 that divides K (kernels.hadamard); 0: none.

    Returns:
        codes: (..., K) int8 in [-127, 127], row-major. A row of zeros gives zeros.
        scale: (..., 1) float32, the value of one code step, so that v is about codes * scale. 1.0
            for a row of zeros; NaN, with zero codes, for a row that holds a NaN or an infinity, so
            that the row's product is NaN and cannot pass for a number.

    Raises:
        ValueError: a shape, dtype or device breaks the signature, or smooth and rotation are given.
        KernelError: x is on CUDA and the Triton kernel cannot run there (kernels.backend).

    Does not look at the values of smooth, and has no backward. Equal bit for bit on CPU and CUDA,
    but for a rotated row: its sums are taken in another order and from 16 bits of each number
    (kernels.hadamard_triton), so that few codes beside a tie differ by one.
    """
    _check(x, smooth, rotation)
    run = _quant_rows if needs_dispatcher(x) else quant_rows_reference
    codes, scale = run(x.reshape(-1, x.shape[-1]), smooth, rotation)
    return codes.reshape(x.shape), scale.reshape(*x.shape[:-1], 1)
