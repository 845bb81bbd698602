"""Write the findings down: results/FINDINGS.md, claims by outcome."""

from collections.abc import Sequence

from eval.reproduce.findings import OUTCOMES, Finding

INTRODUCTION = """\
# What the papers say, and what is found here

Claims of arXiv 2606.12280 and 2606.14598 beside the figures of this repository. Those of speed and
memory are of the full-size architecture with random weights on an H200, those of quality of the
bundled mini, which is not Ideogram 4: they test the method, not that model. Nobody here has the
gated weights or an RTX 3090. The outcome of each claim is decided by a condition on the figures
(`eval/reproduce/findings.py`); brackets are 95 % intervals. Made from the nine tables by
`python scripts/reproduce.py`.
"""
SETTINGS = """\
## Does a verdict depend on the setting?

`python scripts/limits.py` moves steps, guidance and outliers of the mini, one at a time
([all figures](tables/limits_mini.md)).
"""


def render(findings: Sequence[Finding], settings: Sequence[str]) -> str:
    """Lay the findings out as markdown.

    Args:
        settings: sentences on the mini at other settings, of `eval.limits_table.answer`.
    """
    parts = [INTRODUCTION]
    for outcome in OUTCOMES:
        chosen = [each for each in findings if each.outcome == outcome]
        if chosen:
            parts.append(f"## {outcome}\n")
            parts += [f"- *{e.claim}* {e.found} `{e.command}`\n" for e in chosen]
    parts.append(SETTINGS)
    parts.append("".join(f"- {sentence}\n" for sentence in settings))
    return "\n".join(parts)
