"""Read the margins of equivalence: per scorer the largest difference that does not matter.

They stand in conf/margins.yaml, in version control, because a test of equivalence is worth
something only if its margin was declared before the scores were seen.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from dit8.conf.paths import ROOT
from dit8.quant.errors import UserError

PATH = ROOT / "conf" / "margins.yaml"
FIELDS = ("margin", "unit", "reason")


@dataclass(frozen=True)
class Margin:
    """Hold the largest difference of one score that does not matter.

    Args:
        scorer: name of the scorer.
        value: greater than 0; differences from -value to value do not matter.
        unit: of the value, the scorer's own.
        reason: why this value, one or two sentences.
    """

    scorer: str
    value: float
    unit: str
    reason: str


def load_margins(path: Path = PATH) -> dict[str, Margin]:
    """Read the margins by scorer name.

    Raises:
        UserError: no such file, no YAML, or an entry without a positive margin, unit and reason.
    """
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"margins: cannot read {path} ({reason}); restore or correct it") from error
    if not isinstance(entries, Mapping):
        raise UserError(
            f"margins: {path} must map scorers to margins, got {type(entries).__name__}; correct it"
        )
    return {str(name): _margin(path, str(name), entry) for name, entry in entries.items()}


def _margin(path: Path, name: str, entry: Any) -> Margin:
    keys = sorted(map(str, entry)) if isinstance(entry, Mapping) else entry
    if keys != sorted(FIELDS):
        raise UserError(
            f"margins: {path}: {name} must have exactly {', '.join(FIELDS)}, got {keys}; correct it"
        )
    value, unit, reason = (entry[field] for field in FIELDS)
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not (is_number and np.isfinite(value) and value > 0):
        raise UserError(
            f"margins: {path}: the margin of {name} must be a positive number, got {value!r}; "
            "correct it"
        )
    for field, text in (("unit", unit), ("reason", reason)):
        if not (isinstance(text, str) and text.strip()):
            raise UserError(
                f"margins: {path}: the {field} of {name} must be a text, got {text!r}; write it"
            )
    return Margin(name, float(value), unit, reason)
