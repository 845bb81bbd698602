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


@pytest.mark.parametrize("capability", MEASURED)
def test_what_is_offered_keeps_its_order_and_leaves_out_what_has_an_obstacle(capability):
    offered = configs_for(capability)
    assert [c for c in CONFIGS if c in offered] == list(offered)
    assert set(CONFIGS) - set(offered) == {c for c in CONFIGS if obstacle(c, capability)}
    # the tuner has something for every M: short blocks for one row, tall ones for thousands
    assert min(c.block_m for c in offered) == 16 and max(c.block_m for c in offered) >= 128


@pytest.mark.parametrize(
    ("tile", "capability"),
    [(tile, capability) for tile, capabilities, _ in EXCLUDED for capability in capabilities],
    ids=str,
)
def test_every_entry_has_a_row_that_excludes_it(tile, capability):
    block_m, block_n, block_k, num_warps, num_stages = tile
    rows = pd.read_csv(ROWS)
    rows = rows[(rows["kernel"] == "int8_gemm") & (rows["sm"] == capability)]
    pattern = f"{block_m}x{block_n}x{block_k}-g\\d+-w{num_warps}-s{num_stages}"
    rows = rows[rows["config"].str.fullmatch(pattern)]
    bad = (rows["stack_bytes"] > 0) | (rows["shared_bytes"] > rows["limit_bytes"])
    assert bad.any(), "no measured row excludes it: remove the entry from EXCLUDED"


def test_triton_is_not_needed_to_read_the_table(run_child):
    run_child("-c", "import sys, kernels.shipped; sys.exit('triton' in sys.modules)")
    assert shipped.EXCLUDED
