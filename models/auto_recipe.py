"""The recipe `auto`: measure what every scheme costs each group of linears, then choose.

Damages are measured end to end, one group and scheme at a time, on the unquantized model's own
trajectory, and kept in <checkpoints>/<model>/damage-<key>.json: another budget measures nothing.
"""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn
from tqdm import tqdm

from dit8.conf.paths import from_root
from dit8.conf.schema import ConvertConfig
from dit8.kernels.backend import KernelError
from dit8.kernels.hadamard import largest_group, rotate
from dit8.models.generate import denoise
from dit8.models.pipeline import load_pipeline, resolve_device
from dit8.models.types import Prompt, Sampler
from dit8.quant.architectures.ideogram4 import BRANCHES, branch_modules
from dit8.quant.auto import (
    AutoChoice,
    choose,
    group_cost,
    guidance_weights,
    latency_scheme,
    load_latency,
)
from dit8.quant.calibrate import absmax
from dit8.quant.checkpoint.read import BranchSource, StoredWeight
from dit8.quant.files import content_key, write_atomically
from dit8.quant.int8 import quantize_weight
from dit8.quant.layer_sensitivity import Call, record_inputs, velocities, velocity_damage
from dit8.quant.linear import Int8Linear
from dit8.quant.recipe import KEEP, resolve_recipe
from dit8.quant.smoothquant import column_absmax, smoothing_scale, snap_power_of_two
from dit8.quant.types import ActStats, Architecture, Group, Recipe, ResolvedRecipe, Scheme

if TYPE_CHECKING:
    from diffusers import Ideogram4Pipeline

BINS = 4  # denoising steps at which damage is measured, spread over the schedule
PROMPTS = 2  # of the calibration set
ROTATION = 256

Damages = dict[str, dict[str, torch.Tensor]]  # "branch/group" -> scheme -> (BINS,) fp64


def resolve_auto(
    config: ConvertConfig,
    recipe: Recipe,
    folder: Path,
    architecture: Architecture,
    stats: ActStats,
    sources: Mapping[str, BranchSource],
    prompts: Sequence[Prompt],
    sampler: Sampler,
) -> ResolvedRecipe:
    """Choose a scheme for every group at the modelled latency that the recipe allows.

    The choice is among int8 with folded smoothing, int8 with a Hadamard rotation, and the source's
    own weight. Prints the curve of what other latencies would give.

    Args:
        folder: of the unquantized model.
        prompts, sampler: those of the calibration that made `stats`; damage is measured on the
            first PROMPTS.

    Raises:
        UserError: a latency below the cheapest choice, or a model whose weights are quantized.
    """
    papers = replace(recipe, name="smoothquant", method="rule", protect="half")
    base = resolve_recipe(papers, architecture, stats, sources, model_key=stats.model_key)
    groups = {
        f"{branch}/{group.name}": (branch, group)
        for branch in sources
        for group in architecture.groups
        if group.role != "rest"
    }
    schemes = {
        key: _schemes(recipe, group, sources[branch]) for key, (branch, group) in groups.items()
    }
    table = load_latency(from_root(config.latency))

    def cost(key: str, scheme: Scheme) -> float:
        branch, group = groups[key]
        shapes = {target: sources[branch].shapes[f"{target}.weight"] for target in group.targets}
        return group_cost(table, group, shapes, latency_scheme(scheme))

    costs = {
        key: {name: cost(key, scheme) for name, scheme in options.items()}
        for key, options in schemes.items()
    }
    allowed = recipe.latency * sum(cost(key, base.schemes[key]) for key in groups)
    steps = [(2 * index + 1) * sampler.steps // (2 * BINS) for index in range(BINS)]
    described = {k: sorted(map(str, options.values())) for k, options in schemes.items()}
    key = content_key([stats.model_key, stats.prompts_key, described, steps, PROMPTS])
    path = from_root(config.checkpoints) / config.model.name / f"damage-{key}.json"
    if path.is_file():
        damages = _read(path)
    else:
        pipeline = load_pipeline(
            folder,
            config.calibration.dtype,
            config.model.companion_dtype,
            resolve_device(config.hardware.device),
        )
        damages = _measure(
            pipeline, architecture, stats, schemes, prompts[:PROMPTS], sampler, steps
        )
        _write(path, damages)
    weights = _weights(sampler, steps)
    chosen = choose(damages, weights, costs, allowed)
    _print_curve(chosen, allowed, table[0].source)
    resolved = {
        key: KEEP if key not in chosen.schemes else schemes[key][chosen.schemes[key]]
        for key in base.schemes
    }
    return replace(
        base, recipe=recipe, schemes=resolved, protected=(), why=(), reasons=chosen.reasons
    )


def _schemes(recipe: Recipe, group: Group, source: BranchSource) -> dict[str, Scheme]:
    """List what a group may become."""
    k = source.shapes[f"{group.targets[0]}.weight"][1]
    carrier = "explicit" if group.source is None else "folded"
    options = {"int8+smooth": Scheme("int8", recipe.alpha, carrier), "bf16": KEEP}
    try:
        options["int8+rotate"] = Scheme("int8", rotation=largest_group(k, ROTATION))
    except KernelError:
        pass  # an odd K has no rotation; the other two remain
    return options


def _weights(sampler: Sampler, steps: list[int]) -> dict[str, torch.Tensor]:
    """Weigh the bins by guidance, all steps as equally long, which the sampler's are not."""
    schedule = sampler.guidance_schedule
    conditional, unconditional = guidance_weights([schedule[s] for s in steps], [1.0] * len(steps))
    return dict(zip(BRANCHES, (conditional, unconditional), strict=True))


def _read(path: Path) -> Damages:
    stored = json.loads(path.read_text(encoding="utf-8"))
    return {
        group: {name: torch.tensor(d, dtype=torch.float64) for name, d in row.items()}
        for group, row in stored.items()
    }


def _write(path: Path, damages: Damages) -> None:
    text = json.dumps({g: {n: d.tolist() for n, d in row.items()} for g, row in damages.items()})
    write_atomically(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _measure(
    pipeline: "Ideogram4Pipeline",
    architecture: Architecture,
    stats: ActStats,
    schemes: Mapping[str, Mapping[str, Scheme]],
    prompts: Sequence[Prompt],
    sampler: Sampler,
    steps: list[int],
) -> Damages:
    modules = branch_modules(pipeline)
    calls = record_inputs(
        modules, lambda p: denoise(pipeline, [p], sampler, decode=False), prompts, steps
    )
    damages: Damages = {}
    with tqdm(total=sum(len(row) for row in schemes.values()), desc="auto", unit="scheme") as bar:
        for branch, module in modules.items():
            references = velocities(module, calls[branch], batch=PROMPTS)
            for group in architecture.groups:
                key = f"{branch}/{group.name}"
                if key not in schemes:
                    continue
                damages[key] = {}
                for name, scheme in schemes[key].items():
                    damage = torch.zeros(len(calls[branch]), dtype=torch.float64)
                    if scheme.is_int8:
                        replacements = _replacements(module, group, scheme, stats, key)
                        damage = velocity_damage(
                            module, calls[branch], replacements, references, batch=PROMPTS
                        )
                    damages[key][name] = _per_step(damage, calls[branch], steps)
                    bar.update()
    return damages


def _per_step(damage: torch.Tensor, calls: tuple[Call, ...], steps: list[int]) -> torch.Tensor:
    """Root of the mean square over prompts, for each step."""
    rows = [damage[[call.step == step for call in calls]] for step in steps]
    return torch.stack([row.square().mean().sqrt() for row in rows])


def _replacements(
    module: nn.Module, group: Group, scheme: Scheme, stats: ActStats, key: str
) -> dict[str, nn.Module]:
    """Build a group's linears under a scheme; a folded scale rides in a vector, which is equal."""
    linears = {target: module.get_submodule(target) for target in group.targets}
    smooth = None
    if scheme.alpha is not None:
        columns = column_absmax(
            [StoredWeight(linear.weight.detach()) for linear in linears.values()]
        )
        smooth = smoothing_scale(absmax(stats, key), columns, scheme.alpha)
        smooth = snap_power_of_two(smooth) if scheme.carrier == "folded" else smooth
    made = {}
    for target, linear in linears.items():
        weight = linear.weight.detach().float()
        weight = rotate(weight, scheme.rotation) if scheme.rotation else weight
        codes, scales = quantize_weight(weight if smooth is None else weight * smooth, target)
        bias = None if linear.bias is None else linear.bias.detach()
        made[target] = Int8Linear(
            codes, scales, smooth, bias, gemm="fake_quant", rotation=scheme.rotation
        )
    return made


def _print_curve(chosen: AutoChoice, allowed: float, source: str) -> None:
    """Show what other latencies would give."""
    print(f"auto: modelled latency from {source}", file=sys.stderr)
    print("  latency of smoothquant's  damage  int8+smooth  int8+rotate  bf16", file=sys.stderr)
    for point in chosen.pareto:
        kinds = list(point.schemes.values())
        counts = "  ".join(
            f"{kinds.count(kind):11d}" for kind in ("int8+smooth", "int8+rotate", "bf16")
        )
        print(f"  {point.cost / allowed:24.3f}  {point.damage:6.4f}  {counts}", file=sys.stderr)
    print(
        f"  chosen: {chosen.cost / allowed:.3f} of the allowed latency, damage {chosen.damage:.4f}",
        file=sys.stderr,
    )
