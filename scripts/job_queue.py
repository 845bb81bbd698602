"""Run commands as processes of their own, a few at a time, each one's end reported as it comes.

One thread looks at all of them, so that Ctrl-C has one place to arrive: what runs is stopped and
waited for, what has not begun never does.
"""

import subprocess
import tempfile
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

LOOK_SECONDS = 0.05
STOP_SECONDS = 30  # a script that is told to stop cleans up in less


@dataclass(frozen=True)
class Task:
    """A command, and what to call it."""

    label: str
    command: tuple[str, ...]


@dataclass(frozen=True)
class Ended:
    """How a process ended."""

    code: int
    stdout: str
    stderr: str
    seconds: float

    @property
    def why(self) -> str:
        """Say why it failed: its exit code and the last line it left on stderr."""
        lines = [line.strip() for line in self.stderr.replace("\r", "\n").split("\n")]
        last = next((line for line in reversed(lines) if line), "nothing on stderr")
        return f"exit {self.code}: {last}"


class Running(Protocol):
    """Describe a process under way."""

    def ended(self) -> Ended | None:
        """Return how it ended, or None while it runs."""

    def tell(self) -> None:
        """Tell it to stop."""

    def wait(self) -> None:
        """Wait until it has stopped."""


class Process:
    """A command under way, its output kept in files, since a full pipe would stop it."""

    def __init__(self, command: Sequence[str], folder: Path, environment: Mapping[str, str]):
        self._out, self._err = tempfile.TemporaryFile(), tempfile.TemporaryFile()
        self._start = time.monotonic()
        # In this process group: what ends all of it, such as a scheduler's limit, leaves no orphan.
        self._process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._err,
        )

    def ended(self) -> Ended | None:
        code = self._process.poll()
        if code is None:
            return None
        texts = []
        for file in (self._out, self._err):
            file.seek(0)
            texts.append(file.read().decode(errors="replace"))
            file.close()
        return Ended(code, *texts, time.monotonic() - self._start)

    def tell(self) -> None:
        self._process.terminate()

    def wait(self) -> None:
        try:
            self._process.wait(STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def run_all(
    tasks: Sequence[Task],
    jobs: int,
    start: Callable[[Sequence[str]], Running],
    report: Callable[[Task, Ended], None],
) -> None:
    """Run every task, at most `jobs` at a time, begun in their order.

    Args:
        tasks: what to run; a task that fails stops no other.
        jobs: how many at a time.
        start: begins a command, such as `Process`.
        report: called once for each task, as it ends.
    """
    waiting, running = deque(tasks), {}
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                task = waiting.popleft()
                running[task] = start(task.command)
            looked = {task: process.ended() for task, process in running.items()}
            ended = {task: how for task, how in looked.items() if how is not None}
            for task, how in ended.items():
                del running[task]
                report(task, how)
            if not ended:
                time.sleep(LOOK_SECONDS)
    finally:
        for process in running.values():
            process.tell()
        for process in running.values():
            process.wait()
