"""Low-rank updates (LoRA), merged into the weights of a branch before they are quantized.

    W' = W + scale * (alpha / r) * B A             LoRA, arXiv:2106.09685, section 4.1
    (alpha / sqrt(r) for rank-stabilized ones)     rsLoRA, arXiv:2312.03732

W' has other row maxima than W, so other scales and other codes in every row: an update cannot be
added to a quantized weight without rounding the rounded. Hence `refuse_lora`.

Files of diffusers and peft (`lora_A`, `lora_B`) and of kohya's trainers (`lora_down`, `lora_up`,
`lora_unet_` and underscores) are read, with the modules named as in the model or as published
(`attention.qkv`). What names no branch belongs to `transformer`, the conditional one, which is what
trainers train. Where a file gives no alpha it is r, as in other readers.

Alpha and the kind of scaling are in diffusers' header: one metadata entry holds JSON with names
such as "transformer.lora_alpha". kohya's trainers store an alpha tensor beside every pair of
factors instead, which comes before the header's word.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import torch

from dit8.quant.checkpoint.read import BranchSource, StoredWeight
from dit8.quant.checkpoint.safetensors_file import SafetensorsFile
from dit8.quant.errors import UserError
from dit8.quant.types import Architecture

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


SUFFIXES = {
    ".lora_A.weight": "A",
    ".lora_down.weight": "A",
    ".lora_B.weight": "B",
    ".lora_up.weight": "B",
    ".alpha": "alpha",
}
KOHYA = "lora_unet_"  # before names with "_" for "."
FLOATS = (torch.float32, torch.bfloat16, torch.float16)
COUNTS = (torch.int32, torch.int64)  # alpha only: some trainers store the number they were given
REMEDY = "use a LoRA that was trained on this model"


@dataclass(frozen=True)
class LowRank:
    """The update of one linear, scaling * B A."""

    a: torch.Tensor  # (r, K) fp32
    b: torch.Tensor  # (N, r) fp32
    scaling: float  # alpha / r


@dataclass(frozen=True)
class Lora:
    """A file that fits its model: "branch.module" -> update."""

    updates: dict[str, LowRank]


def read_lora(
    path: str | Path,
    architecture: Architecture,
    branches: Mapping[str, str],
    shapes: Mapping[str, Mapping[str, tuple[int, ...]]],
) -> Lora:
    """Read a LoRA and check all of it against the model.

    Args:
        path: a .safetensors file.
        architecture: of every branch.
        branches: branch -> attribute of the pipeline, see `quant.architectures.branches_of`.
        shapes: branch -> "module.weight" -> (N, K), as `BranchSource.shapes`.

    Returns:
        one update per linear module, fp32; rows of a stacked `attention.qkv` split among its parts.

    Raises:
        UserError: a key that names no linear of the model, a half without the other, shapes or
            ranks that do not fit, a value that is not finite, a linear updated twice.
    """
    path = Path(path)
    with SafetensorsFile(path, remedy=REMEDY) as file:
        keys = _sort_keys(file.specs, architecture, branches, path)
        settings = AdapterSettings(file.metadata, path)
        stacks = {linear.name: linear.parts for linear in architecture.stored}
        updates: dict[str, LowRank] = {}
        for (branch, name), sides in keys.items():
            tensors = {side: _read(file, key, path) for side, key in sides.items()}
            _check_pair(tensors, sides, path)
            alpha = float(tensors["alpha"]) if "alpha" in tensors else None
            rank = tensors["A"].shape[0]
            scaling = settings.scaling(branches[branch], name, rank, alpha)
            parts = stacks.get(name, (name,))
            rows = _check_shapes(tensors, sides, [shapes[branch][f"{p}.weight"] for p in parts])
            pieces = tensors["B"].split(rows)
            for part, piece in zip(parts, pieces, strict=True):
                if f"{branch}.{part}" in updates:
                    raise UserError(
                        f"read_lora: {path} must update {part} of branch {branch} once, got "
                        f"{sides['A']!r} besides another key; {REMEDY}"
                    )
                updates[f"{branch}.{part}"] = LowRank(tensors["A"], piece, scaling)
    settings.check_all_used()
    return Lora(updates)


def merged(
    rows: torch.Tensor,
    lora: Lora,
    branch: str,
    module: str,
    scale: float = 1.0,
    *,
    start: int = 0,
) -> torch.Tensor:
    """Add an update to a weight, or to some of its rows.

    Args:
        rows: (n, K) fp32, rows start..start + n of the weight.
        lora: see `read_lora`.
        branch: file prefix.
        module: the linear's diffusers name.
        scale: strength that the user asks for; 0 adds nothing.
        start: number of the first row.

    Returns:
        (n, K) fp32; `rows` itself if the file does not update this linear.

    Raises:
        ValueError: another dtype, or rows that the update does not have.
    """
    update = lora.updates.get(f"{branch}.{module}")
    if update is None:
        return rows
    b = update.b[start : start + rows.shape[0]]
    if rows.dtype != torch.float32 or rows.shape != (b.shape[0], update.a.shape[1]):
        raise ValueError(
            f"merged: rows of {branch}.{module} from {start} must be ({b.shape[0]}, "
            f"{update.a.shape[1]}) float32, got {tuple(rows.shape)} {rows.dtype}"
        )
    return torch.addmm(rows, b, update.a, alpha=scale * update.scaling)


@dataclass(frozen=True, kw_only=True)
class _MergedWeight(StoredWeight):
    """A stored weight whose rows come with an update."""

    lora: Lora
    branch: str
    module: str
    strength: float

    def rows(self, start: int, stop: int) -> torch.Tensor:
        rows = super().rows(start, stop)
        return merged(rows, self.lora, self.branch, self.module, self.strength, start=start)


class MergedSource:
    """A branch's weights with a LoRA in them; what a quantizer reads in place of the branch."""

    def __init__(self, source: BranchSource, lora: Lora, branch: str, scale: float = 1.0) -> None:
        self._source, self._lora, self._branch, self._scale = source, lora, branch, scale
        self.shapes, self.dtypes = source.shapes, source.dtypes

    def weight(self, linear: str) -> StoredWeight:
        stored = self._source.weight(linear)
        return _MergedWeight(
            stored.values,
            stored.scale,
            lora=self._lora,
            branch=self._branch,
            module=linear,
            strength=self._scale,
        )

    def tensor(self, name: str) -> torch.Tensor:
        linear = name.removesuffix(".weight")
        if f"{self._branch}.{linear}" in self._lora.updates and name.endswith(".weight"):
            return self.weight(linear).full().to(self.dtypes[name])
        return self._source.tensor(name)


def refuse_lora(
    pipeline: object, attributes: Iterable[str] = ("transformer", "unconditional_transformer")
) -> None:
    """Make a quantized pipeline and its branches say why they take no LoRA.

    Args:
        pipeline: changed in place.
        attributes: of the branches; those the pipeline lacks are skipped.
    """
    pipeline.load_lora_weights = _refuse
    for attribute in attributes:
        module = getattr(pipeline, attribute, None)
        if module is not None:
            module.load_lora_adapter = module.add_adapter = _refuse


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise UserError(
        "load_lora_weights: this model is quantized and cannot take a LoRA, since int8 weights "
        "would have to be rounded again row by row, from values already rounded; merge it before "
        "quantizing: python scripts/quantize.py lora=<file>"
    )


def _sort_keys(
    keys: Iterable[str], architecture: Architecture, branches: Mapping[str, str], path: Path
) -> dict[tuple[str, str], dict[str, str]]:
    """Sort a file's keys: (branch, linear) -> side -> key."""
    names = {*architecture.linears, *(linear.name for linear in architecture.stored)}
    by_underscores = {name.replace(".", "_"): name for name in names}
    branch_of = {attribute: branch for branch, attribute in branches.items()}
    found: dict[tuple[str, str], dict[str, str]] = {}
    for key in keys:
        suffix = next((suffix for suffix in SUFFIXES if key.endswith(suffix)), None)
        stem = key if suffix is None else key.removesuffix(suffix)
        attribute, name = module_of(stem)
        if stem.startswith(KOHYA):
            name = by_underscores.get(stem.removeprefix(KOHYA), "")
        if suffix is None or name not in names or attribute not in branch_of:
            raise UserError(
                f"read_lora: {path} must hold only low-rank updates of this model's linears, such "
                f"as 'transformer.{architecture.linears[0]}.lora_A.weight', got {key!r}; {REMEDY}"
            )
        sides = found.setdefault((branch_of[attribute], name), {})
        side = SUFFIXES[suffix]
        if side in sides:
            raise UserError(
                f"read_lora: {path} must hold one {side} for {name}, got {sides[side]!r} and "
                f"{key!r}; remove one of them"
            )
        sides[side] = key
    if not found:
        raise UserError(f"read_lora: {path} must hold low-rank updates, got no tensor; {REMEDY}")
    return found


def _read(file: SafetensorsFile, key: str, path: Path) -> torch.Tensor:
    tensor = file.read(key)
    allowed = (*FLOATS, *COUNTS) if key.endswith(".alpha") else FLOATS
    got = None
    if tensor.dtype not in allowed:
        got = str(tensor.dtype).removeprefix("torch.")
    elif not torch.isfinite(tensor).all():
        got = "NaN or infinity"
    if got is not None:
        raise UserError(
            f"read_lora: {key!r} in {path} must be floating and finite, got {got}; train it again "
            "or download it again"
        )
    return tensor.float()


def _check_pair(tensors: Mapping[str, torch.Tensor], sides: Mapping[str, str], path: Path) -> None:
    """Refuse half an update, factors of different ranks and an alpha that is no number."""
    some = next(iter(sides.values()))
    for side in "AB":
        if side not in tensors:
            raise UserError(
                f"read_lora: {path} must hold both factors of every update, got {some!r} without "
                f"its {side}; download it again"
            )
        if tensors[side].ndim != 2:
            raise UserError(
                f"read_lora: {sides[side]!r} in {path} must be a matrix, got shape "
                f"{tuple(tensors[side].shape)}; only updates of linears can be merged"
            )
    a, b = tensors["A"], tensors["B"]
    if a.shape[0] != b.shape[1] or a.shape[0] == 0:
        raise UserError(
            f"read_lora: {sides['B']!r} in {path} must have the rank of its A, {a.shape[0]} >= 1, "
            f"got {b.shape[1]}; download it again"
        )
    if "alpha" in tensors and not (tensors["alpha"].numel() == 1 and tensors["alpha"].all()):
        raise UserError(
            f"read_lora: {sides['alpha']!r} in {path} must be one number other than 0, got "
            f"{tensors['alpha'].tolist()}; train it again or download it again"
        )


def _check_shapes(
    tensors: Mapping[str, torch.Tensor],
    sides: Mapping[str, str],
    weights: list[tuple[int, ...]],
) -> list[int]:
    """Compare an update's outer dimensions with the weights it stacks; return their rows."""
    rows, k = [shape[0] for shape in weights], weights[0][1]
    for side, got, expected in (
        ("A", tensors["A"].shape[1], k),
        ("B", tensors["B"].shape[0], sum(rows)),
    ):
        if got != expected:
            what = "columns" if side == "A" else "rows"
            raise UserError(
                f"read_lora: {sides[side]!r} must have {expected} {what} like the model's weight, "
                f"got {got}; {REMEDY}"
            )
    return rows
