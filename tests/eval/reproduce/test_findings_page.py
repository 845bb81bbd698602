"""What is found of the papers' claims follows from the tables' figures."""

import shlex
from dataclasses import replace

import pytest

from eval.reproduce import findings_page, quality_claims, speed_claims
from eval.reproduce.finding import (
    FAILS,
    HOLDS,
    MEASURED,
    PARTLY,
    UNTESTED,
    Claim,
    Finding,
    Lacking,
    find,
    outcome_of,
    pick,
    shown,
)
from eval.reproduce.table import KEY, Cell, empty
from eval.reproduce.tables import build_tables

CLIP = ("clip_mini ↑", "100 x cosine (clip-mini)")
CLAIMS = (*speed_claims.CLAIMS, *quality_claims.CLAIMS)
ERROR = "latent error ↓"


@pytest.fixture(scope="module")
def results(request):
    return request.path.parents[3] / "results"


@pytest.fixture(scope="module")
def tables(results):
    return {table.number: table for table in build_tables(results)}


def changed(tables, number, row, label, cell):
    """The tables with one measured cell exchanged: that of the last such column that is filled.

    Two columns of table 9 are called linears, in ms and as a share; a claim looks at the share.
    """
    table = tables[number]
    where = {column.where for column in table.columns if column.kind == MEASURED}
    own = "mini (not" if any("mini (not" in each for each in where) else "H200"
    index = max(
        i
        for i, c in enumerate(table.columns)
        if c.label == label and c.kind == MEASURED and own in c.where
    )
    rows = tuple(
        (*cells[:index], cell, *cells[index + 1 :])
        if tuple(c.text for c in cells[: len(row)]) == row
        else cells
        for cells in table.rows
    )
    assert rows != table.rows
    return {**tables, number: replace(table, rows=rows)}


def judged(name, tables, results):
    """The outcome of the claim that a function of this name judges."""
    (claim,) = (claim for claim in CLAIMS if claim.judge.__name__ == name)
    return find([claim], tables, results)[0].outcome


def figure(value, low=None, high=None):
    return Cell(value=value, low=low, high=high)


def test_every_claim_is_judged_and_its_commands_name_scripts_that_exist(tables, results):
    found = find(CLAIMS, tables, results)
    assert len({finding.claim.text for finding in found}) == len(CLAIMS)
    for finding in found:
        assert not finding.found.startswith("Not measured")
        for command in finding.claim.commands:
            python, script, *_ = shlex.split(command)
            assert python == "python" and (results.parent / script).is_file()
    assert {finding.outcome for finding in found} == {HOLDS, PARTLY, FAILS, UNTESTED}


@pytest.mark.parametrize(
    ("name", "number", "row", "label", "cell", "expected"),
    [
        ("_least_time", 1, ("1024", "fp8"), "image", figure(8.1, 7.9, 8.3), FAILS),
        ("_fused_product", 2, ("qkv",), "quantize + fused GEMM, M = 4396", figure(0.9), FAILS),
        ("_linears", 9, ("1024", "bf16", "stock"), "linears", figure(12), PARTLY),
        ("_naive", 6, ("naive",), ERROR, figure(0.2, 0.19, 0.21), HOLDS),
        ("_protection", 6, ("ladder_8",), ERROR, figure(0.07, 0.06, 0.08), FAILS),
        ("_parity_v1", 3, (*CLIP, "fused_int8"), "Δ to fp8", figure(0.1, -0.1, 0.3), HOLDS),
        ("_parity_v2", 3, (*CLIP, "fused_int8"), "Δ to fp8", figure(-2, -3, -1), FAILS),
        ("_q4k", 3, (*CLIP, "q4_k"), "Δ to fp8", figure(0.1, -0.1, 0.3), HOLDS),
        ("_fidelity", 5, ("q4_k",), "PSNR ↑", figure(42.0, 41.0, 43.0), FAILS),
        ("_captions", 4, ("JSON − raw", "all", "bf16"), "exact", figure(0.0, -0.1, 0.1), FAILS),
    ],
)
def test_an_outcome_follows_from_its_figures(
    tables, results, name, number, row, label, cell, expected
):
    assert judged(name, tables, results) != expected
    other = changed(tables, number, row, label, cell)
    assert judged(name, other, results) == expected


def test_without_its_rows_a_claim_is_untested(tables, results):
    nothing = {
        number: replace(
            table,
            rows=tuple(
                tuple(
                    cell if column.kind == KEY else empty("not measured")
                    for column, cell in zip(table.columns, row, strict=True)
                )
                for row in table.rows
            ),
        )
        for number, table in tables.items()
    }
    of_tables = [claim for claim in CLAIMS if claim.judge.__name__ not in ("_memory", "_exact")]
    found = find(of_tables, nothing, results)
    of_ledger = {"_int8_nf4", "_ned"}  # read the rows that the tables were made of
    for finding in found:
        if finding.claim.judge.__name__ not in of_ledger:
            assert finding.outcome == UNTESTED, finding.claim.text


def test_without_rows_of_the_ledger_and_the_benches(tables, ledger):
    (ledger.results / "bench").unlink()
    (ledger.results / "bench").mkdir()
    header = "run_id,gpu,variant,engine,resolution,text_tokens,quantity,value,low,high,"
    header += "versions\n"
    (ledger.results / "bench" / "model.csv").write_text(header)
    (ledger.results / "bench" / "ptx.csv").write_text("kernel,sm,equal\nquant_rows,80,True\n")
    ledger.add("a" * 12, "bf16", {"psnr": [1.0] * 9})
    for name in ("_memory", "_exact", "_int8_nf4", "_ned"):
        assert judged(name, tables, ledger.results) == UNTESTED


def test_parts_of_a_claim():
    assert outcome_of([True, True]) == HOLDS and outcome_of([False]) == FAILS
    assert outcome_of([True, False]) == PARTLY


def test_figures_are_shown_with_interval_and_unusual_method():
    assert shown(figure(1.0, 0.5, 1.5), ".1f") == "1.0 [0.5, 1.5]"
    assert shown(figure(2.0), ".2f") == "2.00"
    cell = Cell(value=0.0, low=0.0, high=0.0, method="degenerate")
    assert shown(cell, ".1f") == "0.0 [0.0, 0.0] (degenerate)"


def test_what_is_not_there(tables):
    with pytest.raises(ValueError, match="table 1 has no CFG step of 1024, int3"):
        pick(tables[1], ("1024", "int3"), "CFG step")
    other = changed(tables, 1, ("1024", "fp8"), "CFG step", empty("not measured"))
    with pytest.raises(Lacking, match="CFG step of 1024, fp8 in table 1"):
        pick(other[1], ("1024", "fp8"), "CFG step")
    with pytest.raises(ValueError, match="outcome must be one of"):
        Finding(Claim("a claim", lambda t, r: ("", ""), ()), "perhaps", "")


def test_the_page_sorts_claims_by_outcome():
    first, second = (Claim(text, lambda t, r: ("", ""), ("do it",)) for text in "AB")
    page = findings_page.render(
        [Finding(first, FAILS, "a"), Finding(second, HOLDS, "b")], ["One setting."]
    )
    places = [page.index(text) for text in (f"## {HOLDS}", "*B* b `do it`", f"## {FAILS}", "*A*")]
    assert places == sorted(places)
    assert UNTESTED not in page and page.endswith("- One setting.\n")
    words = " ".join(page.split())
    assert (
        "another one than at the default and the change in texts read exactly leaves out" in words
    )
