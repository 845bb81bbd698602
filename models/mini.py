"""Build the mini: exactly the classes of Ideogram 4, small enough for a laptop.

`MiniSize` holds every free number. FULL is what `models/mini` was trained at: 7.8 M parameters a
branch, in_channels 64 (16 VAE channels x 2 x 2 patch), 256 image tokens for 256 x 256 pixels.
TOY only rehearses the code.
"""

import json
import os
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKLFlux2,
    FlowMatchEulerDiscreteScheduler,
    Ideogram4Pipeline,
    Ideogram4Transformer2DModel,
)
from transformers import Qwen3VLConfig, Qwen3VLModel

from dit8.models.mini_tokenizer import build_tokenizer

TEXT_TAPS = 13  # decoder layers 0, 3, ..., 33, 35 of the 36
EMBEDDING_STD = 0.2  # ten times the usual: token identity then dominates every tap of a random net


@dataclass(frozen=True)
class MiniSize:
    """Free numbers of the mini. Widths are multiples of 256 so that group-wise formats fit."""

    hidden: int = 256
    layers: int = 8
    ffn: int = 768
    adaln: int = 64
    text_hidden: int = 64
    latent_channels: int = 16
    encoder_widths: tuple[int, ...] = (16, 32, 64, 64)
    decoder_widths: tuple[int, ...] = (24, 48, 96, 128)


FULL = MiniSize()
TOY = MiniSize(
    hidden=128,
    layers=2,
    ffn=256,
    text_hidden=32,
    encoder_widths=(8, 8, 16, 16),
    decoder_widths=(8, 8, 16, 16),
)


def build_transformer(size: MiniSize) -> Ideogram4Transformer2DModel:
    """Build one branch. Modulation and output start at zero, so every block starts as identity."""
    model = Ideogram4Transformer2DModel(
        in_channels=4 * size.latent_channels,
        num_layers=size.layers,
        attention_head_dim=64,
        num_attention_heads=size.hidden // 64,
        intermediate_size=size.ffn,
        adaln_dim=size.adaln,
        llm_features_dim=TEXT_TAPS * size.text_hidden,
        rope_theta=100,  # at 100 nearly all 32 frequencies tell the 16 x 16 grid's places apart
        mrope_section=(12, 10, 10),  # 3 * s - 2 must stay below head_dim / 2 for h and w
    )
    with torch.no_grad():
        for layer in (
            *(block.adaln_modulation for block in model.layers),
            model.final_layer.adaln_modulation,
            model.final_layer.linear,
        ):
            layer.weight.zero_()
            layer.bias.zero_()
        model.embed_image_indicator.weight.normal_(0, 0.02)
    return model


def build_vae(size: MiniSize) -> AutoencoderKLFlux2:
    """Build the VAE: four stages (8x), 2 x 2 patches batch-normalized after encoding."""
    return AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=size.encoder_widths,
        decoder_block_out_channels=size.decoder_widths,
        layers_per_block=1,
        latent_channels=size.latent_channels,
        norm_num_groups=8,
        mid_block_add_attention=False,
        sample_size=256,
    )


def build_text_encoder(size: MiniSize, vocabulary: int) -> Qwen3VLModel:
    """Build the frozen random text encoder: 36 decoder layers and a vision tower never run."""
    config = Qwen3VLConfig(
        text_config={
            "vocab_size": vocabulary,
            "hidden_size": size.text_hidden,
            "intermediate_size": 2 * size.text_hidden,
            "num_hidden_layers": 36,
            "num_attention_heads": size.text_hidden // 32,
            "num_key_value_heads": size.text_hidden // 32,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "default",
                "rope_theta": 5e6,
                "mrope_section": [6, 5, 5],
                "mrope_interleaved": True,
            },
        },
        vision_config={
            "depth": 1,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "patch_size": 16,
            "num_position_embeddings": 16,
            "deepstack_visual_indexes": [0],
            "out_hidden_size": size.text_hidden,
        },
    )
    encoder = Qwen3VLModel(config).eval().requires_grad_(False)
    with torch.no_grad():
        encoder.language_model.embed_tokens.weight.normal_(0, EMBEDDING_STD)
    return encoder


def build_pipeline(size: MiniSize, seed: int) -> Ideogram4Pipeline:
    """Build the whole untrained pipeline on the CPU in fp32; weights depend on `seed` alone."""
    torch.manual_seed(seed)
    tokenizer = build_tokenizer()
    return Ideogram4Pipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(),
        vae=build_vae(size),
        text_encoder=build_text_encoder(size, len(tokenizer)),
        tokenizer=tokenizer,
        transformer=build_transformer(size),
        unconditional_transformer=build_transformer(size),
    )


def save_pipeline(pipeline: Ideogram4Pipeline, folder: Path) -> None:
    """Save as a diffusers folder: bf16 weights, fp32 latent statistics, files readable by all."""
    for name in ("transformer", "unconditional_transformer", "text_encoder"):
        getattr(pipeline, name).to(torch.bfloat16)
    statistics = {k: v.clone() for k, v in pipeline.vae.bn.named_buffers()}
    pipeline.vae.to(torch.bfloat16)
    for name, value in statistics.items():
        setattr(pipeline.vae.bn, name, value)
    pipeline.save_pretrained(folder, safe_serialization=True)
    index = folder / "model_index.json"
    entries = json.loads(index.read_text())
    # transformers 5 writes its internal class name, which transformers 4 does not know.
    entries["tokenizer"] = ["transformers", "PreTrainedTokenizerFast"]
    index.write_text(json.dumps(entries, indent=2) + "\n")
    for root, _, files in os.walk(folder):
        for name in files:
            os.chmod(Path(root) / name, 0o644)  # save_pretrained leaves 0600
