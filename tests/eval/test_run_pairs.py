from pathlib import Path

import pytest

from dit8.eval.run import name_keys, pair_samples
from dit8.models.types import Prompt, Sample
from dit8.quant.errors import UserError


def sample(prompt_id: str, seed: int = 0, seconds: float = 0.0) -> Sample:
    return Sample(Prompt(prompt_id, "", (), seed), Path("x.png"), None, seconds)


def test_partners_are_found_by_id_and_seed_not_by_position():
    samples = [sample("a"), sample("b", 1), sample("b", 2)]
    references = [sample(p, s, 9.0) for p, s in [("c", 0), ("b", 2), ("b", 1), ("a", 0)]]
    pairs = pair_samples(samples, references, "psnr")
    assert [s for s, _ in pairs] == samples
    assert [r.key for _, r in pairs] == [s.key for s in samples]
    assert all(r.seconds == 9.0 for _, r in pairs)


def test_a_missing_partner_is_named():
    with pytest.raises(UserError, match=r"psnr: 1 of 2 samples have no reference, b \(seed 7\);"):
        pair_samples([sample("a"), sample("b", 7)], [sample("a"), sample("b", 8)], "psnr")
    with pytest.raises(UserError, match=r"ssim: needs the pictures of a reference variant"):
        pair_samples([sample("a")], None, "ssim")


def test_two_references_with_one_key_are_refused():
    with pytest.raises(ValueError, match=r"references must have unique"):
        pair_samples([sample("a")], [sample("a"), sample("a")], "psnr")


def test_long_lists_of_keys_are_cut():
    keys = [("d", 0), ("c", 0), ("b", 0), ("a", 1)]
    assert name_keys(keys) == "a (seed 1), b (seed 0), c (seed 0), ..."
