"""What is timed and what wins, what becomes of the table, and what is refused; without a GPU."""

import json
from argparse import Namespace
from functools import partial

import pytest
import torch

from dit8.quant.errors import UserError
from dit8.scripts import tune as module
from dit8.scripts.tune import (
    FINALISTS,
    Product,
    candidates,
    compile_share,
    draw,
    fastest,
    merge,
    report,
)

pytest.importorskip("triton", reason="Triton has no wheel for this platform")

from triton.runtime.errors import OutOfResources  # noqa: E402

from dit8.kernels import int8_gemm_triton, tiles  # noqa: E402
from dit8.kernels.int8_gemm_tma import TmaConfig  # noqa: E402
from dit8.kernels.int8_gemm_triton import Config  # noqa: E402
from dit8.kernels.shipped import MEASURED  # noqa: E402
from dit8.kernels.tiles import Choice, Entry, read_table, runs  # noqa: E402

MMA = Choice("mma", Config(64, 64, 128, 8, 4, 4))
TMA = Choice("tma", TmaConfig(2, 64, 256, 4, 16))


# What is timed.


@pytest.mark.parametrize("capability", [*MEASURED, 87, 103])
@pytest.mark.parametrize("op", tiles.OPS)
def test_at_least_36_tiles_that_can_run_are_timed(op, capability):
    found = candidates(op, capability)
    assert len(found) == len(set(found)) >= 36
    no_more = {"has_bias": False, "has_residual": False}
    assert all(runs(choice, op, capability, tma=True, **no_more) for choice in found)
    assert {choice.kind for choice in found} == ({"mma", "tma"} if capability == 90 else {"mma"})
    assert {choice.config.group_m for choice in found} == {4, 8, 16}


@pytest.mark.parametrize("op, columns", [("gemm", 48), ("swiglu", 96)])
def test_operands_are_codes_like_those_of_gaussian_values(op, columns):
    operands = draw(Product("x", op, 64, 48, 512), torch.device("cpu"), 0)
    for name, rows in (("x", 64), ("w", columns)):
        codes = operands[name]
        assert codes.dtype == torch.int8 and codes.shape == (rows, 512)
        # 30 times a standard normal, of which nothing reaches 128
        assert 29 < codes.float().std() < 31
        assert operands[f"{name}_scale"].shape == (rows,)
        assert torch.equal(operands[f"{name}_bf16"], codes.bfloat16())
    assert operands["out"].shape == (64, 48) and operands["out"].dtype == torch.bfloat16
    again, other = (draw(Product("x", op, 64, 48, 512), torch.device("cpu"), n) for n in (0, 1))
    assert torch.equal(again["x"], operands["x"]) and not torch.equal(other["x"], operands["x"])


@pytest.mark.parametrize("op", tiles.OPS)
def test_a_launch_is_bound_to_its_operands_and_its_epilogue(monkeypatch, op):
    seen = []
    keep = lambda *args, **keywords: seen.append((args, keywords))  # noqa: E731
    monkeypatch.setattr(int8_gemm_triton, "launch", keep)
    product = Product("x", op, 3, 16, 32)
    o = draw(product, torch.device("cpu"), 0)
    module.launch_of(product, MMA, o)()
    ((args, keywords),) = seen
    expected = (o["x"], o["x_scale"], o["w"], o["w_scale"], None, o["out"], MMA.config)
    assert all(a is b for a, b in zip(args, expected, strict=True))
    assert keywords == {"swiglu": op == "swiglu"}


def test_the_shares_compile_every_tile_once_on_few_rows(monkeypatch, capsys):
    compiled = []

    def launch_of(product, choice, operands):
        assert product.m == 16
        compiled.append((product.op, choice))
        return broken if len(compiled) == 3 else lambda: None

    def broken():
        raise RuntimeError("no such tile")

    monkeypatch.setattr(module, "draw", lambda product, device, seed: {})
    monkeypatch.setattr(module, "launch_of", launch_of)
    # one build serves all three products of the first op: M is no constant, N and K divide alike
    products = [Product("a", "gemm", m, n, 512) for m, n in ((1, 768), (400, 768), (1, 256))]
    products.append(Product("b", "swiglu", 17, 768, 512))
    for share in range(3):
        compile_share(share, 3, products, 86)
    expected = [(op, choice) for op in tiles.OPS for choice in candidates(op, 86)]
    assert len(compiled) == len(expected) and set(compiled) == set(expected)
    assert capsys.readouterr().err.endswith(": RuntimeError\n")


# What wins.


class Samplers:
    """Fake samplers: times of a choice in the short and in the thorough timing, None: cannot."""

    def __init__(self, short: dict, thorough: dict):
        self.times = {False: short, True: thorough}
        self.asked = {False: [], True: []}

    def __call__(self, choice, thorough):
        self.asked[thorough].append(choice)
        ms = self.times[thorough][choice]
        return None if ms is None else partial(float, ms)


def test_the_thorough_timing_decides_among_the_best_few():
    short = {f"tile{i}": 1.0 + i / 10 for i in range(FINALISTS + 2)}
    thorough = dict.fromkeys(short, 3.0) | {"tile3": 2.0, "bf16": 2.5}
    thorough["tile6"] = 1.0  # would win, had the short timing let it through
    samplers = Samplers(short, thorough)
    assert fastest(list(short), samplers) == ("tile3", 2.0, 2.5)
    assert samplers.asked[False] == list(short)
    assert samplers.asked[True] == [f"tile{i}" for i in range(FINALISTS)] + ["bf16"]


def test_bf16_may_be_faster():
    samplers = Samplers({"a": 1.0, "b": 2.0}, {"a": 1.0, "b": 2.0, "bf16": 0.5})
    assert fastest(["a", "b"], samplers) == ("a", 1.0, 0.5)


def test_what_cannot_run_is_left_out():
    samplers = Samplers({"a": None, "b": 2.0, "c": None}, {"b": 2.0, "bf16": 3.0})
    assert fastest(["a", "b", "c"], samplers) == ("b", 2.0, 3.0)


def test_where_nothing_runs_it_says_so():
    pattern = r"^none of 2 tiles runs on this GPU, expected at least one; add a smaller one to CONF"
    with pytest.raises(UserError, match=pattern):
        fastest(["a", "b"], Samplers({"a": None, "b": None}, {}))


def test_a_tile_that_does_not_fit_the_gpu_is_passed_over(monkeypatch):
    asked = []

    def cuda_sampler(calls, *, graph, **times):
        assert graph and len(calls) == 8  # copies, together larger than L2
        choice = calls[0]()
        asked.append((choice, bool(times)))
        if choice == TMA:
            raise OutOfResources(300_000, 232_448, "shared memory")
        return lambda: {"bf16": 0.05}.get(choice, 0.123456)

    monkeypatch.setattr(module, "draw", lambda product, device, seed: {})
    monkeypatch.setattr(module, "bf16_call", lambda operands: lambda: "bf16")
    monkeypatch.setattr(module, "launch_of", lambda product, choice, operands: lambda: choice)
    monkeypatch.setattr(module, "candidates", lambda op, capability: [TMA, MMA])
    monkeypatch.setattr(module, "cuda_sampler", cuda_sampler)
    entry = module.tune(Product("a", "gemm", 17, 768, 256), torch.device("cpu"), 90)
    assert entry == Entry("gemm", 17, 768, 256, MMA, 0.12346, 0.05)
    assert asked == [(TMA, True), (MMA, True), (MMA, False), ("bf16", False)]


# What becomes of the table.

OLD = Entry("gemm", 17, 4608, 4608, MMA, 0.02, 0.01)
OTHER = Entry("swiglu", 17, 4608, 4608, TMA, 0.02, 0.03)


def test_what_was_tuned_again_is_replaced_and_the_rest_kept_in_order():
    new = Entry("gemm", 17, 4608, 4608, TMA, 0.015, 0.01)
    first, narrow = (Entry("gemm", m, n, 4608, TMA, 1.0, 2.0) for m, n in ((1, 4608), (99, 256)))
    assert merge((OTHER, OLD), [new, first, narrow]) == (narrow, first, new, OTHER)
    assert merge((), []) == ()


def test_the_report_has_a_line_a_product_and_names_the_slower_ones():
    slower, faster = report([OLD, OTHER]).splitlines()
    assert slower.endswith("SLOWER THAN BF16") and "0.50x bf16" in slower and "mma" in slower
    # 2 x 17 x 4608 x 4608 operations in 0.02 ms are 36 TOPS, twice as many for two up-projections
    assert " 36 TOPS" in slower and " 72 TOPS" in faster
    assert "SLOWER" not in faster and "1.50x bf16" in faster


@pytest.fixture
def gpu(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Some GPU")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    monkeypatch.setattr(tiles, "FOLDER", tmp_path)
    tiles.table_of.cache_clear()
    yield tmp_path / "some_gpu.json"
    tiles.table_of.cache_clear()


def test_the_table_is_kept_after_every_product(monkeypatch, gpu, capsys):
    kept = []

    def tune(product, device, capability):
        assert capability == 86
        kept.append(read_table(gpu).entries if gpu.exists() else None)
        return Entry(product.op, product.m, product.n, product.k, MMA, 0.01 * product.m, 0.02)

    monkeypatch.setattr(module, "tune", tune)
    shapes = {"up": ("swiglu", 768, 256), "down": ("gemm", 256, 768), "not_asked": ("gemm", 8, 8)}
    args = Namespace(shapes=["up", "down"], m=[1, 17], processes=0)
    found = module.run(shapes, args, torch.device("cuda"))
    up, down = (
        [("swiglu", m, 768, 256) for m in (1, 17)],
        [("gemm", m, 256, 768) for m in (1, 17)],
    )
    entries = read_table(gpu).entries
    assert [(e.op, e.m, e.n, e.k) for e in entries] == down + up
    assert [entries and len(entries) for entries in kept] == [None, 1, 2, 3]
    assert found["products"] == 4 and found["gpu"] == "Some GPU"
    assert found["slower_than_bf16"] == [["swiglu", 17, 768, 256], ["gemm", 17, 256, 768]]
    assert capsys.readouterr().out.count("SLOWER THAN BF16") == 2
    assert json.dumps(found)
    tiles.table_of.cache_clear()
    args = Namespace(shapes=["down"], m=[1], processes=0)
    assert module.run(shapes, args, torch.device("cuda"))["products"] == 1
    assert read_table(gpu).entries == entries


# What is refused.


@pytest.mark.parametrize(
    "options, pattern",
    [
        ([], "tune: tiles are timed on the GPU that they are for, got a machine without one; untu"),
        (["--shapes", "qkv", "up"], "tune: --shapes must be among qkv, .*, llm_proj, got up; corr"),
        (["--model", "mini", "--shapes", "ffn_up"], "among qkv, .*, ffn_down, got ffn_up; correct"),
        (["--m", "17", "0"], "tune: --m must be row counts from 1 on, got 0; leave it out"),
    ],
)
def test_mistakes_are_one_sentence(monkeypatch, run_here, one_sentence, options, pattern):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    one_sentence(run_here("tune", *options), "tune", pattern)
