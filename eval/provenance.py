"""Record what produced a number: versions, hardware, commit, hashes, and the name of the run."""

import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from dit8.quant.errors import UserError
from dit8.quant.keys import file_sha256

PACKAGES = (
    *("torch", "triton", "diffusers", "transformers", "safetensors"),
    *("numpy", "scipy", "scikit-image", "pillow", "rapidocr", "onnxruntime", "rapidfuzz"),
)
RUN_ID_DIGITS = 12  # 48 bits: a collision is unlikely below ten million runs


def canonical_json(value: Any) -> str:
    """Return JSON with sorted keys and no spaces: equal values give equal text.

    Raises:
        ValueError: the value holds something JSON has no exact form for (a path, a nan).
    """
    try:
        return json.dumps(
            value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
        )
    except (TypeError, ValueError) as error:
        raise ValueError(f"canonical_json: the value is no strict JSON: {error}") from error


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
    return hashlib.sha256(canonical_json(identity).encode()).hexdigest()[:RUN_ID_DIGITS]


def sha256_file(path: Path | str) -> str:
    """Return the SHA-256 of a file's content, 64 hex digits; UserError if it cannot be read."""
    try:
        return file_sha256(Path(path))
    except OSError as error:
        raise UserError(
            f"provenance: cannot hash {path} ({error.strerror}), expected a readable file"
        ) from error


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
        "cpu": _cpu_model(),
        "cores": _usable_cores(),
        "threads": torch.get_num_threads(),
        "gpu": None,
        "gpus": torch.cuda.device_count(),
        "driver": None,
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
        found["driver"] = _gpu_driver()
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


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):  # Linux only; respects a container's CPU set
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    for line in text.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


@functools.cache
def _gpu_driver() -> str | None:
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        done = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip() or None
