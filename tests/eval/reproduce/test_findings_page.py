"""What is found of the papers' claims follows from the tables' figures."""

import shlex
from dataclasses import replace

import pandas as pd
import pytest

from dit8.eval.reproduce import findings_page, quality_claims, speed_claims
from dit8.eval.reproduce.finding import (
    ABOVE,
    BELOW,
    FAILS,
    HOLDS,
    MEASURED,
    OUTCOMES,
    PARITY,
    PARTLY,
    UNDECIDED,
    UNTESTED,
    Claim,
    Finding,
    Lacking,
    find,
    outcome_of,
    pick,
    shown,
    stands,
)
from dit8.eval.reproduce.table import KEY, Cell, empty

CLIP = ("clip_mini ↑", "100 x cosine (clip-mini)")
CLAIMS = (*speed_claims.CLAIMS, *quality_claims.CLAIMS)
CHANGE, PLANTED = "change against naive", "planted"
NAMED = ("fused_int8", "q4_k", "nf4")  # of the claims of parity
CLIP_OF = {name: (3, (*CLIP, name), "Δ to fp8") for name in NAMED}
EXACT_OF = {name: (4, ("JSON", "all", name), "exact, Δ to fp8") for name in NAMED}
TO_FP8 = (CLIP_OF, EXACT_OF)
PRODUCT = (2, ("qkv",), "quantize + fused GEMM, M = 4396")
BELOW_0, AROUND_0, ABOVE_0 = (
    Cell(value=mean, low=mean - 0.2, high=mean + 0.2) for mean in (-1.0, 0.1, 1.0)
)


@pytest.fixture(scope="module")
def results(committed):
    return committed


@pytest.fixture(scope="module")
def tables(built):
    return built


def changed(tables, number, row, label, cell, place=""):
    """The tables with one measured cell exchanged: that of the last such column that is filled.

    Two columns of table 9 are called linears, in ms and as a share; a claim looks at the share.
    """
    table = tables[number]
    where = {column.where for column in table.columns if column.kind == MEASURED}
    own = place or ("mini (not" if any("mini (not" in each for each in where) else "H200")
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


def claim_of(name):
    """The claim that a function of this name judges."""
    (claim,) = (claim for claim in CLAIMS if claim.judge.__name__ == name)
    return claim


def judged(name, tables, results):
    return find([claim_of(name)], tables, results)[0].outcome


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
    assert {HOLDS, PARTLY, UNTESTED} <= {finding.outcome for finding in found} <= {*OUTCOMES}


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("_least_time", [(1, ("1024", "fp8"), "image", figure(8.1, 7.9, 8.3))], FAILS),
        ("_fused_product", [(*PRODUCT, figure(0.9))], FAILS),
        ("_fused_product", [(*PRODUCT, figure(1.5, 0.9, 2.0))], FAILS),
        ("_naive", [(6, ("smoothquant",), CHANGE, BELOW_0)], HOLDS),
        ("_naive", [(6, ("smoothquant",), CHANGE, AROUND_0, PLANTED)], FAILS),
        ("_naive", [(6, ("smoothquant",), CHANGE, ABOVE_0, PLANTED)], FAILS),
        ("_parity_v1", [(*CLIP_OF["fused_int8"], AROUND_0)], HOLDS),
        ("_parity_v1", [(*CLIP_OF["fused_int8"], BELOW_0)], FAILS),
        ("_parity_v1", [(*EXACT_OF["fused_int8"], BELOW_0)], FAILS),
        ("_parity_v2", [(*of[name], AROUND_0) for name in NAMED for of in TO_FP8], HOLDS),
        ("_parity_v2", [(*CLIP_OF["fused_int8"], BELOW_0)], FAILS),
        ("_parity_v2", [(*EXACT_OF["fused_int8"], BELOW_0)], FAILS),
        ("_q4k", [(*CLIP_OF["q4_k"], AROUND_0)], HOLDS),
        ("_q4k", [(*CLIP_OF["q4_k"], ABOVE_0)], HOLDS),
        ("_fidelity", [(5, ("q4_k",), "PSNR ↑", figure(42.0, 41.0, 43.0))], FAILS),
        ("_captions", [(4, ("JSON − raw", "all", "bf16"), "exact", AROUND_0)], FAILS),
    ],
)
def test_an_outcome_follows_from_its_figures(tables, results, name, changes, expected):
    assert judged(name, tables, results) != expected
    for change in changes:
        tables = changed(tables, *change)
    assert judged(name, tables, results) == expected


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("_parity_v1", (*EXACT_OF["fused_int8"], ABOVE_0)),  # no loss, yet no parity
        ("_parity_v2", (*CLIP_OF["fused_int8"], AROUND_0)),  # others lose, it does not
        ("_parity_v2", (*CLIP_OF["nf4"], ABOVE_0)),
        ("_fused_product", (*PRODUCT, figure(1.5, 1.1, 9.0))),
        ("_naive", (6, ("smoothquant",), CHANGE, AROUND_0)),  # as no difference or as better:
        ("_naive", (6, ("smoothquant",), CHANGE, ABOVE_0)),  # naive is not worse
    ],
)
def test_what_is_between_stays_in_part(tables, results, name, change):
    assert judged(name, changed(tables, *change), results) == PARTLY


def test_the_same_interval_stands_the_same_in_every_claim(tables, results):
    v1, v2 = (find([claim_of(name)], tables, results)[0] for name in ("_parity_v1", "_parity_v2"))
    said = v1.found.removeprefix("On the mini: ").removesuffix(".")
    assert said.startswith("fused_int8 above fp8 in clip-mini") and said in v2.found
    cells = (AROUND_0, figure(0.0, 0.0, 0.2), BELOW_0, ABOVE_0)
    assert [stands(cell) for cell in cells] == [PARITY, PARITY, BELOW, ABOVE]


@pytest.mark.parametrize(
    ("shift", "expected"),
    [(-0.01, HOLDS), (-2e-4, UNDECIDED), (2e-4, UNDECIDED), (0.01, FAILS), (None, UNTESTED)],
)
def test_protection_is_judged_by_the_paired_difference_on_the_mini(tables, ledger, shift, expected):
    spread = [
        0.001 * (-1) ** index for index in range(10)
    ]  # its mean's interval is 6e-4 wide either way
    base = [0.1 * index for index in range(10)]  # far wider than the shift: only pairs show it
    prompts = [f"p{index}" for index in range(10)]
    for number, model in enumerate(("mini", "mini_planted")):
        moves = {"ladder_2": 0.0, "ladder_4": -0.5 if number else shift}
        for recipe, move in moves.items():
            if move is not None:
                moved = [x + move for x in base]
                if recipe == "ladder_4":
                    moved = [x + e for x, e in zip(moved, spread, strict=True)]
                key = {"model": model, "recipe": recipe, "prompts": prompts}
                run_id = f"{number}{recipe[-1]}" + "a" * 10
                ledger.add(run_id, "int8", {"latent_error": moved}, **key)
    assert judged("_protection", tables, ledger.results) == expected


def test_the_share_of_the_linears_is_shown_and_judges_nothing(tables, results):
    for share in (12, 90):
        other = changed(tables, 9, ("1024", "bf16", "stock"), "linears", figure(share))
        (finding,) = find([claim_of("_linears")], other, results)
        assert finding.outcome == UNTESTED and f"it is {share} % of a step" in finding.found


def test_steps_are_compared_in_one_run(tables, results, ledger):
    steps = [
        pick(tables[1], ("1024", *path), "CFG step").value
        for path in (("bf16", "compiled"), ("fused_int8", "dit8"))
    ]
    (finding,) = find([claim_of("_compile")], tables, results)
    assert f"{steps[0] / steps[1]:.2f} times as fast as that" in finding.found
    rows = pd.read_csv(results / "bench" / "model.csv")
    (ledger.results / "bench").unlink()
    (ledger.results / "bench").mkdir()
    newest = rows[rows["variant"] == "fused_int8"]["run_id"].max()
    rows = rows[(rows["run_id"] != newest) | (rows["engine"] != "compiled")]
    rows.to_csv(ledger.results / "bench" / "model.csv", index=False)
    (finding,) = find([claim_of("_compile")], tables, ledger.results)
    assert finding.found == f"Not measured: bf16 through compiled in run {newest}."


def test_the_spread_of_runs_is_of_one_path_and_card(tables, results):
    rows = pd.read_csv(results / "bench" / "model.csv")
    steps = rows.query(
        "gpu == 'NVIDIA H200' and variant == 'bf16' and engine == 'dit8' and resolution == 1024 "
        "and text_tokens == 300 and quantity == 'cfg_step_ms'"
    )["value"]
    (finding,) = find([claim_of("_least_time")], tables, results)
    low, high = steps.min(), steps.max()
    apart = f"{low:.1f} and {high:.1f} ms, {100 * (high - low) / low:.1f} % apart"
    assert f"of {steps.size} the lowest" in finding.found and apart in finding.found


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
    for name in ("_memory", "_exact", "_int8_nf4", "_ned", "_protection", "_compile"):
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


def test_a_claim_without_a_command_ends_with_what_is_found():
    claim = Claim("A", lambda tables, results: ("", ""), ())
    assert "- *A* a\n" in findings_page.render([Finding(claim, UNDECIDED, "a")], [])
