"""Which tiles are offered where: the table's rules, and that every entry has a measured reason."""

from itertools import product
from pathlib import Path

import pandas as pd
import pytest

from dit8.kernels import shipped
from dit8.kernels.shipped import ALL, EXCLUDED, MEASURED, configs_for, measured_capability, obstacle

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from dit8.kernels.int8_gemm_triton import CONFIGS, Config  # noqa: E402

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


EXCLUSIONS = [(tile, exclusion) for tile in EXCLUDED for exclusion in EXCLUDED[tile]]
PLACES = [
    (tile, epilogue, capability)
    for tile, exclusion in EXCLUSIONS
    for epilogue in exclusion.epilogues
    for capability in exclusion.capabilities
]


def test_every_excluded_tile_is_searched_and_has_one_reason_at_a_place():
    searched = {(c.block_m, c.block_n, c.block_k, c.num_warps, c.num_stages) for c in CONFIGS}
    assert set(EXCLUDED) <= searched
    assert len(set(PLACES)) == len(PLACES)
    assert {epilogue for _, epilogue, _ in PLACES} == set(ALL)


@pytest.fixture(scope="module")
def rows_of():
    """Return a function: tile, epilogue, capability -> its measured rows."""
    rows = pd.read_csv(ROWS)
    rows = rows[rows["kernel"] == "int8_gemm"]

    def find(tile, epilogue, capability):
        block_m, block_n, block_k, num_warps, num_stages = tile
        name = f"{block_m}x{block_n}x{block_k}-g\\d+-w{num_warps}-s{num_stages}"
        variant = {"plain": "bias"}.get(epilogue, epilogue)
        found = rows[(rows["sm"] == capability) & rows["variant"].str.startswith(variant)]
        return found[found["config"].str.fullmatch(name)]

    return find


@pytest.mark.parametrize(("tile", "epilogue", "capability"), PLACES, ids=str)
def test_every_place_has_a_row_that_excludes_the_tile(rows_of, tile, epilogue, capability):
    found = rows_of(tile, epilogue, capability)
    bad = (found["stack_bytes"] > 0) | (found["shared_bytes"] > found["limit_bytes"])
    assert bad.any(), "no measured row excludes it: remove the place from EXCLUDED"


@pytest.mark.parametrize(("tile", "exclusion"), EXCLUSIONS, ids=str)
def test_every_reason_is_the_worst_of_its_rows(rows_of, tile, exclusion):
    places = product(exclusion.epilogues, exclusion.capabilities)
    worst = pd.concat([rows_of(tile, *place) for place in places]).max()
    if worst["shared_bytes"] > worst["limit_bytes"]:
        kib = (worst["shared_bytes"] // 1024, worst["limit_bytes"] // 1024)
        assert exclusion.reason == "{} KiB of shared memory, {} fit".format(*kib)
    else:
        spilled = (worst["stack_bytes"], worst["spill_instructions"])
        assert exclusion.reason == "{} bytes of stack, {} spill instructions".format(*spilled)


def test_triton_is_not_needed_to_read_the_table(run_child):
    run_child("-c", "import sys, kernels.shipped; sys.exit('triton' in sys.modules)")
    assert shipped.EXCLUDED
