import pytest
import torch
from diffusers import FluxTransformer2DModel
from torch import nn

from dit8.quant.architectures.flux import architecture

DOUBLE, SINGLE = 2, 3


def make_flux(guidance=False):
    torch.manual_seed(0)
    return FluxTransformer2DModel(
        in_channels=16,
        num_layers=DOUBLE,
        num_single_layers=SINGLE,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=24,
        pooled_projection_dim=20,
        guidance_embeds=guidance,
        axes_dims_rope=(4, 6, 6),
    ).eval()


@torch.no_grad()
def read_inputs(model, guidance):
    """Run the model once; return linear -> the activation that it read."""
    read = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear):
            module.register_forward_pre_hook(lambda _, x, name=name: read.update({name: x[0]}))
    model(
        hidden_states=torch.randn(1, 6, 16),
        encoder_hidden_states=torch.randn(1, 4, 24),
        pooled_projections=torch.randn(1, 20),
        timestep=torch.tensor([0.5]),
        guidance=torch.tensor([3.5]) if guidance else None,
        img_ids=torch.arange(18.0).view(6, 3),
        txt_ids=torch.zeros(4, 3),
    )
    return read


@pytest.mark.parametrize("guidance", [False, True])
def test_every_linear_is_in_one_group_and_stored_under_its_own_name(guidance):
    linears = {n for n, m in make_flux(guidance).named_modules() if isinstance(m, nn.Linear)}
    described = architecture(DOUBLE, SINGLE, guidance=guidance)
    assert len(described.linears) == len(set(described.linears))
    assert set(described.linears) == linears
    assert [(s.name, s.parts) for s in described.stored] == [(n, (n,)) for n in described.linears]
    names = [group.name for group in described.groups]
    assert len(names) == len(set(names))


def test_the_linears_of_a_group_read_one_tensor_and_no_two_groups_of_a_block_share_one():
    read = read_inputs(make_flux(True), True)
    described = architecture(DOUBLE, SINGLE, guidance=True)
    blocks = [group for group in described.groups if group.role == "block"]
    for group in blocks:
        assert all(read[target] is read[group.targets[0]] for target in group.targets)
    for a in blocks:
        for b in blocks:
            if a is not b:
                assert read[a.targets[0]] is not read[b.targets[0]], (a.name, b.name)


def test_down_projections_are_the_second_linears_of_the_feed_forwards_in_layer_order():
    model, described = make_flux(), architecture(DOUBLE, SINGLE)
    double, single = "transformer_blocks", "single_transformer_blocks"
    assert described.down_projections == (
        f"{double}.0.ff.net.2",
        f"{double}.0.ff_context.net.2",
        f"{double}.1.ff.net.2",
        f"{double}.1.ff_context.net.2",
        *(f"{single}.{index}.proj_out" for index in range(SINGLE)),
    )
    for name in described.down_projections:
        weight = model.get_submodule(name).weight
        assert weight.shape == (32, 128 if name.startswith(double) else 32 + 128)
    assert set(described.down_projections) <= set(described.linears)


def test_nothing_absorbs_a_scale_and_all_rows_count():
    described = architecture(1, 1)
    assert {(g.source, g.source_kind) for g in described.groups} == {(None, "none")}
    assert described.indicator_argument is None


def test_roles_follow_the_rows_that_a_linear_reads():
    described = architecture(1, 1)
    rest = {group.name for group in described.groups if group.role == "rest"}
    assert rest == {
        "x_embedder",
        "context_embedder",
        "proj_out",
        "norm_out.linear",
        "transformer_blocks.0.norm1.linear",
        "transformer_blocks.0.norm1_context.linear",
        "single_transformer_blocks.0.norm.linear",
        *(f"time_text_embed.timestep_embedder.linear_{i}" for i in (1, 2)),
        *(f"time_text_embed.text_embedder.linear_{i}" for i in (1, 2)),
    }
    assert {group.role for group in described.groups} == {"block", "rest"}


def test_flux_dev_has_504_linears_and_76_down_projections():
    described = architecture(19, 38, guidance=True)
    assert len(described.linears) == 19 * 14 + 38 * 6 + 10
    assert len(described.down_projections) == 2 * 19 + 38


@pytest.mark.parametrize("counts", [(0, 0), (-1, 2), (2, -1)])
def test_a_model_without_blocks_is_refused(counts):
    with pytest.raises(ValueError, match=r"must be >= 0 and not both 0, got -?\d and -?\d"):
        architecture(*counts)
