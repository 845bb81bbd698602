import json
from types import SimpleNamespace

import pytest
import torch
from diffusers import Ideogram4Transformer2DModel
from safetensors.torch import save_file

from dit8.quant.architectures.ideogram4 import BRANCHES, architecture, branch_modules, source_sha256
from dit8.quant.errors import UserError


@pytest.fixture
def branch():
    torch.manual_seed(0)
    return Ideogram4Transformer2DModel(
        in_channels=16,
        num_layers=2,
        attention_head_dim=64,
        num_attention_heads=2,
        intermediate_size=256,
        adaln_dim=64,
        llm_features_dim=208,
        mrope_section=(12, 10, 10),
    )


def test_architecture_covers_every_linear_and_says_which_are_the_rest(branch):
    linears = {n for n, module in branch.named_modules() if isinstance(module, torch.nn.Linear)}
    rest = {name for name in linears if "adaln" in name} | {
        "input_proj",
        "t_embedding.mlp_in",
        "t_embedding.mlp_out",
        "final_layer.linear",
    }
    described = architecture(2)
    assert set(described.linears) == linears
    roles = {role: [] for role in ("block", "text", "rest")}
    for group in described.groups:
        roles[group.role] += group.targets
    assert set(roles["rest"]) == rest
    assert roles["text"] == ["llm_cond_proj"]
    assert len(roles["block"]) == 2 * 7


def test_every_linear_has_one_group_and_one_stored_name():
    described = architecture(3)
    assert len(described.linears) == len(set(described.linears))
    parts = [part for linear in described.stored for part in linear.parts]
    assert sorted(parts) == sorted(described.linears)
    for linear in described.stored:
        assert set(linear.parts) <= set(described.group_of(linear).targets)
    assert described.stored_in(described.groups[1]) == described.stored[2:5:2]  # w1, w3


def test_group_widths_agree_with_the_model(branch):
    tensors = branch.state_dict()
    for group in architecture(2).groups:
        assert (group.source is None) == (group.role == "rest")
        if group.source is not None:
            outputs = tensors[f"{group.source}.weight"].shape[0]
            assert {tensors[f"{name}.weight"].shape[1] for name in group.targets} == {outputs}


def test_qkv_keeps_the_order_of_the_published_rows():
    stored = {linear.name: linear.parts for linear in architecture(1).stored}
    block = "layers.0.attention"
    assert stored[f"{block}.qkv"] == (f"{block}.to_q", f"{block}.to_k", f"{block}.to_v")
    assert stored[f"{block}.o"] == (f"{block}.to_out.0",)


def test_real_model_has_238_block_linears_and_211_stored_ones_per_branch():
    described = architecture(34)
    assert sum(len(g.targets) for g in described.groups if g.role == "block") == 238
    assert len(described.stored) == 211
    assert len(described.down_projections) == 34


def test_architecture_refuses_no_layers():
    with pytest.raises(ValueError, match=r"num_layers must be >= 1, got 0"):
        architecture(0)


def test_branch_modules_names_what_is_missing(branch):
    pipeline = SimpleNamespace(transformer=branch, unconditional_transformer=None)
    with pytest.raises(UserError, match="unconditional_transformer.*load an Ideogram4Pipeline"):
        branch_modules(pipeline)
    pipeline.unconditional_transformer = branch
    assert list(branch_modules(pipeline)) == list(BRANCHES)


def write_model(folder, value):
    for attribute in BRANCHES.values():
        (folder / attribute).mkdir(parents=True)
        (folder / attribute / "config.json").write_text(json.dumps({"num_layers": 2}))
        save_file({"w": torch.full((4,), value)}, folder / attribute / "model.safetensors")
    return folder


def test_source_sha256_follows_the_bytes_not_the_place(tmp_path):
    first = source_sha256(write_model(tmp_path / "a", 1.0))
    assert source_sha256(write_model(tmp_path / "b", 1.0)) == first
    assert source_sha256(write_model(tmp_path / "c", 2.0)) != first
    assert len(first) == 64


def test_source_sha256_refuses_a_folder_without_weights(tmp_path):
    write_model(tmp_path, 1.0)
    (tmp_path / "unconditional_transformer" / "model.safetensors").unlink()
    with pytest.raises(UserError, match="unconditional_transformer must hold config.json"):
        source_sha256(tmp_path)
