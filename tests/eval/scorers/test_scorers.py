"""What every scorer promises, checked on all that are found in the folder."""

import dataclasses
import importlib.util

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from eval.scorers import SCORERS, get_scorer
from quant.errors import UserError


@pytest.fixture(params=sorted(SCORERS))
def scorer(request):
    if request.param.startswith("ocr_") and importlib.util.find_spec("rapidocr") is None:
        pytest.skip("needs the extra: pip install -e .[ocr]")
    return SCORERS[request.param]


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
            target.append(dataclasses.replace(sample, latents_path=path))
    return samples, references[::-1]


def test_the_expected_scorers_are_found():
    expected = {"latent_error", "ocr_exact", "ocr_ned", "ocr_strict", "psnr", "seconds", "ssim"}
    assert set(SCORERS) >= expected
    for name, scorer in SCORERS.items():
        assert scorer.name == name
        assert isinstance(scorer.higher_is_better, bool)
        assert isinstance(scorer.needs_reference, bool)
        assert scorer.unit


def test_values_are_finite_float64_and_do_not_depend_on_order_or_company(scorer, sets):
    samples, references = sets
    values = scorer.score(samples, references)
    assert values.dtype == np.float64 and values.shape == (3,) and np.isfinite(values).all()
    assert np.array_equal(scorer.score(samples[::-1], references), values[::-1])
    alone = [scorer.score([sample], references)[0] for sample in samples]
    assert np.array_equal(alone, values)
    assert scorer.score([], references).shape == (0,)


def test_a_scorer_with_a_reference_needs_every_partner(scorer, sets):
    samples, references = sets
    if not scorer.needs_reference:
        assert np.array_equal(scorer.score(samples), scorer.score(samples, references))
        return
    with pytest.raises(UserError, match=rf"{scorer.name}: needs the pictures of a reference"):
        scorer.score(samples)
    with pytest.raises(UserError, match=rf"{scorer.name}: 1 of 3 .* p2 \(seed 2\)"):
        scorer.score(samples, references[1:])


def test_an_unknown_scorer_is_named():
    with pytest.raises(UserError, match=r"scorer 'oct' does not exist, expected one of latent_err"):
        get_scorer("oct")
