"""Build the pipeline of a variant: stock weights, rounded ones, or those of a checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dit8.kernels.backend import backend_name
from dit8.models.memory import enough_memory
from dit8.models.pipeline import load_pipeline
from dit8.quant.architectures.ideogram4 import architecture, branch_modules
from dit8.quant.errors import UserError
from dit8.quant.formats.table import FORMATS
from dit8.quant.load import load_quantized
from dit8.quant.rounding import round_linears

if TYPE_CHECKING:
    from diffusers import Ideogram4Pipeline

IN_MEMORY = ("source", "rounded")  # made from the model's own weights, without a checkpoint


@dataclass(frozen=True)
class Variant:
    """How the weights are stored and multiplied.

    Args:
        name: label in ledgers and tables.
        format: "source" (as the model is on disk), "rounded" (see quant/rounding.py), or a file
            format of quant/formats/table.py.
        gemm: for the int8 formats, "fake_quant" or "fused".
        bits: for rounded.
    """

    name: str
    format: str
    gemm: str | None = None
    bits: int | None = None

    def __post_init__(self) -> None:
        if self.format not in (*IN_MEMORY, *FORMATS):
            raise UserError(
                f"variant {self.name}: format must be one of {', '.join((*IN_MEMORY, *FORMATS))}, "
                f"got {self.format!r}"
            )
        if self.has_recipe != (self.gemm is not None):
            raise UserError(
                f"variant {self.name}: gemm goes with an int8 format and no other, got format "
                f"{self.format!r} and gemm {self.gemm!r}"
            )
        if (self.format == "rounded") != (self.bits is not None):
            raise UserError(
                f"variant {self.name}: bits goes with format rounded and no other, got format "
                f"{self.format!r} and bits {self.bits!r}"
            )

    @property
    def needs_checkpoint(self) -> bool:
        return self.format not in IN_MEMORY

    @property
    def has_recipe(self) -> bool:
        """Tell whether a recipe changes this variant."""
        return self.needs_checkpoint and FORMATS[self.format].has_recipe

    def backend(self, device: torch.device) -> str:
        """Name what multiplies: the fused op's backend, else torch's own matmul."""
        if self.gemm == "fused":
            return backend_name(device)
        return f"torch-{device.type}"


def build_variant(
    variant: Variant,
    folder: Path,
    checkpoint: Path | None,
    *,
    model_key: str,
    dtype: str,
    companion_dtype: str,
    device: torch.device,
    components: Mapping[str, Any] | None = None,
) -> "Ideogram4Pipeline":
    """Load the model and, for a quantized variant, put its checkpoint in.

    `components` is as for `load_pipeline`.

    Raises:
        UserError: a model or checkpoint that is missing, damaged or of another model, or that is
            larger than the device's memory.
    """
    remedy = "use a variant with smaller weights, or hardware=cuda_24gb with engine=dit8"
    with enough_memory(f"variant {variant.name}, with text encoder and VAE,", remedy):
        pipeline = load_pipeline(
            folder,
            dtype,
            companion_dtype,
            device,
            branches=not variant.needs_checkpoint,
            components=components,
        )
        if variant.needs_checkpoint:
            gemm = variant.gemm or "fused"
            load_quantized(pipeline, checkpoint, gemm, model_key=model_key, device=device)
            pipeline.to(device)
        if variant.format == "rounded":
            for module in branch_modules(pipeline).values():
                round_linears(module, architecture(len(module.layers)), variant.bits)
    return pipeline
