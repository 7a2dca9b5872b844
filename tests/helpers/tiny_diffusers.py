"""Text-to-image pipelines of diffusers with random weights, small enough for a test, in folders as published."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)

WIDTH = 12
"""Of the text, and so of the cross-attentions."""
SIDE = 8
"""Of the latents; the autoencoder halves once."""


def stable_diffusion(folder: Path, **schedule: Any) -> Path:
    torch.manual_seed(0)
    pipeline = StableDiffusionPipeline(
        vae=autoencoder(),
        text_encoder=transformers.CLIPTextModel(_text(WIDTH)),
        tokenizer=_tokenizer(),
        unet=_unet(WIDTH),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False, **schedule),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.save_pretrained(folder)
    return folder


def stable_diffusion_xl(folder: Path, **schedule: Any) -> Path:
    torch.manual_seed(1)
    pipeline = StableDiffusionXLPipeline(
        vae=autoencoder(),
        text_encoder=transformers.CLIPTextModel(_text(4)),
        text_encoder_2=transformers.CLIPTextModelWithProjection(_text(8)),
        tokenizer=_tokenizer(),
        tokenizer_2=_tokenizer(),
        unet=_unet(
            WIDTH, addition_embed_type="text_time", addition_time_embed_dim=2, projection_class_embeddings_input_dim=20
        ),
        scheduler=DDIMScheduler(steps_offset=1, clip_sample=False, **schedule),
    )
    pipeline.save_pretrained(folder)
    return folder


def autoencoder() -> AutoencoderKL:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 8),
        norm_num_groups=4,
        latent_channels=4,
        layers_per_block=1,
    )


def _unet(width: int, **settings: Any) -> UNet2DConditionModel:
    return UNet2DConditionModel(
        sample_size=SIDE,
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=1,
        cross_attention_dim=width,
        attention_head_dim=2,
        norm_num_groups=4,
        **settings,
    )


def _text(width: int) -> transformers.CLIPTextConfig:
    return transformers.CLIPTextConfig(
        hidden_size=width,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        projection_dim=8,
        vocab_size=8,
        max_position_embeddings=6,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=1,
    )


def _tokenizer() -> transformers.CLIPTokenizer:
    words = ["<|startoftext|>", "<|endoftext|>", "a", "a</w>", "b", "b</w>", "c", "c</w>"]
    return transformers.CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=6)
