import contextlib

import pytest
import torch

from dit8.models.engine.sampling import Clock
from dit8.models.generate import denoise
from dit8.models.random_ideogram4 import build_random
from dit8.models.types import Prompt
from dit8.quant.errors import UserError
from dit8.quant.int8 import relative_error
from dit8.scripts import model_paths
from dit8.scripts.model_paths import STOCK_SLOTS, open_path, sampler_at

CPU = torch.device("cpu")
TOKENS, SIZE_PX, STEPS = 5, 48, 4


@pytest.fixture(autouse=True)
def uncompiled(monkeypatch):
    """Leave the blocks as they are: compiling takes 20 s on a CPU."""
    asked = []

    def compiled(block, **options):
        asked.append(options)
        return block

    monkeypatch.setattr(torch, "compile", compiled)
    return asked


@pytest.fixture
def branches():
    return build_random(2, full=False, dtype=torch.float32, device=CPU, seed=0)


@pytest.fixture
def text():
    return torch.randn(TOKENS, 208, generator=torch.Generator().manual_seed(3))


def latents_of(path):
    sampler = sampler_at(SIZE_PX, STEPS, path.slots)
    prompt = Prompt("a", "{}", (), 0)
    return denoise(path.pipeline, [prompt], sampler, decode=False, engine=path.runner)[1]


def test_all_paths_draw_the_same_image(branches, text, monkeypatch):
    monkeypatch.setattr(model_paths, "STOCK_SLOTS", 9)  # padding, but not 2048 rows of it
    names = ("stock", "compiled", "bf16")
    stock, compiled, engine = (latents_of(open_path(name, branches, text)) for name in names)
    assert stock.shape == (1, 9, 16)
    # fp32 throughout: sums in another order, over 4 steps with guidance 7
    assert relative_error(stock, compiled) < 1e-5
    assert relative_error(stock, engine) < 1e-5
    other = open_path("stock", branches, text + 1.0)
    assert relative_error(stock, latents_of(other)) > 1e-3  # so the text does matter


def test_stock_is_padded_to_the_pipelines_default(branches, text):
    assert open_path("stock", branches, text).slots == STOCK_SLOTS == 2048
    assert open_path("compiled", branches, text).slots == TOKENS


def test_compiled_blocks_see_no_mask_and_the_branches_stay(branches, text, uncompiled, monkeypatch):
    masks = []
    block = branches["conditional"].layers[0]
    forward = block.forward
    monkeypatch.setattr(
        block, "forward", lambda h, mask, *rest: (masks.append(mask), forward(h, mask, *rest))[1]
    )
    path = open_path("compiled", branches, text)
    assert uncompiled == [{"fullgraph": True, "dynamic": False}] * 4  # 2 branches of 2 blocks
    latents_of(path)
    assert masks == [None] * STEPS
    assert branches["conditional"].layers[0] is block
    assert path.pipeline.transformer.final_layer is branches["conditional"].final_layer


def test_compiled_runs_under_the_backend_that_measured_fastest(branches, text, monkeypatch):
    entered = []

    @contextlib.contextmanager
    def kernel(backend):
        entered.append(backend)
        yield

    asked = []
    monkeypatch.setattr(model_paths, "sdpa_kernel", kernel)
    monkeypatch.setattr(model_paths, "choose_attention", lambda *a: (asked.append(a), "math")[1])
    path = open_path("compiled", branches, text)
    path.draw(0, SIZE_PX, STEPS, Clock(CPU))
    assert entered == [model_paths.BACKENDS["math"]]
    assert asked == [(1, 9 + TOKENS, 2, 64, torch.float32, CPU)]


@pytest.mark.parametrize("name", ["stock", "bf16"])
def test_a_drawing_has_every_step_but_the_first(name, branches, text, monkeypatch):
    monkeypatch.setattr(model_paths, "STOCK_SLOTS", 9)
    path = open_path(name, branches, text)
    seen, times = [], iter((10.0, 13.5))
    drawing = path.draw(0, SIZE_PX, STEPS, Clock(CPU), seen.append, now=lambda: next(times))
    assert seen == [0, 1, 2, 3] and len(drawing.step_ms) == STEPS - 1
    assert drawing.seconds == 3.5 and all(ms > 0 for ms in drawing.step_ms)
    times = iter((0.0, 1.0))
    assert path.draw(1, SIZE_PX, 3, Clock(CPU), now=lambda: next(times)).seconds == 1.0


def test_values_that_are_not_finite_are_no_measurement(branches, text):
    path = open_path("bf16", branches, text)
    branches["unconditional"].layers[1].attention_norm2.weight[3] = torch.nan
    with pytest.raises(UserError, match="bf16 through dit8 must give finite latents at 48 px"):
        path.draw(0, SIZE_PX, STEPS, Clock(CPU))


def test_release_lets_an_engine_start_anew(branches, text):
    path = open_path("bf16", branches, text)
    before = latents_of(path)
    path.release()
    assert torch.equal(latents_of(path), before)
    assert all(branch._layouts for branch in path.runner.branches.values())
    path.release()
    assert not any(branch._layouts for branch in path.runner.branches.values())
