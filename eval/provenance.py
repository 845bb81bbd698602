"""Record what produced a number: versions, hardware, commit, and the name of the run.

Hardware is asked for here only, cores aside, which models/threads.py counts.
"""

import functools
import importlib.metadata
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dit8.models.threads import usable_cores
from dit8.quant.files import content_key

PACKAGES = (
    *("torch", "triton", "diffusers", "transformers", "safetensors"),
    *("numpy", "scipy", "scikit-image", "pillow", "rapidocr", "onnxruntime", "rapidfuzz"),
)


# CPU flags of instructions that multiply int8 and add in int32, x86 and ARM
INT8_FLAGS = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm")
QUERY = "name,compute_cap,memory.total,driver_version"


def run_id(config: Mapping[str, Any], checkpoint_sha: str | None, prompts_sha: str) -> str:
    """Name a run by what determines its scores.

    The first 12 hex digits of SHA-256 over canonical JSON of the three. The same run started
    again continues under its name; any change of config, checkpoint or prompts gives another.

    Args:
        config: the resolved config, JSON values only; no times, no paths of this machine.
        checkpoint_sha: hash of the weights; None for a variant without a checkpoint.
        prompts_sha: hash of the prompt file.
    """
    identity = {"config": config, "checkpoint": checkpoint_sha, "prompts": prompts_sha}
    return content_key(identity)


def versions() -> dict[str, str | None]:
    """Return the versions of Python and of PACKAGES; None for one that is not installed."""
    return {"python": platform.python_version()} | installed_versions(PACKAGES)


def installed_versions(packages: Iterable[str]) -> dict[str, str | None]:
    """Return the version of every distribution named; None for one that is not installed."""
    found: dict[str, str | None] = {}
    for package in packages:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def hardware() -> dict[str, Any]:
    """Return platform, CPU, usable cores, torch's threads, and the GPU if CUDA is available.

    Asks CUDA on the first call only, never at import.
    """
    import torch

    found: dict[str, Any] = {
        "platform": platform.platform(),
        "cpu": cpu_model(system_text("/proc/cpuinfo")),
        "cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "gpu": None,
        "gpus": torch.cuda.device_count(),
        "driver": None,
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["driver"] = gpu_driver()
    return found


def git_state(repo: Path | str) -> dict[str, Any]:
    """Return {"commit", "dirty"} of the checkout whose root is `repo`.

    Outside a checkout or without git both are None, and commit is None before the first commit.
    Where the variable DIT8_COMMIT is set, commit is what it says and dirty is None: for a copy of
    the tree on another machine, whose own git state may be old.
    Files that git ignores do not make a checkout dirty; untracked ones do.
    """
    if told := os.environ.get("DIT8_COMMIT"):
        return {"commit": told, "dirty": None}
    repo = Path(repo)
    top = _git(repo, "rev-parse", "--show-toplevel")
    # a plain folder inside some other checkout must not borrow its commit
    if top is None or Path(top).resolve() != repo.resolve():
        return {"commit": None, "dirty": None}
    commit = _git(repo, "rev-parse", "--verify", "--quiet", "HEAD")
    return {"commit": commit, "dirty": bool(_git(repo, "status", "--porcelain"))}


def describe(repo: Path | str) -> dict[str, Any]:
    """Return versions, hardware and git state as one JSON-ready dict for the run record."""
    return {"versions": versions(), "hardware": hardware(), "git": git_state(repo)}


def _git(repo: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(
            ["git", "-C", str(repo), *arguments], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def cpu_model(cpuinfo: str) -> str:
    """Name the processor from the text of /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def system_text(path: str) -> str:
    """Read a file of the system; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def int8_flags(cpuinfo: str) -> list[str]:
    """List the int8 dot-product instructions that /proc/cpuinfo tells of."""
    words: set[str] = set()
    for line in cpuinfo.splitlines():
        if line.startswith(("flags", "Features")):
            words |= set(line.partition(":")[2].split())
    return [flag for flag in INT8_FLAGS if flag in words]


def memory_bytes(meminfo: str, *limits: str) -> tuple[int, int]:
    """Return total and available memory in bytes, a container's limit respected.

    Args:
        meminfo: text of /proc/meminfo; empty asks the operating system for the total.
        limits: texts of cgroup files; "max", empty and absurdly large ones are no limit.
    """
    fields = {}
    for line in meminfo.splitlines():
        name, _, value = line.partition(":")
        if value.strip().endswith("kB"):
            fields[name] = 1024 * int(value.split()[0])
    total = fields.get("MemTotal") or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    available = fields.get("MemAvailable", total)
    for limit in limits:
        if limit.strip().isdigit():
            total = min(total, int(limit))
    return total, min(available, total)


def query_gpus(seconds: float = 3.0) -> str | None:
    """Ask nvidia-smi for QUERY, a line a GPU; None where there is no such program or it fails.

    Args:
        seconds: after which it counts as failed: a driver in trouble can hang it.
    """
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=seconds)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


@functools.cache
def gpu_driver() -> str | None:
    """Return the driver's version; a card that sleeps may take seconds to answer."""
    first = (query_gpus(30.0) or "").partition("\n")[0]
    return first.rpartition(",")[2].strip() or None
