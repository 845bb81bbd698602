import json
import stat

import pytest
import torch
from diffusers import AutoencoderKLFlux2, DiffusionPipeline, Ideogram4Transformer2DModel
from safetensors.torch import load_file
from transformers import Qwen3VLModel

from dit8.models.mini import (
    FULL,
    TEXT_TAPS,
    TOY,
    build_pipeline,
    build_text_encoder,
    build_transformer,
    build_vae,
)
from dit8.models.mini_tokenizer import build_tokenizer


def tensors(pipeline):
    for name in ("transformer", "unconditional_transformer", "vae", "text_encoder"):
        for key, value in getattr(pipeline, name).state_dict().items():
            yield f"{name}.{key}", value


def test_weights_depend_on_the_seed_alone():
    torch.manual_seed(5)
    first = dict(tensors(build_pipeline(TOY, seed=0)))
    torch.manual_seed(6)
    again, other = build_pipeline(TOY, seed=0), dict(tensors(build_pipeline(TOY, seed=1)))
    assert all(torch.equal(value, first[name]) for name, value in tensors(again))
    assert any(not torch.equal(other[name], value) for name, value in first.items())


def test_every_block_starts_as_identity_and_the_velocity_as_zero():
    model = build_transformer(TOY)
    for block in model.layers:
        assert not block.adaln_modulation.weight.any() and not block.adaln_modulation.bias.any()
    assert not model.final_layer.linear.weight.any()
    indicator = torch.full((1, 4), 2)
    velocity = model(
        hidden_states=torch.randn(1, 4, 64),
        timestep=torch.tensor([0.3]),
        encoder_hidden_states=torch.zeros(1, 4, TEXT_TAPS * TOY.text_hidden),
        position_ids=torch.zeros(1, 4, 3, dtype=torch.long),
        segment_ids=torch.ones(1, 4, dtype=torch.long),
        indicator=indicator,
        return_dict=False,
    )[0]
    assert not velocity.any()


def test_image_places_have_rotations_of_their_own():
    # 16 x 16 positions above 65536 in fp32: two equal rows would be one place for attention
    model = build_transformer(TOY)
    rows = torch.arange(16)
    places = torch.cartesian_prod(torch.zeros(1, dtype=torch.long), rows, rows)[None] + 65536
    cos, sin = model.rotary_emb(places)
    table = torch.cat([cos, sin], dim=-1)[0]
    distance = torch.cdist(table, table) + 10 * torch.eye(256)
    # 1.37 at theta 100; at the 5 000 000 of the real model neighbours are 0.55 apart
    assert distance.min() > 1.2


def test_the_full_size_is_what_the_documents_say():
    with torch.device("meta"):
        branch, vae = build_transformer(FULL), build_vae(FULL)
        encoder = build_text_encoder(FULL, len(build_tokenizer()))
    parameters = sum(p.numel() for p in branch.parameters())
    assert parameters == pytest.approx(7.8e6, rel=0.02)
    assert branch.config.in_channels == 64 and len(branch.layers) == 8
    assert len(encoder.language_model.layers) == 36
    total = 2 * parameters + sum(p.numel() for m in (vae, encoder) for p in m.parameters())
    assert 2 * total < 40e6 - 1e6  # bf16, with room for configurations and the tokenizer


def test_a_saved_folder_holds_exactly_the_classes_of_ideogram_4(toy_folder):
    pipeline = DiffusionPipeline.from_pretrained(toy_folder, local_files_only=True)
    assert type(pipeline).__name__ == "Ideogram4Pipeline"
    for branch in (pipeline.transformer, pipeline.unconditional_transformer):
        assert type(branch) is Ideogram4Transformer2DModel
    assert type(pipeline.vae) is AutoencoderKLFlux2
    assert type(pipeline.text_encoder) is Qwen3VLModel
    assert len(pipeline.text_encoder.language_model.layers) == 36
    index = json.loads((toy_folder / "model_index.json").read_text())
    assert index["tokenizer"] == ["transformers", "PreTrainedTokenizerFast"]


def test_weights_are_stored_in_bf16_and_latent_statistics_in_fp32(toy_folder):
    for name in ("transformer", "unconditional_transformer", "text_encoder"):
        (path,) = (toy_folder / name).glob("*.safetensors")
        assert {value.dtype for value in load_file(path).values()} == {torch.bfloat16}
    (path,) = (toy_folder / "vae").glob("*.safetensors")
    for name, value in load_file(path).items():
        if value.is_floating_point():
            statistic = name.startswith("bn.")
            assert value.dtype == (torch.float32 if statistic else torch.bfloat16)


def test_statistics_survive_the_saving_exactly(toy):
    # what tests/models/conftest.py drew, in fp32: bf16 would have cleared the low 16 bits
    bits = toy.vae.bn.running_mean.view(torch.int32)
    assert (bits & 0xFFFF).any() and toy.vae.bn.running_mean.std() > 0.1


def test_files_can_be_read_by_all(toy_folder):
    modes = {stat.S_IMODE(path.stat().st_mode) for path in toy_folder.rglob("*") if path.is_file()}
    assert modes == {0o644}
