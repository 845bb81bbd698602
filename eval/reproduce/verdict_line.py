"""The verdicts of the mini in one paragraph, which docs/scores-and-verdicts.md shows.

As scripts/verdicts.py reaches them, for the papers' variants; its page has every difference.
"""

import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dit8.eval.margins import load_margins
from dit8.eval.reproduce.headline import WIDTH, join_names, lacking_note
from dit8.eval.reproduce.quality_claims import EVALUATE
from dit8.eval.reproduce.runs import MINI, VARIANTS, Run, choose_runs
from dit8.eval.scorers import SCORERS
from dit8.eval.stats import MIN_PROMPTS
from dit8.eval.verdict import TIMES, WORST_FIRST, Comparison, compare, conclude

COMMAND = f"{EVALUATE}{','.join(VARIANTS)}"


@dataclass(frozen=True)
class Judged:
    """Hold the verdict on one variant.

    Args:
        kind: of `eval.verdict`, over all scores with a margin.
        deciding: the scores whose own verdict is of that kind, "every score" where all are.
        compared: scorer -> its difference to the reference.
    """

    kind: str
    deciding: str
    compared: Mapping[str, Comparison]


def judge(results: Path) -> tuple[Run | None, dict[str, Judged]]:
    """Judge the mini's variants as scripts/verdicts.py does.

    Returns:
        the reference's run, None where it was not measured; variant -> verdict.
    """
    scorers = [n for n, each in SCORERS.items() if not each.needs_reference and n not in TIMES]
    runs = {
        name: run
        for name, run in choose_runs(results, MINI, scorers).items()
        if len({prompt for prompt, _ in run.pictures}) >= MIN_PROMPTS
    }
    base = runs.pop(MINI.reference, None)
    if base is None:
        return None, {}
    margins = load_margins()
    found = {name: compare(run.values, base.values, margins) for name, run in runs.items()}
    return base, {name: _judge(name, compared) for name, compared in found.items()}


def build(results: Path) -> str:
    """Make the paragraph from the ledger, wrapped; ends with a newline."""
    return textwrap.fill(_verdicts(results), WIDTH, break_on_hyphens=False) + "\n"


def _judge(name: str, compared: Sequence[Comparison]) -> Judged:
    judging = [one for one in compared if one.margin is not None]
    kind = conclude(name, MINI.reference, judging).kind
    deciding = [one.scorer for one in judging if one.verdict.kind == kind]
    every = "every score" if len(deciding) == len(judging) else join_names(deciding)
    return Judged(kind, every, {one.scorer: one for one in compared})


def _verdicts(results: Path) -> str:
    base, judged = judge(results)
    what = f"Verdicts of the {MINI.label} against {MINI.reference}"
    if base is None:
        return f"{what}: {MINI.reference} itself is not measured: `{COMMAND}`."
    by_kind = {kind: [] for kind in WORST_FIRST}
    for name, one in judged.items():
        by_kind[one.kind].append(f"{name} (by {one.deciding})")
    said = [f"{kind}: {', '.join(names)}" for kind, names in by_kind.items() if names]
    absent = [name for name in VARIANTS if name not in judged and name != MINI.reference]
    return f"{what}, {len(base.pictures)} posters: {'; '.join(said) or 'none'}." + lacking_note(
        absent, COMMAND
    )
