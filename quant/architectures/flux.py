"""FLUX as data: one branch, its linears, and why every smoothing here is a vector.

Names are those of diffusers' `FluxTransformer2DModel`; files use the same ones. No group has a
source, because nothing before its linears takes a scale over exactly:

- the LayerNorms have no weight; x * (1 + scale) + shift follows, both made by a linear from the
  time embedding. That linear could absorb 1/s, its bias b becoming (1 + b) / s - 1, but this
  rounds even for powers of two, and folding promises to round nothing;
- `to_out.0` and `to_add_out` read two parts of one attention, whose values come from `to_v` (image)
  and `add_v_proj` (text): two activations tied to two sources, where a group has one;
- gelu stands between the linears of a feed-forward and does not commute with a scale.

A single block's `proj_out` reads cat(attention, gelu(mlp)) and counts as a down-projection: four
fifths of its input are the feed-forward's, and the attention's fifth belongs into its crest, since
int8 gives a token one scale for both parts.

Text is attended to in its whole padded length, so every row counts and there is no indicator.
`context_embedder` goes with the other embedders, quantized only by recipes that ask for the rest.
"""

from dit8.quant.types import Architecture, Group, StoredLinear

BRANCHES = {"transformer": "transformer"}

# group -> linears that read its activation, within a block
DOUBLE = {
    "attn.qkv": ("attn.to_q", "attn.to_k", "attn.to_v"),
    "attn.add_qkv": ("attn.add_q_proj", "attn.add_k_proj", "attn.add_v_proj"),
    "attn.to_out.0": ("attn.to_out.0",),
    "attn.to_add_out": ("attn.to_add_out",),
    "ff.net.0.proj": ("ff.net.0.proj",),
    "ff.net.2": ("ff.net.2",),
    "ff_context.net.0.proj": ("ff_context.net.0.proj",),
    "ff_context.net.2": ("ff_context.net.2",),
}
SINGLE = {
    "qkv_mlp": ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp"),
    "proj_out": ("proj_out",),
}
DOUBLE_DOWN, SINGLE_DOWN = ("ff.net.2", "ff_context.net.2"), ("proj_out",)
# Linears that read the time embedding or a few rows; each applies its own silu, so none share.
DOUBLE_REST, SINGLE_REST = ("norm1.linear", "norm1_context.linear"), ("norm.linear",)
OUTSIDE = ("x_embedder", "context_embedder", "norm_out.linear", "proj_out")
EMBEDDERS = ("timestep_embedder", "text_embedder")


def architecture(num_double: int, num_single: int, *, guidance: bool = False) -> Architecture:
    """Describe a transformer of `num_double` two-stream and `num_single` one-stream blocks.

    Args:
        num_double: config's num_layers.
        num_single: config's num_single_layers.
        guidance: config's guidance_embeds, true for the guidance-distilled models.

    Returns:
        14 linears a double block, 6 a single one, 8 outside and 2 more with guidance.

    Raises:
        ValueError: a negative count, or no block at all.
    """
    if min(num_double, num_single) < 0 or num_double + num_single == 0:
        raise ValueError(
            "architecture: num_double and num_single must be >= 0 and not both 0, got "
            f"{num_double} and {num_single}"
        )
    blocks = [(f"transformer_blocks.{i}", DOUBLE, DOUBLE_REST) for i in range(num_double)]
    blocks += [(f"single_transformer_blocks.{i}", SINGLE, SINGLE_REST) for i in range(num_single)]
    groups, rest = [], []
    for block, table, outside in blocks:
        for name, targets in table.items():
            linears = tuple(f"{block}.{target}" for target in targets)
            groups.append(Group(f"{block}.{name}", None, "none", linears))
        rest += [f"{block}.{name}" for name in outside]
    embedders = (*EMBEDDERS, "guidance_embedder") if guidance else EMBEDDERS
    rest += [f"time_text_embed.{name}.linear_{i}" for name in embedders for i in (1, 2)]
    groups += [Group(name, None, "none", (name,), "rest") for name in (*rest, *OUTSIDE)]
    linears = [target for group in groups for target in group.targets]
    return Architecture(
        groups=tuple(groups),
        stored=tuple(StoredLinear(name, (name,)) for name in linears),
        down_projections=tuple(
            f"{block}.{name}"
            for block, table, _ in blocks
            for name in (DOUBLE_DOWN if table is DOUBLE else SINGLE_DOWN)
        ),
    )
