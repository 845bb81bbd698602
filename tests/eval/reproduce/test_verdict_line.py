import re

import numpy as np

from dit8.eval.reproduce import verdict_line
from dit8.eval.reproduce.runs import VARIANTS

N = 40


def told(ledger):
    """The paragraph, unwrapped."""
    return " ".join(verdict_line.build(ledger.results).split())


def test_verdicts_are_those_of_the_committed_page(committed):
    page = (committed / "tables" / "verdicts_mini.md").read_text(encoding="utf-8")
    found = " ".join(verdict_line.build(committed).split()).removesuffix(".")
    by_kind = dict(part.split(": ", 1) for part in found.split(" posters: ")[1].split("; "))
    judged = {kind: re.findall(r"(\w+) \(by", names) for kind, names in by_kind.items()}
    assert sorted(sum(judged.values(), [])) == sorted(set(VARIANTS) - {"bf16"})
    for kind, names in judged.items():
        for name in names:
            claim = f"- {name} is {kind} "
            assert claim in page or f"- Whether {name} is equivalent to bf16 is {kind} " in page


def test_verdicts_of_a_ledger_of_ones_own(ledger):
    exact = np.ones(N)
    broken = np.where(np.arange(N) < 30, 0.0, 1.0)
    names = [f"p{i:02}" for i in range(N)]
    ledger.add("a" * 12, "bf16", {"ocr_exact": exact, "ocr_ned": 1 - exact}, prompts=names)
    ledger.add("b" * 12, "nf4", {"ocr_exact": broken, "ocr_ned": 1 - exact}, prompts=names)
    found = told(ledger)
    assert f"against bf16, {N} posters: worse: nf4 (by ocr_exact). Not measured: fp8, " in found
    assert "`python scripts/evaluate.py -m hardware=cuda variant=bf16,fp8" in found
    ledger.add("c" * 12, "q4_k", {"ocr_exact": broken, "ocr_ned": broken == 0}, prompts=names)
    assert "worse: nf4 (by ocr_exact), q4_k (by every score)." in told(ledger)


def test_too_few_posters_are_no_verdict(ledger):
    ledger.add("a" * 12, "bf16", {"ocr_exact": [1.0, 1.0]})
    assert "bf16 itself is not measured: `python " in told(ledger)
