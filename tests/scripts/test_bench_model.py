import json

import pandas as pd
import pytest
import torch

from dit8.quant.errors import UserError
from dit8.scripts import bench_model, model_run, run_identity
from dit8.scripts.bench_model import bench, make_plan
from dit8.scripts.kernel_components import COMPONENTS, PROFILED_STEPS, WARM_STEPS
from dit8.scripts.model_paths import Drawing
from dit8.scripts.model_rows import MODEL
from dit8.scripts.model_run import Machine, Plan

CPU = torch.device("cpu")


class Host:
    """A clock that only drawing moves."""

    def __init__(self):
        self.seconds = 0.0
        self.order = []


class FakePath:
    """Takes as many seconds an image as it is told, 48 steps or not."""

    def __init__(self, host, name, seconds):
        self.host, self.name, self.seconds = host, name, seconds
        self.variant, self.engine = model_run.PATHS[name]
        self.modules = []

    def draw(self, seed, size_px, steps, clock, after_step=lambda index: None, now=None):
        self.host.order.append((self.name, size_px, steps, seed))
        self.host.seconds += self.seconds
        for index in range(steps):
            after_step(index)
        ms = 1e3 * self.seconds / steps + seed
        return Drawing(self.seconds + seed, (ms,) * (steps - 1))

    def release(self):
        self.host.order.append(self.name)


@pytest.fixture
def host(monkeypatch):
    host = Host()
    seconds = {"stock": 24.0, "fused_int8": 6.0}
    monkeypatch.setattr(
        bench_model,
        "open_paths",
        lambda plan, device: {name: FakePath(host, name, seconds[name]) for name in plan.paths},
    )
    monkeypatch.setenv("DIT8_COMMIT", "abcdef0123")
    return host


def machine(host, gate=lambda when: 700.0):
    return Machine(CPU, "card", gate, now=lambda: host.seconds)


def read(results):
    return pd.read_csv(results / "bench" / "model.csv")


PLAN = Plan(("stock", "fused_int8"), (1024, 768), images=3)


def test_paths_take_turns_and_every_resolution_is_measured(host, tmp_path, capsys):
    document = bench(machine(host), PLAN, tmp_path)
    images = [item for item in host.order if item[2:3] == (48,)]
    turns = [(name, seed) for name, size_px, _, seed in images if size_px == 1024]
    assert turns == [(n, seed) for seed in range(3) for n in ("stock", "fused_int8")]
    assert len(images) == 12 and document["images"] == {1024: 3, 768: 3}
    rows = read(tmp_path)
    assert list(rows.columns) == list(MODEL.columns)
    assert set(rows["run_id"]) == {document["run_id"]} and set(rows["commit"]) == {"abcdef0123"}
    step = rows.query("engine == 'stock' and resolution == 768 and quantity == 'cfg_step_ms'")
    assert step["value"].item() == pytest.approx(24e3 / 48 + 1)  # seeds 0, 1, 2 add as many ms
    assert len(rows) == 2 * 2 * (2 + len(COMPONENTS))
    assert "| fused_int8 | dit8 |" in capsys.readouterr().out
    record = json.loads((tmp_path / "bench" / "runs" / f"{document['run_id']}.json").read_text())
    assert set(record["kernels"]) == {
        f"{name} {px}" for name in ("stock", "fused_int8") for px in (1024, 768)
    }


def test_a_round_on_a_throttled_card_is_dropped_and_the_others_are_kept(host, tmp_path):
    answers = iter((700.0, 700.0, 700.0, None))

    def gate(when):
        if (rate := next(answers)) is None:
            raise UserError("throttled")
        return rate

    with pytest.raises(UserError, match="throttled"):
        bench(machine(host, gate), PLAN, tmp_path)
    rows = read(tmp_path).query("engine == 'stock' and quantity == 'image_s'")
    assert rows["value"].item() == 24.5  # seeds 0 and 1, not 2


def test_a_throttled_card_is_refused_before_anything_is_made(host, tmp_path):
    def gate(when):
        assert when == "before"
        raise UserError("throttled")

    with pytest.raises(UserError, match="throttled"):
        bench(machine(host, gate), PLAN, tmp_path)
    assert host.order == [] and not (tmp_path / "bench").exists()


def test_rounds_stop_before_the_time_is_used_up(host, tmp_path, capsys):
    # warming up takes 2 draws of each path without CUDA, 60 s; a round 30 s
    plan = Plan(("stock", "fused_int8"), (1024,), images=9, seconds=60 + 3 * 30 + 29)
    document = bench(machine(host), plan, tmp_path)
    assert document["images"] == {1024: 3}
    assert "1024 px: stopped after 3 images, the time is used up" in capsys.readouterr().out


def test_fewer_steps_give_step_times_only(host, tmp_path):
    bench(machine(host), Plan(("stock",), (1024,), images=2, steps=12), tmp_path)
    quantities = set(read(tmp_path)["quantity"])
    assert "cfg_step_ms" in quantities and "image_s" not in quantities
    assert quantities >= {f"ms_{name}" for name in COMPONENTS}


def test_profiled_images_are_short_and_come_after_the_timed_ones(host, tmp_path):
    bench(machine(host), PLAN, tmp_path)
    drawn = [item[:3] for item in host.order if isinstance(item, tuple)]
    short = ("stock", 1024, WARM_STEPS + PROFILED_STEPS)
    assert drawn.count(short) == 1
    last = max(i for i, item in enumerate(drawn) if item == ("fused_int8", 1024, 48))
    assert drawn.index(short) > last


def test_everything_is_released_before_a_peak_is_measured(host, tmp_path, monkeypatch):
    free = []
    monkeypatch.setattr(
        model_run, "peak_bytes", lambda path, size_px, machine: free.append(list(host.order))
    )
    bench(machine(host), PLAN, tmp_path)
    for order in free[:2]:
        for name in ("stock", "fused_int8"):
            own = [x for x in order if x == name or x[0] == name]
            assert own[-1] == name, "drawn, and not released since"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"paths": ("int4",)}, "variants must be among stock, compiled, .*, got 'int4'"),
        ({"paths": ()}, "variants must be among .*, got none"),
        ({"resolutions": (1000,)}, "resolutions must be multiples of 16 px, got 1000; use 1024"),
        ({"images": 1}, "images must be at least 2, got 1"),
        ({"steps": 2}, "steps must be at least 3, got 2"),
    ],
)
def test_a_plan_that_cannot_be_measured_is_refused(change, message):
    with pytest.raises(UserError, match=message):
        Plan(**({"paths": ("stock",), "resolutions": (1024,)} | change))


def test_the_run_needs_its_commit(host, tmp_path, monkeypatch):
    monkeypatch.delenv("DIT8_COMMIT")
    monkeypatch.setattr(run_identity, "ROOT", tmp_path)
    with pytest.raises(UserError, match="commit of this tree, got none"):
        bench(machine(host), PLAN, tmp_path)


def run_main(monkeypatch, *arguments):
    monkeypatch.setattr("sys.argv", ["bench_model.py", *map(str, arguments)])
    bench_model.main()


def test_a_cap_needs_a_gpu(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run_main(monkeypatch, "--tiny", "--device", "cpu", "--cap-gb", 24)
    assert "cap-gb caps the memory of an NVIDIA GPU, got device cpu" in capsys.readouterr().err


def test_the_rehearsal_runs_from_end_to_end(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("DIT8_COMMIT", "abcdef0123")
    variants = ("bf16", "fused_int8", "rotated", "fp8")
    common = ("--tiny", "--device", "cpu", "--results", tmp_path)
    run_main(monkeypatch, *common, "--variants", *variants)
    document = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert document["images"] == {"64": 2}
    rows = read(tmp_path)
    assert set(rows["variant"]) == set(variants) and set(rows["gpu"]) == {"cpu"}
    assert (rows.query("quantity == 'cfg_step_ms'")["value"] > 0).all()
    assert set(rows["text_tokens"]) == {5} and "peak_bytes" not in set(rows["quantity"])


def test_defaults_are_the_full_model(monkeypatch):
    seen = []
    monkeypatch.setattr(bench_model, "make_plan", lambda a: seen.append(make_plan(a)) or seen[0])
    monkeypatch.setattr(bench_model, "open_machine", lambda *a: None)
    monkeypatch.setattr(bench_model, "bench", lambda *a: {})
    run_main(monkeypatch, "--device", "cpu")
    plan = seen[0]
    assert (plan.layers, plan.text_tokens, plan.steps, plan.images) == (34, 300, 48, 5)
    assert plan.full and plan.resolutions == (1024,) and "stock" in plan.paths


@pytest.mark.gpu
def test_a_gpu_gives_peaks_and_kernel_times(monkeypatch, tmp_path):
    monkeypatch.setenv("DIT8_COMMIT", "abcdef0123")
    names = ("stock", "bf16", "fused_int8", "rotated")
    plan = Plan(names, (64,), images=2, steps=4, text_tokens=5, layers=2, full=False)
    bench(Machine(torch.device("cuda"), "card", lambda when: None), plan, tmp_path)
    values = {
        (row["variant"], row["engine"], row["quantity"]): row["value"]
        for row in read(tmp_path).to_dict("records")
    }
    for name in names:
        key = model_run.PATHS[name]
        assert values[*key, "peak_bytes"] > 1e6  # the toy's two branches alone are 2 MB
        assert 0 < values[*key, "ms_gemm_bf16"] < values[*key, "cfg_step_ms"]
    for variant in ("fused_int8", "rotated"):
        assert values[variant, "dit8", "ms_gemm_int8"] > 0
    assert values["bf16", "dit8", "ms_gemm_int8"] == 0
