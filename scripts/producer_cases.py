"""What scripts/bench_producers.py times, at Ideogram 4's widths: kernels, variants and spreads."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from unittest.mock import patch

import torch

from dit8.quant.formats import fp8, nf4, q4_k, q8_0

HIDDEN, FFN, HEADS, HEAD_DIM, EPS = 4608, 12288, 18, 256, 1e-5  # Ideogram 4
SPREADS = [(256 * w * (2 if wide else 1), w) for w in (1, 2, 4, 8, 16) for wide in (False, True)]


@dataclass(frozen=True)
class Case:
    """One launch: `draw` makes its operands, `bind` a call of one spread; bytes are per row."""

    kernel: str
    variant: str
    k: int
    row_bytes: int
    draw: Callable[[int], list]
    bind: Callable[[list, object | None], Callable[[], None]]
    spreads: tuple  # configs to sweep


def _rows(m: int, k: int) -> torch.Tensor:
    return torch.randn(m, k, device="cuda").bfloat16()


def _vector(k: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
    return (torch.rand(k, device="cuda") + 0.5).to(dtype)


def _codes(m: int, k: int) -> list[torch.Tensor]:
    codes = torch.empty(m, k, dtype=torch.int8, device="cuda")
    return [codes, torch.empty(m, device="cuda")]


def _spreads(k: int) -> tuple:
    """List the spreads that waste less than a third of the lanes and fit the registers."""
    from dit8.kernels.quant_rows_triton import Config

    fits = []
    for block_k, warps in SPREADS:
        columns = -(-k // block_k) * block_k
        if columns < 1.5 * k and columns / (32 * warps) <= 160:
            fits.append(Config(block_k, warps))
    return tuple(fits)


BEFORE_CODES = {"plain": (False, 0), "smooth": (True, 0), "rotated": (False, 256)}


def quant_rows_cases() -> Iterator[Case]:
    from dit8.kernels.quant_rows_triton import choose_config, launch

    for k in (HIDDEN, FFN):
        for variant, (smooth, rotation) in BEFORE_CODES.items():

            def draw(m, k=k, smooth=smooth):
                return [_rows(m, k), _vector(k, torch.float32) if smooth else None, *_codes(m, k)]

            def bind(tensors, config, k=k, rotation=rotation):
                x, smooth, codes, scale = tensors
                config = config or choose_config(k, rotation)
                return lambda: launch(x, smooth, rotation, codes, scale, config)

            yield Case("quant_rows", variant, k, 3 * k + 4, draw, bind, _spreads(k))


def norm_cases() -> Iterator[Case]:
    from dit8.kernels.norms_triton import choose_config, launch

    parts = [("modulated_norm", "plain", False, True, None, 4)]
    parts += [("gated_residual", "plain", True, False, None, 6)]
    parts += [("gated_residual_norm", "plain", True, True, None, 8)]
    for variant, before in BEFORE_CODES.items():
        parts += [("modulated_norm_quant", variant, False, True, before, 3)]
        parts += [("gated_residual_norm_quant", variant, True, True, before, 7)]
    for kernel, variant, residual, norm, before, value_bytes in parts:

        def draw(m, residual=residual, norm=norm, before=before):
            k = HIDDEN
            rows = [_rows(m, k), _rows(m, k) if residual else None]
            # weight, gate, next_weight, next_scale: adaLN's are fp32 tables in the engine
            kinds = ((residual, torch.bfloat16), (residual, torch.float32))
            kinds += ((norm, torch.bfloat16), (norm, torch.float32))
            vectors = [_vector(k, dtype) if wanted else None for wanted, dtype in kinds]
            smooth = _vector(k, torch.float32) if before and before[0] else None
            outputs = [torch.empty_like(rows[0]) if residual else None]
            outputs += [torch.empty_like(rows[0]) if norm and not before else None]
            return [*rows, *vectors, smooth, *outputs, *(_codes(m, k) if before else (None, None))]

        def bind(tensors, config, residual=residual, before=before):
            rotation = before[1] if before else 0
            config = config or choose_config(HIDDEN, rotation, residual)
            return lambda: launch(*tensors[:7], rotation, EPS, *tensors[7:], config)

        row_bytes = value_bytes * HIDDEN + (4 if before else 0)
        yield Case(kernel, variant, HIDDEN, row_bytes, draw, bind, _spreads(HIDDEN))


def swiglu_cases() -> Iterator[Case]:
    from dit8.kernels.swiglu_triton import choose_config, launch

    for variant, before in ({"values": None} | BEFORE_CODES).items():

        def draw(m, before=before):
            smooth = _vector(FFN, torch.float32) if before and before[0] else None
            outputs = [None, *_codes(m, FFN)] if before else [_rows(m, FFN), None, None]
            return [_rows(m, 2 * FFN), smooth, *outputs]

        def bind(tensors, config, before=before):
            rotation = before[1] if before else 0
            config = config or choose_config(FFN, rotation, tensors[1] is not None)
            return lambda: launch(*tensors[:2], rotation, *tensors[2:], config)

        kernel = "swiglu_quant" if before else "swiglu"
        row_bytes = 5 * FFN + 4 if before else 6 * FFN
        yield Case(kernel, variant, FFN, row_bytes, draw, bind, _spreads(FFN))


def rope_cases() -> Iterator[Case]:
    from dit8.kernels.qk_norm_rope_triton import Config, choose_config, launch

    width, half = HEADS * HEAD_DIM, HEAD_DIM // 2

    def draw(m):
        tables = [torch.rand(m, half, device="cuda") for _ in range(2)]
        return [_rows(m, 3 * width), _vector(HEAD_DIM), _vector(HEAD_DIM), *tables]

    def bind(tensors, config):
        config = config or choose_config(half)
        return lambda: launch(*tensors, HEADS, EPS, config)

    sizes = ((2, 1), (4, 1), (4, 2), (4, 4), (8, 2), (8, 4), (16, 4), (16, 8), (32, 8))
    spreads = tuple(Config(*size) for size in sizes)
    row_bytes = 2 * 2 * 2 * width + 2 * 4 * half
    yield Case("qk_norm_rope_", "plain", 2 * width, row_bytes, draw, bind, spreads)


def copy_cases() -> Iterator[Case]:
    def draw(m):
        return [_rows(m, FFN), _rows(m, FFN)]

    def bind(tensors, config):
        return lambda: tensors[1].copy_(tensors[0])

    yield Case("copy", "bf16", FFN, 4 * FFN, draw, bind, ())


DECODERS = {"fp8": fp8, "q8_0": q8_0, "q4_k": q4_k, "nf4": nf4}


def _bytes(name: str) -> int:
    """Count the bytes of a row of HIDDEN weights as stored, and decoded to bf16."""
    specs = DECODERS[name].CODEC.specs(1, HIDDEN)
    stored = (spec for suffix, spec in specs.items() if suffix != nf4.STATE)
    levels = 4 * nf4.LEVELS if name == "nf4" else 0  # not a row's own
    return 2 * HIDDEN + sum(math.prod(one.shape) * one.dtype.itemsize for one in stored) - levels


def _stored(name: str, m: int, k: int) -> dict[str, torch.Tensor]:
    """Draw the tensors of a format at random: no time depends on their values."""
    drawn = {}
    for suffix, spec in DECODERS[name].CODEC.specs(m, k).items():
        if suffix == nf4.STATE:
            drawn[suffix] = nf4.make_state(m, k)
        elif spec.dtype == torch.float32:
            drawn[suffix] = torch.rand(spec.shape, device="cuda")
        else:
            codes = torch.randint(256, spec.shape, dtype=torch.uint8, device="cuda")
            drawn[suffix] = codes.view(spec.dtype)
    return drawn


def decode_cases() -> Iterator[Case]:
    """List the decoders, M and K being the weight's rows and columns; "torch": without a kernel."""
    from dit8.kernels.decode_triton import Config, choose_config, launch

    sizes = [(256, 1), (512, 1), (512, 2), (512, 4), (1024, 2), (1024, 4), (2048, 4), (4096, 4)]
    sizes += [(4096, 8), (8192, 8)]
    for name in DECODERS:

        def draw(m, name=name):
            weight = torch.empty(m, HIDDEN, dtype=torch.bfloat16, device="cuda")
            return [_stored(name, m, HIDDEN), weight]

        def bind(operands, config, name=name):
            tensors, weight = operands
            config = config or choose_config(name, HIDDEN)
            parts = [tensor for suffix, tensor in tensors.items() if suffix != nf4.STATE]
            return lambda: launch(name, parts, weight, config)

        def bind_torch(operands, config, name=name):
            def call():
                with patch.object(DECODERS[name], "has_kernel", return_value=False):
                    DECODERS[name].CODEC.decode(operands[0], torch.bfloat16)

            return call

        row_bytes = _bytes(name)
        spreads = tuple(Config(*size) for size in sizes)
        yield Case("decode", name, HIDDEN, row_bytes, draw, bind, spreads)
        yield Case("decode", f"{name}-torch", HIDDEN, row_bytes, draw, bind_torch, ())


FAMILIES = (copy_cases, quant_rows_cases, norm_cases, swiglu_cases, rope_cases, decode_cases)
