"""Diffusion prior of ATM: denoises an image embedding, given the embedding of an epoch (arXiv 2403.07721).

As in dongyangli-del/EEG_Image_decode, Generation/diffusion_prior.py; the time embeddings are diffusers' ``Timesteps``
and ``TimestepEmbedding``.
Shapes: B batch, D image embedding, C condition, H_i width of layer i.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


def timestep_features(timestep: Tensor, n_features: int) -> Tensor:
    """Cosines, then sines, of a step number (B,) at frequencies from 1 to nearly 1 / 10 000: (B, n_features)."""
    half = n_features // 2
    exponents = torch.arange(half, dtype=torch.float32, device=timestep.device) / half
    angles = timestep.float()[:, None] * torch.exp(-math.log(10_000) * exponents)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class _Given(nn.Module):
    """What is added before a layer: embeddings of the time and of the condition."""

    def __init__(self, n_time: int, n_condition: int, width: int) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(n_time, width), nn.SiLU(), nn.Linear(width, width))
        self.condition = nn.Linear(n_condition, width)

    def forward(self, time: Tensor, condition: Tensor | None) -> Tensor:
        y: Tensor = self.time(time)
        return y if condition is None else y + self.condition(condition)


class DiffusionPriorUNet(nn.Module):
    """A U-shaped network of linear layers, which predicts the noise in an embedding.

    Each layer of the narrowing half gets time and condition added before it; each of the widening half too, and the
    input of its mirror image added behind it. Without a condition nothing stands for it, not even a bias.

    Parameters
    ----------
    n_features : int
        D; published 1024.
    n_condition : int
        C; published 1024.
    widths : sequence of int
        H; published 1024, 512, 256, 128, 64: about 10 million parameters.
    n_time : int
        Features of the step number; published 512.
    dropout : float
        Published 0.1.
    """

    def __init__(
        self,
        n_features: int = 1024,
        n_condition: int = 1024,
        widths: Sequence[int] = (1024, 512, 256, 128, 64),
        n_time: int = 512,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.n_features, self.n_condition, self.n_time = n_features, n_condition, n_time
        self.first = nn.Sequential(nn.Linear(n_features, widths[0]), nn.LayerNorm(widths[0]), nn.SiLU())
        down, up = list(pairwise(widths)), list(pairwise(widths[::-1]))
        self.down_given = nn.ModuleList([_Given(n_time, n_condition, width) for width, _ in down])
        self.down = nn.ModuleList([_layer(*of, dropout) for of in down])
        self.up_given = nn.ModuleList([_Given(n_time, n_condition, width) for width, _ in up])
        self.up = nn.ModuleList([_layer(*of, dropout) for of in up])
        self.last = nn.Linear(widths[0], n_features)

    def forward(self, x: Tensor, timestep: Tensor, condition: Tensor | None = None) -> Tensor:
        """Noisy embeddings (B, D), step numbers (B,), condition (B, C) or None -> the noise in them (B, D)."""
        time = timestep_features(timestep, self.n_time).to(x.dtype)
        x, kept = self.first(x), []
        for given, layer in zip(self.down_given, self.down, strict=True):
            kept.append(x)
            x = layer(x + given(time, condition))
        for given, layer in zip(self.up_given, self.up, strict=True):
            x = layer(x + given(time, condition)) + kept.pop()
        y: Tensor = self.last(x)
        return y


def _layer(n_in: int, n_out: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(n_in, n_out), nn.LayerNorm(n_out), nn.SiLU(), nn.Dropout(dropout))
