"""Which tile a product gets: the table, the rule without one, and what is shipped."""

import json
import re
import warnings
from dataclasses import asdict, replace

import pytest
import torch

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from dit8.kernels import int8_gemm_tma, int8_gemm_triton, tiles  # noqa: E402
from dit8.kernels.backend import KernelError  # noqa: E402
from dit8.kernels.int8_gemm_tma import SHAPES, TmaConfig, offered  # noqa: E402
from dit8.kernels.int8_gemm_triton import Config  # noqa: E402
from dit8.kernels.shipped import obstacle  # noqa: E402
from dit8.kernels.tiles import (  # noqa: E402
    Choice,
    Entry,
    Table,
    choose,
    read_table,
    rule,
    runs,
    table_document,
)

MMA = Choice("mma", Config(64, 64, 128, 8, 4, 4))
TMA = Choice("tma", TmaConfig(2, 64, 256, 4, 16))
THREE = Choice("tma", TmaConfig(3, 64, 256, 3, 8))  # has no registers for one more operand
TABLE = Table(
    "Some GPU",
    "3.7.1",
    (
        Entry("gemm", 17, 4608, 4608, MMA, 0.02, 0.01),
        Entry("gemm", 1088, 4608, 4608, TMA, 0.04, 0.08),
        Entry("gemm", 4396, 4608, 4608, THREE, 0.14, 0.28),
        Entry("swiglu", 4396, 4608, 4608, TMA, 0.28, 0.55),
    ),
)
CUDA = torch.device("cuda", 0)
ADDED = [  # what an epilogue may add: has_bias, has_residual
    {"has_bias": has_bias, "has_residual": has_residual}
    for has_bias in (False, True)
    for has_residual in (False, True)
]
# Tiles of the portable kernel whatever their grouping, which the tuner varies.
GROUPS_OF_8 = [replace(config, group_m=8) for config in int8_gemm_triton.CONFIGS]


# The rule.


def test_the_rule_without_hopper_goes_by_rows():
    for capability in (80, 86, 89, 90, 100, 120):
        heights = [rule("gemm", m, 4608, capability, 132, tma=False) for m in (1, 16, 17, 32, 33)]
        assert {choice.kind for choice in heights} == {"mma"}
        assert [choice.config.block_m for choice in heights] == [16, 16, 32, 32, 64]
    for capability in (80, 86, 89, 100, 120):  # tma is about operands; the kernel is sm_90's
        assert rule("gemm", 4396, 4608, capability, 132, tma=True).kind == "mma"
    assert rule("gemm", 128, 4608, 86, 82, tma=False).config.block_m == 64
    assert rule("gemm", 129, 4608, 86, 82, tma=False).config.block_m == 128


@pytest.mark.parametrize("capability", [80, 86, 87, 89, 90, 100, 120])
@pytest.mark.parametrize("op, adds", [("swiglu", ADDED[0]), *(("gemm", adds) for adds in ADDED)])
def test_the_rule_takes_no_tile_that_is_excluded(op, adds, capability):
    for m in (1, 16, 17, 32, 64, 128, 129, 400, 4396, 10**5):
        choice = rule(op, m, 4608, capability, 108, tma=False, **adds)
        epilogue = {"swiglu": op == "swiglu", "has_residual": adds["has_residual"]}
        assert obstacle(choice.config, capability, **epilogue) is None


def test_an_excluded_tile_is_replaced_by_one_that_fits(monkeypatch):
    monkeypatch.setattr(tiles, "obstacle", lambda config, capability, **epilogue: "too large")
    assert rule("gemm", 4396, 4608, 86, 82, tma=False) == MMA


@pytest.mark.parametrize(
    "op, m, n, processors, shape",
    [
        ("gemm", 4096, 13824, 132, (3, 64, 256)),  # 22 x 54 tiles are 9 waves exactly
        ("gemm", 4396, 4608, 132, (2, 64, 256)),  # 35 x 18 in 5 waves, 95 % of them used
        ("gemm", 128, 64, 132, (1, 64, 64)),  # no tile wastes less
        ("swiglu", 4396, 12288, 132, (3, 64, 256)),
        ("gemm", 192, 256, 1, (3, 64, 256)),  # one tile, one processor
        ("swiglu", 192, 128, 1, (3, 64, 256)),  # the same tile is half as wide
    ],
)
def test_the_rule_on_hopper_wastes_least(op, m, n, processors, shape):
    choice = rule(op, m, n, 90, processors, tma=True)
    config = choice.config
    assert choice.kind == "tma" and (config.consumers, config.rows, config.block_n) == shape


@pytest.mark.parametrize("op", tiles.OPS)
def test_the_rule_on_hopper_offers_only_searched_tiles(op):
    for m in (128, 400, 1088, 4096, 4396, 6221):
        for n in (64, 768, 4608, 12288, 13824):
            assert rule(op, m, n, 90, 132, tma=True).config in int8_gemm_tma.CONFIGS


def test_few_rows_or_other_operands_take_the_portable_kernel_on_hopper():
    assert rule("gemm", 127, 4608, 90, 132, tma=True).kind == "mma"
    assert rule("gemm", 128, 4608, 90, 132, tma=True).kind == "tma"
    assert rule("gemm", 4096, 4608, 90, 132, tma=False).kind == "mma"


@pytest.mark.parametrize("m", [128, 192, 400, 1088, 4096, 4396, 6221])
@pytest.mark.parametrize("n", [64, 256, 768, 4608, 12288, 13824])
def test_the_rule_never_takes_a_tile_that_is_not_offered(m, n):
    for adds in ADDED:
        assert offered(rule("gemm", m, n, 90, 132, tma=True, **adds).config, **adds)
    assert offered(rule("swiglu", m, n, 90, 132, tma=True).config, swiglu=True)


def test_the_rule_goes_by_what_the_epilogue_adds():
    # 22 x 54 tiles of 192 x 256 are 9 waves exactly, and 22 x 108 of 192 x 128 are 18
    wide, narrow = TmaConfig(3, 64, 256, 3, 8), TmaConfig(3, 64, 128, 5, 8)
    for adds in ADDED:
        expected = narrow if any(adds.values()) else wide
        assert rule("gemm", 4096, 13824, 90, 132, tma=True, **adds) == Choice("tma", expected)


# What can run.


@pytest.mark.parametrize("adds", ADDED, ids=str)
def test_a_tma_tile_runs_where_it_is_offered(adds):
    for op in tiles.OPS:
        assert runs(TMA, op, 90, tma=True, **adds)
        assert not runs(TMA, op, 90, tma=False, **adds)  # the operands do not allow it
        assert runs(THREE, op, 90, tma=True, **adds) is not any(adds.values())
    narrow = Choice("tma", TmaConfig(1, 64, 64, 8, 8))
    assert runs(narrow, "gemm", 90, tma=True, **adds)
    assert not runs(narrow, "swiglu", 90, tma=True, **adds)


@pytest.mark.parametrize("tma", [False, True])
@pytest.mark.parametrize("has_bias", [False, True])
def test_a_portable_tile_runs_where_it_is_not_excluded(has_bias, tma):
    added = {"has_bias": has_bias, "tma": tma}  # neither matters
    spilling = Choice("mma", Config(128, 256, 64, 16, 8, 3))  # sm_86: with a residual and in SwiGLU
    assert runs(MMA, "swiglu", 86, has_residual=False, **added)
    assert runs(spilling, "gemm", 86, has_residual=False, **added)
    assert not runs(spilling, "gemm", 86, has_residual=True, **added)
    assert not runs(spilling, "swiglu", 86, has_residual=False, **added)
    assert runs(spilling, "swiglu", 90, has_residual=False, **added)


# The table.


@pytest.mark.parametrize(
    "m, entry", [(1, 0), (17, 0), (136, 0), (137, 1), (1088, 1), (2186, 1), (2188, 2), (10**6, 2)]
)
def test_the_nearest_row_count_by_ratio_is_taken(m, entry):
    # sqrt(17 x 1088) = 136.0 and sqrt(1088 x 4396) = 2187.0
    assert TABLE.nearest("gemm", m, 4608, 4608) is TABLE.entries[entry]


def test_another_product_has_no_entry():
    assert TABLE.nearest("gemm", 4396, 4608, 12288) is None
    assert TABLE.nearest("gemm", 4396, 12288, 4608) is None
    assert TABLE.nearest("swiglu", 4396, 4608, 12288) is None
    assert TABLE.nearest("swiglu", 1, 4608, 4608) is TABLE.entries[3]


def test_slower_than_bf16_is_named():
    assert TABLE.slower_than_bf16() == TABLE.entries[:1]
    even = replace(TABLE.entries[0], bf16_ms=0.02)
    assert replace(TABLE, entries=(even,)).slower_than_bf16() == ()


@pytest.mark.parametrize(
    "gpu, name",
    [
        ("NVIDIA H200", "nvidia_h200.json"),
        ("NVIDIA GeForce RTX 3090", "nvidia_geforce_rtx_3090.json"),
        ("NVIDIA A100-SXM4-80GB (x)", "nvidia_a100_sxm4_80gb_x.json"),
    ],
)
def test_the_file_is_named_after_the_gpu(gpu, name):
    assert tiles.table_path(gpu) == tiles.FOLDER / name


def test_a_table_is_read_back_as_written(tmp_path):
    path = tmp_path / "some_gpu.json"
    path.write_text(json.dumps(table_document(TABLE)), encoding="utf-8")
    assert read_table(path) == TABLE


def test_the_document_has_the_fields_that_are_promised():
    document = table_document(TABLE)
    assert list(document) == ["gpu", "triton", "entries"]
    assert document["entries"][1] == {
        "op": "gemm", "m": 1088, "n": 4608, "k": 4608, "ms": 0.04, "bf16_ms": 0.08,
        "kind": "tma", "config": asdict(TMA.config),
    }  # fmt: skip


def spoiled(change):
    document = table_document(TABLE)
    change(document)
    return json.dumps(document)


BROKEN = {
    "no-json": ("{", "JSONDecodeError"),
    "a-list": ("[]", "TypeError"),
    "no-entries": ('{"gpu": "x", "triton": "3.7.1"}', "KeyError: 'entries'"),
    "no-gpu": (spoiled(lambda d: d.pop("gpu")), "KeyError: 'gpu'"),
    "kind": (spoiled(lambda d: d["entries"][0].update(kind="cuda")), "KeyError: 'cuda'"),
    "no-kind": (spoiled(lambda d: d["entries"][0].pop("kind")), "KeyError: 'kind'"),
    "config-of-the-other-kind": (
        spoiled(lambda d: d["entries"][0].update(kind="tma")),
        "TypeError: .*block_m",
    ),
    "no-time": (spoiled(lambda d: d["entries"][0].pop("ms")), "TypeError: .*'ms'"),
    "entry-is-text": (spoiled(lambda d: d["entries"].append("gemm")), "ValueError"),
}


@pytest.mark.parametrize("text, message", BROKEN.values(), ids=BROKEN)
def test_a_broken_table_is_one_sentence(tmp_path, text, message):
    path = tmp_path / "some_gpu.json"
    path.write_text(text, encoding="utf-8")
    pattern = rf"^some_gpu\.json must be a table of scripts/tune\.py, got {message}.*; restore it"
    with pytest.raises(KernelError, match=pattern):
        read_table(path)


def test_a_missing_table_is_one_sentence(tmp_path):
    with pytest.raises(KernelError, match=r"^none\.json must be a table .* got FileNotFoundError"):
        read_table(tmp_path / "none.json")


# The choice.


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    """Pretend to be on a GPU; return a function that changes its name and capability."""

    class Properties:
        multi_processor_count = 132

    def become(name="Some GPU", capability=(9, 0)):
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)

    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: Properties)
    monkeypatch.setattr(tiles, "FOLDER", tmp_path)
    (tmp_path / "some_gpu.json").write_text(json.dumps(table_document(TABLE)), encoding="utf-8")
    become()
    for cached in (tiles.table_of, tiles._lookup):
        cached.cache_clear()
    yield become
    for cached in (tiles.table_of, tiles._lookup):
        cached.cache_clear()


def test_a_measured_product_gets_the_table_s_tile(gpu):
    assert choose("gemm", 4396, 4608, 4608, CUDA, tma=True) == THREE
    assert choose("gemm", 1000, 4608, 4608, CUDA, tma=True) == TMA
    assert choose("swiglu", 4096, 4608, 4608, CUDA, tma=True) == TMA


def test_a_tile_that_cannot_run_gives_way_to_the_rule(gpu):
    without = choose("gemm", 4396, 4608, 4608, CUDA, tma=False)
    assert without == rule("gemm", 4396, 4608, 90, 132, tma=False) and without.kind == "mma"
    for adds in ADDED[1:]:
        added = choose("gemm", 4396, 4608, 4608, CUDA, tma=True, **adds)
        assert added == rule("gemm", 4396, 4608, 90, 132, tma=True, **adds) != THREE
        assert choose("gemm", 1088, 4608, 4608, CUDA, tma=True, **adds) == TMA


def test_a_portable_tile_that_spills_with_a_residual_gives_way_to_the_rule(gpu, tmp_path):
    spilling = Choice("mma", Config(128, 256, 64, 16, 8, 3))
    document = table_document(replace(TABLE, entries=(replace(TABLE.entries[2], choice=spilling),)))
    (tmp_path / "some_gpu.json").write_text(json.dumps(document), encoding="utf-8")
    assert choose("gemm", 4396, 4608, 4608, CUDA, tma=True) == spilling
    added = choose("gemm", 4396, 4608, 4608, CUDA, tma=True, has_residual=True)
    assert added == rule("gemm", 4396, 4608, 90, 132, tma=True, has_residual=True) != spilling


def test_a_tile_that_does_not_exist_for_swiglu_gives_way_to_the_rule(gpu, tmp_path):
    narrow = replace(TABLE.entries[3], choice=Choice("tma", TmaConfig(1, 64, 64, 8, 8)))
    document = table_document(replace(TABLE, entries=(narrow,)))
    (tmp_path / "some_gpu.json").write_text(json.dumps(document), encoding="utf-8")
    expected = rule("swiglu", 4396, 4608, 90, 132, tma=True)
    assert choose("swiglu", 4396, 4608, 4608, CUDA, tma=True) == expected != narrow.choice


def test_an_unmeasured_product_or_gpu_gets_the_rule_s(gpu):
    expected = rule("gemm", 4396, 12288, 90, 132, tma=True)
    assert choose("gemm", 4396, 12288, 4608, CUDA, tma=True) == expected
    for adds in ADDED:
        expected = rule("gemm", 4096, 13824, 90, 132, tma=True, **adds)
        assert (expected == THREE) is not any(adds.values())
        assert choose("gemm", 4096, 13824, 4608, CUDA, tma=True, **adds) == expected
    gpu("Another GPU", (8, 6))
    expected = rule("gemm", 4396, 4608, 86, 132, tma=True)
    assert choose("gemm", 4396, 4608, 4608, CUDA, tma=True) == expected


def test_a_product_that_bf16_does_faster_is_warned_of_once(gpu):
    pattern = (
        r"^int8_gemm: M=16, N=4608, K=4608 takes 0\.0200 ms on Some GPU where bf16 takes 0\.0100 "
        r"\(kernels/tuned\); keep this layer in bf16 for speed$"
    )
    with pytest.warns(UserWarning, match=pattern) as caught:
        for _ in range(3):
            assert choose("gemm", 16, 4608, 4608, CUDA, tma=False) == MMA
    assert len(caught) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        choose("gemm", 4396, 4608, 4608, CUDA, tma=True)


# What is shipped.

SHIPPED = sorted(tiles.FOLDER.glob("*.json"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_tables_hold_only_tiles_that_are_searched(path):
    table = read_table(path)
    assert tiles.table_path(table.gpu) == path and table.entries
    assert re.fullmatch(r"\d+\.\d+\.\d+", table.triton)
    for entry in table.entries:
        assert entry.op in tiles.OPS and min(entry.m, entry.n, entry.k) >= 1
        assert 0 < entry.ms < 1e3 and 0 < entry.bf16_ms < 1e3
        config = entry.choice.config
        if entry.choice.kind == "tma":
            assert config in int8_gemm_tma.CONFIGS
            assert offered(config, swiglu=entry.op == "swiglu")
        else:
            assert replace(config, group_m=8) in GROUPS_OF_8
    products = [(entry.op, entry.m, entry.n, entry.k) for entry in table.entries]
    assert len(set(products)) == len(products)
    assert json.loads(path.read_text(encoding="utf-8")) == table_document(table)


def test_every_shape_of_the_rule_is_searched():
    assert {TmaConfig(*shape, 8) for shape in SHAPES} <= set(int8_gemm_tma.CONFIGS)
