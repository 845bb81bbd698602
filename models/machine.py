"""Describe this computer: processor, memory, disk, GPU, and whether Triton can run on it.

Standard library only, torch and Triton aside, so that it works where an installation is broken.
"""

import os
import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

# CPU flags of instructions that multiply int8 and add in int32, x86 and ARM
INT8_FLAGS = ("avx512_vnni", "avx_vnni", "avx_vnni_int8", "amx_int8", "asimddp", "i8mm")
CGROUP_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # version 2 and 1
QUERY = "name,compute_cap,memory.total,driver_version"
QUERY_SECONDS = 3  # a driver in trouble can hang nvidia-smi


@dataclass(frozen=True)
class Row:
    """One line of a report."""

    section: str
    name: str
    ok: bool | None  # None: a fact that is neither good nor bad
    detail: str


def machine_rows(root: Path) -> list[Row]:
    """Describe processor, memory, the disk of `root`, and GPUs."""
    cpuinfo = _text("/proc/cpuinfo")
    flags = int8_flags(cpuinfo)
    limits = [_text(f"/sys/fs/cgroup/{name}") for name in CGROUP_LIMITS]
    total, available = memory_bytes(_text("/proc/meminfo"), *limits)
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


def _text(path: str) -> str:
    """Read a file of the system; empty where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def cpu_model(cpuinfo: str) -> str:
    """Name the processor from the text of /proc/cpuinfo."""
    for line in cpuinfo.splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def int8_flags(cpuinfo: str) -> list[str]:
    """List the int8 dot-product instructions that /proc/cpuinfo tells of."""
    words: set[str] = set()
    for line in cpuinfo.splitlines():
        if line.startswith(("flags", "Features")):
            words |= set(line.partition(":")[2].split())
    return [flag for flag in INT8_FLAGS if flag in words]


def usable_cores() -> int:
    """Count the cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # Linux only; respects a container's CPU set
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


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


def query_gpus() -> str | None:
    """Ask nvidia-smi; None where there is no such program or it fails."""
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, check=True, timeout=QUERY_SECONDS
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout


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

        from dit8.kernels.backend import backend_name
        from dit8.quant.errors import UserError
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
    except UserError as error:
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
