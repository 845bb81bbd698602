"""The verdicts of the mini in one paragraph, which README.md shows at its beginning.

As scripts/verdicts.py reaches them, for the papers' variants; its page has every difference.
"""

import textwrap
from pathlib import Path

from eval.margins import load_margins
from eval.reproduce.headline import WIDTH, join_names, lacking_note
from eval.reproduce.quality_claims import EVALUATE
from eval.reproduce.runs import MINI, VARIANTS, choose_runs
from eval.scorers import SCORERS
from eval.stats import MIN_PROMPTS
from eval.verdict import TIMES, WORST_FIRST, compare, conclude


def build(results: Path) -> str:
    """Make the paragraph from the ledger, wrapped; ends with a newline."""
    return textwrap.fill(_verdicts(results), WIDTH, break_on_hyphens=False) + "\n"


def _verdicts(results: Path) -> str:
    """Judge the mini's variants as scripts/verdicts.py does, naming the scores that decide."""
    scorers = [n for n, each in SCORERS.items() if not each.needs_reference and n not in TIMES]
    runs = {
        name: run
        for name, run in choose_runs(results, MINI, scorers).items()
        if len({prompt for prompt, _ in run.pictures}) >= MIN_PROMPTS
    }
    what = f"Verdicts of the {MINI.label} against {MINI.reference}"
    command = f"{EVALUATE}{','.join(VARIANTS)}"
    base = runs.pop(MINI.reference, None)
    if base is None:
        return f"{what}: {MINI.reference} itself is not measured: `{command}`."
    margins, by_kind = load_margins(), {kind: [] for kind in WORST_FIRST}
    for name, run in runs.items():
        found = [one for one in compare(run.values, base.values, margins) if one.margin is not None]
        kind = conclude(name, MINI.reference, found).kind
        deciding = [one.scorer for one in found if one.verdict.kind == kind]
        every = "every score" if len(deciding) == len(found) else join_names(deciding)
        by_kind[kind].append(f"{name} (by {every})")
    said = [f"{kind}: {', '.join(names)}" for kind, names in by_kind.items() if names]
    absent = [name for name in VARIANTS if name not in runs and name != MINI.reference]
    return f"{what}, {len(base.pictures)} posters: {'; '.join(said) or 'none'}." + lacking_note(
        absent, command
    )
