"""Take a recipe's decisions from the statistics, and carry them as JSON.

recipe.json stands beside every checkpoint: what was asked for, which linears stayed unquantized
and the two numbers that decided it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields

import torch

from quant.act_stats import absmax, max_crest
from quant.errors import UserError
from quant.protect import protected_count, rank_layers, rounding_damage
from quant.types import ActStats, Architecture, RankedLayer, Recipe, ResolvedRecipe, StoredLinear

LAYOUT = {
    "quantized linear": "{m}.wq int8 (N, K), {m}.ws fp32 (N,), optional {m}.smooth fp32 (K,): "
    "y = ((x / smooth) in int8) @ (wq * ws[:, None]).T, optional {m}.bias",
    "other tensors": "their own names, in the dtype of the source",
    "attention.qkv": "rows of to_q, to_k, to_v stacked",
    "attention.o": "to_out.0",
    "prefix": "conditional. or unconditional.",
}


def resolve_recipe(
    recipe: Recipe,
    architecture: Architecture,
    stats: ActStats | None,
    state_dicts: Mapping[str, Mapping[str, torch.Tensor]],
    *,
    model_key: str,
) -> ResolvedRecipe:
    """Rank the down-projections of each branch and protect the first of them.

    Args:
        recipe: what is asked for.
        architecture: describes each branch.
        stats: of this model, complete; None only if the recipe neither smooths nor protects.
        state_dicts: branch -> tensors; only the down-projections are read.
        model_key: identifies the weights in `state_dicts`.

    Returns:
        the recipe with `protected` and `why`; reads nothing but the arguments.

    Raises:
        UserError: statistics are missing, incomplete or of another model.
    """
    count = protected_count(recipe.protect, len(architecture.down_projections))
    if stats is None:
        if recipe.alpha is not None or count > 0:
            raise UserError(
                f"resolve_recipe: recipe {recipe.name!r} smooths or protects and needs activation "
                "statistics, got none; run scripts/calibrate.py or set alpha=null protect=0"
            )
        return ResolvedRecipe(recipe, (), (), model_key, None)
    check_stats(stats, model_key)
    why: list[RankedLayer] = []
    protected: list[str] = []
    for branch, tensors in state_dicts.items():
        crests, damages = {}, {}
        for layer in architecture.down_projections:
            key, name = f"{branch}/{_fold_of(architecture, layer)}", f"{branch}.{layer}"
            crests[name] = max_crest(stats, key)
            damages[name] = rounding_damage(tensors[f"{layer}.weight"], absmax(stats, key))
        ranked = rank_layers(crests, damages)
        why += ranked
        protected += [layer.name for layer in ranked[:count]]
    return ResolvedRecipe(recipe, tuple(protected), tuple(why), model_key, stats.prompts_key)


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


def _fold_of(architecture: Architecture, linear: str) -> str:
    """Name the fold whose activation a linear reads."""
    return next(fold.name for fold in architecture.folds if linear in fold.targets)


def quantized_linears(
    architecture: Architecture, resolved: ResolvedRecipe, branch: str
) -> tuple[StoredLinear, ...]:
    """List the linears of a branch that become int8 under a resolved recipe, in stored order."""
    kept = set(resolved.protected)
    if not resolved.recipe.quantize_llm_projection:
        kept.add(f"{branch}.{architecture.llm_projection}")
    return tuple(linear for linear in architecture.stored if f"{branch}.{linear.name}" not in kept)


def recipe_to_json(resolved: ResolvedRecipe) -> str:
    """Serialise to readable JSON; `recipe_from_json` gives an equal recipe back."""
    return json.dumps({**asdict(resolved), "layout": LAYOUT}, indent=2, allow_nan=False) + "\n"


def recipe_from_json(text: str) -> ResolvedRecipe:
    """Read what `recipe_to_json` wrote, refusing unknown or missing fields.

    Raises:
        UserError: the text is not such a recipe.
    """
    try:
        value = json.loads(text)
        value.pop("layout", None)
        unknown = set(value) ^ {field.name for field in fields(ResolvedRecipe)}
        if unknown:
            raise KeyError(", ".join(sorted(unknown)))
        return ResolvedRecipe(
            recipe=Recipe(**value["recipe"]),
            protected=tuple(value["protected"]),
            why=tuple(RankedLayer(**layer) for layer in value["why"]),
            model_key=value["model_key"],
            prompts_key=value["prompts_key"],
        )
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"recipe_from_json: the text must be a recipe written by this version, got "
            f"{type(error).__name__}: {error}; quantize again with scripts/quantize.py"
        ) from error
