"""One W8A8 safetensors for both branches, and recipe.json beside it.

Names are the published ones with a branch prefix: `conditional.layers.0.attention.qkv.wq`. The
header carries the recipe too, so the file alone is enough; recipe.json is for people. What a file
must hold is checked against a model by `quant.load`; here only the container is.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from quant.atomic import write_atomically
from quant.recipe import recipe_from_json, recipe_to_json
from quant.tensor_file import read_tensors, write_tensors
from quant.types import ResolvedRecipe

KIND = "W8A8 checkpoint 1"  # raise the number when a tensor changes its name or meaning
REMEDY = "make it with scripts/quantize.py"


@dataclass(frozen=True)
class Checkpoint:
    """A read checkpoint: branch -> tensors by published name, and what made them."""

    branches: dict[str, dict[str, torch.Tensor]]
    resolved: ResolvedRecipe
    source_sha256: str


def save_checkpoint(
    path: str | Path,
    branches: Mapping[str, Mapping[str, torch.Tensor]],
    resolved: ResolvedRecipe,
    *,
    source_sha256: str,
) -> None:
    """Write the checkpoint and recipe.json, each atomically; the checkpoint last.

    So a checkpoint that exists is whole and has its recipe beside it. Equal content, equal bytes.

    Args:
        path: the .safetensors file; recipe.json goes to the same folder.
        branches: branch -> tensors by published name, as `quant.quantize` makes them.
        resolved: the recipe that made them.
        source_sha256: of the unquantized model's files.

    Raises:
        UserError: the folder cannot be written.
    """
    text = recipe_to_json(resolved)
    tensors = {
        f"{branch}.{name}": tensor
        for branch in branches
        for name, tensor in branches[branch].items()
    }
    header = {
        "recipe": text,
        "model_key": resolved.model_key,
        "source_sha256": source_sha256,
    }
    recipe_path = Path(path).with_name("recipe.json")
    write_atomically(recipe_path, lambda temporary: temporary.write_text(text, encoding="utf-8"))
    write_tensors(path, tensors, KIND, header)


def read_recipe(path: str | Path) -> ResolvedRecipe:
    """Read the recipe out of a checkpoint's header, no tensor with it.

    Raises:
        UserError: as `load_checkpoint`.
    """
    _, header = read_tensors(path, KIND, remedy=REMEDY, header_only=True)
    return recipe_from_json(header["recipe"])


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read the whole file to the CPU.

    Does not know the model: `quant.load.load_quantized` checks every tensor against it.

    Raises:
        UserError: no file, not a safetensors, another format or version, or a broken recipe.
    """
    tensors, header = read_tensors(path, KIND, remedy=REMEDY)
    branches: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        branch, _, rest = name.partition(".")
        branches.setdefault(branch, {})[rest] = tensor
    return Checkpoint(branches, recipe_from_json(header["recipe"]), header["source_sha256"])
