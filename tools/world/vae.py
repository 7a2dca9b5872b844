"""The autoencoder: 64 x 64 pixels to 16 x 16 latents of 6 channels and back (diffusers' AutoencoderKL)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import Data
from diffusers import AutoencoderKL
from torch import Tensor
from torch.nn import functional
from training import train

from streamdec.simulate.features import UInt8

SEED = 11
CHANNELS = 6
NOISE = 0.1
"""Deviation of the noise on the latents in training, and of what the encoder says of them."""


def to_signed(images: UInt8) -> Tensor:
    """(n, 64, 64, 3) uint8 -> (n, 3, 64, 64) float32 in -1..1, as diffusers has pictures."""
    return torch.from_numpy(np.array(images)).permute(0, 3, 1, 2).float() / 127.5 - 1


def build() -> AutoencoderKL:
    """Make the untrained network."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(12, 24, 32),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=2,
        sample_size=64,
        mid_block_add_attention=False,
    )


def loss(vae: AutoencoderKL, images: Tensor) -> Tensor:
    """Error of pixels, of their colours and of their differences to neighbours; a light pull of latents to 0.

    The first three channels are told what to hold, a small picture in :func:`opponent` colours: left to itself so small
    a network takes long to find colour. So it is with noise it learns: its deviation is a constant.
    """
    latent = vae.encode(images).latent_dist.mode()
    error = vae.decode(latent + NOISE * torch.randn_like(latent)).sample - images
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    pixels = error.abs().mean() + error.square().mean() + opponent(error)[:, 1:].abs().mean()
    told = (latent[:, :3] - opponent(functional.avg_pool2d(images, 4))).square().mean()
    found: Tensor = pixels + 0.5 * edges + told + 1e-3 * latent.square().mean()
    return found


def opponent(images: Tensor) -> Tensor:
    """Give luminance, red against green, and blue against yellow: (n, 3, height, width)."""
    red, green, blue = images.unbind(1)
    return 2 * torch.stack([(red + green + blue) / 3, red - green, blue - (red + green) / 2], dim=1)


def tinted(images: Tensor, rng: np.random.Generator, share: float = 0.5) -> Tensor:
    """Give some a tint: most of the world is grey, and what colour is would be learnt late."""
    gain = rng.uniform(0.2, 1, (len(images), 3)) * (rng.random((len(images), 1)) < share)
    keep = torch.from_numpy(np.where(gain.any(axis=1, keepdims=True), gain, 1.0)).float().view(-1, 3, 1, 1)
    return (images + 1) * keep - 1


def latents(vae: AutoencoderKL, images: UInt8, batch: int = 256) -> Tensor:
    """Mean latents: (n, 6, 16, 16) float32."""
    with torch.no_grad():
        parts = [vae.encode(to_signed(images[i : i + batch])).latent_dist.mode() for i in range(0, len(images), batch)]
    scale: float = vae.config.scaling_factor
    return torch.cat(parts) * scale


def standardise(vae: AutoencoderKL, known: Tensor) -> None:
    """Give each channel of the latents mean 0 and deviation 1, by the 1 x 1 convolutions around: no picture changes.

    Noise then hides all channels alike: colour has channels of its own, and weak ones.
    """
    mean, deviation = known.mean(dim=(0, 2, 3)), known.std(dim=(0, 2, 3))
    into, out_of = vae.quant_conv, vae.post_quant_conv
    with torch.no_grad():
        into.weight[:CHANNELS] /= deviation.view(-1, 1, 1, 1)
        into.bias[:CHANNELS] = (into.bias[:CHANNELS] - mean) / deviation
        into.weight[CHANNELS:] = 0
        into.bias[CHANNELS:] = 2 * (NOISE / deviation).log()  # of the logarithm of the variance
        out_of.bias += out_of.weight[:, :, 0, 0] @ mean
        out_of.weight *= deviation.view(1, -1, 1, 1)


def make(data: Data, cache: Path, out: Path, steps: int = 4000, batch: int = 8) -> dict[str, Any]:
    """Train it and write it to ``out``."""
    torch.manual_seed(SEED)
    module = build()

    def batch_loss(rng: np.random.Generator) -> Tensor:
        images = to_signed(data.images[np.sort(rng.integers(len(data.images), size=batch))])
        return loss(module, tinted(images, rng))

    vae = train(module, batch_loss, cache / "vae.pt", steps=steps, rate=2e-3, seed=SEED, weight_decay=0.0)
    some = np.linspace(0, len(data.images) - 1, min(2000, len(data.images))).astype(int)
    vae.register_to_config(scaling_factor=1.0)
    standardise(vae, latents(vae, data.images[some]))
    vae.half().save_pretrained(out)
    return {"steps": steps, "batch": batch, "seed": SEED}


def measure(folder: Path, data: Data, n: int = 200) -> dict[str, float]:
    """Error of what it gives back of images of ``n`` test concepts: peak signal to noise in decibels."""
    vae = AutoencoderKL.from_pretrained(folder, torch_dtype=torch.float32, low_cpu_mem_usage=False)
    images, _ = data.test(n)
    with torch.no_grad():
        drawn = vae.decode(latents(vae, images) / vae.config.scaling_factor).sample.clamp(-1, 1)
    error = (drawn - to_signed(images)).div(2).square().mean(dim=(1, 2, 3))
    return {"psnr_db": round(float((-10 * error.log10()).mean()), 2)}
