"""Say which tiles of the portable GEMM (kernels/int8_gemm_triton.py) are offered on which GPU.

A tile is offered where none of its builds spills a register and its operands fit the shared memory
of one block. Both are properties of the compiled code, measured without the GPU by
scripts/check_arch.py (bf16 outputs; rows in results/bench/arch.csv) for Triton 3.6.0 and 3.7.1: a
tile that breaks the rule with either is left out. scripts/tune.py then never times it, and
kernels/tiles.py never takes it, not even from a table. Hopper's own tiles: int8_gemm_tma.offered.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dit8.kernels.int8_gemm_triton import Config


@dataclass(frozen=True)
class Exclusion:
    """Where a tile is not offered, and why: of all measured rows the worst."""

    epilogues: tuple[str, ...]  # "plain" (with or without a bias), "residual", "swiglu"
    capabilities: tuple[int, ...]  # compute capabilities, 86 for 8.6
    reason: str


PLAIN, RESIDUAL, SWIGLU = ("plain",), ("residual",), ("swiglu",)
ALL = PLAIN + RESIDUAL + SWIGLU
NOT_90 = (80, 86, 89, 100, 120)  # mma.sync; on sm_90 the same tile is built for wgmma

# by (block_m, block_n, block_k, num_warps, num_stages)
EXCLUDED = {
    (128, 256, 128, 8, 4): (
        Exclusion(ALL, (86, 89, 120), "144 KiB of shared memory, 99 fit"),
        Exclusion(RESIDUAL, (80, 100), "32 bytes of stack, 22 spill instructions"),
        Exclusion(RESIDUAL, (90,), "424 bytes of stack, 253 spill instructions"),
        Exclusion(SWIGLU, (80, 100), "168 bytes of stack, 71 spill instructions"),
    ),
    (128, 256, 128, 8, 3): (
        Exclusion(RESIDUAL, NOT_90, "32 bytes of stack, 22 spill instructions"),
        Exclusion(RESIDUAL, (90,), "424 bytes of stack, 253 spill instructions"),
        Exclusion(SWIGLU, NOT_90, "168 bytes of stack, 71 spill instructions"),
    ),
    (256, 128, 128, 8, 3): (
        Exclusion(RESIDUAL, (90,), "104 bytes of stack, 61 spill instructions"),
    ),
    (128, 256, 64, 8, 3): (
        Exclusion(RESIDUAL, NOT_90, "32 bytes of stack, 15 spill instructions"),
        Exclusion(RESIDUAL, (90,), "496 bytes of stack, 292 spill instructions"),
        Exclusion(SWIGLU, NOT_90, "168 bytes of stack, 68 spill instructions"),
    ),
    (128, 128, 128, 4, 3): (
        Exclusion(PLAIN, (100,), "8 bytes of stack, 2 spill instructions"),
        Exclusion(RESIDUAL, (90,), "8 bytes of stack, 2 spill instructions"),
        Exclusion(SWIGLU, NOT_90, "40 bytes of stack, 20 spill instructions"),
    ),
    (128, 64, 128, 4, 3): (
        Exclusion(PLAIN, (80, 86, 89), "8 bytes of stack, 2 spill instructions"),
    ),
    (64, 256, 64, 4, 3): (
        Exclusion(RESIDUAL, (90,), "680 bytes of stack, 413 spill instructions"),
    ),
}

MEASURED = (80, 86, 89, 90, 100, 120)  # compute capability 8.0, 8.6, ...


def measured_capability(capability: int) -> int:
    """Return the largest of MEASURED that is not above a GPU's own, whose rules it follows.

    Args:
        capability: compute capability, 86 for 8.6.

    Raises:
        ValueError: the GPU is older than 8.0, where no int8 tile can run.
    """
    if capability < MEASURED[0]:
        raise ValueError(
            f"measured_capability: expected at least {MEASURED[0]}, got {capability}; "
            "ask kernels.backend.backend_name first"
        )
    return max(known for known in MEASURED if known <= capability)


def obstacle(
    config: "Config", capability: int, *, swiglu: bool = False, has_residual: bool = False
) -> str | None:
    """Return what keeps a tile from being offered on a GPU, or None.

    Args:
        config: a tile of kernels.int8_gemm_triton; its group_m does not matter.
        capability: compute capability, 86 for 8.6.
        swiglu, has_residual: the epilogue. A SwiGLU holds two sums and a residual one more operand,
            so that they spill where the plain epilogue does not.

    Raises:
        ValueError: the GPU is older than 8.0.
    """
    tile = (config.block_m, config.block_n, config.block_k, config.num_warps, config.num_stages)
    epilogue = "swiglu" if swiglu else "residual" if has_residual else "plain"
    known = measured_capability(capability)
    for exclusion in EXCLUDED.get(tile, ()):
        if epilogue in exclusion.epilogues and known in exclusion.capabilities:
            return exclusion.reason
    return None


def configs_for(
    capability: int, *, swiglu: bool = False, has_residual: bool = False
) -> "tuple[Config, ...]":
    """Return the tiles of kernels.int8_gemm_triton.CONFIGS that are offered on a GPU.

    Args:
        capability: compute capability, 86 for 8.6.
        swiglu, has_residual: the epilogue.

    Returns:
        at least one tile, in the order of CONFIGS.

    Raises:
        ValueError: the GPU is older than 8.0.

    Imports Triton, which the module itself does not.
    """
    from dit8.kernels.int8_gemm_triton import CONFIGS

    epilogue = {"swiglu": swiglu, "has_residual": has_residual}
    return tuple(config for config in CONFIGS if obstacle(config, capability, **epilogue) is None)
