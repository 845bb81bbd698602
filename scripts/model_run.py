"""The measurements of scripts/bench_model.py: what is asked for, on what, and the loops.

Paths take turns image by image, so that a card that slows down slows all of them alike. Every image
starts with no work queued and ends with its latents on the CPU.
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

import torch

from dit8.eval.ledger import upsert
from dit8.models.engine.sampling import Clock
from dit8.models.random_ideogram4 import build_random
from dit8.models.types import PATCH_PX
from dit8.quant.errors import UserError
from dit8.scripts.health import check_health, cuda_bf16_tflops, expected_tflops
from dit8.scripts.kernel_components import (
    PROFILED_STEPS,
    WARM_STEPS,
    StepProfiler,
    by_component,
    component_of,
)
from dit8.scripts.model_paths import PATHS, Drawing, Path, open_path
from dit8.scripts.model_rows import MODEL, bytes_row, component_rows, time_rows
from dit8.scripts.random_variants import make_branches, storage_bytes

LAYERS, TEXT_TOKENS = 34, 300
WARM_UP_STEPS = 2
TOP_KERNELS = 25


@dataclass(frozen=True)
class Plan:
    """What a run measures.

    Raises:
        UserError: an unknown path, or a number that makes no sense.
    """

    paths: tuple[str, ...]
    resolutions: tuple[int, ...]
    images: int = 5
    steps: int = 48
    text_tokens: int = TEXT_TOKENS
    layers: int = LAYERS
    full: bool = True
    seconds: float = math.inf

    def __post_init__(self) -> None:
        unknown = [name for name in self.paths if name not in PATHS]
        if unknown or not self.paths:
            got = repr(unknown[0]) if unknown else "none"
            raise UserError(f"variants must be among {', '.join(PATHS)}, got {got}; correct it")
        if not self.resolutions or any(px < PATCH_PX or px % PATCH_PX for px in self.resolutions):
            raise UserError(
                f"resolutions must be multiples of {PATCH_PX} px, got "
                f"{', '.join(map(str, self.resolutions)) or 'none'}; use 1024"
            )
        for name, least in (("images", 2), ("steps", 3), ("text_tokens", 1), ("layers", 1)):
            if getattr(self, name) < least:
                raise UserError(
                    f"{name} must be at least {least}, got {getattr(self, name)}; "
                    "an interval needs two images, a step's time a step that is not the first"
                )


@dataclass(frozen=True)
class Machine:
    """Where a run takes place and what measures it; tests put other clocks here."""

    device: torch.device
    gpu: str
    gate: Callable[[str], float | None]  # "before" or "after" -> bf16 TFLOPS; raises UserError
    clock: Callable[[torch.device], Clock] = Clock
    now: Callable[[], float] = time.perf_counter

    def wait(self) -> None:
        """Return when the device has nothing left to do."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


@dataclass
class Run:
    """A run's identity, and what it has measured so far."""

    machine: Machine
    plan: Plan
    shared: Mapping[str, Any]
    table: FilePath
    say: Callable[[str], None]
    rows: dict[tuple, dict] = field(default_factory=dict)
    images: dict[int, int] = field(default_factory=dict)  # resolution -> rounds kept
    kernels: dict[str, list] = field(default_factory=dict)

    def columns(self, path: Path, size_px: int) -> dict[str, Any]:
        """Return the columns that a path's rows share."""
        own = {"variant": path.variant, "engine": path.engine, "resolution": size_px}
        return {**self.shared, **own, "text_tokens": self.plan.text_tokens}

    def save(self, rows: list[dict]) -> None:
        """Keep rows, in the table and for the summary."""
        upsert(self.table, MODEL, rows, overwrite=True)
        self.rows |= {tuple(row[name] for name in MODEL.key): row for row in rows}


def open_machine(device: torch.device, told_tflops: float | None) -> Machine:
    """Describe the device; a CPU has no gate, it is for rehearsals.

    Raises:
        UserError: nobody knows the card's bf16 rate.
    """
    if device.type != "cuda":
        return Machine(device, "cpu", lambda when: None)
    gpu = torch.cuda.get_device_name(device)
    expected = expected_tflops(gpu, told_tflops)

    def gate(when: str) -> float:
        measured = cuda_bf16_tflops(device)
        check_health(measured, expected, gpu, when)
        return round(measured, 1)

    return Machine(device, gpu, gate)


def open_paths(plan: Plan, device: torch.device) -> dict[str, Path]:
    """Make the branches of every path, from one random pair that bf16 paths share."""
    dtype = torch.bfloat16
    source = build_random(plan.layers, full=plan.full, dtype=dtype, device=device, seed=0)
    generator = torch.Generator().manual_seed(0)
    width = source["conditional"].config.llm_features_dim
    text = torch.randn(plan.text_tokens, width, generator=generator).to(device, dtype)
    made = {
        variant: make_branches(variant, source) for variant in {PATHS[p][0] for p in plan.paths}
    }
    del source
    return {name: open_path(name, made[PATHS[name][0]], text) for name in plan.paths}


def peak_bytes(path: Path, size_px: int, machine: Machine) -> int | None:
    """Measure what a path needs on the card alone: its weights, and what an image adds to them.

    The image comes after one that tuned the kernels, with nothing of any path left over: graphs
    of several engines would share their memory. None without CUDA.
    """
    if machine.device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    before = torch.cuda.memory_reserved(machine.device)
    torch.cuda.reset_peak_memory_stats(machine.device)
    path.draw(0, size_px, WARM_UP_STEPS, machine.clock(machine.device))
    grown = torch.cuda.max_memory_reserved(machine.device) - before
    path.release()
    return storage_bytes(path.modules) + grown


def measure(run: Run, paths: Mapping[str, Path], size_px: int, deadline: float) -> None:
    """Warm up, time and profile every path at one resolution.

    Args:
        run: gets the rows.
        paths: from `open_paths`.
        size_px: of a side.
        deadline: by the machine's clock; no round begins that would end later.

    Raises:
        UserError: as `Machine.gate` and `Path.draw`; what was saved stays.
    """
    warm_up(run, paths, size_px)
    time_images(run, paths, size_px, deadline)
    profile(run, paths, size_px)


def warm_up(run: Run, paths: Mapping[str, Path], size_px: int) -> None:
    """Tune and compile every path, measure its peak, then leave its graphs captured."""
    machine = run.machine
    for path in paths.values():
        path.release()
    for name, path in paths.items():
        start = machine.now()
        path.draw(0, size_px, WARM_UP_STEPS, machine.clock(machine.device))
        path.release()
        peak = peak_bytes(path, size_px, machine)
        if peak is not None:
            run.save([bytes_row(run.columns(path, size_px), "peak_bytes", peak)])
        run.say(f"{size_px} px {name}: warm after {machine.now() - start:.1f} s, peak {peak} B")
    for path in paths.values():
        path.draw(0, size_px, WARM_UP_STEPS, machine.clock(machine.device))


def time_images(run: Run, paths: Mapping[str, Path], size_px: int, deadline: float) -> None:
    """Draw images in turn, as many rounds as are planned or end before the deadline."""
    machine, plan = run.machine, run.plan
    drawings: dict[str, list[Drawing]] = {name: [] for name in paths}
    longest = 0.0
    for index in range(plan.images):
        start = machine.now()
        if start + longest > deadline:
            run.say(f"{size_px} px: stopped after {index} images, the time is used up")
            break
        drawn = {
            name: path.draw(
                index, size_px, plan.steps, machine.clock(machine.device), now=machine.now
            )
            for name, path in paths.items()
        }
        rate = machine.gate("after")
        longest = max(longest, machine.now() - start)
        rows = []
        for name, drawing in drawn.items():
            drawings[name].append(drawing)
            rows += time_rows(run.columns(paths[name], size_px), drawings[name], plan.steps)
        run.save(rows)
        run.images[size_px] = index + 1
        seconds = ", ".join(f"{name} {d.seconds:.2f} s" for name, d in drawn.items())
        run.say(f"{size_px} px image {index + 1}: {seconds}; bf16 {rate} TFLOPS")


def profile(run: Run, paths: Mapping[str, Path], size_px: int) -> None:
    """Profile a few steps of each path and keep the components."""
    machine = run.machine
    for name, path in paths.items():
        profiler = StepProfiler(machine.device, machine.wait)
        clock = machine.clock(machine.device)
        path.draw(0, size_px, WARM_STEPS + PROFILED_STEPS, clock, profiler)
        steps = [by_component(step) for step in profiler.steps]
        run.save(component_rows(run.columns(path, size_px), steps))
        last = sorted(profiler.steps[-1].items(), key=lambda item: -item[1])[:TOP_KERNELS]
        run.kernels[f"{name} {size_px}"] = [
            [kernel[:120], component_of(kernel), round(ms, 4)] for kernel, ms in last
        ]
