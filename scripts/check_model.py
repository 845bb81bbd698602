"""Compare the engine with stock diffusers and with an fp32 reference, at full width.

The reference is the stock forward of the same weights in fp32. Inputs are values that bf16 holds
exactly (latents, text features, times), so a distance to it is an error of the arithmetic.

- bf16: the engine must be no further from the reference than stock bf16 is.
- every other variant: at most 1.1 times as far as the stock forward of the same weights, int8
  linears unfused there (dequantize, then multiply).
- fp32: the engine equals stock up to the order of sums, 1e-5.

Each is run twice. Eagerly, with fresh memory filled with NaN, so that a kernel that leaves a part
of its result unwritten shows. Then as it runs in use (a CUDA graph on a GPU), with its result
overwritten with NaN before the last replay.
"""

import copy
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers import Ideogram4Pipeline
from torch import nn

from dit8.models.engine.forward import EngineBranch
from dit8.models.random_ideogram4 import build_random
from dit8.models.types import PATCH_PX
from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically
from dit8.quant.int8 import relative_error
from dit8.quant.linear import Int8Linear
from dit8.scripts.gemm_checks import poisoned
from dit8.scripts.random_variants import VARIANTS, make_branches

TIMES = (0.125, 0.5, 0.875)  # exact in bf16
WORSE = {"bf16": 1.0}
MOST_WORSE = 1.1
FP32_BOUND = 1e-5


def draw_inputs(
    module: nn.Module, side: int, tokens: int
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Draw latents (1, side^2, C) fp32 and text features (tokens, D), or None for no tokens."""
    generator = torch.Generator().manual_seed(1)
    config, device = module.config, module.device

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=generator).bfloat16().float().to(device)

    latents = normal(1, side * side, config.in_channels)
    return latents, normal(tokens, config.llm_features_dim) if tokens else None


@torch.no_grad()
def stock_velocities(
    module: nn.Module, latents: torch.Tensor, text: torch.Tensor | None, side: int
) -> list[torch.Tensor]:
    """Run diffusers' own forward at every time, without padding."""
    count, device, dtype = 0 if text is None else len(text), module.device, module.dtype
    layout = Ideogram4Pipeline._prepare_ids([count], side, side, count, device)
    tokens, width = side * side, module.config.llm_features_dim
    features = torch.zeros(1, count + tokens, width, dtype=dtype, device=device)
    if text is not None:
        features[0, :count] = text
    hidden = nn.functional.pad(latents, (0, 0, count, 0)).to(dtype)
    found = []
    for time in TIMES:
        (velocity,) = module(
            hidden,
            torch.tensor([time], device=device, dtype=dtype),
            features,
            *layout,
            return_dict=False,
        )
        found.append(velocity[:, count:].float())
    return found


def engine_velocities(
    module: nn.Module,
    latents: torch.Tensor,
    text: torch.Tensor | None,
    side: int,
    graphs: bool | None,
) -> list[torch.Tensor]:
    """Run the engine at every time, each twice: its answer to the first call is overwritten."""
    engine = EngineBranch(module, graphs=graphs)
    engine.tabulate(torch.tensor(TIMES, device=latents.device))
    engine.prepare(None if text is None else [text], (side, side), 1)
    found = []
    for step in range(len(TIMES)):
        engine.velocity(latents, step).fill_(torch.nan)
        found.append(engine.velocity(latents, step).clone())
    engine.release()
    return found


def error_of(reference: Sequence[torch.Tensor], found: Sequence[torch.Tensor]) -> float:
    """Return the relative L2 distance over all times; NaN if anything is not finite."""
    if not all(bool(torch.isfinite(x).all()) for x in found):
        return float("nan")
    return relative_error(torch.cat(list(reference)), torch.cat(list(found)))


@contextmanager
def unfused(module: nn.Module) -> Iterator[None]:
    """Let the int8 linears dequantize and multiply, as without a fused kernel."""
    linears = [x for x in module.modules() if isinstance(x, Int8Linear)]
    gemms = [linear.gemm for linear in linears]
    for linear in linears:
        linear.gemm = "fake_quant"
    try:
        yield
    finally:
        for linear, gemm in zip(linears, gemms, strict=True):
            linear.gemm = gemm


def compare(
    label: Mapping[str, str],
    module: nn.Module,
    inputs: tuple,
    reference: Sequence[torch.Tensor],
    allowed: Callable[[float], float],
) -> dict[str, Any]:
    """Measure stock and engine of one module against the reference.

    Args:
        label: what the row is called.
        inputs: latents, text, side.
        reference: from stock fp32.
        allowed: stock's error -> the largest that the engine may have.
    """
    with unfused(module):
        stock = error_of(reference, stock_velocities(module, *inputs))
    with poisoned():
        eager = error_of(reference, engine_velocities(module, *inputs, False))
    used = error_of(reference, engine_velocities(module, *inputs, None))
    bound = allowed(stock)
    return {
        **label,
        "stock_error": stock,
        "engine_poisoned_error": eager,
        "engine_error": used,
        "bound": bound,
        "passes": bool(eager <= bound and used <= bound),  # False for NaN
    }


def check_model(
    device: torch.device,
    variants: Sequence[str],
    layers: int,
    tokens: int,
    size_px: int,
    path: Path,
    *,
    full: bool,
    say: Callable[[str], None] = print,
) -> dict[str, Any]:
    """Check every variant on both branches, keep the errors, and refuse a wrong one.

    Args:
        device: where to run.
        variants: of scripts.random_variants.VARIANTS, without those that copy codes.
        layers: blocks a branch; 34 need 37 GB for both, 37 for the reference, 10 for a variant.
        tokens, size_px: of the caption and the image.
        path: JSON to write.
        full: the real widths.
        say: takes lines for the reader.

    Returns:
        the document that is printed last.

    Raises:
        UserError: the engine is wrong somewhere, or a variant cannot be checked.
    """
    if copied := [variant for variant in variants if VARIANTS[variant].copies]:
        raise UserError(
            f"check_model: variants must have weights of their own, got {', '.join(copied)}, whose "
            "codes are copied from one linear to another; leave them out"
        )
    side = size_px // PATCH_PX
    source = build_random(layers, full=full, dtype=torch.bfloat16, device=device, seed=0)
    rows = []
    for branch, module in source.items():
        count = tokens if branch == "conditional" else 0
        inputs = (*draw_inputs(module, side, count), side)
        exact = copy.deepcopy(module).float()
        reference = stock_velocities(exact, *inputs)
        label = {"branch": branch, "variant": "fp32"}
        rows.append(compare(label, exact, inputs, reference, lambda stock: FP32_BOUND))
        del exact
        for variant in variants:
            factor = WORSE.get(variant, MOST_WORSE)
            label = {"branch": branch, "variant": variant}
            made = make_branches(variant, {branch: module})[branch]
            rows.append(compare(label, made, inputs, reference, lambda e, f=factor: e * f))
            say(json.dumps(rows[-1]))
    about = {"layers": layers, "text_tokens": tokens, "resolution": size_px, "full": full}
    text = json.dumps(about | {"rows": rows}, indent=1) + "\n"
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    wrong = [f"{row['variant']} {row['branch']}" for row in rows if not row["passes"]]
    if wrong:
        raise UserError(
            f"check_model: the engine must stay within its bounds, got more for {', '.join(wrong)}"
            f"; {path.name} has the errors"
        )
    return about | {"checked": len(rows), "passes": True}
