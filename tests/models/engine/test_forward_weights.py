"""What an engine does when the module's weights change or a preparation fails under it."""

import copy

import pytest
import torch
from torch import nn

from dit8.models.engine import forward as engine_file
from dit8.models.engine.forward import EngineBranch
from dit8.quant.errors import UserError
from dit8.quant.formats.table import FORMATS
from dit8.quant.linear import WeightOnlyLinear, swap_linears

GRID, TIME = (2, 3), 0.5
FULL = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
CHANGED = "the engine needs the linears that it was made on, got others or moved ones in layers"


@pytest.fixture
def branch(toy):
    return copy.deepcopy(toy.transformer)


@pytest.fixture(scope="module")
def latents():
    return torch.randn(1, 6, 64, generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def captions():
    generator = torch.Generator().manual_seed(6)
    return [torch.randn(length, 416, generator=generator) for length in (5, 7)]


def made(module, **keys):
    engine = EngineBranch(module, **keys)
    engine.tabulate(torch.tensor([TIME]))
    return engine


def exchange(branch):
    linear = branch.layers[1].feed_forward.w2  # as a LoRA wraps one
    branch.layers[1].feed_forward.w2 = nn.Sequential(linear, nn.Identity())


def move(branch):
    for parameter in branch.layers[1].parameters():
        parameter.data = parameter.data.clone()


def cast(branch):
    branch.layers[1].bfloat16()


def stack_again(branch):
    EngineBranch(branch)


@pytest.mark.parametrize("change", [exchange, move, cast, stack_again])
def test_an_engine_on_weights_of_the_past_is_refused(branch, latents, captions, change):
    engine = made(branch)
    engine.prepare(captions[:1], GRID, 1)
    engine.velocity(latents, 0)
    change(branch)
    with pytest.raises(UserError, match=rf"{CHANGED}\.[01]; make a new engine after a LoRA"):
        engine.prepare(captions[:1], GRID, 1)
    with pytest.raises(ValueError, match="velocity: call tabulate and prepare first"):
        engine.velocity(latents, 0)


def test_weights_may_be_loaded_in_place(branch, latents, captions, stock_velocity):
    engine = made(branch)
    state = {name: 1.5 * tensor for name, tensor in branch.state_dict().items()}
    branch.load_state_dict(state)
    engine.tabulate(torch.tensor([TIME]))
    engine.prepare(captions[:1], GRID, 1)
    expected = stock_velocity(branch, captions[:1], GRID, latents, TIME)
    # fp32 sums in another order
    assert (engine.velocity(latents, 0) - expected).norm() / expected.norm() < 1e-5


def test_a_graph_goes_when_its_weights_have_moved(branch, latents, captions, monkeypatch):
    """A weight that is not stacked may move; a graph would read on where it was."""
    codec, replacements = FORMATS["nf4"].codec, {}
    for name, linear in branch.layers.named_modules():
        if type(linear) is nn.Linear and "adaln" not in name:
            weight = linear.weight.detach()
            stored = WeightOnlyLinear(codec, codec.encode(weight), tuple(weight.shape))
            replacements[f"layers.{name}"] = stored
    swap_linears(branch, replacements)
    captured, dropped = [], []

    class Graph:
        def __init__(self, run, device):
            captured.append(device)
            self.replay = run

    monkeypatch.setattr(engine_file, "capture", Graph)
    monkeypatch.setattr(torch.cuda, "synchronize", dropped.append)
    engine = made(branch, graphs=True)

    def draw():
        engine.prepare(captions[:1], GRID, 1)
        return engine.velocity(latents, 0).clone()

    first = draw()
    assert torch.equal(draw(), first) and len(captured) == 1 and not dropped
    branch._apply(torch.clone)
    assert torch.equal(draw(), first) and len(captured) == 2 and len(dropped) == 1


def test_a_failed_preparation_is_not_drawn(branch, latents, captions, monkeypatch):
    engine = made(branch)
    engine.prepare(captions[:1], GRID, 1)

    def fail(*_):
        raise FULL

    with monkeypatch.context() as full:
        full.setattr(engine, "_project_text", fail)
        with pytest.raises(UserError, match="the engine, for 1 images of 6 tokens with up to 7 of"):
            engine.prepare(captions[1:], GRID, 1)
    with pytest.raises(ValueError, match="velocity: call tabulate and prepare first"):
        engine.velocity(latents, 0)
    engine.prepare(captions[1:], GRID, 1)
    assert engine.velocity(latents, 0).isfinite().all()


@pytest.mark.parametrize(
    ("function", "match"),
    [
        ("Block", "stacking a branch's weights needs more GPU memory than is free; use hardware="),
        ("tabulate_modulation", "adaLN of 1 steps needs more GPU memory than is free; lower steps"),
    ],
)
def test_a_full_gpu_is_one_sentence_from_the_start(branch, monkeypatch, function, match):
    class Full:
        def __call__(self, *_):
            raise FULL

        of = __call__

    monkeypatch.setattr(engine_file, function, Full())
    with pytest.raises(UserError, match=match):
        made(branch)
