"""Take a recipe's decisions: a scheme for every group of linears, from statistics and weights.

Down-projections that stay unquantized are those whose input has a few huge channels. The FFN's
down-projection reads silu(w1 x) * (w3 x), a product with no norm behind it, which is where a DiT's
outlier channels are. The papers (arXiv 2606.12280, 2606.14598) keep 17 of 34 per branch in bf16;
protecting 8 lost 1.4 CLIP. The rank is by crest: channel max / channel median of the input, the
largest over denoising steps, because one bad step spoils the picture.
"""

from collections.abc import Mapping

import torch

from dit8.kernels.hadamard import largest_group
from dit8.quant.calibrate import absmax, max_crest
from dit8.quant.checkpoint.read import BranchSource, StoredWeight
from dit8.quant.errors import UserError
from dit8.quant.files import over_blocks
from dit8.quant.int8 import error_squares, quantize_weight, relative_of
from dit8.quant.types import (
    ActStats,
    Architecture,
    Group,
    RankedLayer,
    Recipe,
    ResolvedRecipe,
    Scheme,
    StoredLinear,
)


def rounding_damage(weight: StoredWeight, act_absmax: torch.Tensor) -> float:
    """Estimate the relative output error that int8 rounding of the weight makes.

    ||(W - W_int8) diag(a)||_F / ||W diag(a)||_F with a the largest magnitudes of the input
    channels: the output error if channels were independent and as large as in the calibration.

    Args:
        weight: (N, K), unsmoothed.
        act_absmax: (K,).

    Returns:
        a ratio >= 0. It does not measure the error of rounding the activation; crest does.
    """

    def squares(block: tuple[int, int]) -> tuple[float, float]:
        rows = weight.rows(*block)
        return error_squares(rows, *quantize_weight(rows), act_absmax)

    return relative_of(over_blocks(squares, weight.blocks()))


def rank_layers(crests: Mapping[str, float], damages: Mapping[str, float]) -> list[RankedLayer]:
    """Sort layers by crest, largest first; equal crests by damage, then by name."""
    layers = [RankedLayer(name, crest, damages[name]) for name, crest in crests.items()]
    return sorted(layers, key=lambda layer: (-layer.crest, -layer.damage, layer.name))


def protected_count(protect: str | int, layers: int) -> int:
    """Turn "half" into floor(layers / 2), or check a count.

    Raises:
        UserError: the count exceeds the layers.
    """
    count = layers // 2 if protect == "half" else int(protect)
    if count > layers:
        raise UserError(
            f"protected_count: protect must be at most {layers}, the down-projections of a branch, "
            f"got {count}; use half"
        )
    return count


KEEP = Scheme("keep")


def resolve_recipe(
    recipe: Recipe,
    architecture: Architecture,
    stats: ActStats | None,
    sources: Mapping[str, BranchSource],
    *,
    model_key: str,
) -> ResolvedRecipe:
    """Rank the down-projections, protect the first of them, give every other group its scheme.

    Args:
        recipe: what is asked for, with method "rule".
        architecture: describes each branch.
        stats: of this model, complete; None only if the recipe needs none.
        sources: branch -> weights; only the down-projections are read.
        model_key: identifies the weights.

    Returns:
        the recipe with schemes, `protected` and `why`; reads nothing but the arguments.

    Raises:
        UserError: statistics are missing, incomplete or of another model, `keep` names a linear
            that does not exist, or a rotation does not fit.
    """
    count = protected_count(recipe.protect, len(architecture.down_projections))
    if stats is None and recipe.needs_stats:
        raise UserError(
            f"resolve_recipe: recipe {recipe.name!r} smooths, protects or calibrates scales and "
            "needs activation statistics, got none; run scripts/calibrate.py or set alpha=null "
            "protect=0 activation_scale=token"
        )
    why: list[RankedLayer] = []
    protected: list[str] = []
    if stats is not None:
        check_stats(stats, model_key)
    if stats is not None and count > 0:
        for branch, source in sources.items():
            ranked = _rank(architecture, stats, branch, source)
            why += ranked
            protected += [layer.name for layer in ranked[:count]]
    kept = _kept_groups(recipe, architecture, sources, protected)
    schemes = {}
    for branch, source in sources.items():
        for group in architecture.groups:
            key = f"{branch}/{group.name}"
            k = source.shapes[f"{group.targets[0]}.weight"][1]
            schemes[key] = KEEP if key in kept else scheme_for(recipe, group, k)
    prompts_key = None if stats is None else stats.prompts_key
    return ResolvedRecipe(recipe, schemes, tuple(protected), tuple(why), {}, model_key, prompts_key)


def scheme_for(recipe: Recipe, group: Group, k: int) -> Scheme:
    """Give a group what the recipe's rule says, protection aside.

    A group that nothing can absorb is smoothed by a vector even if the carrier is folded; one of
    role "rest" reads few rows, was not calibrated, and takes plain int8 or stays.
    """
    if group.role == "rest":
        return Scheme("int8") if recipe.quantize_rest else KEEP
    if group.role == "text" and not recipe.quantize_text:
        return KEEP
    if recipe.rotation:
        return Scheme("int8", rotation=largest_group(k, recipe.rotation))
    carrier = recipe.smoothing_carrier if group.source is not None else "explicit"
    return Scheme(
        "int8",
        alpha=recipe.alpha,
        carrier=carrier if recipe.alpha is not None else "folded",
        static=recipe.activation_scale == "tensor",
    )


def _rank(
    architecture: Architecture, stats: ActStats, branch: str, source: BranchSource
) -> list[RankedLayer]:
    crests, damages = {}, {}
    for layer in (s for s in architecture.stored if s.name in architecture.down_projections):
        key, name = f"{branch}/{architecture.group_of(layer).name}", f"{branch}.{layer.name}"
        crests[name] = max_crest(stats, key)
        damages[name] = rounding_damage(source.weight(layer.parts[0]), absmax(stats, key))
    return rank_layers(crests, damages)


def _kept_groups(
    recipe: Recipe,
    architecture: Architecture,
    sources: Mapping[str, BranchSource],
    protected: list[str],
) -> set[str]:
    """Name the groups "branch/group" that stay because one of their linears does."""
    group_of = {
        f"{branch}.{linear.name}": f"{branch}/{architecture.group_of(linear).name}"
        for branch in sources
        for linear in architecture.stored
    }
    for name in recipe.keep:
        if name not in group_of:
            raise UserError(
                f"resolve_recipe: keep names {name!r}, expected a linear of this model such as "
                f"{next(iter(group_of))!r}; correct the name"
            )
    return {group_of[name] for name in (*recipe.keep, *protected)}


def check_stats(stats: ActStats, model_key: str) -> None:
    """Refuse statistics that are incomplete or of another model.

    Raises:
        UserError: either is so.
    """
    if len(stats.done) < stats.total:
        raise UserError(
            f"resolve_recipe: the statistics must cover {stats.total} prompts, got "
            f"{len(stats.done)}; run scripts/calibrate.py again to continue"
        )
    if stats.model_key != model_key:
        raise UserError(
            f"resolve_recipe: the statistics must be of model {model_key}, got "
            f"{stats.model_key}; calibrate this model"
        )


def quantized_linears(
    architecture: Architecture, resolved: ResolvedRecipe, branch: str
) -> tuple[StoredLinear, ...]:
    """List the linears of a branch that become int8 under a resolved recipe, in stored order."""
    return tuple(
        linear
        for linear in architecture.stored
        if resolved.scheme(branch, architecture.group_of(linear)).is_int8
    )
