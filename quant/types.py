"""The frozen values that pass from one stage of quantization to the next; checks, no algorithms.

Symbols, here and in every file of `quant`: M rows (tokens), N out features, K in features.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from quant.errors import UserError

CARRIERS = ("folded", "explicit")


@dataclass(frozen=True)
class Fold:
    """One activation, what produces it, and every linear that reads it.

    Dividing the source's output channel j by s_j and multiplying column j of every target by
    s_j changes nothing in real arithmetic, provided that only the targets read the source.
    """

    name: str  # names the activation too: the statistics are keyed "branch/name"
    source: str  # module whose output channels are scaled
    source_kind: Literal["norm", "linear"]  # norm: weight (K,); linear: weight (K, K_source)
    targets: tuple[str, ...]  # linears with weight (N, K)


@dataclass(frozen=True)
class StoredLinear:
    """One linear as it is named on disk, and the modules whose rows it stacks, in order."""

    name: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """The linears of one branch that may become int8, as data; see `models.ideogram4`."""

    folds: tuple[Fold, ...]  # every linear that may become int8 is a target of exactly one
    stored: tuple[StoredLinear, ...]
    down_projections: tuple[str, ...]  # published names, in layer order
    llm_projection: str  # published name
    indicator_argument: str  # argument of the branch's forward: (B, L) role of every row
    padding_indicator: int  # the role of rows that stand for no token

    @property
    def linears(self) -> tuple[str, ...]:
        """Name every module that may become int8, in the order of the folds."""
        return tuple(target for fold in self.folds for target in fold.targets)


@dataclass(frozen=True)
class ActStats:
    """Largest magnitudes of every fold's activation; read it with `quant.act_stats`."""

    step_absmax: dict[str, torch.Tensor]  # "branch/fold" -> (steps, K) fp32, over prompts and rows
    rows: dict[str, int]  # branch -> real rows seen, all steps counted
    done: tuple[str, ...]  # identifiers of the prompts that are in
    total: int  # prompts that a complete calibration has
    model_key: str
    prompts_key: str


@dataclass(frozen=True)
class Recipe:
    """What the user asks for, before any statistic is looked at.

    Args:
        name: label in ledgers and tables.
        alpha: SmoothQuant's migration strength in [0, 1]; None leaves smoothing out.
        smoothing_carrier: "folded" (powers of two inside norms and linears, free at run time)
            or "explicit" (true values in `.smooth` vectors, one divide per activation at run time).
        protect: down-projections per branch kept unquantized: "half" is floor(n / 2), or a count.
        quantize_llm_projection: whether the text projection becomes int8.

    Raises:
        UserError: a field is out of its range.
    """

    name: str
    alpha: float | None = 0.5
    smoothing_carrier: str = "folded"
    protect: str | int = "half"
    quantize_llm_projection: bool = True

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise UserError(f"Recipe: name must be a non-empty string, got {self.name!r}; name it")
        number = isinstance(self.alpha, int | float) and not isinstance(self.alpha, bool)
        if self.alpha is not None and not (number and 0.0 <= self.alpha <= 1.0):
            raise UserError(
                f"Recipe: alpha must lie in [0, 1] or be null, got {self.alpha!r}; use 0.5"
            )
        if self.smoothing_carrier not in CARRIERS:
            raise UserError(
                f"Recipe: smoothing_carrier must be one of {', '.join(CARRIERS)}, "
                f"got {self.smoothing_carrier!r}; use folded"
            )
        count = isinstance(self.protect, int) and not isinstance(self.protect, bool)
        if self.protect != "half" and not (count and self.protect >= 0):
            raise UserError(
                "Recipe: protect must be 'half' or a count of layers per branch >= 0, "
                f"got {self.protect!r}; use half"
            )
        if not isinstance(self.quantize_llm_projection, bool):
            raise UserError(
                "Recipe: quantize_llm_projection must be true or false, "
                f"got {self.quantize_llm_projection!r}; use true"
            )


@dataclass(frozen=True)
class RankedLayer:
    """Why a down-projection is protected or not: the two numbers it is ranked by."""

    name: str  # "branch.published name"
    crest: float  # channel max / channel median of its input, the largest over steps
    damage: float  # relative output error expected from rounding its weight, see quant.protect


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe with its decisions taken; the content of recipe.json."""

    recipe: Recipe
    protected: tuple[str, ...]  # "branch.published name", strongest reason first
    why: tuple[RankedLayer, ...]  # every down-projection, ranked; empty when nothing was ranked
    model_key: str
    prompts_key: str | None  # None: no statistics were used


@dataclass(frozen=True)
class LayerReport:
    """One row of the table that quantization prints."""

    branch: str
    name: str  # published name
    crest: float | None  # None without statistics
    protected: bool
    weight_error: float  # relative Frobenius error that int8 makes, or would make if protected
