"""Safetensors files of this project: one kind, one version, one JSON header, equal bytes.

The header is a single metadata entry. Safetensors writes several in an order that changes from
run to run, so that two files of equal content would differ, and a hash of the file is how a result
names the checkpoint it came from.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from quant.atomic import write_atomically
from quant.errors import UserError

ENTRY = "dit8"


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
        UserError: the folder cannot be written.
    """
    ordered = {name: tensors[name].detach().cpu().contiguous() for name in sorted(tensors)}
    text = json.dumps({"kind": kind, **header}, sort_keys=True, allow_nan=False)
    write_atomically(path, lambda temporary: save_file(ordered, temporary, {ENTRY: text}))


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
        UserError: no such file, not a safetensors, or of another kind.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"read_tensors: no {kind} file at {path}; {remedy}")
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(ENTRY, "{}")
            names = [] if header_only else sorted(file.keys())
            tensors = {name: file.get_tensor(name) for name in names}
    except (SafetensorError, OSError) as error:
        raise UserError(
            f"read_tensors: {path} is not a readable safetensors file ({error}); {remedy}"
        ) from error
    header = json.loads(text)
    if header.get("kind") != kind:
        raise UserError(
            f"read_tensors: {path} must be of kind {kind!r}, got {header.get('kind')!r}; {remedy}"
        )
    return tensors, header
