"""Turn a branch into the tensors of a file, one linear at a time.

What a file will hold is listed first, as entries: names, shapes and dtypes, and a function that
makes the tensors when their turn comes. So a writer knows every offset before the first weight is
read, and memory holds one linear of the source and its result: 0.5 GB for the largest linear of
the real model (the text projection, 245 M weights).

Arithmetic is fp32 whatever the source, after an exact upcast.
"""

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

from dit8.kernels.hadamard import rotate
from dit8.quant.calibrate import absmax, max_crest
from dit8.quant.checkpoint.read import BranchSource, StoredWeight
from dit8.quant.errors import UserError
from dit8.quant.files import over_blocks
from dit8.quant.formats.table import Format
from dit8.quant.int8 import CODE_MAX, error_squares, quantize_weight, relative_of
from dit8.quant.smoothquant import FoldPlan, divided, plan_folds
from dit8.quant.types import (
    ActStats,
    Architecture,
    Int8Weight,
    LayerReport,
    ResolvedRecipe,
    Scheme,
    StoredLinear,
    TensorSpec,
)

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Entry:
    """Tensors that are made together."""

    specs: dict[str, TensorSpec]  # published name without the branch -> what `make` returns
    make: Callable[[], tuple[Tensors, LayerReport | None]]
    values: int  # of the source that go into it, for progress


def branch_entries(
    source: BranchSource,
    architecture: Architecture,
    branch: str,
    target: Format,
    resolved: ResolvedRecipe | None,
    stats: ActStats | None,
) -> list[Entry]:
    """List what a file of a format holds of a branch, in the order of writing.

    Args:
        source: the unquantized branch.
        architecture: describes it.
        branch: file prefix, also the prefix of the statistics' keys.
        target: the format.
        resolved: for the int8 formats, what becomes of every group; else None.
        stats: of this model; None if the recipe needs none.

    Returns:
        one entry per linear, then one per other tensor. Names are the published ones.

    Raises:
        UserError: a linear that the source lacks, or a scheme that the format cannot carry.
    """
    for linear in architecture.linears:
        if f"{linear}.weight" not in source.shapes:
            raise UserError(
                f"branch_entries: {branch} must hold {linear}.weight, got {len(source.shapes)} "
                "other tensors; pass an unquantized branch of this architecture"
            )
    folds = FoldPlan()
    if resolved is not None:
        folds = plan_folds(source, architecture, branch, resolved, stats)
    entries, done = [], set()
    for linear in architecture.stored:
        parts = [source.shapes[f"{part}.weight"] for part in linear.parts]
        n, k = sum(shape[0] for shape in parts), parts[0][1]
        done |= {f"{part}.weight" for part in linear.parts}
        group = architecture.group_of(linear)
        maker = _Maker(source, architecture, branch, linear, folds, stats, (n, k))
        if resolved is not None:
            scheme = resolved.scheme(branch, group)
            made = maker.int8(scheme, target) if scheme.is_int8 else maker.kept(has_report=True)
        elif target.quantizes(group.role, n, k):
            made = maker.encoded(target)
        else:
            made = maker.kept(target.kept_dtype)
        entries.append(made)
        biases = [f"{part}.bias" for part in linear.parts if f"{part}.bias" in source.shapes]
        if biases:
            done |= set(biases)
            entries.append(maker.biases(biases, target.kept_dtype))
    for name in source.shapes:
        if name not in done:
            entries.append(_other(source, name, folds, target.kept_dtype))
    return entries


@dataclass(frozen=True)
class _Maker:
    """Everything that the entry of one linear closes over."""

    source: BranchSource
    architecture: Architecture
    branch: str
    linear: StoredLinear
    folds: FoldPlan
    stats: ActStats | None
    shape: tuple[int, int]

    def _weights(self) -> list[tuple[str, StoredWeight]]:
        return [(part, self.source.weight(part)) for part in self.linear.parts]

    def _report(self, is_int8: bool, error: float | None) -> LayerReport:
        crest, group = None, self.architecture.group_of(self.linear)
        if self.stats is not None and group.role != "rest":
            crest = max_crest(self.stats, f"{self.branch}/{group.name}")
        return LayerReport(self.branch, self.linear.name, crest, not is_int8, error)

    def int8(self, scheme: Scheme, target: Format) -> Entry:
        """Codes and scales, in the names of the format."""
        name, (n, k) = self.linear.name, self.shape
        group = self.architecture.group_of(self.linear)
        vector = self.folds.vectors.get(group.name)
        target.layout.check(scheme, f"{self.branch}.{name}")
        specs = target.layout.specs(n, k, scheme)

        def make() -> tuple[Tensors, LayerReport]:
            codes, scales, error = self._codes(scheme)
            x_scale = None
            if scheme.static:
                act = absmax(self.stats, f"{self.branch}/{group.name}")
                act = act if vector is None else act / vector
                largest = act.amax() / CODE_MAX
                # the unconditional branch's text is all zeros: any scale serves
                x_scale = torch.where(largest > 0, largest, 1.0)
            smooth = vector if scheme.has_vector else None
            made = target.layout.encode(Int8Weight(codes, scales, smooth, x_scale, scheme.rotation))
            return _named(name, made), self._report(True, error)

        return Entry(_named(name, specs), make, n * k)

    def _codes(self, scheme: Scheme) -> tuple[torch.Tensor, torch.Tensor, float]:
        codes, scales = torch.empty(self.shape, dtype=torch.int8), torch.empty(self.shape[0])
        where = f"{self.branch}.{self.linear.name}"
        squares, first = [], 0
        for part, weight in self._weights():

            def quantize(
                block: tuple[int, int],
                part: str = part,
                weight: StoredWeight = weight,
                first: int = first,
            ) -> tuple[float, float]:
                rows = self.folds.weight_rows(weight, part, *block)
                if scheme.rotation:
                    rows = rotate(rows, scheme.rotation)
                made = quantize_weight(rows, where, per_tensor=scheme.static)
                # written here: codes that wait for the other blocks pin the memory of temporaries
                here = slice(first + block[0], first + block[1])
                codes[here], scales[here] = made
                return error_squares(rows, *made)

            # one scale for the tensor needs all of it at once
            blocks = [(0, weight.shape[0])] if scheme.static else weight.blocks()
            squares += over_blocks(quantize, blocks)
            first += weight.shape[0]
        return codes, scales, relative_of(squares)

    def encoded(self, target: Format) -> Entry:
        """A weight-only format's own tensors."""
        codec, name = target.codec, self.linear.name

        def encode(weight: StoredWeight, part: str, block: tuple[int, int]) -> Tensors:
            return codec.encode(_finite(weight.rows(*block), f"{self.branch}.{part}"))

        def make() -> tuple[Tensors, None]:
            weights = self._weights()
            if not codec.by_rows:
                whole = torch.cat([weight.full() for _, weight in weights])
                return _named(name, codec.encode(_finite(whole, f"{self.branch}.{name}"))), None
            pieces: list[Tensors] = []
            for part, weight in weights:
                pieces += over_blocks(functools.partial(encode, weight, part), weight.blocks())
            made = {key: torch.cat([piece[key] for piece in pieces]) for key in pieces[0]}
            return _named(name, made), None

        return Entry(_named(name, codec.specs(*self.shape)), make, math.prod(self.shape))

    def kept(self, dtype: torch.dtype | None = None, *, has_report: bool = False) -> Entry:
        """The weight as it is, or with its rows divided where it feeds a smoothed group."""
        stored = dtype or self.source.dtypes[f"{self.linear.parts[0]}.weight"]
        name = f"{self.linear.name}.weight"

        def keep(
            weight: StoredWeight, part: str, block: tuple[int, int]
        ) -> tuple[torch.Tensor, tuple[float, float]]:
            where, divisor = f"{self.branch}.{part}", self.folds.rows.get(part)
            rows = _finite(weight.rows(*block), where)
            error = error_squares(rows, *quantize_weight(rows)) if has_report else (0.0, 0.0)
            kept = rows.to(stored)  # a float8 source is rounded to bf16 here
            if divisor is not None:
                kept = divided(kept, divisor[slice(*block), None], where)
            return kept, error

        def make() -> tuple[Tensors, LayerReport | None]:
            made = []
            for part, weight in self._weights():
                made += over_blocks(functools.partial(keep, weight, part), weight.blocks())
            error = relative_of(squares for _, squares in made)
            report = self._report(False, error) if has_report else None
            return {name: torch.cat([block for block, _ in made])}, report

        return Entry({name: TensorSpec(self.shape, stored)}, make, math.prod(self.shape))

    def biases(self, names: list[str], dtype: torch.dtype | None) -> Entry:
        """The biases of the stacked modules."""
        stored = dtype or self.source.dtypes[names[0]]
        name = f"{self.linear.name}.bias"

        def make() -> tuple[Tensors, None]:
            parts = [self.folds.tensor(self.source, bias) for bias in names]
            return {name: torch.cat(parts).to(stored)}, None

        return Entry({name: TensorSpec((self.shape[0],), stored)}, make, self.shape[0])


def _other(source: BranchSource, name: str, folds: FoldPlan, dtype: torch.dtype | None) -> Entry:
    stored = dtype or source.dtypes[name]

    def make() -> tuple[Tensors, None]:
        return {name: _finite(folds.tensor(source, name), name).to(stored)}, None

    shape = source.shapes[name]
    return Entry({name: TensorSpec(shape, stored)}, make, math.prod(shape))


def _named(linear: str, by_suffix: dict) -> dict:
    return {f"{linear}{suffix}": value for suffix, value in by_suffix.items()}


def _finite(values: torch.Tensor, name: str) -> torch.Tensor:
    if not torch.isfinite(values).all():
        raise UserError(
            f"convert: {name} {tuple(values.shape)} must be finite, got NaN or infinity; check the "
            "source checkpoint"
        )
    return values
