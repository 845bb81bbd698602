import inspect
import json

import diffusers
import pytest
from diffusers import FluxTransformer2DModel, Ideogram4Transformer2DModel

from dit8.quant.architectures import (
    ARCHITECTURES,
    BRANCHES,
    architecture_of,
    architecture_of_module,
    branches_of,
    flux,
    ideogram4,
)
from dit8.quant.errors import UserError

TINY_IDEOGRAM = {
    "in_channels": 16,
    "num_layers": 2,
    "attention_head_dim": 64,
    "num_attention_heads": 2,
    "intermediate_size": 256,
    "adaln_dim": 64,
    "llm_features_dim": 208,
    "mrope_section": (12, 10, 10),
}
TINY_FLUX = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 24,
    "pooled_projection_dim": 20,
    "guidance_embeds": True,
    "axes_dims_rope": (4, 6, 6),
}


@pytest.mark.parametrize(
    ("kind", "size", "expected"),
    [
        (Ideogram4Transformer2DModel, TINY_IDEOGRAM, ideogram4.architecture(2)),
        (FluxTransformer2DModel, TINY_FLUX, flux.architecture(1, 2, guidance=True)),
    ],
)
def test_a_config_file_and_its_module_give_the_same_architecture(kind, size, expected, tmp_path):
    module = kind(**size)
    module.save_config(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert architecture_of(config) == architecture_of_module(module) == expected


def test_a_config_without_guidance_has_no_guidance_embedder():
    config = {"_class_name": "FluxTransformer2DModel", "num_layers": 1, "num_single_layers": 1}
    assert architecture_of(config) == flux.architecture(1, 1)


def test_every_name_is_one_of_diffusers_and_every_branch_an_argument_of_its_pipeline():
    assert all(inspect.isclass(getattr(diffusers, name)) for name in ARCHITECTURES)
    for name, branches in BRANCHES.items():
        arguments = inspect.signature(getattr(diffusers, name).__init__).parameters
        assert set(branches.values()) <= set(arguments)


@pytest.mark.parametrize("config", [{}, {"_class_name": "UNet2DModel"}])
def test_an_unknown_transformer_is_refused_with_the_known_ones(config):
    known = "Ideogram4Transformer2DModel, FluxTransformer2DModel"
    with pytest.raises(UserError, match=rf"must be one of {known}, got (None|'UNet2DModel')"):
        architecture_of(config)


@pytest.mark.parametrize("layers", [{}, {"num_layers": "34"}, {"num_layers": 0}])
def test_a_config_without_a_count_of_blocks_is_refused(layers):
    config = {"_class_name": "Ideogram4Transformer2DModel", **layers}
    with pytest.raises(UserError, match=r"must have the number of its blocks, got \w+Error: "):
        architecture_of(config)


def test_branches_of_a_pipeline():
    assert branches_of("FluxPipeline") == {"transformer": "transformer"}
    assert branches_of("Ideogram4Pipeline") == {
        "conditional": "transformer",
        "unconditional": "unconditional_transformer",
    }
    branches_of("FluxPipeline").clear()
    assert branches_of("FluxPipeline")


def test_an_unknown_pipeline_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"one of Ideogram4Pipeline, FluxPipeline, got 'Pipe'"):
        branches_of("Pipe")
