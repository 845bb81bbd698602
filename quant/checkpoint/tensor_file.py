"""Safetensors files of this project: one kind, one version, one JSON header, equal bytes.

Everything but the tensors is a single JSON text in one metadata entry. The container beneath, with
its checksums, is `quant.checkpoint.safetensors_header`.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from dit8.quant.checkpoint.safetensors_file import SafetensorsFile, SafetensorsWriter
from dit8.quant.checkpoint.safetensors_header import ENTRY
from dit8.quant.errors import UserError
from dit8.quant.types import TensorSpec


def write_tensors(
    path: str | Path, tensors: Mapping[str, torch.Tensor], kind: str, header: Mapping[str, Any]
) -> None:
    """Write tensors and header atomically; equal content gives equal bytes.

    Args:
        path: the .safetensors file.
        tensors: on any device, in any layout; stored contiguous.
        kind: what the file is, with its version, such as "act-stats 1".
        header: JSON.

    Raises:
        UserError: the folder cannot be written, or the disk is full.
    """
    specs = {name: TensorSpec(tuple(t.shape), t.dtype) for name, t in tensors.items()}
    text = json.dumps({"kind": kind, **header}, allow_nan=False)
    with SafetensorsWriter(path, specs, {ENTRY: text}) as writer:
        for name, tensor in tensors.items():
            writer.write(name, tensor)


def read_tensors(
    path: str | Path, kind: str, *, remedy: str, header_only: bool = False
) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Read what `write_tensors` wrote, to the CPU.

    Args:
        path: the .safetensors file.
        kind: as written; anything else is refused.
        remedy: what the user should do, for the message.
        header_only: leave the tensors on disk.

    Returns:
        name -> tensor (empty if `header_only`), and the header.

    Raises:
        UserError: no such file, not a safetensors, damaged, or of another kind.
    """
    path = Path(path)
    if not os.path.exists(path):  # False where a folder above may not be entered
        raise UserError(f"read_tensors: no {kind} file at {path}; {remedy}")
    with SafetensorsFile(path, remedy=remedy) as file:
        header = json.loads(file.metadata.get(ENTRY, "{}"))
        if header.get("kind") != kind:
            raise UserError(
                f"read_tensors: {path} must be of kind {kind!r}, got {header.get('kind')!r}; "
                f"{remedy}"
            )
        names = [] if header_only else sorted(file.specs)
        return {name: file.read(name) for name in names}, header
