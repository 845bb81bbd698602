"""How strong a LoRA's updates are: alpha and the kind of scaling, as diffusers' header says it.

One metadata entry holds JSON with names such as "transformer.lora_alpha". kohya's trainers store
an alpha tensor beside every pair of factors instead, which comes before the header's word.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dit8.quant.errors import UserError

ENTRY = "lora_adapter_metadata"
DEFAULT = "transformer"
PREFIXES = {
    "transformer.": DEFAULT,
    "conditional_transformer.": DEFAULT,
    "diffusion_model.": DEFAULT,
    "unconditional_transformer.": "unconditional_transformer",
}


def module_of(name: str) -> tuple[str, str]:
    """Split a name into the pipeline's attribute that it belongs to and the rest."""
    prefix = next((prefix for prefix in PREFIXES if name.startswith(prefix)), "")
    return PREFIXES.get(prefix, DEFAULT), name.removeprefix(prefix)


class AdapterSettings:
    """The header's word: one alpha for all, exceptions by module, and what alpha is divided by."""

    def __init__(self, metadata: Mapping[str, str], path: Path) -> None:
        """Read the settings; a file without them has none.

        Raises:
            UserError: they are damaged, or of an adapter that is no plain LoRA.
        """
        self._path = path
        self._alphas: dict[str, float] = {}  # attribute -> alpha
        self._patterns: dict[str, dict[str, float]] = {}  # attribute -> module or its end -> alpha
        self._by_root: set[str] = set()  # attributes whose alpha is divided by sqrt(r)
        try:
            for name, value in json.loads(metadata.get(ENTRY, "{}")).items():
                self._take(*module_of(name), value)
        except (ValueError, TypeError, AttributeError) as error:
            raise UserError(
                f"read_lora: {ENTRY} in the header of {path} must be diffusers' JSON, got "
                f"{type(error).__name__}: {error}; download it again"
            ) from error
        self._unused = {pattern for patterns in self._patterns.values() for pattern in patterns}

    def _take(self, attribute: str, name: str, value: Any) -> None:
        if name == "lora_alpha" and value is not None:
            self._alphas[attribute] = float(value)
        elif name == "alpha_pattern" and value:
            # peft writes "^" before a name that must match from its start
            self._patterns[attribute] = {k.lstrip("^"): float(v) for k, v in value.items()}
        elif name == "use_rslora" and value:
            self._by_root.add(attribute)
        elif name.startswith("use_") and value:  # use_dora and others that are more than B A
            raise UserError(
                f"read_lora: {self._path} must be a plain LoRA, got {name} in {ENTRY}; merge it "
                "into the model with peft"
            )

    def scaling(self, attribute: str, name: str, rank: int, alpha: float | None) -> float:
        """Return alpha / r of an update.

        Args:
            attribute: of the pipeline.
            name: of the linear, as the file has it.
            rank: r.
            alpha: of a tensor beside the factors; None takes the header's, or r.
        """
        patterns = self._patterns.get(attribute, {})
        matching = [key for key in patterns if name == key or name.endswith(f".{key}")]
        self._unused -= set(matching)
        if alpha is None:
            alpha = self._alphas.get(attribute, float(rank))
            alpha = patterns[matching[0]] if matching else alpha
        return alpha / (math.sqrt(rank) if attribute in self._by_root else rank)

    def check_all_used(self) -> None:
        """Refuse a pattern that named nothing: some update got another strength than it asks for.

        Raises:
            UserError: there is one.
        """
        if self._unused:
            raise UserError(
                f"read_lora: alpha_pattern in the header of {self._path} must name modules of the "
                f"file, got {min(self._unused)!r}, which matches none; write plain names there"
            )
