import math
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter

pytest.importorskip("open_clip", reason="needs the extra: pip install -e .[clip]")

from dit8.eval.score_text import content_in_words  # noqa: E402
from dit8.models.clip_mini import CONTEXT, TOY, build_clip  # noqa: E402
from dit8.models.training import clip  # noqa: E402
from dit8.models.training.branch import Average  # noqa: E402
from dit8.models.training.clip import (  # noqa: E402
    build_optimizers,
    clip_loss,
    gaussian_blur,
    train_clip,
)
from dit8.models.training.clip_stream import Reservoir, stream  # noqa: E402
from dit8.models.training.muon import StackedMuon  # noqa: E402


class Fixed(torch.nn.Module):
    """A model whose features are its inputs."""

    def __init__(self, scale: float):
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.tensor(math.log(scale)))

    def encode_image(self, pictures, normalize):
        assert normalize
        return pictures

    encode_text = encode_image


def test_the_loss_is_clips_with_more_wrong_answers():
    image = torch.nn.functional.normalize(torch.randn(5, 8, dtype=torch.float64), dim=1)
    text = torch.nn.functional.normalize(torch.randn(3, 8, dtype=torch.float64), dim=1)
    loss, right = clip_loss(Fixed(7.0), image, text)
    s = 7 * (text @ image.T).numpy()
    of_texts = np.mean([np.log(np.exp(s[i]).sum()) - s[i, i] for i in range(3)])
    of_pictures = np.mean([np.log(np.exp(s[:, i]).sum()) - s[i, i] for i in range(3)])
    # features pass through fp32
    assert float(loss.detach()) == pytest.approx((of_texts + of_pictures) / 2, rel=1e-5)
    assert float(right) == pytest.approx(np.mean(s.argmax(1) == np.arange(3)))


def test_blur_is_pillows():
    pixels = np.random.default_rng(0).integers(0, 256, (64, 80, 3), dtype=np.uint8)
    signal = torch.from_numpy(pixels.astype(np.float32)).permute(2, 0, 1)[None]
    ours = gaussian_blur(signal, 3.0)[0].permute(1, 2, 0).numpy()
    theirs = np.asarray(Image.fromarray(pixels).filter(ImageFilter.GaussianBlur(3.0)))
    # Pillow takes box filters for a Gaussian, rounds to codes and treats the edge otherwise
    difference = np.abs(ours - theirs)[12:-12, 12:-12]
    assert difference.max() < 4 and difference.mean() < 0.8
    flat = torch.full((1, 3, 40, 40), 0.25)
    assert torch.allclose(gaussian_blur(flat, 5.0), flat, atol=1e-6)  # the edge stays


def test_muon_gets_the_blocks_matrices_and_adamw_the_rest():
    model = build_clip(TOY, 0)
    muon, adamw = build_optimizers(model, 1e-3)
    names = {id(p): name for name, p in model.named_parameters()}
    of_muon = {names[id(p)] for group in muon.param_groups for p in group["params"]}
    of_adamw = {names[id(p)] for group in adamw.param_groups for p in group["params"]}
    assert isinstance(muon, StackedMuon)
    assert of_muon | of_adamw == set(names.values()) and not of_muon & of_adamw
    assert len(of_muon) == 4 * (TOY.vision_layers + TOY.text_layers)
    assert all(".resblocks." in name for name in of_muon)


@pytest.fixture
def run(clock):
    clock(clip)  # a second a look at the clock

    def train(model, **changes):
        seen = SimpleNamespace(log=[], pauses=[])

        def pause(elapsed, step):
            seen.pauses.append((elapsed, step))
            for _ in range(50):  # an evaluation of 50 s
                clip.time.monotonic()

        options = {
            **{"seconds": 6.0, "elapsed": 0.0, "first_step": 0, "groups": 2, "blurred": 3},
            **{"lr": 3e-3, "cool_down": 0.4, "every_seconds": 2.0, "compile_model": False},
        }
        steps = train_clip(
            model,
            Average(model),
            stream(0, 2, 0, content_in_words),
            Reservoir(2, CONTEXT, torch.device("cpu")),
            log=lambda **row: seen.log.append(row),
            at_pause=pause,
            **options | changes,
        )
        return steps, seen

    return train


def test_training_stops_with_its_budget_and_pauses_on_the_way(run):
    steps, seen = run(build_clip(TOY, 0))
    # neither the first step counts, which compiles, nor do the pauses
    assert steps == 7
    assert seen.pauses == [(2.0, 3), (4.0, 5), (6.0, 7)]
    (row,) = seen.log
    assert row["step"] == 7 and row["samples"] == 7 * 16 and 0 <= row["right"] <= 1
    # seven batches in the six seconds after the first step
    assert row["samples_per_s"] == pytest.approx(7 * 16 / 6) and math.isfinite(row["loss"])


def test_a_resumed_training_does_what_is_left(run):
    steps, seen = run(build_clip(TOY, 0), elapsed=5.0, first_step=40)
    assert steps == 42 and seen.pauses == [(6.0, 42)]


def test_the_loss_falls_on_a_batch_that_stays(run, monkeypatch):
    blocks = stream(0, 2, 0, content_in_words)
    same = next(blocks)
    model = build_clip(TOY, 0)
    monkeypatch.setattr(Reservoir, "put", lambda self, _: setattr(self, "filled", self.groups))
    monkeypatch.setattr(Reservoir, "draw", lambda self, groups: same)
    monkeypatch.setattr(clip, "learning_rate", lambda *_: 3e-3)  # no warm-up of 200 steps
    losses = []
    genuine = clip.clip_loss

    def watched(*arguments):
        loss, right = genuine(*arguments)
        losses.append(float(loss.detach()))
        return loss, right

    monkeypatch.setattr(clip, "clip_loss", watched)
    run(model, seconds=16.0, every_seconds=100.0)
    assert losses[0] > 2.4  # log 16 is chance
    assert np.mean(losses[-3:]) < 0.75 * losses[0]


def test_the_scale_stays_within_clips_limit(run):
    model = build_clip(TOY, 0)
    with torch.no_grad():
        model.logit_scale.fill_(9.0)
    _, seen = run(model, seconds=1.0)
    assert 99.9 < seen.log[-1]["scale"] < 100.001  # from exp(9) = 8103; a step moves it a little
