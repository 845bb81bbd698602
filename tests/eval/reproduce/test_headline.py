"""The list of the README follows from the rows, and says what rows it lacks."""

import re
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from dit8.eval.gemm_rows import GEMM, PEERS, SHAPES, STEP_M, make_row
from dit8.eval.ledger import upsert
from dit8.eval.reproduce import headline
from dit8.eval.reproduce.speed_claims import CAP_GB

ROOT = Path(__file__).resolve().parents[3]
STARTS = (
    "A CFG step at 1024 px",
    "A CFG step at 768 px",
    "A whole picture of 1024 px",
    "Row quantization and int8 product together",
    "The int8 product alone against cuBLASLt's FP8",
    "The int8 product alone against other projects'",
)
STEP, STEP_768, CAPPED, QUANTIZED, FP8, RIVALS = range(len(STARTS))
N = 40


def entries(results):
    """The list, an unwrapped text an entry."""
    text = headline.build(results)
    assert text.startswith("- ") and text.endswith("\n")
    return [" ".join(part.split()) for part in text[2:].split("\n- ")]


def committed_rows(name):
    """The rows of a benchmark as they are written, every cell a text."""
    return pd.read_csv(ROOT / "results" / "bench" / name, dtype=str, keep_default_na=False)


@pytest.fixture(scope="module")
def listed():
    return entries(ROOT / "results")


@pytest.fixture
def write(ledger):
    """Replaces the benchmarks by rows of the test's own; what is not given stays as committed."""
    bench = ledger.results / "bench"
    bench.unlink()
    bench.mkdir()

    def replace(**frames):
        for name in ("model", "gemm"):
            path = bench / f"{name}.csv"
            path.unlink(missing_ok=True)
            if name in frames:
                frames[name].to_csv(path, index=False)
            else:
                shutil.copy(ROOT / "results" / "bench" / path.name, path)
        return ledger.results

    return replace


def of(rows, variant, engine="dit8", size=1024, **more):
    wanted = {"variant": variant, "engine": engine, "resolution": str(size), **more}
    return np.logical_and.reduce([rows[name] == value for name, value in wanted.items()])


def value(rows, run_id, quantity, *path, size=1024):
    (found,) = rows[of(rows, *path, size=size, run_id=run_id, quantity=quantity)]["value"]
    return float(found)


def newest(rows, quantity, *path, size=1024):
    return rows[of(rows, *path, size=size, quantity=quantity)]["run_id"].max()


def test_the_committed_list_is_the_regenerated_one(committed):
    text = headline.build(committed)
    assert (committed / "tables" / "headline.md").read_text(encoding="utf-8") == text
    assert headline.build(committed) == text
    assert max(map(len, text.splitlines())) <= headline.WIDTH


def test_the_committed_rows_fill_every_entry(listed):
    assert len(listed) == len(STARTS)
    for entry, start in zip(listed, STARTS, strict=True):
        assert entry.startswith(start) and entry.endswith((".", "`."))
        assert re.search(r"\d", entry.removeprefix(start)), entry
        assert "is not measured" not in entry


def test_without_rows_every_entry_says_so_and_names_a_command(write):
    empty = {name: committed_rows(f"{name}.csv")[:0] for name in ("model", "gemm")}
    found = entries(write(**empty))
    assert [entry.startswith(start) for entry, start in zip(found, STARTS, strict=True)]
    for entry in found:
        assert re.search(r"not measured|Not measured", entry), entry
        for command in (commands := re.findall(r"`python ([^`]+)`", entry)):
            assert (ROOT / command.split()[0]).is_file(), command
        assert commands and not re.search(r"times as (fast|long)|\[", entry), entry
    assert all(f"{peer} {len(SHAPES) * len(STEP_M)}" in found[RIVALS] for peer in PEERS)


@pytest.mark.parametrize(("size", "place"), [(1024, STEP), (768, STEP_768)])
def test_factors_of_a_step_are_ratios_of_one_run(listed, size, place):
    rows, entry = committed_rows("model.csv"), listed[place]
    run_id = newest(rows, "cfg_step_ms", "fused_int8", size=size)
    assert f"run {run_id}," in entry
    paths = {"stock diffusers": ("bf16", "stock"), "the engine in bf16": ("bf16", "dit8")}
    for label, path in paths.items():
        base = value(rows, run_id, "cfg_step_ms", *path, size=size)
        assert f"{label} {base:.1f} [" in entry
        fused, rotated = (
            base / value(rows, run_id, "cfg_step_ms", name, size=size)
            for name in ("fused_int8", "rotated")
        )
        said = f"fused_int8 {fused:.2f} times and rotated {rotated:.2f} times as fast as {label}"
        assert said in entry


def test_a_changed_row_changes_its_entry_alone(listed, write):
    rows = committed_rows("model.csv")
    run_id = newest(rows, "cfg_step_ms", "fused_int8")
    mine = of(rows, "fused_int8", run_id=run_id, quantity="cfg_step_ms")
    ms = value(rows, run_id, "cfg_step_ms", "fused_int8")
    rows.loc[mine, "value"] = str(2 * ms)
    after = entries(write(model=rows))
    same = [a == b for a, b in zip(listed, after, strict=True)]
    assert same == [place != STEP for place in range(len(STARTS))]
    factor = value(rows, run_id, "cfg_step_ms", "bf16", "stock") / (2 * ms)
    assert f"fused_int8 {2 * ms:.1f} [" in after[STEP]
    assert f"; fused_int8 {factor:.2f} times and rotated" in after[STEP]


def test_a_path_that_the_run_lacks_is_not_taken_from_another(write):
    rows = committed_rows("model.csv")
    run_id = newest(rows, "cfg_step_ms", "fused_int8")
    lacking = rows[~of(rows, "bf16", "stock", run_id=run_id)]
    found = entries(write(model=lacking))[STEP]
    assert f"run {run_id}," in found and "times as fast as stock" not in found
    assert "times as fast as the engine in bf16" in found
    assert "Not measured in this run: stock diffusers: `python scripts/bench_model.py" in found


def test_only_the_picture_under_this_cap_counts(listed, write):
    rows = committed_rows("model.csv")
    mine = of(rows, "fused_int8", quantity="peak_bytes_capped")
    peak = rows[mine].sort_values("run_id")["value"].astype(float).iloc[-1]
    assert f"peaks at {peak / 1e9:.2f} GB" in listed[CAPPED]
    rows.loc[mine, "versions"] = rows["versions"].str.replace("cap 24 GB", "cap 240 GB")
    found = entries(write(model=rows))[CAPPED]
    assert found.endswith(f"is not measured: `python scripts/bench_model.py --cap-gb {CAP_GB:g}`.")


def product(path, mode, m, ms, run="r1", shape="qkv", gpu="NVIDIA H200"):
    shared = {"run_id": run, "gpu": gpu, "versions": "torch 2", "commit": "abc"}
    n, k = SHAPES[shape]
    return make_row(shared, path, shape, (m, n, k), mode, [ms])


def products(write, *rows):
    results = write(gemm=pd.DataFrame(columns=GEMM.columns))
    upsert(results / "bench" / "gemm.csv", GEMM, rows)
    return entries(results)


def test_ranges_of_products(write):
    rows = [product("bf16", "gemm_graph", m, 1.0) for m in (1, 17, *STEP_M)]
    rows += [product("fp8", "gemm_graph", m, 0.6) for m in STEP_M]
    rows += [product("dit8", "gemm_graph", STEP_M[0], 0.5)]
    times = {STEP_M[0]: 0.5, STEP_M[1]: 0.4, 1: 2.0, 17: 2.0}
    rows += [product("dit8_quant", "quant_gemm_graph", m, ms) for m, ms in times.items()]
    other = {"run": "r2", "gpu": "another"}
    rows += [product("bf16", "gemm_graph", 17, 9.0, **other)]
    rows += [product("dit8_quant", "quant_gemm_graph", 17, 1.0, **other)]
    found = products(write, *rows)
    assert "at 4096 and 4396 rows 2.00 to 2.50 times as fast; at 1, 17 and" in found[QUANTIZED]
    assert "256 rows 0.50 times as fast. Not measured: attn_out at 4096" in found[QUANTIZED]
    assert "qkv at 256 rows" in found[QUANTIZED] and "qkv at 17 rows" not in found[QUANTIZED]
    assert "at 4096 and 4396 rows 1.20 times as fast. Not measured: qkv at 4396" in found[FP8]


def test_rivals_ahead_behind_and_unsettled(write):
    def pair(peer, m, ms, **more):
        return [product("dit8", "gemm_graph", m, 1.0, **more)] + [
            product(peer, "gemm_graph", m, ms, **more)
        ]

    rows = [*pair("sgl_kernel", 4096, 0.9), *pair("sgl_kernel", 4396, 1.25)]
    rows += pair("sgl_kernel", 4096, 1.05, run="r2")
    rows += pair("sgl_kernel", 4096, 1.5, shape="ffn_down")
    rows += pair("sdnq", 4096, 0.8, run="r3")
    found = products(write, *rows)[RIVALS]
    assert "ahead of sgl_kernel on 2 of 3 measured pairs, 1.25 to 1.50 times as fast, " in found
    loss = 100 * (1 - (0.9 * 1.05) ** 0.5)
    assert f"behind on qkv at 4096 rows (by {loss:.1f} % of its speed), its runs disagree" in found
    assert "disagree on qkv at 4096 rows; ahead of sdnq on 0 of 1 measured pairs, behind" in found
    assert "comfy_kitchen 12, sgl_kernel 9, sdnq 11, torchao 12: `python scripts/bench_g" in found


@pytest.mark.parametrize("peer", PEERS)
def test_cells_of_committed_rivals_are_counted_as_pandas_counts_them(listed, peer):
    rows = committed_rows("gemm.csv")
    rows = rows[(rows["mode"] == "gemm_graph") & rows["m"].isin([str(m) for m in STEP_M])]
    keys = ["run_id", "shape", "m"]
    both = rows[rows["path"] == "dit8"].merge(rows[rows["path"] == peer], on=keys)
    logs = np.log(both["p50_ms_y"].astype(float) / both["p50_ms_x"].astype(float))
    ratio = np.exp(logs.groupby([both["shape"], both["m"]]).mean())
    found = listed[RIVALS]
    if len(ratio):
        counts = f"ahead of {peer} on {(ratio >= 1).sum()} of {len(ratio)} measured"
        assert counts in found
    for (shape, m), each in ratio[ratio < 1].items():
        assert f"{shape} at {m} rows (by {100 * (1 - each):.1f} % of its speed)" in found
