"""Every launch that scripts/check_arch.py compiles: the kernels, their flags and their tiles.

A kernel added to `kernels/` gets a function here and a line in KERNELS. Sizes are the full model's;
only their divisibility reaches the compiler. K and N of a layer are multiples of 16, so the
ragged cases take such sizes too: what is left over at a tail is whole 16-byte loads.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import torch
import triton
from triton.compiler.errors import CompilationError

from dit8.kernels import (
    decode_triton,
    int8_gemm_tma,
    int8_gemm_triton,
    norms_triton,
    qk_norm_rope_triton,
    quant_rows_triton,
    swiglu_triton,
)
from dit8.kernels.shipped import obstacle
from dit8.kernels.tiles import rule
from dit8.quant.formats import fp8, nf4, q4_k, q8_0
from dit8.quant.types import Codec
from dit8.scripts.arch_compile import SHARED_KIB, Usage, call_by_name, compiling_for, read_usage

M, N, K = 4396, 4608, 4608  # 1024 x 1024 pixels and 300 text tokens, through attention.to_out
TAIL = 16  # columns more: no longer a multiple of any block
FEED_FORWARD, TEXT = 12288, 53248
# In features of the mini's and the full model's linears, and of the text projection.
WIDTHS = (256, 768, K, FEED_FORWARD, TEXT)


@dataclass(frozen=True)
class Case:
    """One launch: which kernel, with which flags, and what is asked of its machine code."""

    kernel: str
    variant: str
    config: str
    launch: Callable[[], None]
    integer_mma: str  # "wgmma", "mma.sync" or "none"
    shipped: bool  # whether it is ever run on this GPU
    quick: bool  # whether a quick check takes it


def tile_name(config: int8_gemm_triton.Config) -> str:
    """Write a tile as one word: 128x256x64-g8-w8-s3."""
    blocks = f"{config.block_m}x{config.block_n}x{config.block_k}"
    return f"{blocks}-g{config.group_m}-w{config.num_warps}-s{config.num_stages}"


def _vector(k: int) -> torch.Tensor:
    return torch.empty(k, dtype=torch.bfloat16)


def _rows(k: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return torch.empty(M, k, dtype=dtype)


def _launch_gemm(launch: Callable, config: Any, epilogue: str, k: int) -> None:
    swiglu = epilogue == "swiglu"
    rows = 2 * N if swiglu else N
    values: dict[str, Any] = {"x": _rows(k, torch.int8), "x_scale": torch.empty(M), "out": _rows(N)}
    values |= {"w": torch.empty(rows, k, dtype=torch.int8), "w_scale": torch.empty(rows)}
    values |= {
        "config": config,
        "swiglu": swiglu,
        "bias": _vector(N) if epilogue in ("bias", "residual") else None,
    }
    if epilogue == "residual":
        values |= {"gate": _vector(N), "residual": _rows(N)}
    call_by_name(launch, values)


EPILOGUES = ("bias", "residual", "swiglu")  # residual: with bias and gate


def _rule_tiles(sm: int) -> Iterator[int8_gemm_triton.Config]:
    """Yield the tiles that a product gets which no table has: some may be in no search."""
    for rows in (16, 32, 128, M):
        yield rule("gemm", rows, N, sm, 132, tma=False).config


def mma_cases(sm: int) -> Iterator[Case]:
    """List the GEMM of every GPU: each tile and epilogue, with whole and ragged K."""
    tiles = dict.fromkeys((*int8_gemm_triton.CONFIGS, *_rule_tiles(sm)))
    for epilogue, (tail, k) in product(EPILOGUES, (("", K), (", K tail", K + TAIL))):
        flags = {"swiglu": epilogue == "swiglu", "has_residual": epilogue == "residual"}
        for i, config in enumerate(tiles):
            # wgmma multiplies at least 64 rows, by a group of 4 warps
            wide = sm == 90 and config.block_m >= 64 and config.num_warps >= 4
            yield Case(
                "int8_gemm",
                epilogue + tail,
                tile_name(config),
                partial(_launch_gemm, int8_gemm_triton.launch, config, epilogue, k),
                "wgmma" if wide else "mma.sync",
                obstacle(config, sm, **flags) is None,
                tail == "" and epilogue == EPILOGUES[i % len(EPILOGUES)],
            )


def _launch_tma(config: Any, epilogue: str) -> None:
    # How many programs to start is the one thing that `launch` asks a GPU; an H200 has 132.
    with patch.object(int8_gemm_tma, "processors_of", return_value=132):
        _launch_gemm(int8_gemm_tma.launch, config, epilogue, K)


def tma_cases(sm: int) -> Iterator[Case]:
    """List the Hopper GEMM: each tile and epilogue; tails are the TMA unit's, not the code's.

    A quick check takes each shape once (its groupings differ by a constant), with what it is
    offered with in turn.
    """
    tiles = int8_gemm_tma.CONFIGS if sm == 90 else ()
    epilogues = ("plain", *EPILOGUES)

    def offered(config: int8_gemm_tma.TmaConfig, epilogue: str) -> bool:
        return int8_gemm_tma.offered(
            config,
            swiglu=epilogue == "swiglu",
            has_bias=epilogue in ("bias", "residual"),
            has_residual=epilogue == "residual",
        )

    quick = set()
    for i, shape in enumerate(int8_gemm_tma.SHAPES):
        config = int8_gemm_tma.TmaConfig(*shape, 8)
        fitting = [epilogue for epilogue in epilogues if offered(config, epilogue)]
        quick.add((config, fitting[i % len(fitting)]))
    for epilogue, config in product(epilogues, tiles):
        blocks = f"{config.consumers}x{config.rows}x{config.block_n}"
        yield Case(
            "int8_gemm_tma",
            epilogue,
            f"{blocks}-g{config.group_m}-s{config.stages}",
            partial(_launch_tma, config, epilogue),
            "wgmma",
            offered(config, epilogue),
            (config, epilogue) in quick,
        )


# What a producer that ends in int8 codes may do to its rows before: name, smooth, rotation.
ENDINGS = (("plain", False, 0), ("smooth", True, 0), ("rotation", False, 256))


def _codes(k: int, smooth: bool, rotation: int) -> dict[str, Any]:
    """Return the arguments that every producer of codes has."""
    return {
        "smooth": torch.empty(k) if smooth else None,
        "rotation": rotation,
        "codes": _rows(k, torch.int8),
        "x_scale": torch.empty(M),
    }


def _launch_quant_rows(k: int, smooth: bool, rotation: int) -> None:
    values = _codes(k, smooth, rotation)
    values |= {"x": _rows(k), "scale": values["x_scale"]}
    values["config"] = quant_rows_triton.choose_config(k, rotation)
    call_by_name(quant_rows_triton.launch, values)


def quant_rows_cases(sm: int) -> Iterator[Case]:
    """List the row quantizer: every width of the models and every ending."""
    for ending, smooth, rotation in ENDINGS:
        for k in WIDTHS:
            launch = partial(_launch_quant_rows, k, smooth, rotation)
            shipped = k != TEXT  # stays in bf16: only the benchmark quantizes rows that wide
            yield Case("quant_rows", ending, f"k{k}", launch, "none", shipped, k == FEED_FORWARD)


def _launch_norms(k: int, residual: bool, norm: bool, ending: tuple[bool, int] | None) -> None:
    rotation = ending[1] if ending else 0
    values: dict[str, Any] = dict.fromkeys(("y", "weight", "gate", "h_out", "next_weight"))
    values |= dict.fromkeys(("next_scale", "values", "codes", "x_scale", "smooth"))
    values |= {"h": _rows(k), "eps": 1e-5, "rotation": rotation}
    if residual:
        values |= {"y": _rows(k), "weight": _vector(k), "gate": _vector(k), "h_out": _rows(k)}
    if norm:
        values |= {"next_weight": _vector(k), "next_scale": _vector(k)}
        values |= _codes(k, *ending) if ending else {"values": _rows(k)}
    values["config"] = norms_triton.choose_config(k, rotation, residual)
    call_by_name(norms_triton.launch, values)


def norms_cases(sm: int) -> Iterator[Case]:
    """List the five ops of kernels/norms.py at the widths of the two models."""
    quantized = [(f"_quant, {name}", (smooth, rotation)) for name, smooth, rotation in ENDINGS]
    variants = [("gated_residual", True, False, None)]
    for op, residual in (("modulated_norm", False), ("gated_residual_norm", True)):
        variants += [(op + name, residual, True, how) for name, how in [("", None), *quantized]]
    for variant, residual, norm, ending in variants:
        for k in (256, K):
            launch = partial(_launch_norms, k, residual, norm, ending)
            yield Case("norms", variant, f"k{k}", launch, "none", True, k == K)


def _launch_swiglu(k: int, ending: tuple[bool, int] | None) -> None:
    values: dict[str, Any] = dict.fromkeys(("values", "codes", "x_scale", "smooth"))
    values |= {"u": _rows(2 * k), "rotation": ending[1] if ending else 0}
    values |= _codes(k, *ending) if ending else {"values": _rows(k)}
    smooth = values["smooth"] is not None
    values["config"] = swiglu_triton.choose_config(k, values["rotation"], smooth)
    call_by_name(swiglu_triton.launch, values)


def swiglu_cases(sm: int) -> Iterator[Case]:
    """List the two ops of kernels/swiglu.py at the widths of the two models."""
    endings = [(f"swiglu_quant, {name}", (smooth, rotation)) for name, smooth, rotation in ENDINGS]
    for variant, ending in [("swiglu", None), *endings]:
        for k in (768, FEED_FORWARD):
            launch = partial(_launch_swiglu, k, ending)
            yield Case("swiglu", variant, f"k{k}", launch, "none", True, k == FEED_FORWARD)


def _launch_qk_norm_rope(heads: int, d: int) -> None:
    values = {"qkv": _rows(3 * heads * d), "q_weight": _vector(d), "k_weight": _vector(d)}
    values |= {"cos": torch.empty(M, d // 2), "sin": torch.empty(M, d // 2)}
    values |= {"heads": heads, "eps": 1e-5, "config": qk_norm_rope_triton.choose_config(d // 2)}
    call_by_name(qk_norm_rope_triton.launch, values)


def qk_norm_rope_cases(sm: int) -> Iterator[Case]:
    """List the heads of the mini and of the full model."""
    for heads, d in ((4, 64), (18, 256)):
        launch = partial(_launch_qk_norm_rope, heads, d)
        yield Case("qk_norm_rope", "bfloat16", f"{heads}x{d}", launch, "none", True, d == 256)


def _launch_decode(codec: Codec, k: int) -> None:
    specs = {suffix: spec for suffix, spec in codec.specs(N, k).items() if suffix != nf4.STATE}
    stored = [torch.empty(spec.shape, dtype=spec.dtype) for spec in specs.values()]
    values = {"name": codec.name, "stored": stored, "weight": _rows(k).new_empty(N, k)}
    values["config"] = decode_triton.choose_config(codec.name, k)
    call_by_name(decode_triton.launch, values)


def decode_cases(sm: int) -> Iterator[Case]:
    """List the decoders of weights, at the widths of the two models."""
    for codec in (fp8.CODEC, q8_0.CODEC, q4_k.CODEC, nf4.CODEC):
        for k in WIDTHS:
            chosen = decode_triton.choose_config(codec.name, k)
            spread = f"k{k}-v{chosen.values}-w{chosen.num_warps}"
            launch = partial(_launch_decode, codec, k)
            yield Case("decode", codec.name, spread, launch, "none", True, k == FEED_FORWARD)


KERNELS: dict[str, Callable[[int], Iterator[Case]]] = {
    "int8_gemm": mma_cases,
    "int8_gemm_tma": tma_cases,
    "quant_rows": quant_rows_cases,
    "norms": norms_cases,
    "swiglu": swiglu_cases,
    "qk_norm_rope": qk_norm_rope_cases,
    "decode": decode_cases,
}


def list_cases(sm: int) -> list[Case]:
    """List every launch for one GPU, always in the same order."""
    return [case for cases in KERNELS.values() for case in cases(sm)]


def measure(sm: int, index: int) -> dict[str, Any]:
    """Compile one case of `list_cases(sm)` and return its row of results/bench/arch.csv."""
    case, error = list_cases(sm)[index], "none"
    usages = [NOT_COMPILED]
    try:
        with compiling_for(sm) as builds:
            case.launch()
        usages = [read_usage(build.kernel) for build in builds]
    except CompilationError as failure:  # of the chain, the innermost says what is wrong
        error = str(_innermost(failure)).strip().splitlines()[-1]
    worst = max(usages, key=lambda usage: (usage.stack_bytes, usage.registers))
    return {
        "kernel": case.kernel,
        "variant": case.variant,
        "config": case.config,
        "sm": sm,
        "registers": worst.registers,
        "stack_bytes": worst.stack_bytes,
        "spill_instructions": sum(usage.spill_instructions for usage in usages),
        "shared_bytes": max(usage.shared_bytes for usage in usages),
        "limit_bytes": SHARED_KIB[sm] * 1024,
        "integer_mma": min((usage.integer_mma for usage in usages), key=_mma_order),
        "expected_mma": case.integer_mma,
        "shipped": case.shipped,
        "error": error,
        "triton": triton.__version__,
    }


NOT_COMPILED = Usage(0, 0, 0, 0, "none")


def _innermost(error: BaseException) -> BaseException:
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _mma_order(name: str) -> int:
    """Order what several launches of one case are made of: a real instruction before none."""
    return ("wgmma", "mma.sync", "none").index(name)
