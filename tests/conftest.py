"""What every test shares: threads, no network, seeds, the gpu marker, a checkout left alone."""

import gc
import os
import random
import sys
from pathlib import Path

import pytest

# Before anything imports torch, and inherited by tests that start a process: two torch processes
# with two threads each on two cores wait for each other's barriers (seen: a step of 42 ms took
# 1100 ms), one thread each does not. A value set by the caller stays.
for _name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
# No test may reach for a model hub or open a window.
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["MPLBACKEND"] = "Agg"

import dit8.models  # noqa: E402, F401 (mends torchvision for every test that imports diffusers)

ROOT = Path(__file__).resolve().parents[1]
LEFT_OUT = {".git", ".venv", "__pycache__", ".pytest_cache", ".ruff_cache", "docs"}
BEFORE, WRITTEN = pytest.StashKey[dict[str, tuple[int, int]]](), pytest.StashKey[list[str]]()


def files_of_checkout() -> dict[str, tuple[int, int]]:
    """Size and time of the last change of every file, by its path below the checkout.

    Modules and pages of docs aside, which somebody may be editing while the tests run.
    """
    found = {}
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [name for name in folders if name not in LEFT_OUT]
        for path in (os.path.join(folder, name) for name in names if not name.endswith(".py")):
            status = os.lstat(path)
            found[os.path.relpath(path, ROOT)] = (status.st_size, status.st_mtime_ns)
    return found


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remember the checkout; under xdist the process that hands out the tests does, alone."""
    if not hasattr(session.config, "workerinput"):
        session.config.stash[BEFORE] = files_of_checkout()


@pytest.hookimpl(trylast=True)  # when xdist's processes have ended
def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail the session when a file of the checkout is new, changed or gone: tests have tmp_path."""
    before = session.config.stash.get(BEFORE, None)
    if before is None:
        return
    written = sorted({path for path, _ in before.items() ^ files_of_checkout().items()})
    session.config.stash[WRITTEN] = written
    if written and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Name the files that `pytest_sessionfinish` found."""
    if written := terminalreporter.config.stash.get(WRITTEN, []):
        terminalreporter.section("written into the checkout", red=True)
        terminalreporter.line("\n".join(written))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Take the folder of the slow files first; skip tests marked gpu without a CUDA device.

    Two processes that take files in this order end together; a file of minutes at the end would
    leave one of them idle (Makefile: --no-loadscope-reorder).
    """
    items.sort(key=lambda item: "scripts" not in item.path.parts)
    gpu_items = [item for item in items if item.get_closest_marker("gpu")]
    if not gpu_items:
        return
    import torch  # seconds: only when a test of this run asks for a GPU

    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs an NVIDIA GPU: torch.cuda.is_available() is False")
    for item in gpu_items:
        item.add_marker(skip)


def pytest_collection_finish() -> None:
    """Leave what the imports made out of later collections of garbage: an eighth of the CPU."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def fixed_seeds() -> None:
    """Start every test from the same global seeds, so that its outcome does not depend on order.

    The project's own code takes generators; this covers what a library draws by itself.
    """
    random.seed(0)
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
