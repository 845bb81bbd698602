"""Carry out what one of the papers' tables needs: plan it, check it, run it, rebuild the tables.

    python scripts/reproduce.py --run table=3 model=mini hardware=cpu n=20
    python scripts/reproduce.py --run table=3 model=ideogram4 hardware=cuda_24gb
    python scripts/reproduce.py --run table=all model=ideogram4 \
        hardware=cuda_24gb gpu=rtx3090 plan=true

The plan is printed first. It is refused if weights, a GPU, packages or scorers are missing, or if
the disk is too full. Each step is a process of its own, its progress on this terminal; what it made
is kept, so the same command continues after a failure. plan=true only prints. results= names the
folder of the rows, outputs/results by default, gpu= a card of conf/gpus/peaks.csv that is not in
this machine, for a plan. Any other key=value goes to scripts/evaluate.py.
"""

import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from dit8.conf.paths import ROOT, from_root, shorten
from dit8.eval.doctor import read_configs
from dit8.eval.gpus import load_peaks
from dit8.eval.provenance import query_gpus
from dit8.eval.reproduce.estimate import load_measurements
from dit8.eval.reproduce.plan import EXTRAS, plan_table
from dit8.eval.reproduce.step import Need, Plan, Step, merge, render, sum_up, total
from dit8.eval.requirements import install_command, missing_from_extra, project
from dit8.eval.scorers import get_scorer
from dit8.models.model_folder import INDEX
from dit8.quant.errors import UserError
from dit8.scripts.table_request import Wanted, peaks_path, read_words

CHUNK_BYTES = 4096
STOP_SECONDS = 5.0

Runner = Callable[[Sequence[str]], tuple[int, str]]


def run_table(words: Sequence[str], run: Runner | None = None) -> dict:
    """Plan, print, check, run and rebuild; or only print with plan=true.

    Args:
        words: of the command line, such as "table=3", "model=mini", "hardware=cpu".
        run: runs one command, see `run_step`.

    Returns:
        the JSON document: tables, steps, what is missing, seconds and bytes estimated.

    Raises:
        UserError: words that are not understood, something missing, a full disk, a failed step.
    """
    wanted = read_words(words)
    plans = make_plans(wanted)
    steps = merge(plans)
    print("\n\n".join(render(plan) for plan in plans), flush=True)
    if len(plans) > 1:
        print(f"\nall tables, what they share made once: {sum_up(steps)}", flush=True)
    lacks = missing(need for step in steps for need in step.needs)
    for text in lacks:
        print(f"missing: {text}", flush=True)
    seconds, size, is_whole = total(steps)
    document = {
        "tables": [plan.request.table for plan in plans],
        "steps": [" ".join(step.words) for step in steps],
        "seconds": round(seconds),
        "seconds_are_whole": is_whole,
        "disk_bytes": round(size),
        "missing": lacks,
        "ran": False,
    }
    if wanted.only_plan:
        return document
    if lacks:
        raise UserError(f"the plan needs what is missing here: {'; '.join(lacks)}")
    check_disk(from_root(wanted.request.results), size - there(steps))
    words = ("scripts/reproduce.py", f"results={wanted.request.results}")
    carry_out([*steps, Step(words, "rebuilds the tables", ())], wanted.words, run)
    return document | {"ran": True}


def make_plans(wanted: Wanted) -> list[Plan]:
    """Plan each table; of all tables those that this model and card can fill.

    Raises:
        UserError: a single table that they cannot.
    """
    request = wanted.request
    known = load_measurements(ROOT / "results", load_peaks(peaks_path()))
    plans = []
    for table in wanted.tables:
        optional = EXTRAS.get(table, ())
        absent = [name for name in optional if get_scorer(name).obstacle() is not None]
        try:
            plans.append(plan_table(replace(request, table=table), known, absent))
        except UserError as error:
            if len(wanted.tables) == 1:
                raise
            print(f"left out: {error}", flush=True)
    return plans


def missing(needs: Iterable[Need]) -> list[str]:
    """Say what is not here and how to get it, a phrase each."""
    found = {need: _lack(need) for need in dict.fromkeys(needs)}
    return [text for text in found.values() if text is not None]


def _lack(need: Need) -> str | None:
    if need.kind == "weights":
        path = read_configs(ROOT / "conf" / "model")[need.name]["path"]
        if (from_root(path) / INDEX).is_file():
            return None
        return f"the weights of {need.name} (python scripts/download.py fp8 --to {path})"
    if need.kind == "gpu":
        return None if query_gpus() else "an NVIDIA GPU (nvidia-smi names none)"
    if need.kind == "extra":
        lacks = missing_from_extra(project(ROOT)["optional-dependencies"][need.name])
        return f"{', '.join(lacks)}: {install_command(need.name)}" if lacks else None
    assert need.kind == "scorer", need
    reason = get_scorer(need.name).obstacle()
    return None if reason is None else f"scorer {need.name} ({reason})"


def there(steps: Iterable[Step]) -> float:
    """Count the bytes that the steps would leave and that are here already, theirs at most."""
    found = 0.0
    for step in steps:
        if step.leaves:
            files = [path for path in ROOT.glob(f"{step.leaves}/**/*") if path.is_file()]
            found += min(step.disk_bytes, sum(path.stat().st_size for path in files))
    return found


def check_disk(folder: Path, needed: float) -> None:
    """Refuse a disk that the plan would fill.

    Raises:
        UserError: too little room.
    """
    place = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise UserError(
            f"the disk of {shorten(place)} must have {needed / 1e9:.1f} GB free, got "
            f"{free / 1e9:.1f} GB; free some, or ask for fewer captions with n="
        )


def carry_out(steps: Sequence[Step], words: Sequence[str], run: Runner | None = None) -> None:
    """Run the steps one after the other.

    Raises:
        UserError: a step failed; the sentence has its own last line and the command to continue.
    """
    run = run or run_step
    for number, step in enumerate(steps, 1):
        print(f"[{number}/{len(steps)}] python {shlex.join(step.words)}", flush=True)
        code, last = run((sys.executable, *step.words))
        if code == 130:
            raise KeyboardInterrupt
        if code != 0:
            again = shlex.join(("python", "scripts/reproduce.py", "--run", *words))
            raise UserError(
                f"step {number} of {len(steps)} must end with 0, got exit code {code} ({last}); "
                f"mend that and continue with {again}"
            )


def stop(process: subprocess.Popen) -> None:
    """Wait for a command that Ctrl-C has reached too; tell it if only this script was killed."""
    try:
        process.wait(STOP_SECONDS)
    except subprocess.TimeoutExpired:
        process.terminate()
        process.wait()


def run_step(command: Sequence[str]) -> tuple[int, str]:
    """Run a command in the repository, its output on this terminal as it comes.

    Returns:
        exit code, and the last line that it left on stderr.
    """
    tail = b""
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE) as process:
        try:
            while chunk := process.stderr.read1(CHUNK_BYTES):
                sys.stderr.write(chunk.decode(errors="replace"))
                sys.stderr.flush()
                tail = (tail + chunk)[-CHUNK_BYTES:]
        except KeyboardInterrupt:
            stop(process)
            raise
    lines = tail.decode(errors="replace").replace("\r", "\n").split("\n")
    last = next((line.strip() for line in reversed(lines) if line.strip()), "nothing on stderr")
    return process.returncode, last
