"""Ideogram 4 as data: two branches, their linears, and where smoothing can be folded.

Names are those of diffusers' `Ideogram4Transformer2DModel`; published checkpoints use the
original names, in which q, k and v are one linear `attention.qkv` and the output is `attention.o`.

adaLN multiplies after the norm by a scale and adds no shift, so all four activations of a block
can be rescaled exactly by what produces them: the two norms, the rows of `to_v` (attention mixes
tokens, never channels) and the rows of `w3` (silu acts on w1's half only). The text projection's
norm is the fifth. The rest (adaLN, time embedding, input and output projections) is quantized only
by recipes and formats that ask for it; nothing before it can absorb a scale.
"""

from pathlib import Path

from torch import nn

from dit8.quant.errors import UserError
from dit8.quant.files import files_sha256
from dit8.quant.types import Architecture, Group, StoredLinear

# prefix in files and reports -> attribute of the pipeline (also its subfolder on disk)
BRANCHES = {"conditional": "transformer", "unconditional": "unconditional_transformer"}

OUTSIDE = (
    "input_proj",
    "t_embedding.mlp_in",
    "t_embedding.mlp_out",
    "adaln_proj",
    "final_layer.linear",
    "final_layer.adaln_modulation",
)


def architecture(num_layers: int) -> Architecture:
    """Describe one branch with `num_layers` blocks; both branches have the same description.

    Returns:
        8 linears per block plus 7 outside, as 5 groups per block plus 7, in an order that scales
        the columns of `to_v` and `w3` before their rows.

    Raises:
        ValueError: `num_layers` is below 1.
    """
    if num_layers < 1:
        raise ValueError(f"architecture: num_layers must be >= 1, got {num_layers}")
    groups: list[Group] = []
    stored: list[StoredLinear] = []
    for index in range(num_layers):
        block = f"layers.{index}"
        attention, feed_forward = f"{block}.attention", f"{block}.feed_forward"
        qkv = tuple(f"{attention}.to_{letter}" for letter in "qkv")
        w1, w2, w3 = (f"{feed_forward}.w{number}" for number in (1, 2, 3))
        groups += [
            Group(f"{attention}.qkv", f"{block}.attention_norm1", "norm", qkv),
            Group(f"{feed_forward}.up", f"{block}.ffn_norm1", "norm", (w1, w3)),
            Group(f"{attention}.o", f"{attention}.to_v", "linear", (f"{attention}.to_out.0",)),
            Group(f"{feed_forward}.w2", w3, "linear", (w2,)),
        ]
        stored += [
            StoredLinear(f"{attention}.qkv", qkv),
            StoredLinear(f"{attention}.o", (f"{attention}.to_out.0",)),
            *(StoredLinear(name, (name,)) for name in (w1, w2, w3)),
        ]
    text = "llm_cond_proj"
    groups.append(Group(text, "llm_cond_norm", "norm", (text,), "text"))
    rest = [*(f"layers.{index}.adaln_modulation" for index in range(num_layers)), *OUTSIDE]
    groups += [Group(name, None, "none", (name,), "rest") for name in rest]
    return Architecture(
        groups=tuple(groups),
        stored=(*stored, *(StoredLinear(name, (name,)) for name in (text, *rest))),
        down_projections=tuple(f"layers.{index}.feed_forward.w2" for index in range(num_layers)),
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
