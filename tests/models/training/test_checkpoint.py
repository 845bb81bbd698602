import json

import pytest
import torch
from safetensors.torch import load_file

from dit8.models.mini import FULL, TOY, build_text_encoder, build_transformer, build_vae
from dit8.models.mini_tokenizer import build_tokenizer
from dit8.models.training.checkpoint import (
    load_state,
    load_weights,
    save_state,
    save_weights,
)

MIB = 2**20
BN = ("bn.",)


@pytest.fixture
def vae():
    model = build_vae(TOY)
    model.bn.running_mean.normal_()
    model.bn.running_var.uniform_(0.5, 2)
    return model


def test_weights_come_back_as_bf16_and_statistics_exactly(vae, tmp_path):
    path = tmp_path / "vae.safetensors"
    save_weights(vae, path, keep_fp32=BN)
    again = build_vae(TOY)
    load_weights(again, path)
    for name, value in vae.state_dict().items():
        kept = name.startswith(BN) or not value.is_floating_point()
        expected = value if kept else value.to(torch.bfloat16).to(value.dtype)
        assert torch.equal(again.state_dict()[name], expected)
    assert again.dtype == torch.float32
    assert [file.name for file in tmp_path.iterdir()] == ["vae.safetensors"]


def test_what_was_loaded_is_saved_without_a_further_change(tmp_path):
    first, second = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    torch.manual_seed(1)
    save_weights(build_transformer(TOY), first)
    again = build_transformer(TOY)
    load_weights(again, first)
    save_weights(again, second)
    assert first.read_bytes() == second.read_bytes()


def test_another_models_weights_are_refused(vae, tmp_path):
    save_weights(vae, tmp_path / "vae.safetensors")
    with pytest.raises(RuntimeError, match="Missing key"):
        load_weights(build_transformer(TOY), tmp_path / "vae.safetensors")


def test_an_interrupted_save_keeps_the_old_file(vae, tmp_path, monkeypatch):
    path = tmp_path / "vae.safetensors"
    save_weights(vae, path)
    before = path.read_bytes()

    def fail(tensors, partial):
        partial.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr("dit8.models.training.checkpoint.save_file", fail)
    vae.bn.running_mean.add_(1)
    with pytest.raises(OSError, match="disk full"):
        save_weights(vae, path)
    assert path.read_bytes() == before


def test_state_comes_back_and_starts_fresh(tmp_path):
    assert load_state(tmp_path) == {"stage": "vae", "elapsed": 0.0, "step": 0}
    state = {"stage": "conditional", "elapsed": 110.25, "step": 1234}
    save_state(tmp_path, {"stage": "vae", "elapsed": 1.0, "step": 1})
    save_state(tmp_path, state)
    assert load_state(tmp_path) == state
    assert [file.name for file in tmp_path.iterdir()] == ["state.json"]
    assert json.loads((tmp_path / "state.json").read_text()) == state


def stored_bytes(module, keep_fp32=()):
    """Bytes of the tensors as save_weights stores them, without allocating any."""
    total = 0
    for name, value in module.state_dict().items():
        bf16 = value.is_floating_point() and not name.startswith(keep_fp32)
        total += value.numel() * (2 if bf16 else value.element_size())
    return total


def test_stored_bytes_are_those_of_the_file(vae, tmp_path):
    path = tmp_path / "vae.safetensors"
    save_weights(vae, path, keep_fp32=BN)
    header = path.stat().st_size - stored_bytes(vae, BN)
    assert 0 < header < 64 * 1024
    assert sum(value.nbytes for value in load_file(path).values()) == stored_bytes(vae, BN)


def test_a_full_checkpoint_stays_below_its_limits():
    with torch.device("meta"):
        branch = stored_bytes(build_transformer(FULL))
        encoder = stored_bytes(build_text_encoder(FULL, len(build_tokenizer())))
        vae = stored_bytes(build_vae(FULL), BN)
    files = [vae, encoder, branch, branch, branch]  # both averages and the live weights
    header = 64 * 1024  # of each file, see above
    assert max(files) + header < 16 * MIB
    assert sum(files) + 5 * header <= 56 * MIB
    assert branch > 12 * MIB  # else FULL is no longer the size these limits were made for
