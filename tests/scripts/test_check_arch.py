"""What counts as broken code, what is compiled, and what becomes of the rows."""

import re
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

import triton  # noqa: E402
from triton.compiler.errors import CompilationError  # noqa: E402

from dit8.kernels.shipped import MEASURED  # noqa: E402
from dit8.quant.errors import UserError  # noqa: E402
from dit8.scripts import arch_kernels, check_arch  # noqa: E402
from dit8.scripts.arch_compile import SHARED_KIB  # noqa: E402
from dit8.scripts.arch_kernels import KERNELS, list_cases, measure, tile_name  # noqa: E402
from dit8.scripts.check_arch import broken, merge, render, select  # noqa: E402

ROOT = Path(__file__).resolve().parents[2]
ROW = {
    "kernel": "int8_gemm",
    "variant": "bias",
    "config": "128x256x64-g8-w8-s3",
    "sm": 86,
    "registers": 213,
    "stack_bytes": 0,
    "spill_instructions": 0,
    "shared_bytes": 49152,
    "limit_bytes": 101376,
    "integer_mma": "mma.sync",
    "expected_mma": "mma.sync",
    "shipped": True,
    "error": "none",
    "triton": "3.7.1",
}


def test_good_code_is_not_broken():
    assert broken(ROW) == []


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (
            {"stack_bytes": 536, "spill_instructions": 173},
            r"on sm_86 must not spill, got 536 bytes of stack and 173 spill instructions; leave it",
        ),
        ({"stack_bytes": 8}, "must not spill, got 8 bytes of stack and 0 spill"),
        ({"spill_instructions": 1}, "must not spill, got 0 bytes of stack and 1 spill"),
        (
            {"shared_bytes": 101377},
            "may use 101376 bytes of shared memory, got 101377; leave it out in kernels/shipped.py",
        ),
        ({"integer_mma": "none"}, "must multiply with mma.sync, got none; look at its layouts"),
        ({"error": "shapes must match"}, "must compile, got 'shapes must match'; leave it out in"),
        ({"kernel": "norms", "stack_bytes": 8}, "0 spill instructions; change its tile"),
    ],
)
def test_each_way_to_be_broken_is_one_sentence(change, sentence):
    (found,) = broken(ROW | change)
    assert re.search(sentence, found)
    assert "128x256x64-g8-w8-s3 (bias) on sm_86" in found


def test_what_is_not_offered_may_be_anything():
    assert broken(ROW | {"stack_bytes": 536, "integer_mma": "none", "shipped": False}) == []


def test_every_kernel_with_a_launch_is_listed():
    files = {file.stem: file.read_text() for file in ROOT.glob("kernels/*.py")}
    launched = {stem.removesuffix("_triton") for stem in files if "def launch(" in files[stem]}
    assert launched == set(KERNELS)


@pytest.mark.parametrize("sm", MEASURED)
def test_every_case_has_its_own_name_and_a_limit(sm):
    names = Counter((case.kernel, case.variant, case.config) for case in list_cases(sm))
    assert set(names.values()) == {1}
    assert sm in SHARED_KIB


def test_wgmma_is_asked_of_tiles_it_can_take_and_on_sm_90_only():
    asked = {case.config: case.integer_mma for case in list_cases(90) if case.kernel == "int8_gemm"}
    assert asked["128x128x128-g8-w8-s3"] == "wgmma"
    assert asked["16x128x128-g1-w4-s4"] == "mma.sync"
    assert {c.integer_mma for c in list_cases(80) if c.kernel == "int8_gemm"} == {"mma.sync"}


def test_a_whole_run_takes_every_case_of_every_gpu():
    assert select(MEASURED, KERNELS, quick=False) == [
        (sm, index) for sm in MEASURED for index in range(len(list_cases(sm)))
    ]


def test_a_quick_run_takes_every_shape_of_the_hopper_kernel_once_as_it_ships():
    cases = [case for case in list_cases(90) if case.kernel == "int8_gemm_tma"]
    quick = [case for case in cases if case.quick]
    assert all(case.shipped for case in quick)
    assert {case.variant for case in quick} == {"plain", "bias", "residual", "swiglu"}
    shapes = {re.sub("-g\\d+", "", case.config) for case in cases}
    assert sorted(re.sub("-g8", "", case.config) for case in quick) == sorted(shapes)


def test_a_quick_run_takes_every_tile_for_sm_90_and_in_turn_for_one_other():
    taken = Counter()
    for sm, index in select(MEASURED, KERNELS, quick=True):
        case = list_cases(sm)[index]
        assert case.quick and sm in (80, 86, 89, 90)
        taken[case.kernel, case.config, sm == 90] += case.kernel == "int8_gemm"
    for config in {case.config for case in list_cases(90) if case.kernel == "int8_gemm"}:
        assert taken["int8_gemm", config, True] == taken["int8_gemm", config, False] == 1


def test_a_quick_run_takes_what_multiplies_nothing_for_one_gpu_in_turn():
    taken = Counter()
    for sm, index in select(MEASURED, KERNELS, quick=True):
        case = list_cases(sm)[index]
        if not case.kernel.startswith("int8_gemm"):
            taken[sm, case.kernel, case.variant, case.config] += 1
    quick = [c for c in list_cases(80) if c.quick and not c.kernel.startswith("int8_gemm")]
    names = Counter(launch[1:] for launch in taken)
    assert names == Counter((c.kernel, c.variant, c.config) for c in quick)
    assert {kernel for kernel, *_ in names} == set(KERNELS) - {"int8_gemm", "int8_gemm_tma"}
    assert {sm for sm, *_ in taken} == {80, 86, 89, 90}


def test_only_the_kernels_asked_for_are_taken():
    tasks = select([90], ["quant_rows"], quick=False)
    assert tasks and {list_cases(90)[index].kernel for _, index in tasks} == {"quant_rows"}


def test_a_row_is_measured():
    index, case = next((i, c) for i, c in enumerate(list_cases(86)) if c.config == "k256")
    row = measure(86, index)
    assert list(row) == list(ROW)
    assert (row["kernel"], row["config"], row["sm"]) == (case.kernel, "k256", 86)
    assert 16 <= row["registers"] <= 64 and row["integer_mma"] == "none"
    assert row["limit_bytes"] == 99 * 1024 and row["triton"] == triton.__version__
    assert broken(row) == []


def test_what_does_not_compile_is_a_row_with_the_reason(monkeypatch):
    def fail():
        try:
            raise ValueError("shapes must match")
        except ValueError as error:
            raise CompilationError("def f(): ...", None, "at 1:1") from error

    cases = list_cases(90)
    monkeypatch.setattr(arch_kernels, "list_cases", lambda sm: [replace(cases[0], launch=fail)])
    row = measure(90, 0)
    assert row["error"] == "shapes must match" and row["registers"] == 0
    assert re.search("must compile, got 'shapes must match'", broken(row)[0])


def test_the_table_has_a_line_per_launch_and_a_column_per_gpu():
    case = list_cases(80)[0]
    same = ROW | {"variant": case.variant, "config": case.config}
    rows = [same | {"sm": 80}, same | {"sm": 86, "stack_bytes": 8}]
    rows.append(same | {"sm": 90, "shipped": False})
    head, line = render(pd.DataFrame(rows)).splitlines()
    assert head.split()[-3:] == ["sm_80", "sm_86", "sm_90"]
    assert line.split()[-8:] == ["213r", "48K", "213r", "48K", "!", "213r", "48K", "x"]


def test_only_rows_of_the_same_version_kernel_and_gpu_are_replaced(tmp_path):
    path = tmp_path / "arch.csv"
    kept = [ROW | change for change in ({"triton": "3.6.0"}, {"sm": 80}, {"kernel": "norms"})]
    old = pd.DataFrame([*kept, ROW | {"registers": 1}, ROW | {"registers": 2, "config": "other"}])
    merge(path, old).to_csv(path, index=False)
    merged = merge(path, pd.DataFrame([ROW | {"registers": 3}]))
    found = merged[["triton", "kernel", "sm", "registers"]].values.tolist()
    assert found == [
        ["3.6.0", "int8_gemm", 86, 213],
        ["3.7.1", "int8_gemm", 80, 213],
        ["3.7.1", "int8_gemm", 86, 3],
        ["3.7.1", "norms", 86, 213],
    ]
    assert list(merged.columns) == list(ROW)


def test_a_file_of_other_columns_is_refused(tmp_path):
    path = tmp_path / "arch.csv"
    path.write_text("kernel,triton\nint8_gemm,3.6.0\n")
    with pytest.raises(UserError, match=r"arch.csv must have the columns kernel, .* got kernel, t"):
        merge(path, pd.DataFrame([ROW]))


@pytest.fixture
def run_main(monkeypatch, capsys, tmp_path):
    """Run the script with rows that need no compiler; returns exit code, output, table."""

    def run(row, *arguments):
        def pretend(sm, index):
            case = list_cases(sm)[index]
            named = {"kernel": case.kernel, "variant": case.variant, "config": case.config}
            return row | named | {"sm": sm}

        monkeypatch.setattr(check_arch, "measure", pretend)
        out = tmp_path / "arch.csv"
        words = ["check_arch.py", "--jobs", "1", "--out", str(out), *arguments]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as end:
            check_arch.main()
        return end.value.code, capsys.readouterr(), out

    return run


def test_a_whole_run_writes_its_rows(run_main):
    code, printed, out = run_main(ROW)
    cases = sum(len(list_cases(sm)) for sm in MEASURED)
    assert code == 0 and printed.err == ""
    assert len(pd.read_csv(out)) == cases
    assert f'"rows": {cases}, "broken": 0' in printed.out.splitlines()[-1]


def test_a_part_writes_its_rows_and_says_what_is_broken(run_main):
    spilling = ROW | {"stack_bytes": 8}
    code, printed, out = run_main(spilling, "--sm", "90", "--kernel", "qk_norm_rope")
    count = sum(case.kernel == "qk_norm_rope" for case in list_cases(90))
    assert code == 1 and len(pd.read_csv(out)) == count
    assert printed.err.count("must not spill, got 8 bytes of stack") == count


def test_a_quick_run_writes_nothing(run_main):
    code, printed, out = run_main(ROW, "--quick")
    assert code == 0 and not out.exists()
    assert f'"out": null, "triton": "{triton.__version__}"' in printed.out.splitlines()[-1]


def test_a_kernel_of_another_gpu_is_refused(run_main):
    code, printed, out = run_main(ROW, "--sm", "80", "--kernel", "int8_gemm_tma")
    assert code == 2 and not out.exists()
    assert "nothing of int8_gemm_tma is built for sm 80; ask for another GPU" in printed.err


@pytest.mark.slow
def test_nothing_that_ships_is_broken():
    """Compile every kernel in each of its variants once, with the first tile of a quick check."""
    first = {}
    for sm, index in select(MEASURED, KERNELS, quick=True):
        case = list_cases(sm)[index]
        first.setdefault((case.kernel, case.variant, case.integer_mma), (sm, index))
    assert {kernel for kernel, *_ in first} == set(KERNELS)
    assert [sentence for task in first.values() for sentence in broken(measure(*task))] == []


@pytest.mark.parametrize("version", ["3.6.0", "3.7.1"])
def test_the_committed_rows_are_complete_and_unbroken(version):
    rows = pd.read_csv(ROOT / "results" / "bench" / "arch.csv")
    rows = rows[rows["triton"] == version].to_dict("records")
    measured = {(r["sm"], r["kernel"], r["variant"], r["config"], r["shipped"]) for r in rows}
    listed = {
        (sm, case.kernel, case.variant, case.config, case.shipped)
        for sm in MEASURED
        for case in list_cases(sm)
    }
    assert measured == listed, f"run scripts/check_arch.py with Triton {version} again"
    assert [sentence for row in rows for sentence in broken(row)] == []


def test_a_tile_is_one_word():
    from dit8.kernels.int8_gemm_triton import Config

    assert tile_name(Config(128, 256, 64, 8, 4, 3)) == "128x256x64-g8-w4-s3"
