import math

import pytest

from dit8.eval.gemm_rows import (
    CALLS,
    GEMM,
    MODES,
    PATHS,
    STEP_M,
    make_row,
    modes_of,
    ratios,
    split_mode,
    step_mean,
    summarize,
)
from dit8.eval.ledger import read_table, upsert
from dit8.scripts.gemm_paths import OWN
from dit8.scripts.gemm_peers import PEERS

SHARED = {"run_id": "r1", "gpu": "card", "versions": "torch 2", "commit": "abc"}


def row(path, shape, m, mode, ms, run="r1"):
    return make_row({**SHARED, "run_id": run}, path, shape, (m, 8, 16), mode, [ms])


def test_the_columns_are_those_of_the_file(tmp_path):
    assert GEMM.columns == (
        *("run_id", "gpu", "path", "shape", "m", "n", "k", "mode"),
        *("p20_ms", "p50_ms", "p80_ms", "tops", "versions", "commit"),
    )
    made = make_row(SHARED, "dit8", "qkv", (4096, 13824, 4608), "gemm_graph", [0.4, 0.5, 0.6])
    upsert(tmp_path / "gemm.csv", GEMM, [made])
    assert read_table(tmp_path / "gemm.csv", GEMM).to_dict("records") == [made]


def test_tops_are_operations_over_the_median():
    made = make_row(SHARED, "dit8", "qkv", (4096, 13824, 4608), "gemm_graph", [0.4, 0.5, 9.0])
    assert made["p50_ms"] == 0.5
    assert made["tops"] == pytest.approx(2 * 4096 * 13824 * 4608 / 0.5e-3 / 1e12)


def test_every_path_of_the_table_is_implemented_in_its_order():
    assert [path.name for path in (*OWN, *PEERS)] == list(PATHS)


def test_modes_split_and_join():
    assert MODES == ("gemm_eager", "gemm_graph", "quant_gemm_eager", "quant_gemm_graph")
    assert [split_mode(mode) for mode in MODES[1:3]] == [("gemm", "graph"), ("quant_gemm", "eager")]


@pytest.mark.parametrize(
    "path, chosen, modes",
    [
        ("bf16", ["quant_gemm_graph"], ["gemm_graph"]),
        ("bf16", list(MODES), ["gemm_eager", "gemm_graph"]),
        ("fp8", ["quant_gemm_graph"], ["quant_gemm_graph"]),
        ("dit8", ["quant_gemm_graph"], []),
        ("dit8_quant", list(MODES), ["quant_gemm_eager", "quant_gemm_graph"]),
        ("int_mm", list(MODES), ["gemm_eager", "gemm_graph"]),
    ],
)
def test_modes_of_a_path(path, chosen, modes):
    assert modes_of(path, chosen) == modes


def test_ratios_compare_with_the_anchor_of_the_same_run_and_way():
    rows = [
        row("bf16", "qkv", 4096, "gemm_graph", 1.0),
        row("bf16", "qkv", 4096, "gemm_eager", 3.0),
        row("fp8", "qkv", 4096, "gemm_graph", 0.5),
        row("fp8", "qkv", 4096, "quant_gemm_graph", 0.8),
        row("dit8_quant", "qkv", 4096, "quant_gemm_graph", 0.4),
        row("dit8_quant", "qkv", 4096, "quant_gemm_eager", 1.5),
        row("dit8_quant", "qkv", 17, "quant_gemm_eager", 1.5),  # no anchor
    ]
    found = ratios(rows)
    assert found["dit8_quant", "qkv", 4096, "quant_gemm_graph"] == 2.5
    assert found["dit8_quant", "qkv", 4096, "quant_gemm_eager"] == 2.0
    assert found["bf16", "qkv", 4096, "gemm_graph"] == 1.0
    assert ("dit8_quant", "qkv", 17, "quant_gemm_eager") not in found
    against_fp8 = ratios(rows, "fp8")
    assert against_fp8["dit8_quant", "qkv", 4096, "quant_gemm_graph"] == 2.0
    assert against_fp8["bf16", "qkv", 4096, "gemm_graph"] == 0.5


def test_runs_are_joined_by_ratio_and_never_by_time():
    cell = ("sdnq", "qkv", 4096, "gemm_graph")
    rows = [
        row("bf16", *cell[1:], 1.0, run="r1"),
        row("sdnq", *cell[1:], 0.5, run="r1"),
        row("bf16", *cell[1:], 3.0, run="r2"),  # a slower card of the same name
        row("dit8", *cell[1:], 1.0, run="r2"),
    ]
    found = ratios(rows)
    assert found[cell] == 2.0 and found["dit8", *cell[1:]] == 3.0
    later = [row("bf16", *cell[1:], 3.0, run="r3"), row("sdnq", *cell[1:], 2.0, run="r3")]
    expected = pytest.approx(math.sqrt(2.0 * 1.5))  # of both runs, whatever the order
    assert ratios([*later, *rows])[cell] == expected == ratios([*rows, *later])[cell]
    assert ratios(rows, "sdnq")[cell] == 1.0 and ("dit8", *cell[1:]) not in ratios(rows, "sdnq")


def whole_step(path, mode, factor):
    """bf16 takes 1 ms everywhere, the path 1 / factor(shape, M)."""
    cells = [(shape, m) for shape in CALLS for m in STEP_M]
    rows = [row("bf16", shape, m, "gemm_graph", 1.0) for shape, m in cells]
    return rows + [row(path, shape, m, mode, 1 / factor(shape, m)) for shape, m in cells]


def test_the_mean_is_geometric_over_both_branches():
    factors = {"qkv": 2.0, "attn_out": 1.0, "ffn_up2": 4.0, "ffn_down": 2.0}
    rows = whole_step("dit8_quant", "quant_gemm_graph", lambda s, m: factors[s] * (m / 4096))
    mean = step_mean(ratios(rows), "dit8_quant", "quant_gemm_graph")
    assert mean == pytest.approx((2 * 1 * 4 * 2) ** 0.25 * math.sqrt(4396 / 4096))
    rows.append(row("bf16", "llm_proj", 4096, "gemm_graph", 1.0))  # not called in a step
    rows.append(row("dit8_quant", "llm_proj", 4096, "quant_gemm_graph", 0.001))
    assert summarize(rows) == {"dit8_quant": {"quant_gemm_vs_bf16": round(mean, 3)}}


def test_the_mean_is_weighted_by_calls(monkeypatch):
    rows = whole_step("dit8", "gemm_graph", lambda s, m: 4.0 if s == "qkv" else 1.0)
    assert step_mean(ratios(rows), "dit8", "gemm_graph") == pytest.approx(4 ** (1 / 4))
    monkeypatch.setitem(CALLS, "qkv", 3)
    assert step_mean(ratios(rows), "dit8", "gemm_graph") == pytest.approx(4 ** (3 / 6))


def test_a_mean_over_part_of_a_step_is_none():
    rows = whole_step("dit8", "gemm_graph", lambda s, m: 2.0)
    assert step_mean(ratios(rows[:-1]), "dit8", "gemm_graph") is None
    assert summarize(rows[:-1]) == {}
