from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from dit8.eval.scorers import get_scorer
from dit8.models.types import Prompt, Sample
from dit8.quant.errors import UserError


def sample(path: Path | None) -> Sample:
    return Sample(Prompt("p", "", (), 4), Path("none.png"), path, 0.0)


@pytest.fixture
def score(tmp_path):
    def run(latents: torch.Tensor, reference: torch.Tensor) -> float:
        save_file({"latents": latents}, tmp_path / "a.safetensors")
        save_file({"latents": reference}, tmp_path / "b.safetensors")
        files = [sample(tmp_path / name) for name in ("a.safetensors", "b.safetensors")]
        return float(get_scorer("latent_error").score(files[:1], files[1:])[0])

    return run


def test_the_error_is_relative_to_the_reference(score):
    reference = torch.tensor([[3.0, 4.0]])
    assert score(torch.tensor([[3.0, 4.5]]), reference) == 0.1
    assert score(reference, reference) == 0.0
    assert score(2 * reference, reference) == 1.0
    assert score(reference, 2 * reference) == 0.5


def test_the_difference_is_taken_in_fp64(score):
    # 1 + 2^-30 exists in fp64 only; in fp32 the error would be 0
    latents = torch.tensor([1 + 2**-30], dtype=torch.float64)
    assert score(latents, torch.ones(1, dtype=torch.float32)) == 2**-30


def test_bfloat16_latents_are_read(score):
    assert score(torch.tensor([1.5], dtype=torch.bfloat16), torch.ones(1)) == 0.5


def test_bad_latents_are_named(score, tmp_path):
    one = torch.ones(2, 3)
    with pytest.raises(UserError, match=r"a.safetensors is \(2, 3\), expected \(3, 2\) as in .*b"):
        score(one, one.T.contiguous())
    with pytest.raises(UserError, match=r"b.safetensors is all zeros"):
        score(one, 0 * one)
    with pytest.raises(UserError, match=r"a.safetensors holds non-finite values"):
        score(one * torch.nan, one)


def test_missing_and_damaged_files_are_named(tmp_path):
    scorer = get_scorer("latent_error")
    with pytest.raises(UserError, match=r"no latents were saved for prompt p \(seed 4\)"):
        scorer.score([sample(None)], [sample(None)])
    missing = sample(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match=r"cannot read tensor 'latents' of .*none.safetensors"):
        scorer.score([missing], [missing])
    save_file({"other": torch.ones(1)}, tmp_path / "other.safetensors")
    other = sample(tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=r"cannot read tensor 'latents' of .*other.safetensors"):
        scorer.score([other], [other])
    (tmp_path / "cut.safetensors").write_bytes(b"\x08\x00")
    cut = sample(tmp_path / "cut.safetensors")
    with pytest.raises(UserError, match=r"cannot read tensor 'latents' of .*cut.safetensors"):
        scorer.score([cut], [cut])
