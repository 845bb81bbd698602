"""Which kernel and which tile a product gets on a GPU: from a measured table, else by a rule.

scripts/tune.py times every tile for a list of products and writes kernels/tuned/<gpu>.json; nothing
is ever timed at import or at the first call, so a CUDA graph can be captured at once and two runs
use the same tiles. Row counts between two measured ones take the nearer (by ratio); M is never a
compile-time constant, so no new count compiles anything.
"""

import functools
import json
import math
import re
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dit8.kernels.backend import KernelError
from dit8.kernels.int8_gemm_tma import SHAPES, TmaConfig, offered, processors_of
from dit8.kernels.int8_gemm_triton import Config
from dit8.kernels.shipped import obstacle

FOLDER = Path(__file__).parent / "tuned"
OPS = ("gemm", "swiglu")
KINDS = {"mma": Config, "tma": TmaConfig}


@dataclass(frozen=True)
class Choice:
    """A kernel, "mma" (kernels/int8_gemm_triton.py) or "tma" (int8_gemm_tma.py), and its tile."""

    kind: str
    config: Config | TmaConfig


@dataclass(frozen=True)
class Entry:
    """One measured product and its fastest tile."""

    op: str  # "gemm", or "swiglu": N outputs from 2N columns
    m: int
    n: int
    k: int
    choice: Choice
    ms: float  # of one call under a CUDA graph, sustained
    bf16_ms: float  # of cuBLAS on the same shape, in the same run


@dataclass(frozen=True)
class Table:
    """What scripts/tune.py found on one GPU."""

    gpu: str
    triton: str
    entries: tuple[Entry, ...]

    def nearest(self, op: str, m: int, n: int, k: int) -> Entry | None:
        """Return the entry of these N and K whose M is closest by ratio, or None."""
        same = [e for e in self.entries if (e.op, e.n, e.k) == (op, n, k)]
        return min(same, key=lambda e: abs(math.log(e.m / m)), default=None)

    def slower_than_bf16(self) -> tuple[Entry, ...]:
        """Name the products that cuBLAS computes faster in bf16."""
        return tuple(entry for entry in self.entries if entry.ms > entry.bf16_ms)


def table_path(gpu: str) -> Path:
    """Name the file of a GPU: "NVIDIA H200" -> tuned/nvidia_h200.json."""
    return FOLDER / f"{re.sub(r'[^a-z0-9]+', '_', gpu.lower()).strip('_')}.json"


def read_table(path: Path) -> Table:
    """Read a table that scripts/tune.py wrote.

    Raises:
        KernelError: the file is not such a table.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        entries = tuple(_entry(item) for item in document["entries"])
        return Table(document["gpu"], document["triton"], entries)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise KernelError(
            f"{path.name} must be a table of scripts/tune.py, got {type(error).__name__}: {error}; "
            "restore it or run scripts/tune.py again"
        ) from error


def _entry(item: dict[str, Any]) -> Entry:
    fields = dict(item)
    kind, config = fields.pop("kind"), fields.pop("config")
    return Entry(choice=Choice(kind, KINDS[kind](**config)), **fields)


def table_document(table: Table) -> dict[str, Any]:
    """Write a table as plain values; `read_table` reads it back."""
    items = []
    for entry in table.entries:
        fields = asdict(entry)
        choice = fields.pop("choice")
        items.append(fields | {"kind": choice["kind"], "config": choice["config"]})
    return {"gpu": table.gpu, "triton": table.triton, "entries": items}


@functools.cache
def table_of(gpu: str) -> Table | None:
    """Return the shipped table of a GPU, read once, or None."""
    path = table_path(gpu)
    return read_table(path) if path.exists() else None


def choose(
    op: str,
    m: int,
    n: int,
    k: int,
    device: torch.device,
    *,
    tma: bool,
    has_bias: bool = False,
    has_residual: bool = False,
) -> Choice:
    """Return the kernel and tile of a product on a CUDA device.

    Args:
        op: "gemm" or "swiglu".
        m, n, k: rows, outputs (half of w's rows for SwiGLU), in features; M >= 1.
        device: the CUDA device.
        tma: whether the operands allow the Hopper kernel (kernels.int8_gemm_tma.obstacle).
        has_bias, has_residual: what the epilogue adds.

    Returns:
        the table's choice if there is one that can run, else that of `rule`.

    Warns once of a product for which the table says that bf16 is faster; changes no result.
    """
    major, minor = torch.cuda.get_device_capability(device)
    capability, processors = 10 * major + minor, processors_of(device)
    adds = {"has_bias": has_bias, "has_residual": has_residual}
    found = _lookup(op, m, n, k, torch.cuda.get_device_name(device))
    if found is not None and runs(found, op, capability, tma=tma, **adds):
        return found
    return rule(op, m, n, capability, processors, tma=tma, **adds)


def runs(
    choice: Choice, op: str, capability: int, *, tma: bool, has_bias: bool, has_residual: bool
) -> bool:
    """Tell whether a tile is offered for an epilogue on a GPU."""
    epilogue = {"swiglu": op == "swiglu", "has_residual": has_residual}
    if choice.kind == "tma":
        return tma and offered(choice.config, has_bias=has_bias, **epilogue)
    return obstacle(choice.config, capability, **epilogue) is None


@functools.lru_cache(maxsize=4096)
def _lookup(op: str, m: int, n: int, k: int, gpu: str) -> Choice | None:
    table = table_of(gpu)
    entry = None if table is None else table.nearest(op, m, n, k)
    if entry is None:
        return None
    if entry.ms > entry.bf16_ms:
        warnings.warn(
            f"int8_gemm: M={m}, N={n}, K={k} takes {entry.ms:.4f} ms on {gpu} where bf16 takes "
            f"{entry.bf16_ms:.4f} (kernels/tuned); keep this layer in bf16 for speed",
            stacklevel=2,
        )
    return entry.choice


def rule(
    op: str,
    m: int,
    n: int,
    capability: int,
    processors: int,
    *,
    tma: bool,
    has_bias: bool = False,
    has_residual: bool = False,
) -> Choice:
    """Choose a kernel and tile for a product that no table has; pure.

    On sm_90 with 128 rows and more, the TMA tile that wastes least: of its waves over the
    processors, of its rows past M and of its columns past N. Elsewhere a tile by M alone.
    """
    adds = {"has_bias": has_bias, "has_residual": has_residual}
    if capability == 90 and tma and m >= 128:
        swiglu = op == "swiglu"
        fitting = [TmaConfig(*shape, 8) for shape in SHAPES]
        fitting = [config for config in fitting if offered(config, swiglu=swiglu, **adds)]

        def useful(config: TmaConfig) -> float:
            columns = config.block_n // 2 if swiglu else config.block_n
            rows = config.consumers * config.rows
            tiles = math.ceil(m / rows) * math.ceil(n / columns)
            slots = math.ceil(tiles / processors) * processors
            # sums a tile holds / bytes it loads for them: larger tiles move less
            intensity = rows * config.block_n / (rows + config.block_n)
            return m * n / (slots * rows * columns) * (1 - 16 / intensity)

        return Choice("tma", max(fitting, key=useful))
    by_rows = (
        (16, Config(16, 64, 256, 1, 4, 4)),
        (32, Config(32, 64, 128, 4, 4, 5)),
        (128, Config(64, 64, 128, 4, 4, 3)),
    )
    config = next((tile for rows, tile in by_rows if m <= rows), Config(128, 128, 64, 8, 8, 4))
    choice = Choice("mma", config)
    if not runs(choice, op, capability, tma=tma, **adds):
        choice = Choice("mma", Config(64, 64, 128, 8, 4, 4))  # the one that every GPU can run
    return choice
