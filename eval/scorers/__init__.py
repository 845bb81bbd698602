"""Find every scorer of this folder: a module adds its own by listing them in SCORERS."""

import importlib
import pkgutil
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from dit8.models.types import Sample
from dit8.quant.errors import UserError


class Scorer(Protocol):
    """Describe what a scorer is: named fields and one method.

    `score` returns float64 (n,), one finite value per sample in the order of `samples`;
    it must not depend on the order or on which other samples are in the call. A scorer with
    `needs_reference` pairs by (prompt id, seed) and fails when a partner is missing.

    `bounds` are the lowest and the highest value possible, `preprocessing` says in one line what
    happens to a picture (and a text) before the model or the formula. `obstacle` tells why the
    scorer cannot run here, "not measured: ..." and how to get what is missing, or None; it loads no
    model. `identity` returns what else the value depends on, as JSON: checkpoint and its sha256,
    backbone, the text that is scored; and under "environment" the versions, which may change
    without the rows becoming others. A scorer of texts also has `text_record(samples)`, what its
    tower could not see of them.
    """

    name: str
    higher_is_better: bool
    unit: str
    bounds: tuple[float, float]
    preprocessing: str
    needs_reference: bool

    def obstacle(self) -> str | None: ...

    def identity(self) -> dict[str, Any]: ...

    def score(
        self, samples: Sequence[Sample], references: Sequence[Sample] | None = None
    ) -> np.ndarray: ...


def get_scorer(name: str) -> Scorer:
    """Return the scorer of that name with its default settings; UserError if there is none."""
    if name not in SCORERS:
        raise UserError(f"scorer {name!r} does not exist, expected one of {', '.join(SCORERS)}")
    return SCORERS[name]


def _discover() -> dict[str, Scorer]:
    found = {}
    for module in pkgutil.iter_modules(__path__):
        for scorer in importlib.import_module(f"{__name__}.{module.name}").SCORERS:
            assert scorer.name not in found, f"two scorers are called {scorer.name}"
            found[scorer.name] = scorer
    return dict(sorted(found.items()))


SCORERS: dict[str, Scorer] = _discover()
