"""What is found of the papers' claims follows from the tables' figures."""

from dataclasses import replace

import pytest

from eval.reproduce import findings, findings_page
from eval.reproduce.findings import FAILS, HOLDS, PARTLY, UNTESTED, Finding, find, pick, shown
from eval.reproduce.table import MEASURED, Cell, empty
from eval.reproduce.tables import build_tables

CLIP = ("clip_mini ↑", "100 x cosine (clip-mini)")


@pytest.fixture(scope="module")
def results(request):
    return request.path.parents[3] / "results"


@pytest.fixture(scope="module")
def tables(results):
    return {table.number: table for table in build_tables(results)}


def changed(tables, number, row, label, cell):
    """The tables with one measured cell exchanged, that of the first such column."""
    table = tables[number]
    index = next(i for i, c in enumerate(table.columns) if c.label == label and c.kind == MEASURED)
    rows = [
        (*cells[:index], cell, *cells[index + 1 :])
        if tuple(c.text for c in cells[: len(row)]) == row
        else cells
        for cells in table.rows
    ]
    assert tuple(rows) != table.rows
    return {**tables, number: replace(table, rows=tuple(rows))}


def outcome(claim, tables, results):
    return claim(tables, results).outcome


def test_every_claim_is_judged_and_names_a_script_that_exists(tables, results):
    found = find(tables, results)
    assert len(found) == len(findings.CLAIMS) and len({f.claim for f in found}) == len(found)
    for finding in found:
        assert (results.parent / finding.command.split()[1]).is_file()
    assert {f.outcome for f in found} == {HOLDS, PARTLY, FAILS, UNTESTED}


def figure(value, low=None, high=None):
    return Cell(value=value, low=low, high=high)


@pytest.mark.parametrize(
    ("claim", "number", "row", "label", "cell", "expected"),
    [
        ("_fastest", 1, ("1024", "fp8"), "CFG step", figure(166, 165.7, 166), FAILS),
        ("_fastest", 1, ("1024", "nf4"), "CFG step", empty("not measured"), UNTESTED),
        ("_fused_product", 2, ("qkv",), "quantize + fused GEMM, M = 4396", figure(0.9), FAILS),
        ("_fused_product", 2, ("qkv",), "quantize + fused GEMM, M = 4396", empty("-"), UNTESTED),
        ("_naive", 6, ("naive",), "latent error ↓", figure(0.2, 0.19, 0.21), HOLDS),
        ("_protection", 6, ("ladder_8",), "latent error ↓", figure(0.07, 0.06, 0.08), FAILS),
        ("_parity", 3, (*CLIP, "fused_int8"), "Δ to fp8", figure(0.1, -0.1, 0.3), HOLDS),
        ("_parity", 3, (*CLIP, "fused_int8"), "Δ to fp8", figure(-0.2, -0.3, -0.1), FAILS),
        ("_parity", 3, (*CLIP, "fused_int8"), "Δ to fp8", empty("not measured"), UNTESTED),
        ("_q4k", 3, (*CLIP, "q4_k"), "Δ to fp8", figure(0.1, -0.1, 0.3), HOLDS),
        ("_fidelity", 5, ("q4_k",), "PSNR ↑", figure(42.0, 41.0, 43.0), FAILS),
        ("_captions", 4, ("raw", "all", "bf16"), "exact", figure(0.6, 0.5, 0.7), FAILS),
        ("_captions", 4, ("raw", "all", "bf16"), "exact", empty("not measured"), UNTESTED),
    ],
)
def test_an_outcome_follows_from_its_figures(
    tables, results, claim, number, row, label, cell, expected
):
    judge = getattr(findings, claim)
    assert outcome(judge, tables, results) != expected
    other = changed(tables, number, row, label, cell)
    assert outcome(judge, other, results) == expected


def test_shares_of_the_linears_are_in_percent(tables, results):
    share = pick(tables[9], ("1024", "bf16", "stock"), "linears", "% of the step")
    assert f"{share.value:.0f} % of a step of stock" in findings._linears(tables, results).found
    assert outcome(findings._linears, tables, results) == FAILS


def test_figures_are_shown_with_interval_and_unit():
    assert shown(figure(1.0, 0.5, 1.5), ".1f", "ms") == "1.0 [0.5, 1.5] ms"
    assert shown(figure(2.0), ".2f") == "2.00" and shown(empty("why"), ".1f") == "not measured"


def test_what_is_not_there(tables):
    with pytest.raises(ValueError, match="table 1 has no CFG step of 1024, int3"):
        pick(tables[1], ("1024", "int3"), "CFG step")
    with pytest.raises(ValueError, match="outcome must be one of"):
        Finding("a claim", "perhaps", "", "")


def test_the_page_sorts_claims_by_outcome():
    claims = [Finding("A.", FAILS, "a", "x"), Finding("B.", HOLDS, "b", "y")]
    page = findings_page.render(claims, ["One setting."])
    assert page.index(f"## {HOLDS}") < page.index("*B.* b `y`") < page.index(f"## {FAILS}")
    assert UNTESTED not in page and page.endswith("- One setting.\n")
