"""Linear maps between embedding spaces, by ridge regression, as layers; and vectors of one length."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from streamdec.types import Float32, Float64

from ..data.store import Int64
from ..methods.ridge import decompose, leave_out_errors, solve

ALPHAS: Float64 = np.logspace(-6, 3, 10)
"""Penalties that are tried, in units of a sample's mean squared length.

A map with less would make so much of small directions that what float32 rounds in them could be seen.
"""


def fit_linear(x: Float32, y: Float32, group: Int64) -> tuple[nn.Linear, float]:
    """Fit ``y = x W + b`` with the penalty that predicts left-out groups best.

    Parameters
    ----------
    x : array of shape (n, p), float32
    y : array of shape (n, q), float32
    group : array of shape (n,), int64
        What is left out together, such as the images of a concept.

    Returns
    -------
    layer : nn.Linear
    explained : float
        Share of the variance of ``y``, when left out.
    """
    parts, wide = decompose(x), y.astype(np.float64)
    alphas = ALPHAS * float(np.sum(parts.s**2) / len(x))
    errors = leave_out_errors(parts, wide, group, alphas).sum(axis=1)
    best = int(np.argmin(errors))
    weights, bias = solve(parts, wide, np.full(y.shape[1], alphas[best]))
    total = float(np.sum((wide - wide.mean(axis=0)) ** 2))
    return as_layer(weights, bias), 1 - float(errors[best]) / total


class Rescaled(nn.Module):
    """Give every vector the same length.

    The length of a query embedding says little: training by cosine leaves it free, and a regression shortens what it is
    unsure of. What follows was fitted on embeddings of images, whose length this is.

    Parameters
    ----------
    length : float
    """

    def __init__(self, length: float) -> None:
        super().__init__()
        self.length = length

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        out: Tensor = x * (self.length / x.norm(dim=1, keepdim=True).clamp_min(1e-12))
        return out


def as_layer(weights: Float64, bias: Float64) -> nn.Linear:
    """Make a frozen layer of weights (p, q) and a bias (q,)."""
    layer = nn.Linear(*weights.shape)
    layer.load_state_dict({"weight": torch.from_numpy(weights.T), "bias": torch.from_numpy(bias)})
    return layer.requires_grad_(False)


def typical_length(embeddings: Float32) -> float:
    """Median length of vectors (n, D)."""
    return float(np.median(np.linalg.norm(embeddings, axis=1)))
