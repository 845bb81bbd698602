"""Ideogram 4 as data: two branches, their linears, and where smoothing can be folded.

Names are those of diffusers' `Ideogram4Transformer2DModel`; published checkpoints use the
original names, in which q, k and v are one linear `attention.qkv` and the output is `attention.o`.

adaLN multiplies after the norm by a scale and adds no shift, so all four activations of a block
can be rescaled exactly by what produces them: the two norms, the rows of `to_v` (attention mixes
tokens, never channels) and the rows of `w3` (silu acts on w1's half only). The text projection's
norm is the fifth. Never quantized, hence not listed: adaLN, time embedding, input and output
projections, indicator embedding.
"""

from pathlib import Path

from torch import nn

from quant.errors import UserError
from quant.keys import files_sha256
from quant.types import Architecture, Fold, StoredLinear

# prefix in files and reports -> attribute of the pipeline (also its subfolder on disk)
BRANCHES = {"conditional": "transformer", "unconditional": "unconditional_transformer"}


def architecture(num_layers: int) -> Architecture:
    """Describe one branch with `num_layers` blocks; both branches have the same description.

    Returns:
        7 linears per block plus the text projection, as 4 folds per block plus one, in an order
        that scales the columns of `to_v` and `w3` before their rows.

    Raises:
        ValueError: `num_layers` is below 1.
    """
    if num_layers < 1:
        raise ValueError(f"architecture: num_layers must be >= 1, got {num_layers}")
    folds: list[Fold] = []
    stored: list[StoredLinear] = []
    for index in range(num_layers):
        block = f"layers.{index}"
        attention, feed_forward = f"{block}.attention", f"{block}.feed_forward"
        qkv = tuple(f"{attention}.to_{letter}" for letter in "qkv")
        w1, w2, w3 = (f"{feed_forward}.w{number}" for number in (1, 2, 3))
        folds += [
            Fold(f"{attention}.qkv", f"{block}.attention_norm1", "norm", qkv),
            Fold(f"{feed_forward}.up", f"{block}.ffn_norm1", "norm", (w1, w3)),
            Fold(f"{attention}.o", f"{attention}.to_v", "linear", (f"{attention}.to_out.0",)),
            Fold(f"{feed_forward}.w2", w3, "linear", (w2,)),
        ]
        stored += [
            StoredLinear(f"{attention}.qkv", qkv),
            StoredLinear(f"{attention}.o", (f"{attention}.to_out.0",)),
            *(StoredLinear(name, (name,)) for name in (w1, w2, w3)),
        ]
    text = "llm_cond_proj"
    return Architecture(
        folds=(*folds, Fold(text, "llm_cond_norm", "norm", (text,))),
        stored=(*stored, StoredLinear(text, (text,))),
        down_projections=tuple(f"layers.{index}.feed_forward.w2" for index in range(num_layers)),
        llm_projection=text,
        indicator_argument="indicator",
        # The pipeline left-pads text with rows of indicator 0 (text is 3, image is 2).
        padding_indicator=0,
    )


def branch_modules(pipeline: object) -> dict[str, nn.Module]:
    """Return the pipeline's branches, keyed as in files.

    Raises:
        UserError: the pipeline lacks a branch.
    """
    modules = {}
    for branch, attribute in BRANCHES.items():
        module = getattr(pipeline, attribute, None)
        if not isinstance(module, nn.Module) or not hasattr(module, "layers"):
            raise UserError(
                f"branch_modules: the pipeline must have a transformer in {attribute!r}, got "
                f"{type(pipeline).__name__} with {type(module).__name__}; load an Ideogram4Pipeline"
            )
        modules[branch] = module
    return modules


def source_sha256(folder: str | Path) -> str:
    """Hash the configurations and weights of both branches in a diffusers folder.

    Reads every byte (1-2 GB/s): milliseconds for the mini, about half a minute for the real model.

    Returns:
        64 hexadecimal digits; a `model_key` is usually the first 12 of them.

    Raises:
        UserError: a branch has no configuration or no safetensors file.
    """
    files: list[Path] = []
    for attribute in BRANCHES.values():
        config, weights = Path(folder) / attribute / "config.json", Path(folder) / attribute
        shards = sorted(weights.glob("*.safetensors"))
        if not config.is_file() or not shards:
            raise UserError(
                f"source_sha256: {Path(folder) / attribute} must hold config.json and "
                f"*.safetensors, got {len(shards)} weight files; pass a diffusers model folder"
            )
        files += [config, *shards]
    return files_sha256(files, root=Path(folder))
