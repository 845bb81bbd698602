"""Both branches of every variant from random weights, made where they run: no files needed.

How long a forward takes depends on shapes and formats, and on the weights' values only through the
power that flipping bits draws: random ones draw the full amount. So the variants are made from one
pair of random bf16 branches, block by block. What a variant does not quantize (norms, embeddings,
adaLN, protected w2) it shares with that pair: several variants on one card cost their own weights
only.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import nn

from dit8.kernels.hadamard import largest_group, rotate
from dit8.quant.architectures.ideogram4 import architecture
from dit8.quant.errors import UserError
from dit8.quant.formats.table import FORMATS
from dit8.quant.int8 import quantize_weight
from dit8.quant.linear import Int8Linear, WeightOnlyLinear, swap_linears

Branches = dict[str, nn.Module]


@dataclass(frozen=True)
class Storage:
    """How a variant stores the linears that it quantizes.

    Args:
        format: of quant.formats.table; "bf16" quantizes nothing.
        gemm: for w8a8, see Int8Linear.
        rotation: for w8a8, the largest group; 0 rotates nothing.
        protects: whether w2 of every second block stays in bf16: 17 of 34, the recipe's number;
            which ones does not matter for speed.
        copies: linears of one shape get copies of the first one's codes: these encoders run on the
            CPU, some are searches, and 18.6 G weights would take minutes. Decoding takes as long
            for one code as for another, but the weights are no longer those of the source.
    """

    format: str
    gemm: str = ""
    rotation: int = 0
    protects: bool = False
    copies: bool = False


VARIANTS = {
    "bf16": Storage("bf16"),
    "fp8": Storage("fp8"),
    "nf4": Storage("nf4", copies=True),
    "q8_0": Storage("q8_0", copies=True),
    "q4_k": Storage("q4_k", copies=True),
    "int8": Storage("w8a8", "fake_quant", protects=True),
    "fused_int8": Storage("w8a8", "fused", protects=True),
    "rotated": Storage("w8a8", "fused", rotation=256),
}


@torch.no_grad()
def make_branches(variant: str, source: Mapping[str, nn.Module]) -> Branches:
    """Make a variant's branches out of unquantized ones, which stay as they are.

    Args:
        variant: of VARIANTS.
        source: branch -> Ideogram4Transformer2DModel with stock linears.

    Returns:
        the source itself for bf16; otherwise modules that share its tensors where they can.

    Raises:
        UserError: no such variant, or nf4 where bitsandbytes is missing.
    """
    if variant not in VARIANTS:
        raise UserError(f"variant must be one of {', '.join(VARIANTS)}, got {variant!r}")
    storage = VARIANTS[variant]
    if storage.format == "bf16":
        return dict(source)
    encoded: dict[tuple[int, int], dict[str, torch.Tensor]] = {}
    branches = {}
    for branch, module in source.items():
        branches[branch] = shared = share_tensors(module)
        for names in quantized_linears(shared, storage):
            linears = {name: shared.get_submodule(name) for name in names}
            if storage.format == "w8a8":
                made = {name: _to_int8(linear, storage) for name, linear in linears.items()}
            else:
                made = {name: _encode(linear, storage, encoded) for name, linear in linears.items()}
            swap_linears(shared, made)
    return branches


def share_tensors(module: nn.Module) -> nn.Module:
    """Copy a module's structure; parameters and buffers are those of the original."""
    tensors = (*module.parameters(), *module.buffers())
    return copy.deepcopy(module, {id(tensor): tensor for tensor in tensors})


def quantized_linears(module: nn.Module, storage: Storage) -> list[tuple[str, ...]]:
    """List the linears that a variant quantizes, those of one activation together."""
    described, chosen = architecture(len(module.layers)), FORMATS[storage.format]
    protected = described.down_projections[1::2] if storage.protects else ()
    found = []
    for group in described.groups:
        n, k = module.get_submodule(group.targets[0]).weight.shape
        wanted = group.role != "rest" if chosen.has_recipe else chosen.quantizes(group.role, n, k)
        if wanted and group.targets[0] not in protected:
            found.append(group.targets)
    return found


def _to_int8(linear: nn.Linear, storage: Storage) -> Int8Linear:
    weight, group = linear.weight.float(), 0
    if storage.rotation:
        group = largest_group(linear.in_features, storage.rotation)
        weight = rotate(weight, group)
    codes, scales = quantize_weight(weight)
    return Int8Linear(codes, scales, None, linear.bias, gemm=storage.gemm, rotation=group)


def _encode(
    linear: nn.Linear, storage: Storage, encoded: dict[tuple[int, int], dict[str, torch.Tensor]]
) -> WeightOnlyLinear:
    """Encode a linear; `encoded` keeps what may be copied, by shape."""
    codec, shape = FORMATS[storage.format].codec, tuple(linear.weight.shape)
    if not storage.copies:
        return WeightOnlyLinear(codec, codec.encode(linear.weight.float()), shape, linear.bias)
    if shape not in encoded:
        encoded[shape] = codec.encode(linear.weight.float().cpu())
    device = linear.weight.device
    # no `.to`: on the CPU it would hand out the same memory again
    tensors = {
        suffix: torch.empty_like(tensor, device=device).copy_(tensor)
        for suffix, tensor in encoded[shape].items()
    }
    return WeightOnlyLinear(codec, tensors, shape, linear.bias)


def storage_bytes(modules: Iterable[nn.Module]) -> int:
    """Add up the memory that the modules' tensors hold, views and shared tensors once."""
    storages = {}
    for module in modules:
        for tensor in (*module.parameters(), *module.buffers()):
            memory = tensor.untyped_storage()
            storages[memory.data_ptr()] = memory.nbytes()
    return sum(storages.values())
