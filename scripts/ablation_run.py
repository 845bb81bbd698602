"""Evaluate the cells of the ablation that the ledger lacks, several at a time.

What cells share is made before any two run side by side: a model's calibration (and a planted
model's weights) by scripts/quantize.py, then the pictures of the unquantized model. The rest has
nothing in common but the ledger, which takes care of itself.
"""

import json
import os
import shlex
import shutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields

from dit8.conf.paths import ROOT, from_root
from dit8.conf.schema import QuantizeConfig
from dit8.eval.ablation import (
    ALPHAS,
    ARITHMETIC,
    CELLS,
    REFERENCE,
    SCORERS,
    Cell,
    Run,
    collect,
    is_measured,
)
from dit8.eval.ledger import SCORES, read_table
from dit8.eval.newest import newest_runs
from dit8.models.threads import usable_cores
from dit8.scripts.job_queue import Ended, Process, Running, Task, run_all

THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")

Start = Callable[[Sequence[str]], Running]


@dataclass(frozen=True)
class Options:
    """What is measured and tabulated; scripts/ablation.py says what each is."""

    models: tuple[str, ...]
    cells: tuple[str, ...]  # names
    prompts: str
    n: int
    hardware: str
    results: str
    out: str
    jobs: int
    readers: int
    discard_pictures: bool
    overrides: tuple[str, ...]

    @property
    def backend(self) -> str:
        """Name what multiplies: no cell uses the fused product, so it is torch everywhere."""
        return f"torch-{self.hardware}"


@dataclass
class Progress:
    """Count what has ended, a line each, with a guess of the time left."""

    total: int
    done: int = 0
    start: float = field(default_factory=time.monotonic)

    def say(self, label: str, how: Ended) -> None:
        self.done += 1
        left = (time.monotonic() - self.start) / self.done * (self.total - self.done)
        guess = f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min"
        state = "" if how.code == 0 else "FAILED after "
        line = f"[{self.done}/{self.total}] {label}: {state}{how.seconds:.0f} s, about {guess} left"
        print(line, file=sys.stderr, flush=True)


def read_runs(options: Options) -> dict[tuple[str, str], Run]:
    """Find the cells' runs in the ledger."""
    results = from_root(options.results)
    return collect(
        newest_runs(read_table(results / "scores.csv", SCORES), results / "runs"),
        options.models,
        prompt_set=options.prompts,
        backend=options.backend,
        captions=options.n,
    )


def missing_cells(options: Options) -> dict[str, list[Cell]]:
    """List the asked-for cells that the ledger lacks, for every model that lacks some."""
    runs = read_runs(options)
    missing = {
        model: [
            cell
            for cell in (REFERENCE, *CELLS)
            if cell.name in options.cells and not is_measured(runs, model, cell)
        ]
        for model in options.models
    }
    return {model: cells for model, cells in missing.items() if cells}


def start_process(jobs: int) -> Start:
    """Begin commands in the repository, each with its share of the cores."""
    threads = str(max(1, usable_cores() // jobs))
    environment = dict.fromkeys(THREADS, threads) | os.environ  # what the user has set stays
    return lambda command: Process(command, ROOT, environment)


def measure(options: Options, start: Start) -> dict[str, str]:
    """Evaluate what is missing; the rows go to the ledger.

    Args:
        options: names the cells.
        start: begins a command of scripts/, see `start_process`.

    Returns:
        label -> why, for every cell that failed or could not be tried.
    """
    missing = missing_cells(options)
    cells = sum(map(len, missing.values()))
    print(
        f"ablation: {cells} of {len(options.models) * len(options.cells)} cells are missing, up to "
        f"{cells * options.n} pictures ({options.n} a cell), {options.jobs} cells at a time",
        file=sys.stderr,
    )
    failed: dict[str, str] = {}
    progress = Progress(_steps(missing))

    def step(commands: Mapping[str, list[str]], *, discard: bool = False) -> dict[str, dict]:
        """Run labelled commands; return the documents that the successful ones printed."""
        documents = {}

        def report(task: Task, how: Ended) -> None:
            progress.say(task.label, how)
            if how.code != 0:
                again = shlex.join(("python", *task.command[1:]))
                failed[task.label] = f"{how.why} (repeat: {again})"
                return
            document = documents[task.label] = json.loads(how.stdout.splitlines()[-1])
            if discard and options.discard_pictures and "pictures" in document:
                _discard(document)

        tasks = [Task(label, tuple(command)) for label, command in commands.items()]
        run_all(tasks, options.jobs, start, report)
        return documents

    calibrated = step({_label(m, "calibration"): quantize_command(options, m) for m in missing})
    ready = [model for model in missing if _label(model, "calibration") in calibrated]
    first = step(
        {
            _label(model, cell.name): evaluate_command(options, model, cell)
            for model in ready
            for cell in (REFERENCE, ARITHMETIC)
            if cell == REFERENCE or cell in missing[model]
        }
    )
    ready = [model for model in ready if _label(model, REFERENCE.name) in first]
    rest = {}
    for model in ready:
        reference = first[_label(model, REFERENCE.name)]
        for cell in missing[model]:
            label = _label(model, cell.name)
            if cell not in (REFERENCE, ARITHMETIC):
                rest[label] = evaluate_command(options, model, cell)
            elif cell == ARITHMETIC and label in first:
                # evaluate compares at one dtype only, so that this run is its own reference there
                rest[f"{label} scores"] = score_command(options, first[label], reference)
    # auto measures before it chooses and takes five times as long as the others: begun first
    step(dict(sorted(rest.items(), key=lambda item: "recipe=auto" not in item[1])), discard=True)
    for model, lacking in missing.items():
        if model in ready:
            continue
        for cell in lacking:
            why = "not tried: its model's calibration or reference failed"
            failed.setdefault(_label(model, cell.name), why)
    if options.discard_pictures:
        _discard_unneeded(options, first)
    return failed


def quantize_command(options: Options, model: str) -> list[str]:
    """Compose the command that calibrates a model."""
    known = {entry.name for entry in fields(QuantizeConfig)}
    shared = [text for text in options.overrides if text.split("=")[0].split(".")[0] in known]
    return [
        *(sys.executable, "scripts/quantize.py", f"model={model}", "recipe=smoothquant"),
        *(f"hardware={options.hardware}", *shared),
    ]


def evaluate_command(options: Options, model: str, cell: Cell) -> list[str]:
    """Compose the command that draws and scores a cell."""
    recipe = [] if cell.recipe == "none" else [f"recipe={cell.recipe}"]
    if cell.recipe in ALPHAS:
        alpha = ALPHAS[cell.recipe]
        recipe = ["recipe=smooth_only", f"recipe.alpha={alpha}", f"recipe.name={cell.recipe}"]
    return [
        *(sys.executable, "scripts/evaluate.py", f"model={model}", f"variant={cell.variant}"),
        *(*recipe, f"dtype={cell.dtype}", f"prompts={options.prompts}", f"n={options.n}"),
        *(f"scorers=[{','.join(SCORERS)}]", f"hardware={options.hardware}"),
        *(f"results={options.results}", f"out={options.out}", f"readers={options.readers}"),
        *("archive=false", "report=false", *options.overrides),
    ]


def score_command(options: Options, run: dict, reference: dict) -> list[str]:
    """Compose the command that compares one drawn run with another."""
    return [
        *(sys.executable, "scripts/score.py", run["pictures"]),
        *("--reference", reference["pictures"], "--scorers", *SCORERS),
        *("--results", options.results, "--readers", str(options.readers)),
    ]


def _steps(missing: Mapping[str, list[Cell]]) -> int:
    """Count the commands: calibrations, references that are there already, a second scoring."""
    extra = sum(1 + (REFERENCE not in cells) + (ARITHMETIC in cells) for cells in missing.values())
    return extra + sum(map(len, missing.values()))


def _label(model: str, name: str) -> str:
    return f"{model} {name}"


def _discard(document: dict) -> None:
    """Delete the pictures of a run that scripts/evaluate.py has just scored."""
    folder = from_root(document["pictures"])
    assert folder.name == document["run_id"], folder
    shutil.rmtree(folder)


def _discard_unneeded(options: Options, first: Mapping[str, dict]) -> None:
    """Delete the unquantized models' pictures that no cell needs any more.

    Those of bf16 arithmetic once they are scored; those of the reference once every cell of its
    model is, whether it was asked for or not.
    """
    runs = read_runs(options)
    for model in options.models:
        for cell, needing in ((ARITHMETIC, (ARITHMETIC,)), (REFERENCE, (REFERENCE, *CELLS))):
            document = first.get(_label(model, cell.name))
            if document and all(is_measured(runs, model, other) for other in needing):
                _discard(document)
