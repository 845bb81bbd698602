"""Mutation testing: change the source in one place, run its tests, count what they notice.

    python tests/mutants.py [--n 100] [--seed 0] [--processes 2] [--out <json>]

What is changed, how a mutant is named and drawn, and which tests reach it, is in mutation.py.

A mutant runs the test files that import its module, directly or through other modules: the file
of the same name first, then by the number of imports in between. Each of these files is first run
without a mutant, and as many of them count, from the first, as take 30 s together; files slower
than that are passed over. pytest stops at the first failure. Those that take 5 s together are run
for all mutants first, since most are killed there. Outcomes:
    killed     a test fails, or the run does not end within LIMIT_S while the same files without
               the mutant, run right afterwards, do (the latter are listed in `timed_out` too);
    survived   all test files that reach the module pass;
    undecided  those that fit into the time pass, and others were not run.
The share is killed / n: an undecided mutant counts like one that survived.

Everything runs in temporary copies of the tracked files, one for each process. A process imports
the large libraries once and forks for every run of pytest. What is found is written to --out as it
comes, and the same command on the same sources goes on where it was stopped.
"""

import argparse
import contextlib
import hashlib
import importlib
import json
import multiprocessing
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import mutation

ROOT = Path(__file__).resolve().parents[1]
BUDGETS_S = (5.0, 30.0)  # of the test files without a mutant, first for all, then for survivors
RUNNING: list[int] = []  # process groups of the tests that this process runs
LIMIT_S = 60.0  # of a run of pytest
LINK_BYTES = 1 << 20  # larger files are linked into a copy
DATA_BYTES = 16 << 30  # of a run: a mutant that appends forever must not take the machine
SETTINGS = {
    **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
    **{"HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "PYTHONDONTWRITEBYTECODE": "1"},
}
LIBRARIES = {  # module -> a class of it, for those that load it late
    **dict.fromkeys(("pandas", "scipy.stats", "torch", "torch._dynamo"), ""),
    **{"diffusers": "Ideogram4Pipeline", "transformers": "Qwen3VLModel"},
}
Result = dict[str, object]


class Refusal(Exception):
    """What stops the command, in one sentence."""


def tracked(root: Path) -> list[str]:
    """List the files that git tracks and that are there."""
    command = ["git", "-c", f"safe.directory={root}", "-C", str(root), "ls-files", "-z"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError) as error:
        reason = " ".join(str(getattr(error, "stderr", "") or error).split())
        raise Refusal(f"{root} must be a git checkout, got: {reason}; run it in a clone") from error
    return [name for name in listing.split("\0") if name and (root / name).is_file()]


def enter_copy(names: Iterable[str], folder: str) -> None:
    """Make a copy of the tracked files the place of this process and import the libraries."""
    copy = Path(tempfile.mkdtemp(dir=folder))
    for name in names:
        source, target = ROOT / name, copy / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if source.stat().st_size > LINK_BYTES:
            target.symlink_to(source)
        else:
            shutil.copy(source, target)
    os.chdir(copy)
    sys.path[:] = [str(copy)] + [
        p for p in sys.path if p not in ("", str(ROOT), str(ROOT / "tests"))
    ]
    os.environ |= {"PYTHONPATH": str(copy), "TMPDIR": tempfile.mkdtemp(dir=folder)}
    tempfile.tempdir = None  # read TMPDIR again
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process ends this one with SIGTERM
    signal.signal(signal.SIGTERM, stop)
    for name in ("models", "dit8.models"):  # mends torchvision before diffusers imports it
        with contextlib.suppress(ImportError):
            importlib.import_module(name)
    for name, late in LIBRARIES.items():
        with contextlib.suppress(ImportError, AttributeError, RuntimeError):
            getattr(importlib.import_module(name), late or "__name__")
    for name in [name for name in sys.modules if re.match(r"(dit8\.)?models\b|dit8$", name)]:
        del sys.modules[name]


def stop(*_: object) -> None:
    """End this process and the tests it runs."""
    for child in RUNNING:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
    os._exit(1)  # an exception would be the result of a job, and the next job would start


def run_tests(files: list[str]) -> tuple[str, float, str]:
    """Run pytest in a fork of this process: passed, failed or timed_out, seconds, failed test."""
    log = Path(os.environ["TMPDIR"]) / "pytest.log"
    started = time.monotonic()
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setsid()
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            resource.setrlimit(resource.RLIMIT_DATA, (DATA_BYTES, DATA_BYTES))
            with log.open("wb") as file:
                os.dup2(file.fileno(), 1), os.dup2(file.fileno(), 2)
            import pytest

            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", *files])
        finally:
            sys.stdout.flush()
            os._exit(code)
    RUNNING.append(child)
    ended = (0, 0)
    while not ended[0] and time.monotonic() - started < LIMIT_S:
        time.sleep(0.02)
        ended = os.waitpid(child, os.WNOHANG)
    with contextlib.suppress(ProcessLookupError):  # and what the tests started
        os.killpg(child, signal.SIGKILL)
    RUNNING.remove(child)
    if not ended[0]:
        os.waitpid(child, 0)
        return "timed_out", time.monotonic() - started, ""
    passed = os.waitstatus_to_exitcode(ended[1]) in (0, 5)  # 5: no test in the file
    lines = re.findall(r"^(?:FAILED|ERROR) (\S+)", log.read_text(errors="replace"), re.MULTILINE)
    failed = "" if passed else (lines or ["pytest ended early"])[0]
    return "passed" if passed else "failed", time.monotonic() - started, failed


def run_mutant(mutant: mutation.Mutant, files: list[str], is_all: bool) -> Result:
    """Run the tests of one mutant; returns its outcome."""
    path = Path(mutant.path)
    before = path.read_bytes()
    path.write_bytes(mutant.apply(before))
    try:
        outcome, seconds, by = run_tests(files) if files else ("passed", 0.0, "")
    finally:
        path.write_bytes(before)
    if outcome == "timed_out" and run_tests(files)[0] == "passed":
        outcome, by = "failed", "time-out"
    outcome = {"failed": "killed", "passed": "survived" if is_all else "undecided"}.get(outcome)
    line = 1 + before[: mutant.start].count(b"\n")
    rows = [text.splitlines()[line - 1].decode().strip() for text in (before, mutant.apply(before))]
    return {
        **{"outcome": outcome or "undecided", "by": by, "seconds": round(seconds, 1)},
        **{
            "test_files": len(files),
            "place": f"{mutant.path}:{line}",
            "was": rows[0],
            "is": rows[1],
        },
    }


class Record:
    """What is known, on disk after every step."""

    def __init__(self, path: Path, key: dict[str, object]) -> None:
        self.path, self.key = path, key
        self.found = {**key, "seconds": 0.0, "tests": {}, "mutants": {}}
        if path.exists():
            try:
                self.found = json.loads(path.read_text(encoding="utf-8"))
                same = all(self.found[name] == value for name, value in key.items())
                self.found["seconds"], self.found["tests"], self.found["mutants"]  # noqa: B018
            except (OSError, ValueError, KeyError, TypeError):
                same = False
            if not same:
                raise Refusal(
                    f"--out must be a new file or the record of these sources and this seed, got "
                    f"{path}; name another file or remove it"
                )

    def write(self, kind: str, name: str, value: object, seconds: float) -> None:
        self.found[kind][name] = value
        self.found["seconds"] = round(self.found["seconds"] + seconds, 1)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        half = self.path.with_name(f"{self.path.name}.tmp")
        half.write_text(json.dumps(self.found, indent=1) + "\n", encoding="utf-8")
        os.replace(half, self.path)


def summary(mutants: Mapping[str, Result], drawn: Iterable[str]) -> dict[str, object]:
    """Count the outcomes of the drawn mutants."""
    mine = {name: mutants[name] for name in drawn}
    names = {
        outcome: [name for name, result in mine.items() if result["outcome"] == outcome]
        for outcome in ("killed", "survived", "undecided")
    }
    timed_out = [name for name, result in mine.items() if result["by"] == "time-out"]
    killed = len(names.pop("killed"))
    share = round(killed / len(mine), 4)
    return {"n": len(mine), "killed": killed, "share": share, "timed_out": timed_out, **names}


def choose(
    files: Iterable[str], seconds: Mapping[str, float], budget: float
) -> tuple[list[str], str | None]:
    """Return the files that fit into a budget, and the first that has to be timed to go on.

    The first that fits into the largest budget is always among them.
    """
    picked = []
    for file in files:
        if file not in seconds:
            return picked, file
        if seconds[file] > BUDGETS_S[-1]:
            continue
        budget -= seconds[file]
        if budget < 0 and picked:
            break
        picked.append(file)
        if budget < 0:
            break
    return picked, None


def run_all(pool: ProcessPoolExecutor, jobs: Mapping[str, tuple], say: str) -> Iterator[tuple]:
    """Yield name, result and seconds since the last as they come; tell how far it is on stderr."""
    started = last = time.monotonic()
    names = {pool.submit(*job): name for name, job in jobs.items()}
    for count, future in enumerate(as_completed(names), 1):
        result, now = future.result(), time.monotonic()
        yield names[future], result, now - last
        last = now
        words = result[0] if isinstance(result, tuple) else f"{result['outcome']} {result['by']}"
        eta = (now - started) / count * (len(names) - count)
        line = f"{say} {count}/{len(names)}, ETA {eta:.0f} s: {names[future]} {words}"
        print(line, file=sys.stderr, flush=True)


def run_stage(
    pool: ProcessPoolExecutor,
    record: Record,
    todo: Mapping[str, mutation.Mutant],
    reach: Mapping[str, list[str]],
    budget: float,
) -> None:
    """Time the test files that fit into a budget, and run every mutant on its own."""
    times = record.found["tests"]
    while wanted := {choose(reach[m.path], times, budget)[1] for m in todo.values()} - {None}:
        jobs = {file: (run_tests, [file]) for file in sorted(wanted)}
        for file, (outcome, seconds, failed), passed_s in run_all(pool, jobs, "test"):
            if outcome == "failed":
                raise Refusal(f"the tests must pass without a mutant, {failed} does not; mend it")
            seconds = seconds if outcome == "passed" else LIMIT_S  # too slow to count
            record.write("tests", file, seconds, passed_s)
    jobs = {}
    for name, mutant in todo.items():
        picked, _ = choose(reach[mutant.path], times, budget)
        jobs[name] = run_mutant, mutant, picked, len(picked) == len(reach[mutant.path])
    for name, result, passed_s in run_all(pool, jobs, "mutant"):
        if result["outcome"] != "undecided" or budget == BUDGETS_S[-1]:
            record.write("mutants", name, result, passed_s)
        else:
            record.found["seconds"] += passed_s


def mutate(args: argparse.Namespace, folder: str) -> dict[str, object]:
    """Run what is not in the record yet; returns the summary."""
    if args.n < 1 or args.processes < 1:
        got = f"{args.n} and {args.processes}"
        raise Refusal(f"--n and --processes must be 1 or more, got {got}; raise them")
    files = tracked(ROOT)
    sources = {name: (ROOT / name).read_bytes() for name in files if name.endswith(".py")}
    drawn = mutation.draw(mutation.candidates(sources), sources, args.n, args.seed)
    if len(drawn) < args.n:
        raise Refusal(f"--n must be {len(drawn)}, all there are, or fewer, got {args.n}; lower it")
    digest = hashlib.sha256(repr(sorted(sources.items())).encode()).hexdigest()[:12]
    path = args.out or ROOT / "outputs" / "mutants" / f"{digest}-{args.seed}.json"
    record = Record(path, {"sources": digest, "seed": args.seed})
    reach = mutation.tests_by_module(sources)
    context = multiprocessing.get_context("spawn")  # these fork, and must have one thread then
    with ProcessPoolExecutor(args.processes, context, enter_copy, (files, folder)) as pool:
        try:
            for budget in BUDGETS_S:
                todo = {m.name: m for m in drawn if m.name not in record.found["mutants"]}
                run_stage(pool, record, todo, reach, budget)
        except BaseException:
            for process in multiprocessing.active_children():
                process.terminate()
            raise
    counted = summary(record.found["mutants"], [mutant.name for mutant in drawn])
    return {**record.key, **counted, "seconds": record.found["seconds"], "record": str(path)}


def main() -> int:
    """Run the command; returns its exit status."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=100, help="how many mutants (100)")
    parser.add_argument("--seed", type=int, default=0, help="of the sample (0)")
    parser.add_argument("--processes", type=int, default=2, help="of one thread each (2)")
    parser.add_argument("--out", type=Path, help="record (outputs/mutants/<sources>-<seed>.json)")
    args = parser.parse_args()
    os.environ |= SETTINGS
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with tempfile.TemporaryDirectory(prefix="mutants-", ignore_cleanup_errors=True) as folder:
            print(json.dumps(mutate(args, folder), indent=1))
    except Refusal as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 2
    except BrokenProcessPool:
        print("mutants: a process was ended, perhaps for memory; run it again", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("mutants: stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
