"""recipe.json: what was asked for, what became of every group, and the numbers that decided it."""

import json
from collections.abc import Mapping
from dataclasses import asdict, fields

from dit8.quant.errors import UserError
from dit8.quant.types import RankedLayer, Recipe, ResolvedRecipe, Scheme

LAYOUT = {
    "quantized linear": "{m}.wq int8 (N, K), {m}.ws fp32 (N,), optional {m}.smooth fp32 (K,), "
    "{m}.x_scale fp32 (), {m}.bias: y = (x / smooth in int8) @ (wq * ws[:, None]).T + bias; "
    "x_scale, where it is, replaces the dynamic scale per row",
    "rotation": "a group whose scheme has rotation g multiplies its activation by the regular "
    "Hadamard matrix of order g, blockwise, before rounding",
    "other tensors": "their own names, in the dtype of the source (bf16 for FP8 sources)",
    "attention.qkv": "rows of to_q, to_k, to_v stacked",
    "attention.o": "to_out.0",
    "prefix": "the branch: conditional. or unconditional.",
}


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
            recipe=Recipe(**_tuples(value["recipe"])),
            schemes={key: Scheme(**scheme) for key, scheme in value["schemes"].items()},
            protected=tuple(value["protected"]),
            why=tuple(RankedLayer(**layer) for layer in value["why"]),
            reasons=dict(value["reasons"]),
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


def _tuples(value: Mapping) -> dict:
    """JSON has lists where the dataclasses have tuples."""
    return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}
