"""Run the cells of a Hydra sweep so that none stops another, and say how each one ended.

A sweep is the product of the values listed on the command line. Its cells are named by what they
vary (`variant=int8 recipe.alpha=0.3`), since the names of their runs do not tell. Each cell leaves
a record in a folder beside Hydra's own files, which works alike for cells of this process and for
those that a launcher runs on other machines of a shared file system; the records are deleted when
the sweep has ended. What makes a sweep resumable is not here: every stage keeps its own results.
"""

import json
import os
import shutil
import sys
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode

from dit8.quant.errors import UserError
from dit8.quant.files import write_atomically

DONE, INCOMPLETE, FAILED = "done", "incomplete", "failed"
LOOK_SECONDS = 1.0  # between two looks for cells that ended on another machine
SWEEP_FLAGS = ("-m", "--multirun")
# Hydra answers these itself and runs nothing.
SHOW_FLAGS = ("-h", "--help", "--hydra-help", "-c", "--cfg", "-i", "--info", "--version")


@dataclass(frozen=True)
class CellRecord:
    """How one cell ended.

    Args:
        number: from 0, in the order of the command line.
        label: what this cell varies.
        status: DONE; INCOMPLETE where a part failed that did not stop the rest; FAILED.
        why: a sentence where it is not DONE.
        config: the cell's configuration as a dict.
        document: what its script printed last; None for scripts that hand back none.
    """

    number: int
    label: str
    status: str
    seconds: float
    why: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    document: dict[str, Any] | None = None


@dataclass(frozen=True)
class Sweep:
    """A sweep under way.

    Args:
        script: its name, for messages.
        labels: one a cell.
        folder: of the records.
        is_here: the cells run one after the other in this process; otherwise a launcher such as
            submitit runs them elsewhere, several at a time.
    """

    script: str
    labels: tuple[str, ...]
    folder: Path
    is_here: bool

    def run_cell(
        self,
        number: int,
        compose: Callable[[], Any],
        main: Callable[[Any], dict | bool | None],
        sentence_of: Callable[[Exception], str | None],
    ) -> None:
        """Run one cell and keep its record, whatever becomes of it short of Ctrl-C.

        Args:
            number: of the cell.
            compose: returns its configuration's dataclass; what it raises is the cell's.
            main: the script's; returns its document, or False where a part failed.
            sentence_of: turns a user's mistake into a sentence, None for a bug.
        """
        start, status, why = time.monotonic(), DONE, ""
        config, outcome = None, None
        try:
            config = compose()
            outcome = main(config)
            if parts := _failed_parts(outcome):
                status, why = INCOMPLETE, parts
        except Exception as error:  # a bug too: the other cells' hours must not be lost to it
            status, why = FAILED, sentence_of(error)
            if why is None:
                traceback.print_exc()
                why = " ".join(f"{type(error).__name__}: {error}".split())
        record = CellRecord(
            number,
            self.labels[number],
            status,
            round(time.monotonic() - start, 3),
            why,
            {} if config is None else asdict(config),
            outcome if isinstance(outcome, dict) else None,
        )
        text = json.dumps(asdict(record))
        write_atomically(self.folder / f"{number}.json", lambda path: path.write_text(text))

    def records(self) -> list[CellRecord]:
        """Read the records that are there, by number."""
        files = sorted(self.folder.glob("[0-9]*.json"), key=lambda path: int(path.stem))
        return [CellRecord(**json.loads(path.read_text(encoding="utf-8"))) for path in files]

    def close(self) -> list[CellRecord]:
        """Delete the folder; returns a record for every cell, also for those that left none."""
        found = {record.number: record for record in self.records()}
        shutil.rmtree(self.folder)
        lost = "no result came back: its job was killed or never began; see the logs in .submitit"
        return [
            found.get(number, CellRecord(number, label, FAILED, 0.0, lost))
            for number, label in enumerate(self.labels)
        ]


class Narrator:
    """Print one line a cell on stderr as it ends: which, of how many, seconds, time left."""

    def __init__(self, sweep: Sweep):
        self._sweep, self._said, self._start = sweep, set(), time.monotonic()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> "Narrator":
        if not self._sweep.is_here:
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join()
        self.say()

    def say(self) -> None:
        """Print the lines of the cells that ended since the last call."""
        if not self._sweep.folder.exists():
            return
        records = self._sweep.records()
        for record in records:
            if record.number in self._said:
                continue
            self._said.add(record.number)
            left = seconds_left(
                [each.seconds for each in records if each.number in self._said and _worked(each)],
                len(self._sweep.labels) - len(self._said),
                None if self._sweep.is_here else time.monotonic() - self._start,
            )
            print(
                progress_line(record, len(self._said), len(self._sweep.labels), left),
                file=sys.stderr,
                flush=True,
            )

    def _watch(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            self.say()


@contextmanager
def jobs_that_all_end() -> Iterator[None]:
    """Let a submitit launcher ask for results only when all of its jobs have ended.

    By itself it asks one job after the other, and the first that was killed ends it while the
    others still run. Their records would then be missed.
    """
    if find_spec("submitit") is None:
        yield
        return
    from submitit import AutoExecutor

    submit = AutoExecutor.map_array

    def submit_and_wait(executor: Any, *arguments: Any) -> list[Any]:
        jobs = submit(executor, *arguments)
        for job in jobs:
            job.wait()
        return jobs

    AutoExecutor.map_array = submit_and_wait
    try:
        yield
    finally:
        AutoExecutor.map_array = submit


def plan_sweep(script: str, words: Sequence[str], root: Path) -> Sweep | None:
    """Name the cells of a command line as Hydra's sweeper will order them; None: no sweep.

    Args:
        script: its name.
        words: the command line without the program.
        root: of the repository, whose conf/ glob() looks into; its outputs/multirun gets the
            records, so that jobs on other machines find the folder wherever the command was
            typed. The word hydra.sweep.dir=<folder> names another.

    Raises:
        HydraException: a word that is no override.
        UserError: a launcher whose package is not installed.
    """
    if not any(word in SWEEP_FLAGS for word in words) or any(word in SHOW_FLAGS for word in words):
        return None
    given = [word for word in words if "=" in word and not word.startswith("-")]
    with hydra.initialize_config_dir(str(root / "conf"), version_base=None):
        parser = OverridesParser.create(config_loader=GlobalHydra.instance().config_loader())
        overrides = {found.get_key_element(): found for found in parser.parse_overrides(given)}
        swept = [
            [f"{key}={value}" for value in found.sweep_string_iterator()]
            for key, found in overrides.items()
            if found.is_sweep_override()
        ]
    labels = tuple(" ".join(cell) for cell in product(*swept))
    chosen = overrides.get("hydra/launcher")
    launcher = "basic" if chosen is None else str(chosen.value())
    # of other launchers Hydra says itself what it knows
    if launcher.startswith("submitit_") and not _has_submitit():
        raise UserError(
            f"hydra/launcher={launcher} needs hydra-submitit-launcher, which is not "
            "installed here; install the extra slurm, or leave the launcher out"
        )
    moment = time.strftime("%Y%m%d-%H%M%S")
    name = f"cells-{moment}-{os.getpid()}-{uuid.uuid4().hex[:8]}"
    own = overrides.get("hydra.sweep.dir")
    place = "" if own is None else str(own.value())
    if not place or "${" in place:  # Hydra fills in what is between the braces later
        place = root / "outputs" / "multirun"
    folder = Path(place).absolute() / name
    return Sweep(script, labels if swept else (script,), folder, launcher == "basic")


def _has_submitit() -> bool:
    try:
        return find_spec("hydra_plugins.hydra_submitit_launcher") is not None
    except ModuleNotFoundError:  # without any plugin of Hydra the parent package is missing too
        return False


def is_sweep() -> bool:
    """Tell whether this is a cell of a sweep, here or in a process of a launcher."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def seconds_left(taken: Sequence[float], rest: int, elapsed: float | None) -> float | None:
    """Guess how long the rest of a sweep takes.

    Args:
        taken: seconds of each cell that ended and had work to do.
        rest: cells that have not ended.
        elapsed: seconds since the start where cells run side by side; None: one after the other.

    Returns:
        seconds; None where no cell tells. A cell that was stopped near its end takes little the
        second time and says nothing of the others: only those count that took at least half as
        long as the longest. Side by side, sum(taken) / elapsed cells run at a time.
    """
    if not any(taken):
        return None
    long = [seconds for seconds in taken if seconds >= max(taken) / 2]
    at_a_time = 1.0 if elapsed is None else sum(taken) / elapsed
    return rest * sum(long) / len(long) / at_a_time


def _worked(record: CellRecord) -> bool:
    """Tell whether a cell's seconds say something of the others': one that only found its pictures
    and scores does not, nor one that failed."""
    return record.status != FAILED and (record.document or {}).get("drawn", 1) > 0


def progress_line(record: CellRecord, done: int, cells: int, left: float | None) -> str:
    """Render the line of a cell that ended; left: seconds of the others, None: not known."""
    how = {DONE: "", INCOMPLETE: "in part, ", FAILED: "FAILED after "}[record.status]
    rest = ""
    if done < cells and left is not None:
        guess = f"{left:.0f} s" if left < 100 else f"{left / 60:.0f} min"
        rest = f", about {guess} left"
    return f"[{done}/{cells}] {record.label}: {how}{record.seconds:.1f} s{rest}"


def summary_document(records: Sequence[CellRecord]) -> dict[str, Any]:
    """Count the cells and name those that failed, with their sentence."""
    failed = {record.label: record.why for record in records if record.status != DONE}
    return {"cells": len(records), "done": len(records) - len(failed), "failed": failed}


def _failed_parts(outcome: dict | bool | None) -> str:
    """Say which parts of a cell failed; empty: none."""
    if outcome is False:
        return "a part failed, see above"
    if isinstance(outcome, dict) and (parts := outcome.get("failed")):
        return "; ".join(f"{name} failed: {reason}" for name, reason in parts.items())
    return ""
