"""Record what the scores of a run are: <results>/runs/<run_id>.scorers.json, an entry per scorer.

A ledger row is a number under a scorer's name. What the name means (direction, unit, range, what
is done to the picture, which weights with which hash, which text) is settings and files on the
machine that scored, so it is kept beside the rows. It also protects them: rows made under one
definition are neither extended nor shown under another.
"""

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dit8.eval.scorers import Scorer
from dit8.quant.errors import UserError
from dit8.quant.files import locked, write_atomically

MEASURED, NOT_MEASURED, FAILED = "measured", "not measured", "failed"
ENVIRONMENT = "environment"  # key of an identity that holds versions: recorded, not compared

Entries = dict[str, dict[str, Any]]


def describe_scorer(scorer: Scorer) -> dict[str, Any]:
    """Return what a scorer's values mean, JSON-ready; no weights are looked at.

    A bound at infinity becomes null.
    """
    return {
        "direction": "higher is better" if scorer.higher_is_better else "lower is better",
        "unit": scorer.unit,
        "range": [bound if math.isfinite(bound) else None for bound in scorer.bounds],
        "preprocessing": scorer.preprocessing,
        "needs_reference": scorer.needs_reference,
    }


def record_path(folder: Path, run_id: str) -> Path:
    """Name the record of a run; `folder` is <results>/runs."""
    return folder / f"{run_id}.scorers.json"


def read_entries(folder: Path, run_id: str) -> Entries:
    """Read the record of a run; one that does not exist yet is empty.

    Raises:
        UserError: the file is damaged.
    """
    path = record_path(folder, run_id)
    if not path.exists():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(
            f"{path} must be the JSON record of a run's scorers, got {type(error).__name__}: "
            f"{error}; restore it from version control or delete it"
        ) from error
    return entries


def write_entry(folder: Path, run_id: str, name: str, entry: Mapping[str, Any]) -> None:
    """Put one scorer's entry into the record of a run, under a lock; the others stay.

    An entry of a scorer that was measured is replaced by another measurement only: its rows are
    still in the ledger. Nothing is written where nothing changes.

    Raises:
        UserError: no write permission, or the file is damaged.
    """
    path = record_path(folder, run_id)
    with locked(path):
        entries = read_entries(folder, run_id)
        before = entries.get(name)
        keeps = before is not None and before["status"] == MEASURED != entry["status"]
        if keeps or before == entry:
            return
        text = json.dumps(
            entries | {name: dict(entry)},
            sort_keys=True,
            indent=2,
            ensure_ascii=False,
            allow_nan=False,
        )
        write_atomically(path, lambda file: file.write_text(text + "\n", encoding="utf-8"))


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Say in what two identities of a scorer differ, versions aside; None: in nothing.

    Returns:
        such as "score_text was 'idea', is 'caption_json'", for the first key that differs.
    """
    for key in sorted(before.keys() | now.keys()):
        if key != ENVIRONMENT and before.get(key) != now.get(key):
            return f"{key} was {before.get(key)!r}, is {now.get(key)!r}"
    return None
