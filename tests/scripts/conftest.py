"""A tiny model on disk, a place for what the scripts write, and two ways to run a script.

Ten seconds of a command are the imports of its libraries. A script in a process of its own is
therefore forked from one that has them: multiprocessing's fork server, one for each process of
pytest. What happens before and during the imports has tests that start a Python (test_start_up.py,
test_cli.py).
"""

import contextlib
import io
import json
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra

from dit8.models.mini import TOY, build_pipeline, save_pipeline

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 120  # no script of these tests takes a tenth of it; a hang fails instead of waiting
PROGRESS = re.compile(r"\d+%\|")
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        "dit8.models",  # first: it mends torchvision
        "diffusers.pipelines.ideogram4.pipeline_ideogram4",
        "transformers.models.qwen3_vl.modeling_qwen3_vl",
        "bitsandbytes",
        "pandas",
        "scipy.stats",
    ]
)


@dataclass(frozen=True)
class Ended:
    """How a script ended; stderr comes as lines without progress bars."""

    code: int
    stdout: str
    stderr: str

    @property
    def document(self) -> dict:
        return json.loads(self.stdout.splitlines()[-1])

    @property
    def cells(self) -> list[dict]:
        """The documents of a sweep's cells, without the one of the sweep itself."""
        lines = [line for line in self.stdout.splitlines() if line.startswith("{")]
        return [json.loads(line) for line in lines[:-1]]

    @property
    def lines(self) -> list[str]:
        lines = (line.rpartition("\r")[2] for line in self.stderr.split("\n"))
        return [line for line in lines if line.strip() and not PROGRESS.search(line)]

    @property
    def ends(self) -> list[str]:
        """The line of every cell of a sweep, without seconds and guesses."""
        found = (re.match(r"(\[\d+/\d+\] .*?)[\d.]+ s(, about .* left)?$", s) for s in self.lines)
        return [match[1] for match in found if match]


@dataclass(frozen=True)
class Place:
    """A folder for everything the scripts write, and overrides that make them small and quick."""

    folder: Path
    model: Path

    @property
    def common(self) -> list[str]:
        return [
            f"model.path={self.model}",
            "model.size=64",
            f"checkpoints={self.folder / 'checkpoints'}",
            "calibration.n=2",
            "calibration.sampler.steps=2",
            "hardware=cpu",
        ]

    @property
    def evaluation(self) -> list[str]:
        words = [*self.common, *self.sweep, f"results={self.results}", f"out={self.out}"]
        return [*words, "n=4", "steps=2"]

    @property
    def sweep(self) -> list[str]:
        """The folder of a sweep's records: unless told, it is in the repository."""
        return [f"hydra.sweep.dir={self.folder / 'multirun'}"]

    @property
    def results(self) -> Path:
        return self.folder / "results"

    @property
    def out(self) -> Path:
        return self.folder / "runs"

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints" / "mini"


def save_tiny(folder: Path, seed: int) -> Path:
    """Save a toy pipeline whose weights all matter.

    As built, modulation and output are zero, so that no linear would reach the picture.
    """
    pipeline = build_pipeline(TOY, seed)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for branch in (pipeline.transformer, pipeline.unconditional_transformer):
            blocks = [block.adaln_modulation for block in branch.layers]
            final = branch.final_layer
            for linear in (*blocks, final.adaln_modulation, final.linear):
                linear.weight.normal_(0, 0.1, generator=generator)
                linear.bias.normal_(0, 0.1, generator=generator)
        pipeline.vae.bn.running_mean.normal_(0, 0.3, generator=generator)
        pipeline.vae.bn.running_var.uniform_(0.5, 2.0, generator=generator)
    save_pipeline(pipeline, folder)
    return folder


class Started:
    """A script in a process of its own.

    Args:
        words: path of the script and its arguments.
        folder: where it runs.
    """

    def __init__(self, words: Sequence[str], folder: Path):
        self._files = [tempfile.NamedTemporaryFile(mode="r", encoding="utf-8") for _ in range(2)]
        told = {
            "words": [str(ROOT / words[0]), *words[1:]],
            "folder": str(folder),
            "streams": [file.name for file in self._files],
        }
        target = str(Path(__file__).with_name("become.py"))
        self._process = FORKS.Process(target=runpy.run_path, args=(target, told))
        self._process.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def runs(self) -> bool:
        return self._process.is_alive()

    def send(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def end(self) -> Ended:
        """Wait for the end; what does not come to it is killed, and its code is -9."""
        self._process.join(SECONDS)
        self._process.kill()
        self._process.join()
        texts = []
        for file in self._files:
            with file:
                texts.append(file.read())
        return Ended(self._process.exitcode, *texts)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("tiny") / "model", seed=0)


@pytest.fixture(scope="session")
def other_model(tmp_path_factory) -> Path:
    """The same shapes with other weights."""
    return save_tiny(tmp_path_factory.mktemp("other") / "model", seed=10)


@pytest.fixture
def bare_place(tmp_path, tiny_model) -> Place:
    """A place where nothing was made yet."""
    return Place(tmp_path, tiny_model)


@pytest.fixture(scope="session")
def statistics(tmp_path_factory, tiny_model, run_here) -> Path:
    made = Place(tmp_path_factory.mktemp("calibrated"), tiny_model)
    ended = run_here("calibrate", *made.common)
    assert ended.code == 0, ended.stderr
    return made.checkpoints


@pytest.fixture
def place(bare_place, statistics) -> Place:
    """A place with the tiny model's statistics: a second and a half that most tests are not about.

    Statistics depend on the model's files and on what `Place.common` says of the calibration.
    """
    shutil.copytree(statistics, bare_place.checkpoints)
    return bare_place


@pytest.fixture(scope="session")
def start_script() -> Callable[..., Started]:
    """Start a script in a process of its own, as a user does."""
    return lambda script, *arguments, cwd: Started([f"scripts/{script}.py", *arguments], cwd)


@pytest.fixture(scope="session")
def run_script(start_script) -> Callable[..., Ended]:
    """Run a script in a process of its own to its end."""
    return lambda script, *arguments, cwd: start_script(script, *arguments, cwd=cwd).end()


@pytest.fixture(scope="session")
def run_here() -> Callable[..., Ended]:
    """Run a script's own `__main__` in this process, with its command line and exit code."""

    def run(script: str, *arguments: str) -> Ended:
        path = ROOT / "scripts" / f"{script}.py"
        out, err, code = io.StringIO(), io.StringIO(), 0
        argv, handler = sys.argv, signal.getsignal(signal.SIGTERM)
        try:
            sys.argv = [str(path), *arguments]
            with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                runpy.run_path(str(path), run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        finally:
            sys.argv = argv
            signal.signal(signal.SIGTERM, handler)
            os.environ.pop("HYDRA_FULL_ERROR", None)
            GlobalHydra.instance().clear()
        return Ended(code, out.getvalue(), err.getvalue())

    return run


@dataclass(frozen=True)
class Drawn:
    """One `-m` run over three variants from nothing, with what it printed."""

    place: Place
    ended: Ended
    documents: dict[str, dict]  # variant -> its JSON document

    def folder(self, variant: str) -> Path:
        return Path(self.documents[variant]["pictures"])


@pytest.fixture(scope="session")
def drawn(tmp_path_factory, tiny_model, run_script) -> Drawn:
    """int8 comes first, so that its checkpoint and its reference are both missing."""
    place = Place(tmp_path_factory.mktemp("drawn"), tiny_model)
    options = [word for word in place.evaluation if word not in place.sweep]  # as configured
    options += ["archive=true", "variant=int8,bf16,fused_int8"]
    ended = run_script("evaluate", "-m", *options, cwd=place.folder)
    assert ended.code == 0, ended.stderr
    return Drawn(place, ended, {document["variant"]: document for document in ended.cells})


@pytest.fixture(scope="session")
def one_sentence() -> Callable[[Ended, str, str], None]:
    """Check that a script refused: exit code 2, nothing printed, one line that says why."""

    def check(ended: Ended, script: str, pattern: str) -> None:
        assert ended.code == 2, ended
        assert "Traceback" not in ended.stderr
        assert len(ended.lines) == 1, ended.lines
        assert re.search(pattern, ended.lines[0]), ended.lines[0]
        assert ended.lines[0].startswith(f"{script}: ")
        assert ended.stdout == ""

    return check
