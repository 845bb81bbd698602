"""Compile what a kernel's `launch` would run on a GPU that is not there, and read the result.

Triton asks its driver which GPU there is and compiles for the answer. Here a driver that has no
GPU gives the answer, and the launch itself is left out, so that `launch` runs as it stands: the
flags, alignments and descriptors that it derives from its arguments are the ones that ship.
Registers and instructions are read with cuobjdump, which comes inside Triton's wheel.
"""

import inspect
import re
import subprocess
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

# Shared memory that one block may ask for, KiB: CUDA C++ Programming Guide, table "Technical
# Specifications per Compute Capability", row "Maximum amount of shared memory per thread block".
SHARED_KIB = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99}


@dataclass(frozen=True)
class Build:
    """One compiled launch."""

    kernel: Any  # triton.compiler.CompiledKernel
    grid: tuple[int, ...]
    arguments: tuple  # all of the jit function's parameters, in order


@dataclass(frozen=True)
class Usage:
    """What the machine code of one build takes and holds, each per thread unless it says bytes."""

    registers: int
    stack_bytes: int
    spill_instructions: int  # loads from and stores to local memory
    shared_bytes: int  # per block, dynamic
    integer_mma: str  # "wgmma", "mma.sync" or "none"


class _NoGpu:
    """The questions that Triton asks a driver before it compiles."""

    def __init__(self, sm: int):
        self.sm = sm

    def get_current_device(self) -> str:
        return f"sm_{self.sm}"  # any key: jit functions keep their builds per device

    def get_current_stream(self, device: str) -> int:
        return 0

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", self.sm, 32)


@contextmanager
def compiling_for(sm: int) -> Iterator[list[Build]]:
    """Make every Triton launch inside the `with` block a compilation for another GPU.

    Args:
        sm: compute capability, 86 for 8.6.

    Yields:
        a list that grows by one Build per launch; nothing is launched.

    Not for use beside launches from other threads: the driver is swapped for the whole process.
    """
    builds: list[Build] = []
    run = JITFunction.run

    def compile_only(self, *args, grid, warmup, **kwargs):
        kernel = run(self, *args, grid=grid, warmup=True, **kwargs)
        own = {name: kwargs[name] for name in kwargs if name in self.signature.parameters}
        bound = self.signature.bind(*args, **own)
        bound.apply_defaults()
        builds.append(Build(kernel, tuple(grid), tuple(bound.arguments.values())))
        return kernel

    try:
        before = driver.active
    except RuntimeError:  # no GPU, so no driver to go back to
        before = None
    driver.set_active(_NoGpu(sm))
    JITFunction.run = compile_only
    try:
        yield builds
    finally:
        JITFunction.run = run
        driver.set_active(before)


def call_by_name(function, values: dict[str, Any]) -> None:
    """Call a function with those of the values that its parameters name.

    Raises:
        ValueError: a parameter without a default has no value.
    """
    parameters = inspect.signature(function).parameters
    missing = [
        name
        for name, parameter in parameters.items()
        if name not in values and parameter.default is parameter.empty
    ]
    if missing:
        raise ValueError(
            f"call_by_name: {function.__module__}.{function.__name__} takes {', '.join(missing)}, "
            f"got {', '.join(values)}; add what is missing to scripts/arch_kernels.py"
        )
    function(**{name: values[name] for name in parameters if name in values})


# An instruction as cuobjdump prints it: its address, maybe a predicate, then the name.
OPCODE = re.compile(r"^\s*/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P[0-9T]+\s+)?([A-Z][A-Z0-9_.]*)", re.M)
RESOURCES = re.compile(r"REG:(\d+) STACK:(\d+)")


def read_usage(kernel: Any) -> Usage:
    """Read the machine code of a compiled kernel.

    Args:
        kernel: a triton.compiler.CompiledKernel for an NVIDIA GPU.

    Raises:
        CalledProcessError: cuobjdump does not know the GPU.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        text = subprocess.run(
            [knobs.nvidia.cuobjdump.path, "--dump-resource-usage", "--dump-sass", file.name],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    return parse_usage(text, kernel.metadata.shared)


def parse_usage(text: str, shared_bytes: int) -> Usage:
    """Count in cuobjdump's text; several functions in one file: the worst of each.

    Raises:
        ValueError: the text holds no function or no instructions.
    """
    functions = [tuple(map(int, pair)) for pair in RESOURCES.findall(text)]
    families = Counter(name.partition(".")[0] for name in OPCODE.findall(text))
    if not functions or not families:
        raise ValueError(f"parse_usage: cuobjdump must list a function, got {text[:200]!r}")
    mma = {"IGMMA": "wgmma", "IMMA": "mma.sync"}
    return Usage(
        registers=max(registers for registers, _ in functions),
        stack_bytes=max(stack for _, stack in functions),
        spill_instructions=families["LDL"] + families["STL"],
        shared_bytes=shared_bytes,
        integer_mma=next((mma[name] for name in mma if families[name]), "none"),
    )
