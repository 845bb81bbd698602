"""The frozen values that pass from one stage of quantization to the next; checks, no algorithms.

Symbols, here and in every file of `quant`: M rows (tokens), N out features, K in features.

At the end recipe.json: what was asked for, what became of every group, and the numbers that decided
it.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Literal

from dit8.conf.schema import RecipeConfig
from dit8.quant.errors import UserError

if TYPE_CHECKING:  # a recipe is checked before torch is imported
    import torch

CARRIERS = ("folded", "explicit")
ACTIVATION_SCALES = ("token", "tensor")
METHODS = ("rule", "auto")
ROTATIONS = (0, 4, 16, 64, 256)  # regular Hadamard matrices are Kronecker powers of one of order 4


@dataclass(frozen=True)
class Group:
    """One activation, what produces it, and every linear that reads it.

    The linears of a group share one smoothing, one quantized activation and one GEMM, so a scheme
    is chosen for the group. Dividing the source's output channel j by s_j and multiplying column
    j of every target by s_j changes nothing in real arithmetic, provided that only the targets
    read the source.
    """

    name: str  # names the activation too: the statistics are keyed "branch/name"
    source: str | None  # module whose output channels can be scaled; None: nothing can absorb it
    source_kind: Literal["norm", "linear", "none"]  # norm: weight (K,); linear: (K, K_source)
    targets: tuple[str, ...]  # linears with weight (N, K)
    role: Literal["block", "text", "rest"] = "block"  # rest: quantized only if a recipe asks


@dataclass(frozen=True)
class StoredLinear:
    """One linear as it is named on disk, and the modules whose rows it stacks, in order."""

    name: str
    parts: tuple[str, ...]


@dataclass(frozen=True)
class Architecture:
    """The linears of one branch that may be quantized, as data; see `models.ideogram4`."""

    groups: tuple[Group, ...]  # every linear of the branch is a target of exactly one
    stored: tuple[StoredLinear, ...]  # all parts of one belong to one group
    down_projections: tuple[str, ...]  # published names, in layer order
    indicator_argument: str | None = None  # argument of the forward: (B, L) role of every row
    padding_indicator: int = 0  # the role of rows that stand for no token

    @property
    def linears(self) -> tuple[str, ...]:
        """Name every linear module, in the order of the groups."""
        return tuple(target for group in self.groups for target in group.targets)

    def group_of(self, linear: StoredLinear) -> Group:
        """Return the group whose activation a stored linear reads."""
        return next(group for group in self.groups if linear.parts[0] in group.targets)

    def stored_in(self, group: Group) -> tuple[StoredLinear, ...]:
        """List the stored linears of a group."""
        return tuple(linear for linear in self.stored if linear.parts[0] in group.targets)


@dataclass(frozen=True)
class ActStats:
    """Largest magnitudes of every fold's activation; read it with `quant.calibrate`."""

    step_absmax: dict[str, torch.Tensor]  # "branch/fold" -> (steps, K) fp32, over prompts and rows
    rows: dict[str, int]  # branch -> real rows seen, all steps counted
    done: tuple[str, ...]  # identifiers of the prompts that are in
    total: int  # prompts that a complete calibration has
    model_key: str
    prompts_key: str
    samples: dict[str, torch.Tensor] = field(default_factory=dict)  # "branch/group" -> (R, K) bf16


@dataclass(frozen=True)
class Recipe:
    """What the user asks for, before any statistic is looked at.

    Args:
        name: label in ledgers and tables.
        alpha: SmoothQuant's migration strength in [0, 1]; None leaves smoothing out.
        alpha_grid: strengths to choose from per group by output error; empty takes `alpha`.
        smoothing_carrier: "folded" (powers of two inside norms and linears, free at run time; a
            group that nothing can absorb gets a vector) or "explicit" (true values in `.smooth`
            vectors, one divide per activation at run time).
        rotation: largest group of the Hadamard rotation, a power of 4; 0 rotates nothing.
        activation_scale: "token" (dynamic, one a row) or "tensor" (one calibrated scale for the
            activation and one for the weight).
        protect: down-projections per branch kept unquantized: "half" is floor(n / 2), or a count.
        keep: published linears kept as well, such as "conditional.layers.0.feed_forward.w2";
            their group stays with them.
        quantize_text: whether the text projection becomes int8.
        quantize_rest: whether adaLN, time embedding, input and output projections do.
        method: "rule" (all of the above) or "auto" (a scheme per group by measured damage).
        latency: for auto: modelled latency allowed, relative to the recipe smoothquant.

    Raises:
        UserError: a field is out of its range.
    """

    name: str
    alpha: float | None = 0.5
    alpha_grid: tuple[float, ...] = ()
    smoothing_carrier: str = "folded"
    rotation: int = 0
    activation_scale: str = "token"
    protect: str | int = "half"
    keep: tuple[str, ...] = ()
    quantize_text: bool = True
    quantize_rest: bool = False
    method: str = "rule"
    latency: float = 1.0

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise UserError(f"Recipe: name must be a non-empty string, got {self.name!r}; name it")
        for alpha in (self.alpha, *self.alpha_grid):
            if alpha is not None and not (_is_number(alpha) and 0.0 <= alpha <= 1.0):
                raise UserError(
                    f"Recipe: alpha must lie in [0, 1] or be null, got {alpha!r}; use 0.5"
                )
        for name, allowed in (
            ("smoothing_carrier", CARRIERS),
            ("activation_scale", ACTIVATION_SCALES),
            ("method", METHODS),
        ):
            if getattr(self, name) not in allowed:
                raise UserError(
                    f"Recipe: {name} must be one of {', '.join(allowed)}, "
                    f"got {getattr(self, name)!r}; use {allowed[0]}"
                )
        count = isinstance(self.protect, int) and not isinstance(self.protect, bool)
        if self.protect != "half" and not (count and self.protect >= 0):
            raise UserError(
                "Recipe: protect must be 'half' or a count of layers per branch >= 0, "
                f"got {self.protect!r}; use half"
            )
        for name in ("quantize_text", "quantize_rest"):
            if not isinstance(getattr(self, name), bool):
                raise UserError(
                    f"Recipe: {name} must be true or false, got {getattr(self, name)!r}; correct it"
                )
        if self.rotation not in ROTATIONS:
            raise UserError(
                f"Recipe: rotation must be one of {', '.join(map(str, ROTATIONS))}, "
                f"got {self.rotation!r}; use 256"
            )
        if self.rotation and (self.alpha is not None or self.alpha_grid):
            raise UserError(
                f"Recipe: rotation goes without smoothing, got rotation {self.rotation} and alpha "
                f"{self.alpha}; set alpha=null"
            )
        if self.rotation and self.activation_scale == "tensor":
            raise UserError(
                f"Recipe: rotation goes with scales per token, got rotation {self.rotation} and "
                "activation_scale tensor; set activation_scale=token"
            )
        if not (_is_number(self.latency) and self.latency > 0):
            raise UserError(f"Recipe: latency must be positive, got {self.latency!r}; use 1.0")

    @property
    def smooths(self) -> bool:
        return self.alpha is not None or bool(self.alpha_grid)

    @property
    def needs_stats(self) -> bool:
        """Tell whether activations have to be calibrated for this recipe."""
        ranks = self.protect != 0
        return self.smooths or ranks or self.activation_scale == "tensor" or self.method == "auto"


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class Scheme:
    """What becomes of the linears of one group.

    Args:
        kind: "int8" or "keep" (stored and computed as in the source).
        alpha: smoothing strength; None: no smoothing.
        carrier: where the smoothing scale lives, see `Recipe`.
        rotation: Hadamard group, a power of 4 that divides K; 0: none.
        static: one calibrated scale for the activation and one for the weight.
    """

    kind: Literal["int8", "keep"]
    alpha: float | None = None
    carrier: Literal["folded", "explicit"] = "folded"
    rotation: int = 0
    static: bool = False

    @property
    def is_int8(self) -> bool:
        return self.kind == "int8"

    @property
    def has_vector(self) -> bool:
        """Tell whether a `.smooth` vector is stored."""
        return self.is_int8 and self.alpha is not None and self.carrier == "explicit"


@dataclass(frozen=True)
class RankedLayer:
    """Why a down-projection is protected or not: the two numbers it is ranked by."""

    name: str  # "branch.published name"
    crest: float  # channel max / channel median of its input, the largest over steps
    damage: float  # relative output error expected from rounding its weight, see quant.recipe


@dataclass(frozen=True)
class ResolvedRecipe:
    """A recipe with its decisions taken; the content of recipe.json."""

    recipe: Recipe
    schemes: dict[str, Scheme]  # "branch/group" -> scheme, every group of the model
    protected: tuple[str, ...]  # "branch.published name" of kept down-projections, strongest first
    why: tuple[RankedLayer, ...]  # every down-projection, ranked; empty when nothing was ranked
    reasons: dict[str, str]  # "branch/group" -> why auto or a search chose it; may be empty
    model_key: str
    prompts_key: str | None  # None: no statistics were used

    def scheme(self, branch: str, group: Group) -> Scheme:
        """Look up what becomes of a group."""
        return self.schemes[f"{branch}/{group.name}"]


@dataclass(frozen=True)
class LayerReport:
    """One row of the table that quantization prints."""

    branch: str
    name: str  # published name
    crest: float | None  # None without statistics
    protected: bool
    weight_error: float  # relative Frobenius error that int8 makes, or would make if protected


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype of a tensor in a file."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Codec:
    """How one weight-only format stores a linear's weight; one in each file of `quant.formats`.

    Every output row is encoded by itself, so rows may be encoded in pieces and q/k/v split exactly.

    Args:
        name: of the format.
        refuse: (n, k) -> why a weight of this shape cannot be stored, or None.
        specs: (n, k) -> suffix after the linear's name (".weight") -> what `encode` returns.
        encode: (N, K) fp32 -> suffix -> tensor.
        decode: (suffix -> tensor, dtype) -> (N, K) weight in that dtype; fp32 inside, one rounding.
        split_rows: (suffix -> tensor, row counts) -> one such mapping per count, same codes.
    """

    name: str
    refuse: Callable[[int, int], str | None]
    specs: Callable[[int, int], dict[str, TensorSpec]]
    encode: Callable[[torch.Tensor], dict[str, torch.Tensor]]
    decode: Callable[[Mapping[str, torch.Tensor], torch.dtype], torch.Tensor]
    split_rows: Callable[[Mapping[str, torch.Tensor], Sequence[int]], list[dict[str, torch.Tensor]]]
    by_rows: bool = True  # `encode` may be given a piece of the rows, and pieces concatenate


@dataclass(frozen=True)
class Int8Weight:
    """The numbers of one int8 linear, whatever names a file has for them.

    Args:
        codes: (N, K) int8.
        scales: (N,) fp32.
        smooth: (K,) fp32, the divisor of the activation; None where it is folded or absent.
        x_scale: () fp32, of an activation with one calibrated scale; None: a scale per row.
        rotation: Hadamard group of the activation; 0: none.
    """

    codes: torch.Tensor
    scales: torch.Tensor
    smooth: torch.Tensor | None = None
    x_scale: torch.Tensor | None = None
    rotation: int = 0


@dataclass(frozen=True)
class Int8Layout:
    """How one format stores an `Int8Weight`; the pendant of `Codec`, in the same files.

    Args:
        check: (scheme, linear) -> nothing; a UserError where the layout cannot carry the scheme.
        specs: (n, k, scheme) -> suffix after the linear's name (".wq") -> what `encode` returns.
        encode: weight -> suffix -> tensor; its numbers as they are.
        decode: (suffix -> tensor, linear, rotation that the recipe says) -> weight.
        needed: suffixes that every linear has.
        optional: suffixes that some have.
        expected: (n, k) -> suffix -> shape and dtypes that a loader checks before it reads;
            `decode` checks the rest.
    """

    check: Callable[[Scheme, str], None]
    specs: Callable[[int, int, Scheme], dict[str, TensorSpec]]
    encode: Callable[[Int8Weight], dict[str, torch.Tensor]]
    decode: Callable[[Mapping[str, torch.Tensor], str, int], Int8Weight]
    needed: frozenset[str]
    optional: frozenset[str]
    expected: Callable[[int, int], dict[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]]]


LAYOUT = {
    "quantized linear": "{m}.wq int8 (N, K), {m}.ws fp32 (N,), optional {m}.smooth fp32 (K,), "
    "{m}.x_scale fp32 (), {m}.bias: y = (x / smooth in int8) @ (wq * ws[:, None]).T + bias; "
    "x_scale, where it is, replaces the dynamic scale per row",
    "rotation": "a group whose scheme has rotation g multiplies its activation by the regular "
    "Hadamard matrix of order g, blockwise, before rounding",
    "other tensors": "their own names, in the dtype of the source (bf16 for FP8 sources)",
    "attention.qkv": "rows of to_q, to_k, to_v stacked",
    "attention.o": "to_out.0",
    "prefix": "the branch: conditional. or unconditional.",
}


def recipe_to_json(resolved: ResolvedRecipe) -> str:
    """Serialise to readable JSON; `recipe_from_json` gives an equal recipe back."""
    return json.dumps({**asdict(resolved), "layout": LAYOUT}, indent=2, allow_nan=False) + "\n"


def recipe_from_json(text: str) -> ResolvedRecipe:
    """Read what `recipe_to_json` wrote, refusing unknown or missing fields.

    Raises:
        UserError: the text is not such a recipe.
    """
    try:
        value = json.loads(text)
        value.pop("layout", None)
        unknown = set(value) ^ {field.name for field in fields(ResolvedRecipe)}
        if unknown:
            raise KeyError(", ".join(sorted(unknown)))
        return ResolvedRecipe(
            recipe=Recipe(**_tuples(value["recipe"])),
            schemes={key: Scheme(**scheme) for key, scheme in value["schemes"].items()},
            protected=tuple(value["protected"]),
            why=tuple(RankedLayer(**layer) for layer in value["why"]),
            reasons=dict(value["reasons"]),
            model_key=value["model_key"],
            prompts_key=value["prompts_key"],
        )
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise UserError(
            f"recipe_from_json: the text must be a recipe written by this version, got "
            f"{type(error).__name__}: {error}; quantize again with scripts/quantize.py"
        ) from error


def _tuples(value: Mapping) -> dict:
    """JSON has lists where the dataclasses have tuples."""
    return {key: tuple(item) if isinstance(item, list) else item for key, item in value.items()}


def make_recipe(config: RecipeConfig) -> Recipe:
    """Turn the configuration group into the core's recipe, which checks it."""
    values = asdict(config)
    for name in ("alpha_grid", "keep"):
        values[name] = tuple(values[name])
    return Recipe(**values)
