"""Which tiles are offered where: the table's rules, and that every entry has a measured reason."""

from pathlib import Path

import pandas as pd
import pytest

from kernels import shipped
from kernels.shipped import EXCLUDED, MEASURED, configs_for, measured_capability, obstacle

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from kernels.int8_gemm_triton import CONFIGS, Config  # noqa: E402

ROWS = Path(__file__).resolve().parents[2] / "results" / "bench" / "arch.csv"
LARGEST = Config(128, 256, 128, 8, 8, 4)


@pytest.mark.parametrize(
    ("capability", "measured"),
    [(80, 80), (86, 86), (87, 86), (89, 89), (90, 90), (103, 100), (120, 120), (121, 120)],
)
def test_a_gpu_follows_the_nearest_older_measured_one(capability, measured):
    assert measured_capability(capability) == measured


def test_an_older_gpu_is_refused():
    with pytest.raises(ValueError, match="expected at least 80, got 75; ask kernels.backend.back"):
        configs_for(75)


def test_the_largest_tile_is_not_offered_where_shared_memory_is_small():
    assert obstacle(LARGEST, 86) == "144 KiB of shared memory, 99 fit"
    assert obstacle(LARGEST, 80) is None and obstacle(LARGEST, 90) is None
    assert LARGEST in configs_for(80) and LARGEST not in configs_for(86)


def test_another_grouping_of_the_same_tile_has_the_same_obstacle():
    assert obstacle(Config(128, 256, 128, 4, 8, 4), 89) == obstacle(LARGEST, 89) is not None


def test_an_epilogue_may_have_an_obstacle_of_its_own():
    tile = Config(128, 256, 64, 8, 8, 3)
    assert obstacle(tile, 86) is None
    assert "of stack" in obstacle(tile, 86, swiglu=True)
    assert "of stack" in obstacle(tile, 86, has_residual=True)
    assert tile in configs_for(86) and tile not in configs_for(86, swiglu=True)


@pytest.mark.parametrize("flags", [{}, {"swiglu": True}, {"has_residual": True}], ids=str)
@pytest.mark.parametrize("capability", MEASURED)
def test_what_is_offered_keeps_its_order_and_leaves_out_what_has_an_obstacle(capability, flags):
    offered = configs_for(capability, **flags)
    assert [c for c in CONFIGS if c in offered] == list(offered)
    assert set(CONFIGS) - set(offered) == {c for c in CONFIGS if obstacle(c, capability, **flags)}
    # the tuner has something for every M: short blocks for one row, tall ones for thousands
    assert min(c.block_m for c in offered) == 16 and max(c.block_m for c in offered) >= 128


ENTRIES = [
    (tile, epilogue, capability)
    for tile, epilogues, capabilities, _ in EXCLUDED
    for epilogue in epilogues
    for capability in capabilities
]


@pytest.mark.parametrize(("tile", "epilogue", "capability"), ENTRIES, ids=str)
def test_every_entry_has_a_row_that_excludes_it(rows, tile, epilogue, capability):
    block_m, block_n, block_k, num_warps, num_stages = tile
    name = f"{block_m}x{block_n}x{block_k}-g\\d+-w{num_warps}-s{num_stages}"
    variant = {"plain": "bias"}.get(epilogue, epilogue)
    found = rows[rows["config"].str.fullmatch(name) & rows["variant"].str.startswith(variant)]
    found = found[(found["kernel"] == "int8_gemm") & (found["sm"] == capability)]
    bad = (found["stack_bytes"] > 0) | (found["shared_bytes"] > found["limit_bytes"])
    assert bad.any(), "no measured row excludes it: remove the entry from EXCLUDED"


@pytest.fixture(scope="module")
def rows():
    return pd.read_csv(ROWS)


def test_triton_is_not_needed_to_read_the_table(run_child):
    run_child("-c", "import sys, kernels.shipped; sys.exit('triton' in sys.modules)")
    assert shipped.EXCLUDED
