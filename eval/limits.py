"""Ask whether a verdict depends on the setting: one factor at a time from the mini's default.

A verdict is reached at one number of steps and one guidance, on natural weights. Here each of the
three is moved alone, and every variant is compared with the unquantized model *at the same
setting*, by the procedure of `eval.verdict`. Two verdicts that differ do not show that the setting
matters: one may have missed its margin by a hair. So the difference itself is compared with the
one at the default, prompt by prompt (same captions, same noise):

    change = (variant - bf16 at the setting) - (variant - bf16 at the default).

Only a change whose interval leaves out zero says that the setting matters. The reference's own
level at each setting is kept beside it: a difference between two bad pictures tells little.

Pure: the same rows give the same values. The ledger's keys tell neither steps nor guidance apart;
the record of a run does (`identity.sampler`), so runs are found through it.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dit8.eval.ablation import Run
from dit8.eval.exact_match import Values, delta_interval, discordant_interval
from dit8.eval.ledger import read_record, was_only_scored
from dit8.eval.margins import Margin
from dit8.eval.run import Interval
from dit8.eval.scorers import get_scorer
from dit8.eval.stats import mean_interval, paired_interval, prompt_differences
from dit8.eval.table import values_by_key
from dit8.eval.verdict import Comparison, Verdict, compare, conclude
from dit8.quant.errors import UserError

REFERENCE = "bf16"
VARIANTS = ("fp8", "q8_0", "q4_k", "int8")
RECIPE = "smoothquant"
DISTANCES = ("latent_error", "psnr")  # to the reference's pictures
# The two that every run has; a third would make Holm's correction another one in some settings.
JUDGES = ("ocr_exact", "ocr_ned")
KEYS = {"engine": "stock", "dtype": "float32"}


@dataclass(frozen=True)
class Setting:
    """Name a point: the model, the steps of a picture and the guidance of all of them."""

    name: str
    model: str = "mini"
    steps: int = 20
    guidance: float = 3.0

    @property
    def words(self) -> tuple[str, ...]:
        """Return the overrides of scripts/evaluate.py that lead here."""
        return (f"model={self.model}", f"steps={self.steps}", f"guidance={self.guidance:g}")


DEFAULT = Setting("default")
SETTINGS = (
    DEFAULT,
    Setting("12 steps", steps=12),
    Setting("48 steps", steps=48),
    Setting("guidance 1", guidance=1.0),
    Setting("guidance 7", guidance=7.0),
    Setting("planted outliers", model="mini_planted"),
)

Runs = Mapping[tuple[str, str], Run]  # (setting, variant) -> what the ledger holds


@dataclass(frozen=True)
class Judged:
    """Hold what some scores say together of a variant.

    Args:
        verdict: of all `scores`.
        scores: scorer -> its comparison with the reference.
        captions: scorer -> (captions it calls better than the reference's, worse).
    """

    verdict: Verdict
    scores: Mapping[str, Comparison]
    captions: Mapping[str, tuple[int, int]]

    @property
    def deciding(self) -> tuple[str, ...]:
        """Return the scores that have the verdict themselves and so brought it about."""
        judges = {name: one for name, one in self.scores.items() if one.margin is not None}
        return tuple(n for n, one in judges.items() if one.verdict.kind == self.verdict.kind)


@dataclass(frozen=True)
class Entry:
    """Hold one variant at one setting; None: not measured.

    Args:
        distances: scorer of DISTANCES -> mean over prompts.
        judged: by the scores of JUDGES, at this setting.
        wide: by every score that both have, at the default; None elsewhere, and where there are
            none but JUDGES.
        error_change: of the latent error against the default; None there.
        changes: scorer of JUDGES -> change of its difference against the default; empty there.
    """

    setting: Setting
    variant: str
    distances: Mapping[str, Interval]
    judged: Judged | None
    wide: Judged | None
    error_change: Interval | None
    changes: Mapping[str, Interval]

    @property
    def kind(self) -> str | None:
        """Return the outcome by JUDGES."""
        return None if self.judged is None else self.judged.verdict.kind


@dataclass(frozen=True)
class Level:
    """Hold what the reference itself reaches at one setting.

    Args:
        exact: texts read exactly, a share.
        ned: edit distance / longer length.
        exact_change: of `exact` against the default, paired; None there or not measured.
    """

    setting: Setting
    exact: Interval
    ned: Interval
    exact_change: Interval | None


@dataclass(frozen=True)
class Examined:
    """Hold every variant at every setting, and the reference where it is measured."""

    entries: tuple[Entry, ...]
    levels: tuple[Level, ...]


def read_records(folders: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Read the records of runs by run id; of two folders with one run the first one's counts.

    Raises:
        UserError: a record that is no JSON object with a run's identity.
    """
    records: dict[str, dict[str, Any]] = {}
    for folder in folders:
        for path in sorted(folder.glob("*.json")):
            if path.name.endswith(".scorers.json"):  # of older versions
                continue
            try:
                record = read_record(path)
                if was_only_scored(record):
                    continue
                record["identity"]["sampler"]["steps"], record["started"]
            except (KeyError, TypeError) as error:
                raise UserError(
                    f"limits: {path} must be the record of a run, got {type(error).__name__}: "
                    f"{error}; restore it from version control"
                ) from error
            records.setdefault(path.stem, record)
    return records


def collect(
    rows: pd.DataFrame,
    records: Mapping[str, Mapping[str, Any]],
    *,
    prompt_set: str,
    backend: str,
    captions: int,
) -> dict[tuple[str, str], Run]:
    """Find the run of every setting and variant.

    Runs count that have exactly `captions` pictures, the keys of KEYS, no recipe or RECIPE, and
    the setting's sampler by their record. Of several the one started last is taken.

    Args:
        rows: of one or more results/scores.csv; where a key stands twice the first counts.
        records: of `read_records`.

    Raises:
        UserError: a run of the ledger without its record.
    """
    wanted = KEYS | {"prompt_set": prompt_set, "backend": backend}
    for column, value in wanted.items():
        rows = rows[rows[column] == value]
    rows = rows[rows["recipe"].isin(["none", RECIPE]) & rows["variant"].isin(_variants())]
    rows = rows.drop_duplicates(["run_id", "prompt_id", "seed", "scorer"])
    found: dict[tuple[str, str], Run] = {}
    for run_id, group in rows.groupby("run_id", sort=True):
        if run_id not in records:
            raise UserError(
                f"limits: run {run_id} must have its record beside the ledger, got none; restore "
                f"runs/{run_id}.json from version control"
            )
        values = {name: values_by_key(each) for name, each in group.groupby("scorer", sort=True)}
        whole = {name: each for name, each in values.items() if len(each) == captions}
        setting = _setting(str(group["model"].iloc[0]), records[run_id])
        if setting is None or not whole:
            continue
        key = (setting.name, str(group["variant"].iloc[0]))
        known = found.get(key)
        if known is None or records[known.run_id]["started"] < records[run_id]["started"]:
            found[key] = Run(str(run_id), whole)
    return found


def missing(runs: Runs) -> dict[Setting, tuple[str, ...]]:
    """List the variants that each setting lacks, wholly or by a score; settings that lack none
    are left out."""
    lacking = {
        setting: tuple(name for name in _variants() if not _is_measured(runs, setting, name))
        for setting in SETTINGS
    }
    return {setting: names for setting, names in lacking.items() if names}


def examine(runs: Runs, margins: Mapping[str, Margin]) -> Examined:
    """Compare every variant with the reference at every setting, and settings with the default.

    Raises:
        UserError: runs of one setting on different captions.
    """
    entries = [_entry(runs, margins, setting, name) for setting in SETTINGS for name in VARIANTS]
    levels = [_level(runs, setting) for setting in SETTINGS if _is_measured(runs, setting)]
    return Examined(tuple(entries), tuple(levels))


def _entry(runs: Runs, margins: Mapping[str, Margin], setting: Setting, variant: str) -> Entry:
    own, base = runs.get((setting.name, variant)), runs.get((setting.name, REFERENCE))
    values = {} if own is None else own.values
    distances = {name: mean_interval(values[name]) for name in DISTANCES if name in values}
    judged = wide = None
    if base is not None and all(name in values and name in base.values for name in JUDGES):
        sides = (values, base.values)
        narrow = tuple({name: side[name] for name in JUDGES} for side in sides)
        judged = _judge(variant, setting, *narrow, margins)
        if setting == DEFAULT:
            found = _judge(variant, setting, *sides, margins)
            wide = found if set(found.scores) > set(JUDGES) else None
    error_change, changes = None, {}
    at_default = runs.get((DEFAULT.name, variant))
    if setting != DEFAULT and at_default is not None:
        before = at_default.values
        if "latent_error" in values and "latent_error" in before:
            error_change = paired_interval(values["latent_error"], before["latent_error"])
        default = runs.get((DEFAULT.name, REFERENCE))
        sides = (own, base), (at_default, default)
        four = [run for side in sides for run in side]
        for name in JUDGES:
            if all(run is not None and name in run.values for run in four):
                changes[name] = _change(*sides, name)
    return Entry(setting, variant, distances, judged, wide, error_change, changes)


def _judge(
    variant: str,
    setting: Setting,
    own: Mapping[str, Values],
    base: Mapping[str, Values],
    margins: Mapping[str, Margin],
) -> Judged:
    found = {one.scorer: one for one in compare(own, base, margins)}
    captions = {}
    for name in found:
        sign = 1 if get_scorer(name).higher_is_better else -1
        gains = sign * prompt_differences(own[name], base[name])
        captions[name] = (int((gains > 0).sum()), int((gains < 0).sum()))
    verdict = conclude(variant, f"{REFERENCE} at {setting.name}", list(found.values()))
    return Judged(verdict, found, captions)


def _level(runs: Runs, setting: Setting) -> Level:
    values = runs[setting.name, REFERENCE].values
    exact, ned = (mean_interval(values[name]) for name in JUDGES)
    change = None
    if setting != DEFAULT and _is_measured(runs, DEFAULT):
        before = runs[DEFAULT.name, REFERENCE].values
        bounds = get_scorer(JUDGES[0]).bounds
        change = delta_interval(bounds, values[JUDGES[0]], before[JUDGES[0]])
    return Level(setting, exact, ned, change)


def _change(now: tuple[Run, Run], before: tuple[Run, Run], scorer: str) -> Interval:
    """Compare two differences of a score in [0, 1], each variant - reference.

    They lie in [-1, 1]; mapped to [0, 1] they are what `discordant_interval` is for, since most
    captions do not change, and the map halves the difference.
    """
    halves = []
    for variant, reference in (now, before):
        a, b = variant.values[scorer], reference.values[scorer]
        if a.keys() != b.keys():
            raise UserError(
                f"limits: runs {variant.run_id} and {reference.run_id} must be on the same "
                "captions, got others; evaluate both again"
            )
        halves.append({key: (1.0 + a[key] - b[key]) / 2.0 for key in a})
    half = discordant_interval(*halves)
    ends = (2.0 * half.estimate, 2.0 * half.low, 2.0 * half.high)
    return Interval(*ends, half.n, half.method)


def _variants() -> tuple[str, ...]:
    return (REFERENCE, *VARIANTS)


def _setting(model: str, record: Mapping[str, Any]) -> Setting | None:
    sampler = record["identity"]["sampler"]
    point = (model, sampler["steps"], sampler["guidance"], sampler["final_guidance"])
    for setting in SETTINGS:
        if point == (setting.model, setting.steps, setting.guidance, setting.guidance):
            return setting
    return None


def _is_measured(runs: Runs, setting: Setting, variant: str = REFERENCE) -> bool:
    run = runs.get((setting.name, variant))
    needed = JUDGES if variant == REFERENCE else (*JUDGES, *DISTANCES)
    return run is not None and all(name in run.values for name in needed)
