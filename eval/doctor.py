"""Find out what this installation can run, and what the rest would need.

Every section is examined on its own: what breaks in one becomes a line of the report.
"""

import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from dit8.eval.provenance import cpu_model, int8_flags, memory_bytes, query_gpus, system_text
from dit8.eval.requirements import (
    check_requirement,
    install_command,
    lacking,
    missing_from_extra,
    project,
)
from dit8.models.threads import usable_cores


@dataclass(frozen=True)
class Row:
    """One line of a report."""

    section: str
    name: str
    ok: bool | None  # None: a fact that is neither good nor bad
    detail: str


IN_MEMORY = ("source", "rounded")  # formats of variants that need no file
GGUF = ("q8_0", "q4_k")
CGROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # version 2 and 1
MADE_WITH = ("nf4", *GGUF)  # formats whose packages make a file and are not needed to read one


def examine(root: Path) -> list[Row]:
    """Examine a checkout.

    Args:
        root: of the repository.

    Returns:
        the rows in the order in which they are read; never raises.
    """
    sections: tuple[tuple[str, Callable[[], Iterable[Row]]], ...] = (
        ("machine", lambda: machine_rows(root)),
        ("machine", torch_rows),
        ("packages", lambda: package_rows(root)),
        ("extras", lambda: extra_rows(root)),
        ("weights", lambda: weight_rows(root)),
        ("variants", lambda: variant_rows(root)),
        ("scorers", scorer_rows),
    )
    rows: list[Row] = []
    for section, make in sections:
        try:
            rows += make()
        except Exception as error:  # whatever is broken here is what the user wants to know
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            rows.append(Row(section, "examination", False, f"failed ({reason})"))
    return rows


def report(rows: Iterable[Row]) -> dict[str, dict[str, dict[str, Any]]]:
    """Arrange rows as JSON: section -> name -> ok and detail."""
    document: dict[str, dict[str, dict[str, Any]]] = {}
    for row in rows:
        document.setdefault(row.section, {})[row.name] = {"ok": row.ok, "detail": row.detail}
    return document


def machine_rows(root: Path) -> list[Row]:
    """Describe processor, memory, the disk of `root`, and GPUs."""
    cpuinfo = system_text("/proc/cpuinfo")
    flags = int8_flags(cpuinfo)
    limits = [system_text(f"/sys/fs/cgroup/{name}") for name in CGROUP_LIMITS]
    total, available = memory_bytes(system_text("/proc/meminfo"), *limits)
    disk = shutil.disk_usage(root)
    return [
        Row("machine", "system", None, f"{platform.system()} {platform.machine()}"),
        Row("machine", "processor", None, f"{cpu_model(cpuinfo)}, {usable_cores()} usable cores"),
        Row(
            "machine",
            "int8 instructions",
            bool(flags),
            ", ".join(flags) or "none known of: the int8 product takes fp32 slices here",
        ),
        Row("machine", "memory", None, f"{total / 1e9:.1f} GB, {available / 1e9:.1f} GB free"),
        Row("machine", "disk", None, f"{disk.free / 1e9:.1f} GB free of {disk.total / 1e9:.1f} GB"),
        *gpu_rows(query_gpus()),
    ]


def gpu_rows(answer: str | None) -> list[Row]:
    """Turn what nvidia-smi answers into one line a GPU."""
    lines = [line for line in (answer or "").splitlines() if line.count(",") >= 3]
    if not lines:
        return [Row("machine", "GPU", False, "none: nvidia-smi is missing or names no GPU")]
    rows = []
    for number, line in enumerate(lines):
        name, capability, mebibytes, driver = (part.strip() for part in line.rsplit(",", 3))
        memory = f"{int(mebibytes) * 2**20 / 1e9:.1f} GB" if mebibytes.isdigit() else "memory n/a"
        detail = f"{name}, compute capability {capability}, {memory}, driver {driver}"
        rows.append(Row("machine", f"GPU {number}", True, detail))
    return rows


def torch_rows() -> list[Row]:
    """Tell whether torch sees a GPU and whether the Triton kernels can run there.

    Imports torch (a second) and starts CUDA where there is some; compiles nothing.
    """
    try:
        import torch

        from dit8.kernels.backend import KernelError, backend_name
    except (ImportError, OSError) as error:  # OSError: a library of torch's that does not load
        return [Row("machine", "torch", False, f"cannot be imported: {error}")]
    built = torch.version.cuda or "no CUDA"
    sees = torch.cuda.is_available()
    count = torch.cuda.device_count() if sees else 0
    rows = [
        Row("machine", "torch", True, f"{torch.__version__}, built for {built}, {count} GPUs"),
        Row("machine", "int8 product on CPU", None, _cpu_product()),
    ]
    if not sees:
        detail = "torch sees no GPU; the kernels run their references on the processor"
        return [*rows, Row("machine", "Triton kernels", False, detail)]
    try:
        backend_name("cuda")
    except KernelError as error:
        return [*rows, Row("machine", "Triton kernels", False, str(error))]
    compilers = (os.environ.get("CC"), "gcc", "clang")
    if not any(name and shutil.which(name) for name in compilers):
        detail = "Triton needs a C compiler to start a kernel; install gcc or set CC"
        return [*rows, Row("machine", "Triton kernels", False, detail)]
    return [*rows, Row("machine", "Triton kernels", True, "usable")]


def _cpu_product() -> str:
    """Tell which exact way the int8 product takes on this processor, with their times."""
    from dit8.kernels.int8_gemm import cpu_sums_ms

    ms = cpu_sums_ms()
    listed = ", ".join(f"{name} {value:.2g} ms" for name, value in ms.items())
    return f"{min(ms, key=ms.get)}, the fastest exact way (64 x 256 x 256: {listed})"


def package_rows(root: Path) -> list[Row]:
    """List Python and every required package with its version."""
    version = sys.version.split()[0]
    rows = [Row("packages", "python", True, f"{version}, {project(root)['requires-python']}")]
    for requirement in project(root)["dependencies"]:
        name, ok, detail = check_requirement(requirement)
        rows.append(Row("packages", name, ok, detail if ok else f"{detail}; pip install -e ."))
    return rows


def extra_rows(root: Path) -> list[Row]:
    """List every extra and what it lacks."""
    rows = []
    for extra, requirements in project(root)["optional-dependencies"].items():
        lacks = missing_from_extra(requirements)
        detail = f"needs {'; '.join(lacks)}: {install_command(extra)}" if lacks else "installed"
        rows.append(Row("extras", extra, not lacks, detail))
    return rows


def read_configs(folder: Path) -> dict[str, Mapping[str, Any]]:
    """Read the flat YAML files of a configuration group; name -> content."""
    import yaml

    paths = sorted(folder.glob("*.yaml"))
    return {path.stem: yaml.safe_load(path.read_text(encoding="utf-8")) for path in paths}


@cache
def _model_states(root: Path) -> dict[str, tuple[bool, str]]:
    """Look at every configured model: whether it can be opened, and what it is or needs."""
    from dit8.models.model_folder import INDEX, inspect_folder
    from dit8.quant.errors import UserError

    states = {}
    for name, config in read_configs(root / "conf" / "model").items():
        folder = root / config["path"]
        if not (folder / INDEX).is_file():
            states[name] = (False, f"not in {config['path']}: {_remedy(name, config)}")
            continue
        try:
            facts = inspect_folder(folder)
        except UserError as error:
            states[name] = (False, str(error))
            continue
        size = f"{facts.weight_bytes / 1e9:.2f} GB"
        states[name] = (True, f"{facts.format}, {facts.blocks} blocks a branch, {size}")
    return states


def _remedy(name: str, config: Mapping[str, Any]) -> str:
    if config.get("plant"):
        return f"python scripts/plant_outliers.py model={name}"
    if config.get("build_missing"):
        return "it comes with the repository, restore it from there"
    return f"python scripts/download.py fp8 --to {config['path']}"


def checkpoint_names(root: Path, model: str) -> list[str]:
    """Name the finished checkpoints of a model, as <recipe or format>-<key>."""
    made = root / "checkpoints" / model
    weights = [path for kind in ("safetensors", "gguf") for path in made.glob(f"*/**/*.{kind}")]
    names = {path.relative_to(made).parts[0] for path in weights}
    return sorted(name for name in names if not name.startswith("."))  # else half-written


def weight_rows(root: Path) -> list[Row]:
    """List every configured model, its calibrations and its checkpoints."""
    rows = []
    for name, (ok, detail) in _model_states(root).items():
        rows.append(Row("weights", name, ok, detail))
        count = len(list((root / "checkpoints" / name).glob("calibration-*.safetensors")))
        if count:
            rows.append(Row("weights", f"{name}: calibrations", None, str(count)))
        if names := checkpoint_names(root, name):
            rows.append(Row("weights", f"{name}: checkpoints", None, ", ".join(names)))
    return rows


def variant_rows(root: Path) -> list[Row]:
    """List every variant: the models it can draw with, and what it lacks."""
    states = _model_states(root)
    there = [name for name, (ok, _) in states.items() if ok]
    without = [name for name, (ok, _) in states.items() if not ok]
    rows = []
    for name, config in read_configs(root / "conf" / "variant").items():
        kind = config["format"]
        paths = [] if kind in IN_MEMORY else [root / "quant" / "formats" / f"{kind}.py"]
        paths += sorted((root / "quant").glob("gguf_*.py")) if kind in GGUF else []
        needs = lacking([path for path in paths if path.is_file()], root)
        notes = [f"{', '.join(without)}: needs weights"] if there and without else []
        if needs and kind in MADE_WITH and _has_checkpoint(root, states, kind):
            notes.append(f"making another file needs {'; '.join(needs)}")
            needs = []
        if not there:
            needs.append("weights of a model")
        if config.get("gemm") == "fused":
            notes.append("Triton kernels on a GPU, their reference elsewhere")
        first = f"needs {'; '.join(needs)}" if needs else f"with {', '.join(there)}"
        rows.append(Row("variants", name, not needs, "; ".join([first, *notes])))
    return rows


def _has_checkpoint(root: Path, models: Iterable[str], kind: str) -> bool:
    names = [name for model in models for name in checkpoint_names(root, model)]
    return any(name.startswith(f"{kind}-") for name in names)


def scorer_rows() -> list[Row]:
    """List every scorer and what it lacks: packages, or weights that are not in the caches."""
    from dit8.eval.scorers import SCORERS

    rows = []
    for name, scorer in SCORERS.items():
        lacks = scorer.obstacle()
        against = ", against a reference variant" if scorer.needs_reference else ""
        detail = f"{scorer.unit}{against}" if lacks is None else lacks
        rows.append(Row("scorers", name, lacks is None, detail))
    return rows
