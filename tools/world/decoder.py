"""The autoencoder's decoder, learning on: the encoder stays, and with it the latents that others learn from."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import Data
from diffusers import AutoencoderKL
from torch import Tensor
from training import train
from vae import loss, measure, to_signed

__all__ = ["make", "measure"]

SEED = 16


def make(data: Data, cache: Path, out: Path, steps: int = 2500, batch: int = 8) -> dict[str, Any]:
    """Train the decoder of the autoencoder in ``out``, and write it there."""
    torch.manual_seed(SEED)
    module = AutoencoderKL.from_pretrained(out, torch_dtype=torch.float32, low_cpu_mem_usage=False)
    for part in (module.encoder, module.quant_conv):
        part.requires_grad_(False)

    def batch_loss(rng: np.random.Generator) -> Tensor:
        return loss(module, to_signed(data.images[np.sort(rng.integers(len(data.images), size=batch))]))

    train(module, batch_loss, cache / "decoder.pt", steps=steps, rate=1e-3, seed=SEED, weight_decay=0.0)
    module.half().save_pretrained(out)
    return {"steps": steps, "batch": batch, "seed": SEED}
