"""The whole benchmark on a CPU: tiny shapes, the real paths, a made-up clock."""

import json
import re
from dataclasses import replace
from itertools import count

import pytest
import torch

from dit8.eval.gemm_rows import CALLS, GEMM, MODES, PATHS, STEP_M
from dit8.eval.ledger import read_table
from dit8.quant.errors import UserError
from dit8.scripts import bench_gemm, gemm_grid
from dit8.scripts.bench_gemm import Plan, bench, make_plan
from dit8.scripts.gemm_grid import Machine, NotMeasured, attempt
from dit8.scripts.gemm_paths import OWN, Declined, GemmPath
from dit8.scripts.gemm_peers import SGL_LIBRARY

TINY = dict(zip(CALLS, ((48, 64), (32, 64), (80, 64), (32, 160)), strict=True))
OURS = tuple(path.name for path in OWN)
PLAN = Plan(TINY, (17, 32), OURS, MODES, rounds=3)


def make_sampler(calls, graph):
    """Run every call once; eager samples take 2 ms, graph samples 1 ms and a little more each."""
    for call in calls:
        call()
    ticks = count()
    return lambda: (1.0 if graph else 2.0) + 0.01 * next(ticks)


def machine(**changes) -> Machine:
    made = Machine(
        torch.device("cpu"),
        "NVIDIA Pretend 1",
        l2_bytes=10_000,
        free_bytes=lambda: 10**9,
        bf16_tflops=lambda: 100.0,
        expected_tflops=100.0,
        sampler=make_sampler,
    )
    return replace(made, **changes)


@pytest.fixture(autouse=True)
def told_commit(monkeypatch):
    monkeypatch.setenv("DIT8_COMMIT", "0123456789abcdef")
    monkeypatch.delenv(SGL_LIBRARY, raising=False)


@pytest.fixture
def quiet():
    lines = []
    return lines, lines.append


def test_a_whole_run(tmp_path, quiet):
    lines, say = quiet
    document = bench(machine(), PLAN, tmp_path, say)
    frame = read_table(tmp_path / "bench" / "gemm.csv", GEMM)
    cells = sum(2 * len(PATHS[name]) for name in OURS)
    assert len(frame) == document["rows"] == len(TINY) * 2 * cells
    assert document["not_measured"] == {}
    assert set(frame["path"]) == set(OURS) and set(frame["mode"]) == set(MODES)
    assert set(frame["commit"]) == {"0123456789abcdef"}
    assert set(frame["gpu"]) == {"NVIDIA Pretend 1"}
    assert frame["run_id"].nunique() == 1
    assert frame["run_id"][0].rpartition("-")[0].endswith("-0123456-nvidia_pretend_1")
    assert all(text.startswith(f"torch {torch.__version__}; triton ") for text in frame["versions"])
    row = frame[(frame["shape"] == "ffn_down") & (frame["m"] == 17) & (frame["path"] == "dit8")]
    row = row[row["mode"] == "gemm_graph"].iloc[0]
    # the first sample, 1.00 ms, is not kept
    assert (row["n"], row["k"], row["p50_ms"]) == (32, 160, pytest.approx(1.02))
    assert row["tops"] == pytest.approx(2 * 17 * 32 * 160 / 1.02e-3 / 1e12)
    record = json.loads((tmp_path / "bench" / "runs" / f"{document['run_id']}.json").read_text())
    assert record["health"] == {
        "expected_tflops": 100.0,
        "before_tflops": 100.0,
        "after_tflops": 100.0,
    }
    assert record["provenance"]["versions"]["torch"] == torch.__version__
    assert any("GEMM alone against cuBLAS bf16, CUDA graphs" in line for line in lines)
    json.dumps(document)


def test_the_summary_speaks_of_a_whole_step(tmp_path, quiet):
    plan = replace(PLAN, m=STEP_M, modes=("gemm_graph", "quant_gemm_graph"), rounds=1)
    summary = bench(machine(), plan, tmp_path, quiet[1])["summary"]
    assert summary["dit8_quant"] == {"quant_gemm_vs_bf16": 1.0, "quant_gemm_vs_fp8": 1.0}
    assert summary["dit8"] == {"gemm_vs_bf16": 1.0, "gemm_vs_fp8": 1.0}
    assert summary["bf16"] == {"gemm_vs_fp8": 1.0}


def test_anchors_come_with_every_selection(tmp_path, quiet):
    plan = replace(PLAN, paths=("dit8_quant",), modes=("quant_gemm_graph",), m=(17,))
    bench(machine(), plan, tmp_path, quiet[1])
    frame = read_table(tmp_path / "bench" / "gemm.csv", GEMM)
    assert set(zip(frame["path"], frame["mode"], strict=True)) == {
        ("bf16", "gemm_graph"),
        ("fp8", "quant_gemm_graph"),
        ("dit8_quant", "quant_gemm_graph"),
    }


def test_runs_add_up_even_in_one_second(tmp_path, quiet):
    plan = replace(PLAN, m=(17,), paths=("dit8",))
    counts = [bench(machine(), plan, tmp_path, quiet[1])["rows"] for _ in range(2)]
    assert len(read_table(tmp_path / "bench" / "gemm.csv", GEMM)) == sum(counts)


def test_peers_that_are_absent_are_listed(tmp_path, quiet):
    lines, say = quiet
    plan = replace(PLAN, paths=("dit8", "sgl_kernel"), shapes={"qkv": (48, 64)}, m=(17,))
    document = bench(machine(), plan, tmp_path, say)
    (reason,) = document["not_measured"]["sgl_kernel"]
    assert reason == "no library was named; give --sgl-library or set DIT8_SGL_LIBRARY"
    assert f"sgl_kernel: not measured: {reason} (everywhere)" in lines
    assert "sgl_kernel" not in set(read_table(tmp_path / "bench" / "gemm.csv", GEMM)["path"])


def with_peer(monkeypatch, build, version=lambda: "peer 1") -> Plan:
    monkeypatch.setattr(bench_gemm, "PEERS", (GemmPath("sdnq", build, version=version),))
    return replace(PLAN, paths=("dit8", "sdnq"), shapes={"qkv": (48, 64)}, m=(17, 32))


def test_a_peer_that_works_names_its_version(tmp_path, quiet, monkeypatch):
    def build(o):
        return {"gemm": lambda: o.x @ o.w.t(), "quant_gemm": lambda: o.x @ o.w.t()}

    bench(machine(), with_peer(monkeypatch, build), tmp_path, quiet[1])
    frame = read_table(tmp_path / "bench" / "gemm.csv", GEMM)
    mine = frame[frame["path"] == "sdnq"]
    assert len(mine) == 2 * 4 and all(mine["versions"].str.endswith("; peer 1"))
    assert not any(frame[frame["path"] == "dit8"]["versions"].str.contains("peer"))


@pytest.mark.parametrize(
    "wrong, reason",
    [
        (lambda o: 1.1 * (o.x @ o.w.t()), "wrong result: relative error 0.1"),
        (lambda o: torch.empty(o.sizes[:2], dtype=torch.bfloat16), "relative error nan"),
        (lambda o: o.x, r"wrong result: shape \(17, 64\), expected \(17, 48\)"),
        (lambda o: 1 / 0, "ZeroDivisionError: division by zero"),
    ],
    ids=["wrong", "unwritten", "shape", "raises"],
)
def test_a_peer_that_fails_costs_its_rows_only(tmp_path, quiet, monkeypatch, wrong, reason):
    def build(o):
        good = o.sizes[0] == 32
        return {
            "gemm": lambda: o.x @ o.w.t(),
            "quant_gemm": lambda: o.x @ o.w.t() if good else wrong(o),
        }

    document = bench(machine(), with_peer(monkeypatch, build), tmp_path, quiet[1])
    ((found, places),) = document["not_measured"]["sdnq"].items()
    assert places == ["qkv M=17"]
    assert re.search(reason, found), found
    frame = read_table(tmp_path / "bench" / "gemm.csv", GEMM)
    mine = frame[frame["path"] == "sdnq"]
    assert sorted(zip(mine["m"], mine["mode"], strict=True)) == sorted(
        [(32, mode) for mode in MODES] + [(17, mode) for mode in MODES if mode.startswith("gemm")]
    )


def test_a_capture_that_fails_leaves_the_eager_rows(tmp_path, quiet, monkeypatch):
    def build(o):
        return {"gemm": lambda: o.x @ o.w.t(), "quant_gemm": lambda: torch.mm(o.x, o.w.t())}

    def sampler(calls, graph):
        if graph and "build" in calls[0].__qualname__:  # of the peer
            raise RuntimeError("operation not permitted when stream is capturing\nmore lines")
        return make_sampler(calls, graph)

    plan = with_peer(monkeypatch, build)
    document = bench(machine(sampler=sampler), plan, tmp_path, quiet[1])
    ((reason, _),) = document["not_measured"]["sdnq"].items()
    assert reason == "RuntimeError: operation not permitted when stream is capturing"
    frame = read_table(tmp_path / "bench" / "gemm.csv", GEMM)
    assert set(frame[frame["path"] == "sdnq"]["mode"]) == {"gemm_eager", "quant_gemm_eager"}


def test_int_mm_says_what_it_does_not_take(tmp_path, quiet):
    plan = replace(PLAN, m=(1,), shapes={"qkv": (48, 64)})
    document = bench(machine(), plan, tmp_path, quiet[1])
    reason = {"torch._int_mm takes more than 16 rows": ["qkv M=1"]}
    assert document["not_measured"] == {"int_mm": reason, "unfused": reason}


def test_an_error_of_ours_ends_the_run(tmp_path, quiet, monkeypatch):
    def broken(o):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(bench_gemm, "OWN", (*OWN[:-1], GemmPath("dit8_quant", broken, True)))
    with pytest.raises(RuntimeError, match="no kernel"):
        bench(machine(), PLAN, tmp_path, quiet[1])
    assert not (tmp_path / "bench").exists()


def test_memory_that_does_not_suffice_is_one_sentence(tmp_path, quiet, monkeypatch):
    def full(*arguments):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nmore")

    monkeypatch.setattr(gemm_grid, "draw_operands", full)
    pattern = "qkv M=17 must fit the free GPU memory, got OutOfMemoryError: .* leave it out with"
    with pytest.raises(UserError, match=pattern):
        bench(machine(), PLAN, tmp_path, quiet[1])


@pytest.mark.parametrize("rates, when", [((79.9, 100.0), "before"), ((100.0, 79.9), "after")])
def test_a_throttled_card_leaves_nothing(tmp_path, quiet, rates, when):
    taken = iter(rates)
    plan = replace(PLAN, shapes={"qkv": (48, 64)}, m=(17,), rounds=1)
    with pytest.raises(UserError, match=f"reached 79.9 bf16 TFLOPS {when} the measurements"):
        bench(machine(bf16_tflops=lambda: next(taken)), plan, tmp_path, quiet[1])
    assert not (tmp_path / "bench").exists()


def test_time_that_is_over_is_named(tmp_path, quiet, monkeypatch):
    clock = count(step=10)
    monkeypatch.setattr(bench_gemm.time, "monotonic", lambda: next(clock))
    plan = replace(PLAN, paths=("dit8",), seconds=35)
    document = bench(machine(), plan, tmp_path, quiet[1])
    frame = read_table(tmp_path / "bench" / "gemm.csv", GEMM)
    assert set(zip(frame["shape"], frame["m"], strict=True)) == {("qkv", 17)}
    left = [f"{shape} M={m}" for shape in TINY for m in (17, 32)][1:]
    assert document["not_measured"] == {
        name: {"the 35 s of --seconds were over": left} for name in ("bf16", "fp8", "dit8")
    }


def test_attempt_tells_ours_from_theirs():
    ours, theirs = OWN[0], GemmPath("sdnq", dict)
    reasons = []

    def declined():
        raise Declined("not here")

    assert attempt(theirs, lambda: 5, reasons.append) == 5
    assert attempt(theirs, declined, reasons.append) is None
    assert attempt(ours, declined, reasons.append) is None  # a reason, not an error
    assert attempt(theirs, lambda: {}["x"], reasons.append) is None
    assert reasons == ["not here", "not here", "KeyError: 'x'"]
    with pytest.raises(KeyError):
        attempt(ours, lambda: {}["x"], reasons.append)


def test_reasons_are_said_once_for_each_place():
    missing = NotMeasured()
    for where in ("a", "b", "a"):
        missing.add("sdnq", "too small", where)
    assert missing.lines() == ["sdnq: not measured: too small (a, b)"]


@pytest.mark.parametrize(
    "options, pattern",
    [
        (["--shapes", "qkw"], "shapes must be among qkv, .*, got 'qkw'; correct the name"),
        (["--paths", "bf16", "cuda"], "paths must be among bf16, .*, got 'cuda'"),
        (["--modes", "gemm"], "modes must be among gemm_eager, .*, got 'gemm'"),
        (["--m", "4096", "0"], "m must be positive, got 0"),
        (["--rounds", "-1"], "rounds must be positive, got -1"),
        (["--seconds", "nan"], "seconds must be positive, got nan"),
        ([], "timed on an NVIDIA GPU, got torch .*, which sees none; run this on a machine"),
    ],
)
def test_one_sentence(run_here, one_sentence, monkeypatch, options, pattern):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    one_sentence(run_here("bench_gemm", *options), "bench_gemm", pattern)


def test_the_default_plan_is_everything():
    parsed = bench_gemm.parser().parse_args([])
    plan = make_plan(parsed)
    assert list(plan.shapes) == ["qkv", "attn_out", "ffn_up", "ffn_up2", "ffn_down", "llm_proj"]
    assert plan.m == (1, 17, 256, 1088, 4096, 4396, 6221)
    assert [path.name for path in plan.opened] == list(PATHS)
    assert plan.modes == MODES


@pytest.mark.gpu
def test_on_a_gpu(tmp_path, quiet):
    made = replace(bench_gemm.cuda_machine("cuda", 1e-9), bf16_tflops=lambda: 1.0)
    shapes = {name: (256, 512) for name in CALLS}
    document = bench(made, replace(PLAN, shapes=shapes, m=(1, 17, 300)), tmp_path, quiet[1])
    assert set(document["not_measured"]) <= {"int_mm", "unfused", "fp8"}
    frame = read_table(tmp_path / "bench" / "gemm.csv", GEMM)
    assert (frame["p50_ms"] > 0).all() and {"dit8", "dit8_quant"} <= set(frame["path"])
