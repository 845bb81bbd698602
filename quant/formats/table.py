"""The file formats that dit8 writes and reads, as data."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch

from dit8.quant.errors import UserError
from dit8.quant.formats import fp8, nf4, q4_k, q8_0, w8a8
from dit8.quant.types import Codec, Int8Layout


@dataclass(frozen=True)
class Format:
    """One format.

    Args:
        name: as in `format=`.
        container: "file" (one safetensors, branch prefixes), "files" (one safetensors a branch),
            "diffusers" (one in each of the model's subfolders, diffusers' names) or "gguf" (one
            file, its own branch prefixes). All but diffusers have the original names.
        codec: of a weight-only format.
        layout: of a format with int8 weights and activations. Plain weights have neither.
        roles: of the groups that a weight-only format quantizes.
        kept_dtype: of everything else; None: the source's.
        config: what a model's config.json must say for diffusers to read the weights.
    """

    name: str
    container: Literal["file", "files", "diffusers", "gguf"]
    codec: Codec | None = None
    layout: Int8Layout | None = None
    roles: tuple[str, ...] = ()
    kept_dtype: torch.dtype | None = None
    config: Mapping[str, Any] | None = None

    @property
    def has_recipe(self) -> bool:
        """Tell whether a recipe decides what becomes of a linear."""
        return self.layout is not None

    @property
    def suffixes(self) -> tuple[frozenset[str], frozenset[str]]:
        """Name the tensors that a linear of this format has, and those it may have besides."""
        if self.layout is not None:
            return self.layout.needed, self.layout.optional
        if self.codec is not None:
            return frozenset(self.codec.specs(256, 256)), frozenset()
        return frozenset({".weight"}), frozenset()

    def quantizes(self, role: str, n: int, k: int) -> bool:
        """Tell whether a weight-only format stores this linear in its own blocks."""
        return self.codec is not None and role in self.roles and self.codec.refuse(n, k) is None


EVERY = ("block", "text", "rest")

FORMATS = {
    table.name: table
    for table in (
        Format("w8a8", "file", layout=w8a8.W8A8),
        Format("comfy", "files", layout=w8a8.COMFY),
        # The official file leaves adaLN and the other small linears alone; so does this one.
        Format("fp8", "diffusers", fp8.CODEC, roles=("block", "text")),
        # bitsandbytes and the published GGUF files quantize every linear whose rows divide.
        Format("nf4", "diffusers", nf4.CODEC, roles=EVERY, config=nf4.CONFIG),
        Format("q8_0", "gguf", q8_0.CODEC, roles=EVERY, kept_dtype=torch.float32),
        Format("q4_k", "gguf", q4_k.CODEC, roles=EVERY, kept_dtype=torch.float32),
        Format("bf16", "diffusers", kept_dtype=torch.bfloat16),
    )
}


def get_format(name: str) -> Format:
    """Look up a format.

    Raises:
        UserError: unknown name.
    """
    if name not in FORMATS:
        raise UserError(f"format must be one of {', '.join(FORMATS)}, got {name!r}")
    return FORMATS[name]
