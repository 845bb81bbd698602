"""What every scorer promises, checked on all that are found in the folder."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from dit8.eval.scorers import SCORERS, get_scorer
from dit8.quant.errors import UserError


@pytest.fixture(params=sorted(SCORERS))
def scorer(request):
    return SCORERS[request.param]


@pytest.fixture
def ready(scorer):
    """A scorer that can run here; those with weights have tests of their own, on tiny ones."""
    if reason := scorer.obstacle():
        pytest.skip(reason)
    return scorer


@pytest.fixture
def sets(make_sample, draw_poster, tmp_path):
    """Return three samples and their references, in different orders, with latents."""
    samples, references = [], []
    rng = np.random.default_rng(1)
    for index, text in enumerate(["RIVER", "STONE", "TIGER"]):
        clean = draw_poster({text: (40, 90 + 20 * index, 40)})
        noisy = np.clip(clean + rng.normal(0, 6, clean.shape), 0, 255).astype(np.uint8)
        for pixels, folder, target in [(noisy, "b", samples), (clean, "a", references)]:
            sample = make_sample(pixels, f"p{index}", index, (text,), folder)
            path = tmp_path / f"{folder}{index}.safetensors"
            save_file({"latents": torch.from_numpy(rng.normal(size=(4, 8)))}, path)
            elements = [{"type": "text", "text": text, "desc": "black serif"}]
            content = {"background": "white", "elements": elements}
            caption = json.dumps({"compositional_deconstruction": content})
            words = {"caption": caption, "idea": f"a poster that says {text}"}
            prompt = dataclasses.replace(sample.prompt, **words)
            target.append(dataclasses.replace(sample, prompt=prompt, latents_path=path))
    return samples, references[::-1]


def test_the_expected_scorers_are_found():
    expected = {"latent_error", "ocr_exact", "ocr_ned", "ocr_strict", "psnr", "seconds", "ssim"}
    expected |= {"ocr_exact_paddle", "ocr_ned_paddle", "ocr_strict_paddle"}
    expected |= {"lpips", "lpips_squeeze", "lpips_vgg"}
    expected |= {"clip_mini", "clipscore", "hpsv2", "hpsv2_v20", "pickscore"}
    assert set(SCORERS) >= expected
    for name, scorer in SCORERS.items():
        assert scorer.name == name
        assert isinstance(scorer.higher_is_better, bool)
        assert isinstance(scorer.needs_reference, bool)
        assert scorer.unit


def test_what_a_scorer_says_about_itself_can_be_recorded(scorer):
    low, high = scorer.bounds
    assert low < high and not np.isnan([low, high]).any()
    assert scorer.preprocessing and "\n" not in scorer.preprocessing


def test_an_obstacle_says_how_to_get_what_is_missing(scorer):
    reason = scorer.obstacle()
    if reason is None:
        json.dumps(scorer.identity(), allow_nan=False)
        return
    assert reason.startswith("not measured: ") and "; get " in reason and "\n" not in reason
    with pytest.raises(UserError, match="not measured: |reading: "):
        scorer.identity()


def test_values_are_finite_float64_and_do_not_depend_on_order_or_company(ready, sets):
    scorer, (samples, references) = ready, sets
    values = scorer.score(samples, references)
    assert values.dtype == np.float64 and values.shape == (3,) and np.isfinite(values).all()
    assert np.array_equal(scorer.score(samples[::-1], references), values[::-1])
    alone = [scorer.score([sample], references)[0] for sample in samples]
    assert np.array_equal(alone, values)
    assert scorer.score([], references).shape == (0,)
    low, high = scorer.bounds
    assert (low <= values).all() and (values <= high).all()


def test_a_scorer_with_a_reference_needs_every_partner(scorer, sets):
    samples, references = sets
    if not scorer.needs_reference:
        if reason := scorer.obstacle():
            pytest.skip(reason)
        assert np.array_equal(scorer.score(samples), scorer.score(samples, references))
        return
    with pytest.raises(UserError, match=rf"{scorer.name}: needs the pictures of a reference"):
        scorer.score(samples)
    with pytest.raises(UserError, match=rf"{scorer.name}: 1 of 3 .* p2 \(seed 2\)"):
        scorer.score(samples, references[1:])


def test_an_unknown_scorer_is_named():
    with pytest.raises(UserError, match=r"scorer 'oct' does not exist, expected one of clip_mini"):
        get_scorer("oct")
