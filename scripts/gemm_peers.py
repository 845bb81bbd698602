"""The same product by other projects' kernels, each called the way its authors call it.

    comfy_kitchen   CUTLASS 2 mma.sync and its own row quantization; package comfy-kitchen
    sgl_kernel      CUTLASS 3 (TMA, wgmma) on sm_90; one shared library, which holds no row
                    quantization: "quant_gemm" takes this repository's, so it isolates the GEMM
    sdnq            Triton; its row quantization is compiled by Inductor; package sdnq
    torchao         Inductor's own int8 product with max-autotune; package torchao

Nothing is imported before its path is asked for. What is not installed, or does not load, is
declined with the reason.
"""

import ctypes
import functools
import hashlib
import importlib
import importlib.metadata
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F

from dit8.kernels.quant_rows import quant_rows
from dit8.scripts.gemm_paths import Declined, GemmPath, Operands, compiled
from dit8.scripts.timing import Call

SGL_LIBRARY = "DIT8_SGL_LIBRARY"  # environment variable: path of sm90/common_ops.abi3.so


def _import(module: str, package: str) -> ModuleType:
    """Import a peer's module, or say why it cannot be had."""
    try:
        importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        raise Declined(f"the package {package} is not installed") from None
    try:
        return importlib.import_module(module)
    except (ImportError, OSError, RuntimeError) as error:
        raise Declined(f"{package} does not load: {first_line(error)}") from error


def first_line(error: BaseException) -> str:
    """Render an error in one printable line."""
    text = " ".join(str(error).split("\n")[0].split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _installed(package: str) -> str:
    return f"{package} {importlib.metadata.version(package)}"


@functools.cache
def _comfy() -> ModuleType:
    backend = _import("comfy_kitchen.backends.cuda", "comfy-kitchen")
    if getattr(backend, "_C", None) is None:
        raise Declined("comfy-kitchen was installed without its CUDA library")
    return backend


def _comfy_version() -> str:
    _comfy()
    return _installed("comfy-kitchen")


def _comfy_kitchen(o: Operands) -> Mapping[str, Call]:
    backend, package = _comfy(), importlib.import_module("comfy_kitchen")
    wrap, w_scale = backend._wrap_for_dlpack, o.w_scale[:, None]
    m, n, _ = o.sizes
    no_bias = torch.empty(0, dtype=torch.bfloat16, device=o.x.device)

    def product() -> torch.Tensor:
        out = torch.empty((m, n), dtype=torch.bfloat16, device=o.x.device)
        operands = (o.codes, o.w_codes, o.x_scale, o.w_scale, no_bias, out)
        code = backend.DTYPE_TO_CODE[torch.bfloat16]
        stream = torch.cuda.current_stream(o.x.device).cuda_stream
        if not backend._C.cutlass_int8_dequant(*(wrap(t) for t in operands), code, stream):
            raise Declined("its CUTLASS product does not take this shape")
        return out

    def linear() -> torch.Tensor:
        return package.int8_linear(o.x, o.w_codes, w_scale, None, torch.bfloat16)

    return {"gemm": product, "quant_gemm": linear}


@functools.cache
def _sgl() -> Path:
    told = os.environ.get(SGL_LIBRARY)
    if not told:
        raise Declined(f"no library was named; give --sgl-library or set {SGL_LIBRARY}")
    library = Path(told)
    if not library.is_file():
        raise Declined(f"its library {library.name} is not at the place that was named")
    for numa in (library.with_name("libnuma.so.1"), Path("libnuma.so.1")):
        try:
            ctypes.CDLL(str(numa), mode=ctypes.RTLD_GLOBAL)
            break
        except OSError:
            continue  # beside the library or of the system; if neither, the next error says so
    try:
        torch.ops.load_library(str(library))
        torch.ops.sgl_kernel.int8_scaled_mm  # noqa: B018 (looked up, so that its absence shows)
    except (OSError, RuntimeError, AttributeError) as error:
        raise Declined(f"its library does not load: {first_line(error)}") from error
    return library


def _sgl_version() -> str:
    with _sgl().open("rb") as file:
        return f"sgl-kernel sha256:{hashlib.file_digest(file, 'sha256').hexdigest()[:12]}"


def _sgl_kernel(o: Operands) -> Mapping[str, Call]:
    _sgl()
    w_scale = o.w_scale[:, None]

    def product(codes: torch.Tensor, x_scale: torch.Tensor) -> torch.Tensor:
        return torch.ops.sgl_kernel.int8_scaled_mm(
            codes, o.w_codes.t(), x_scale, w_scale, torch.bfloat16, None
        )

    return {
        "gemm": lambda: product(o.codes, o.x_scale),
        "quant_gemm": lambda: product(*quant_rows(o.x)),
    }


@functools.cache
def _sdnq_modules() -> tuple[ModuleType, ModuleType]:
    kernel = _import("sdnq.kernels.triton_scaled_mm", "sdnq")
    linear = _import("sdnq.layers.linear.linear_int8", "sdnq")
    import triton

    # its tensor descriptors need device memory, and the package leaves that to the caller
    triton.set_allocator(
        lambda size, align, stream: torch.empty(size, dtype=torch.int8, device="cuda")
    )
    return kernel, linear


def _sdnq_version() -> str:
    _sdnq_modules()
    return _installed("sdnq")


def _sdnq(o: Operands) -> Mapping[str, Call]:
    kernel, linear = _sdnq_modules()
    w, w_scale = o.w_codes.t(), o.w_scale[None, :]  # a column-major view: its own default on CUDA

    def product() -> torch.Tensor:
        return kernel.sdnq_scaled_mm(o.codes, w, o.x_scale, w_scale, out_dtype=torch.bfloat16)

    return {"gemm": product, "quant_gemm": lambda: linear.int8_matmul(o.x, w, w_scale)}


@functools.cache
def _torchao_modules() -> tuple[ModuleType, ModuleType]:
    return _import("torchao.quantization", "torchao"), _import("torchao.kernel.intmm", "torchao")


def _torchao_version() -> str:
    _torchao_modules()
    return _installed("torchao")


@functools.cache
def _torchao_compiled() -> tuple:
    intmm = _torchao_modules()[1]

    def product(codes, x_scale, w, w_scale):
        return (intmm.int_scaled_matmul(codes, w.t(), x_scale) * w_scale).to(torch.bfloat16)

    def linear(x, weight):
        return F.linear(x, weight)

    # uncompiled, it copies the whole weight in every call
    options = {"mode": "max-autotune-no-cudagraphs", "dynamic": False}
    return compiled(product, **options), compiled(linear, **options)


def _torchao(o: Operands) -> Mapping[str, Call]:
    quantization = _torchao_modules()[0]
    config = quantization.Int8DynamicActivationInt8WeightConfig
    # before 0.18 the current tensor class has to be asked for
    version = {"version": 2} if "version" in inspect.signature(config).parameters else {}
    module = torch.nn.Linear(*reversed(o.w.shape), bias=False, device="meta")
    module.weight = torch.nn.Parameter(o.w, requires_grad=False)
    quantization.quantize_(module, config(**version))
    product, linear = _torchao_compiled()
    return {
        "gemm": lambda: product(o.codes, o.x_scale, o.w_codes, o.w_scale),
        "quant_gemm": lambda: linear(o.x, module.weight),
    }


PEERS = (
    GemmPath("comfy_kitchen", _comfy_kitchen, version=_comfy_version),
    GemmPath("sgl_kernel", _sgl_kernel, version=_sgl_version),
    GemmPath("sdnq", _sdnq, compiled=("quant_gemm",), version=_sdnq_version),
    GemmPath("torchao", _torchao, compiled=("gemm", "quant_gemm"), version=_torchao_version),
)
