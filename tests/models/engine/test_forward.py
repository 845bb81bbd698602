import copy

import pytest
import torch
from torch import nn

from dit8.kernels.hadamard import largest_group, rotate
from dit8.models.engine import forward as engine_file
from dit8.models.engine.forward import LAYOUTS_KEPT, EngineBranch
from dit8.quant.architectures.ideogram4 import BRANCHES, architecture
from dit8.quant.errors import UserError
from dit8.quant.formats.table import FORMATS
from dit8.quant.int8 import quantize_weight
from dit8.quant.linear import Int8Linear, WeightOnlyLinear, swap_linears

CPU = torch.device("cpu")
GRID, BATCH, WIDTH = (3, 4), 2, 416
TIMES = (0.125, 0.5, 0.875)  # exact in bf16, as the pipeline rounds them
DESCRIBED = architecture(2)
BLOCK = [name for group in DESCRIBED.groups if group.role == "block" for name in group.targets]
ALL = [name for group in DESCRIBED.groups for name in group.targets]
PROTECTED = "layers.1.feed_forward.w2"

# Sums in another order: a few fp32 units, 6e-8, through two blocks.
EXACT = 1e-5
# The same, moving a value over the middle between two codes now and then; which, depends on the
# processor. A code that flips is one step off, where rounding is step / sqrt(12) off on average
# (the variance of a uniform error): with a share f of all codes flipped, two int8 forwards differ
# by sqrt(12 f) of what int8 itself is off. 2 % may flip: each flip moves what comes after it and
# makes further ones. A wrong scale, row or divisor is off by more than int8 is.
CODES = (12 * 0.02) ** 0.5


def int8_linear(linear: nn.Linear, name: str, kind: str) -> Int8Linear:
    """Quantize a linear as a variant would; smooth vectors and static scales are made up."""
    weight, k = linear.weight.float(), linear.in_features
    changes = {"gemm": "fake_quant" if kind in ("fake_quant", "static fake") else "fused"}
    # linears that share an input share what is done to it
    generator = torch.Generator().manual_seed(len(name.rpartition(".")[0]) * 1000 + k)
    if kind == "smooth":
        changes["smooth"] = torch.rand(k, generator=generator) + 0.5
        weight = weight * changes["smooth"]
    if kind == "odd smooth":
        changes["smooth"] = torch.rand(k) + 0.5
        weight = weight * changes["smooth"]
    if kind == "rotated" and k % 4 == 0:
        changes["rotation"] = largest_group(k)
        weight = rotate(weight, changes["rotation"])
    if kind.startswith("static"):
        changes["x_scale"] = torch.tensor(0.03)
    codes, scales = quantize_weight(weight)
    return Int8Linear(codes, scales, bias=linear.bias, **changes)


def weight_only(linear: nn.Linear, name: str) -> nn.Module | None:
    codec, shape = FORMATS[name].codec, tuple(linear.weight.shape)
    if codec.refuse(*shape) is not None:
        return None
    return WeightOnlyLinear(codec, codec.encode(linear.weight.float()), shape, linear.bias)


KINDS = {
    "plain": EXACT,
    "fp8": EXACT,
    "nf4": EXACT,
    "q8_0": EXACT,
    "q4_k": EXACT,
    "fake_quant": CODES,
    "fused": CODES,
    "smooth": CODES,
    "odd smooth": CODES,
    "rotated": CODES,
    "static": CODES,
    "static fake": CODES,
    "protected": CODES,
    "mixed": CODES,
    "published": CODES,
}


@torch.no_grad()
def change(module: nn.Module, kind: str) -> nn.Module:
    """Exchange a branch's linears for those of a variant; skips nf4 where nothing encodes it."""
    if kind == "nf4":
        pytest.importorskip("bitsandbytes", reason="needs the extra: pip install -e '.[nf4]'")
    found, replacements = dict(module.named_modules()), {}
    for index, name in enumerate(ALL if kind == "published" else BLOCK):
        linear = found[name]
        if kind in FORMATS and FORMATS[kind].codec is not None:
            replacement = weight_only(linear, kind)
        elif kind == "plain" or (kind == "protected" and name == PROTECTED):
            replacement = None
        elif kind == "mixed" and index % 3 == 0:  # to_q, w1 or w2 alone stays, by block
            replacement = None
        else:
            replacement = int8_linear(linear, name, kind)
        if replacement is not None:
            replacements[name] = replacement
    swap_linears(module, replacements)
    return module


def relative(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.fixture(scope="module")
def latents():
    generator = torch.Generator().manual_seed(3)
    return torch.randn(BATCH, GRID[0] * GRID[1], 64, generator=generator)


@pytest.fixture(scope="module")
def ragged():
    generator = torch.Generator().manual_seed(4)
    return [torch.randn(length, WIDTH, generator=generator) for length in (5, 9)]


@pytest.fixture(scope="module")
def even(ragged):
    return [ragged[1], ragged[1].flip(0)]


@pytest.fixture
def branch(toy):
    """A conditional branch of its own for each test."""
    return copy.deepcopy(toy.transformer)


def prepared(module, texts, **keys):
    engine = EngineBranch(module, **keys)
    engine.tabulate(torch.tensor(TIMES))
    engine.prepare(texts, GRID, BATCH)
    return engine


@pytest.mark.parametrize("kind", KINDS)
def test_every_variant_gives_the_stock_forward(branch, latents, ragged, stock_velocity, kind):
    unchanged = [stock_velocity(branch, ragged, GRID, latents, time) for time in TIMES]
    module = change(branch, kind)
    expected = [stock_velocity(module, ragged, GRID, latents, time) for time in TIMES]
    engine = prepared(module, ragged)
    for step, velocity in enumerate(expected):
        off = relative(velocity, unchanged[step])  # what the variant itself changes
        bound = CODES * off if KINDS[kind] == CODES else EXACT
        assert relative(engine.velocity(latents, step), velocity) < bound
    # the stock forward still runs, on views of the stacked weights
    again = stock_velocity(module, ragged, GRID, latents, TIMES[0])
    assert relative(again, expected[0]) < EXACT
    assert relative(expected[1], expected[0]) > 0.05  # time matters, or the tables were not tested


@pytest.mark.parametrize("captions", ["ragged", "even", None])
@pytest.mark.parametrize("attribute", BRANCHES.values())
def test_captions_of_any_lengths_or_none(
    toy, latents, stock_velocity, request, attribute, captions
):
    module = copy.deepcopy(getattr(toy, attribute))
    texts = None if captions is None else request.getfixturevalue(captions)
    velocity = prepared(module, texts).velocity(latents, 1)
    expected = stock_velocity(module, texts, GRID, latents, TIMES[1])
    assert relative(velocity, expected) < EXACT
    if texts is not None:  # the text is seen, each caption by its own picture
        other = stock_velocity(module, [texts[0], texts[1] + 1], GRID, latents, TIMES[1])
        assert relative(other[0], expected[0]) < EXACT < 1e-3 < relative(other[1], expected[1])


def test_the_unconditional_branch_needs_no_text_projection(branch, latents, stock_velocity):
    expected = stock_velocity(branch, None, GRID, latents, TIMES[0])
    branch.llm_cond_proj = branch.llm_cond_norm = None
    assert relative(prepared(branch, None).velocity(latents, 0), expected) < EXACT


@pytest.mark.parametrize("kind", ["plain", "fused"])
def test_bf16_is_no_further_from_fp32_than_the_stock_forward(
    branch, latents, ragged, stock_velocity, kind
):
    module = change(branch, kind).to(torch.bfloat16)
    module.rotary_emb.inv_freq = module.rotary_emb.inv_freq.float()  # as from_pretrained leaves it
    exact = copy.deepcopy(module).float()
    texts = [text.bfloat16().float() for text in ragged]
    noise = latents.bfloat16().float()
    reference = stock_velocity(exact, texts, GRID, noise, TIMES[1])
    stock = relative(stock_velocity(module, texts, GRID, noise, TIMES[1]), reference)
    ours = relative(prepared(module, texts).velocity(noise, 1), reference)
    assert 1e-4 < ours <= stock


def test_weights_are_in_memory_once(branch):
    change(branch, "protected")
    stacked = prepared(branch, None).blocks[1]
    attention = branch.layers[1].attention
    for index, part in enumerate((attention.to_q, attention.to_k, attention.to_v)):
        for name in ("wq", "ws"):
            whole, rows = getattr(stacked.qkv.linear, name), getattr(part, name)
            start = index * 128 * whole.stride(0)
            assert rows.data_ptr() == whole.data_ptr() + start * whole.element_size()
    assert stacked.down.linear is branch.layers[1].feed_forward.w2


def test_the_next_call_overwrites_the_velocity(branch, latents, ragged):
    engine = prepared(branch, ragged)
    first = engine.velocity(latents, 0)
    kept = first.clone()
    assert engine.velocity(latents, 1).data_ptr() == first.data_ptr()
    assert not torch.equal(first, kept)


def test_latents_of_the_caller_stay(branch, latents, ragged):
    before = latents.clone()
    prepared(branch, ragged).velocity(latents, 0)
    assert torch.equal(latents, before)


def test_layouts_alternate_and_the_oldest_goes(branch, latents, ragged, even, stock_velocity):
    engine = prepared(branch, ragged)
    short = [text[:4] for text in ragged]
    for texts in (even, ragged, even, short, even):
        engine.prepare(texts, GRID, BATCH)
        expected = stock_velocity(branch, texts, GRID, latents, TIMES[2])
        assert relative(engine.velocity(latents, 2), expected) < EXACT
        assert len(engine._layouts) <= LAYOUTS_KEPT
    assert [key[0] for key in engine._layouts] == [(4, 4), (9, 9)]


def test_new_captions_of_the_same_lengths_reuse_the_layout(branch, latents, ragged, stock_velocity):
    engine = prepared(branch, ragged)
    layout = next(iter(engine._layouts.values()))
    others = [-text for text in ragged]
    engine.prepare(others, GRID, BATCH)
    assert list(engine._layouts.values()) == [layout]
    expected = stock_velocity(branch, others, GRID, latents, TIMES[0])
    assert relative(engine.velocity(latents, 0), expected) < EXACT


@pytest.mark.parametrize("times", [(0.25, 0.75, 0.5), (0.75,)])
def test_a_new_schedule_counts_at_once(branch, latents, ragged, stock_velocity, times):
    engine = prepared(branch, ragged)
    engine.velocity(latents, 0)
    engine.tabulate(torch.tensor(times))
    for step, time in enumerate(times):
        expected = stock_velocity(branch, ragged, GRID, latents, time)
        assert relative(engine.velocity(latents, step), expected) < EXACT


def test_a_schedule_of_the_same_length_keeps_the_graphs(branch, ragged, monkeypatch):
    waited = []
    monkeypatch.setattr(torch.cuda, "synchronize", waited.append)
    engine = prepared(branch, ragged)
    (layout,) = engine._layouts.values()
    layout.graph, table = "captured", engine._modulation.blocks
    engine.tabulate(torch.tensor((0.25, 0.75, 0.5)))
    assert layout.graph == "captured" and engine._modulation.blocks is table
    engine.tabulate(torch.tensor((0.25, 0.75)))
    assert layout.graph is None and waited == [CPU]  # a running graph is not destroyed


def test_graphs_are_captured_once_a_layout(branch, latents, ragged, even, monkeypatch):
    """A stand-in for CUDA: capture keeps the function, replay calls it."""
    captured = []

    class Graph:
        def __init__(self, run):
            self.replay = run

    def capture(run, device):
        captured.append(device)
        return Graph(run)

    monkeypatch.setattr(engine_file, "capture", capture)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
    plain = prepared(copy.deepcopy(branch), ragged)
    engine = prepared(branch, ragged, graphs=True)
    assert engine.uses_graphs and not plain.uses_graphs and not captured
    for texts, count in ((ragged, 1), (ragged, 1), (even, 2), (ragged, 2), (None, 3), (even, 4)):
        for one in (plain, engine):
            one.prepare(texts, GRID, BATCH)
        for step in (0, 2):
            velocity = engine.velocity(latents, step)
            assert torch.equal(velocity, plain.velocity(latents, step))
        assert len(captured) == count


def test_release_forgets_everything(branch, latents, ragged):
    engine = prepared(branch, ragged)
    engine.release()
    assert not engine._layouts
    with pytest.raises(ValueError, match="velocity: call tabulate and prepare first"):
        engine.velocity(latents, 0)


def test_arguments_that_do_not_fit_are_refused(branch, latents, ragged):
    engine = EngineBranch(branch)
    with pytest.raises(ValueError, match="velocity: call tabulate and prepare first"):
        engine.velocity(latents, 0)
    with pytest.raises(ValueError, match="prepare: text must have 3 entries, got 2"):
        engine.prepare(ragged, GRID, 3)
    with pytest.raises(ValueError, match=r"text features must be \(n, 416\), got \(9, 415\)"):
        engine.prepare([ragged[0], ragged[1][:, 1:]], GRID, BATCH)
    engine = prepared(branch, ragged)
    with pytest.raises(ValueError, match=r"latents must be \(2, 12, 64\) as prepared, got \(1, 1"):
        engine.velocity(latents[:1], 0)
    for step in (-1, 3):
        with pytest.raises(ValueError, match=f"step must be in 0..2 as tabulated, got {step}"):
            engine.velocity(latents, step)
    with pytest.raises(UserError, match="attention must be one of cudnn, .*, got 'sage'; leave it"):
        EngineBranch(branch, attention="sage")


@pytest.mark.parametrize("where", ["prepare", "velocity"])
def test_a_full_gpu_says_what_to_lower(branch, latents, ragged, monkeypatch, where):
    def fail(*_):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    engine = prepared(branch, ragged)
    monkeypatch.setattr(engine, "_lay_out" if where == "prepare" else "_run", fail)
    match = "the engine, for 2 images of 12 tokens with up to 9 of text, needs more GPU memory .*lo"
    with pytest.raises(UserError, match=match):
        engine.prepare([text[:9] for text in (ragged[1], ragged[1])], GRID, BATCH)
        engine.prepare(ragged, GRID, BATCH)
        engine.velocity(latents, 0)


@pytest.fixture
def on_gpu(toy):
    return copy.deepcopy(toy.transformer).to("cuda", torch.bfloat16)


@pytest.mark.gpu
@pytest.mark.parametrize("kind", KINDS)
def test_a_graph_gives_the_bits_of_the_eager_forward(on_gpu, latents, ragged, even, kind):
    noise = latents.cuda()
    pair = []
    for graphs in (False, True):
        torch.manual_seed(0)  # one kind draws its divisors
        # Changed after copying: what a checkpoint's loader makes has no deepcopy.
        module = change(copy.deepcopy(on_gpu).cpu(), kind).cuda()
        # one backend for both: the measured choice may differ from run to run
        pair.append(prepared(module, ragged, graphs=graphs, attention="efficient"))
    eager, graph = pair
    for texts in (ragged, even, ragged, None, even, ragged):
        for one in (eager, graph):
            one.prepare(texts, GRID, BATCH)
        for step in (0, 2, 1):
            expected = eager.velocity(noise, step).clone()
            assert torch.isfinite(expected).all()
            assert torch.equal(graph.velocity(noise, step), expected)


@pytest.mark.gpu
def test_graphs_share_their_memory(on_gpu, latents, ragged, even):
    engine = prepared(on_gpu, ragged)
    engine.velocity(latents.cuda(), 0)
    engine.prepare(even, GRID, BATCH)
    engine.velocity(latents.cuda(), 0)
    pools = {layout.graph.pool() for layout in engine._layouts.values()}
    assert len(engine._layouts) == 2 and len(pools) == 1
    engine.release()
    engine = prepared(on_gpu, ragged)  # a pool whose graphs are gone is not taken again
    assert torch.isfinite(engine.velocity(latents.cuda(), 0)).all()


@pytest.mark.gpu
def test_velocity_waits_for_nothing(on_gpu, latents, ragged):
    engine, noise = prepared(on_gpu, ragged), latents.cuda()
    engine.velocity(noise, 0)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        engine.velocity(noise, 1)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
def test_a_gpu_agrees_with_the_cpu(toy, latents, ragged, stock_velocity):
    module = copy.deepcopy(toy.transformer)
    expected = stock_velocity(module, ragged, GRID, latents, TIMES[1])
    velocity = prepared(module.cuda(), ragged).velocity(latents.cuda(), 1).cpu()
    # fp32 on both; products and exponentials of another library
    assert relative(velocity, expected) < 1e-4
