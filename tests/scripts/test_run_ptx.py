"""The PTX of older GPUs: what is built and compared, without a GPU; on one, that it is exact."""

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from dit8.kernels.quant_rows import quant_rows_reference  # noqa: E402
from dit8.kernels.shipped import configs_for  # noqa: E402
from dit8.scripts import run_ptx  # noqa: E402
from dit8.scripts.arch_compile import Build  # noqa: E402
from dit8.scripts.arch_kernels import tile_name  # noqa: E402
from dit8.scripts.run_ptx import (  # noqa: E402
    RAGGED,
    gemm_trials,
    load_ptx,
    quant_rows_trials,
    run_trial,
    spread,
)

SMALL = (33, 48, 80)
CPU = torch.device("cpu")


@pytest.fixture
def gemm_trial():
    return next(gemm_trials(86, 1, SMALL, CPU))


def writing(trial, change=0):
    """Return a loader whose launch writes the right result, plus a change of one element."""

    def launch():
        for output, expected in zip(trial.outputs, trial.expected, strict=True):
            output.copy_(expected)
        trial.outputs[-1].view(-1)[5] += change

    return lambda build: launch


@pytest.mark.parametrize(
    ("count", "picked"),
    [(1, [0]), (2, [0, 9]), (4, [0, 3, 6, 9]), (10, list(range(10))), (99, list(range(10)))],
)
def test_items_are_spread(count, picked):
    assert spread(range(10), count) == picked


def test_a_gemm_trial_holds_the_code_of_the_older_gpu_and_the_integer_sums(gemm_trial):
    ptx = gemm_trial.build.kernel.asm["ptx"]
    assert ".target sm_86" in ptx and "mma.sync.aligned.m16n8k32" in ptx
    named = dict(
        zip(gemm_trial.build.kernel.src.fn.arg_names, gemm_trial.build.arguments, strict=True)
    )
    x, w = named["x_ptr"], named["w_ptr"]
    assert (x.shape, w.shape) == ((33, 80), (48, 80))
    assert torch.equal(gemm_trial.expected[0], (x.long() @ w.long().t()).float())
    assert named["out_ptr"] is gemm_trial.outputs[0] and gemm_trial.outputs[0].isnan().all()
    assert gemm_trial.config == tile_name(configs_for(86)[0])
    assert gemm_trial.operations == 2 * 33 * 48 * 80


def test_tiles_take_turns_in_both_output_types():
    trials = list(gemm_trials(80, 2, SMALL, CPU))
    offered = configs_for(80)
    names = [tile_name(offered[0]), tile_name(offered[-1])]
    assert [(trial.config, trial.dtype) for trial in trials] == [
        (name, dtype) for name in names for dtype in ("float32", "bfloat16")
    ]
    assert torch.equal(trials[1].expected[0], trials[0].expected[0].bfloat16())


def test_a_quant_rows_trial_is_compared_with_the_reference():
    (trial,) = quant_rows_trials(89, SMALL, CPU)
    assert ".target sm_89" in trial.build.kernel.asm["ptx"]
    named = dict(zip(trial.build.kernel.src.fn.arg_names, trial.build.arguments, strict=True))
    codes, scale = quant_rows_reference(named["x_ptr"], named["smooth_ptr"])
    assert torch.equal(trial.expected[0], codes) and torch.equal(trial.expected[1], scale)
    assert (trial.outputs[0] == -128).all() and trial.outputs[1].isnan().all()


def test_a_right_result_is_equal_and_timed(gemm_trial):
    row = run_trial(gemm_trial, writing(gemm_trial), lambda launch: 0.5)
    assert row["equal"] and (row["m"], row["n"], row["k"]) == SMALL
    assert (row["kernel"], row["sm"], row["dtype"]) == ("int8_gemm", 86, "float32")
    # operations in half a millisecond, in units of 10^12 per second
    assert row["tops"] == pytest.approx(2 * 33 * 48 * 80 / 0.5e-3 / 1e12)


def test_one_wrong_element_is_seen(gemm_trial):
    assert not run_trial(gemm_trial, writing(gemm_trial, 1), lambda launch: 1.0)["equal"]


def test_a_wrong_scale_is_seen():
    (trial,) = quant_rows_trials(80, SMALL, CPU)
    assert run_trial(trial, writing(trial), lambda launch: 1.0)["equal"]
    assert not run_trial(trial, writing(trial, 1e-3), lambda launch: 1.0)["equal"]


def test_nothing_written_is_seen(gemm_trial):
    nothing = replace(gemm_trial)
    assert not run_trial(nothing, lambda build: lambda: None, lambda launch: 1.0)["equal"]


def test_ptx_takes_the_place_of_the_machine_code():
    """Triton's loader then gets text for cuModuleLoadData, and its launcher every argument."""
    seen = []

    class Kernel(SimpleNamespace):
        def __getitem__(self, grid):
            seen.append((grid, self.kernel))
            return lambda *arguments: seen.append(arguments)

    kernel = Kernel(asm={"ptx": ".version 8.4", "cubin": b"\x7fELF"}, kernel=b"\x7fELF")
    launch = load_ptx(Build(kernel, (7,), ("x", None, 16)))
    assert seen == [((7, 1, 1), ".version 8.4")]
    launch()
    assert seen[1] == ("x", None, 16)


def test_triton_still_has_what_the_loader_rests_on(gemm_trial):
    kernel = gemm_trial.build.kernel
    assert kernel.kernel == kernel.asm["cubin"]  # what `_init_handles` gives the driver
    assert f".visible .entry {kernel.name}(" in kernel.asm["ptx"]


def test_rows_are_written_and_a_difference_is_exit_code_1(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "a GPU")
    monkeypatch.setattr(torch, "device", lambda *words: "cuda:0")
    monkeypatch.setattr(run_ptx, "gemm_trials", lambda *words: ["gemm"])
    monkeypatch.setattr(run_ptx, "quant_rows_trials", lambda *words: ["rows"])

    def pretend(trial):
        kernel = {"gemm": "int8_gemm", "rows": "quant_rows"}[trial]
        return {"kernel": kernel, "sm": 86, "m": 4396, "equal": trial == "gemm", "tops": 640.04}

    monkeypatch.setattr(run_ptx, "run_trial", pretend)
    out = tmp_path / "ptx.csv"
    monkeypatch.setattr("sys.argv", ["run_ptx.py", "--sm", "86", "--out", str(out)])
    with pytest.raises(SystemExit) as end:
        run_ptx.main()
    assert end.value.code == 1
    last = capsys.readouterr().out.splitlines()[-1]
    assert '"rows": 4, "different": 2, "tops": {"sm_86": 640.0}' in last
    assert list(pd.read_csv(out)["gpu"]) == ["a GPU"] * 4


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_without_a_gpu_it_says_so_in_one_sentence(run_here, one_sentence):
    one_sentence(run_here("run_ptx"), "run_ptx", "PTX must be run on an NVIDIA GPU, got a torch")


@pytest.mark.gpu
@pytest.mark.parametrize("sm", [80, 86, 89])
def test_older_code_is_exact_here(sm):
    device = torch.device("cuda", torch.cuda.current_device())
    trials = [*gemm_trials(sm, 2, RAGGED, device), *quant_rows_trials(sm, RAGGED, device)]
    rows = [run_trial(trial) for trial in trials]
    assert [row["equal"] for row in rows] == [True] * 5
    assert all(row["p50_ms"] > 0 for row in rows)
