"""Write the findings down: results/FINDINGS.md, claims by outcome."""

from collections.abc import Sequence

from dit8.eval.reproduce.finding import OUTCOMES, Finding

INTRODUCTION = """\
# What the papers say, and what is found here

Claims of arXiv 2606.12280 (v1 and v2 are its versions) and 2606.14598 beside the figures of this
repository. Those of speed and memory are of the full-size architecture with random weights on an
H200, those of quality of the bundled mini, which is **not Ideogram 4**: they test the method, not
that model. Whoever measures the real weights reads them in the tables' own columns, not here. The
outcome of each claim follows from a condition on the figures (`eval/reproduce/*_claims.py`);
brackets are 95 % intervals, over captions by BCa and over images by Student unless another method
is named. At parity: the interval of the difference holds zero, which does not show two variants to
be equal.

Intervals of speed are over the images of one run. Another run, card or commit can differ by more:
the claim of the least time a picture says by how much the runs of one path do. In claims about the
mini fused_int8 stands for the papers' INT8; those of recipes are of int8, unfused. Made from the
nine tables by `python scripts/reproduce.py`.
"""
SETTINGS = """\
## Does a verdict depend on the setting?

`python scripts/limits.py` moves steps, guidance and outliers of the mini, one at a time
([all figures, and how they are judged](tables/limits_mini.md)). A verdict depends on the setting
where it is another one than at the default and the change in texts read exactly leaves out zero; of
changes that are none about one in twenty leaves it out.
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
            parts += [_entry(each) for each in chosen]
    parts.append(SETTINGS)
    parts.append("".join(f"- {sentence}\n" for sentence in settings))
    return "\n".join(parts)


def _entry(finding: Finding) -> str:
    commands = ", ".join(f"`{command}`" for command in finding.claim.commands)
    return " ".join(filter(None, (f"- *{finding.claim.text}*", finding.found, commands))) + "\n"
