"""Linear maps between embedding spaces, by ridge regression, as layers; and what goes before them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from streamdec.types import Float32, Float64

from ..data.store import Int64
from ..methods.ridge import decompose, leave_out_errors, solve

_ALPHAS: Float64 = np.logspace(-8, 3, 12)  # of a sample's mean squared length


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
    alphas = _ALPHAS * float(np.sum(parts.s**2) / len(x))
    errors = leave_out_errors(parts, wide, group, alphas).sum(axis=1)
    best = int(np.argmin(errors))
    weights, bias = solve(parts, wide, np.full(y.shape[1], alphas[best]))
    layer = nn.Linear(*weights.shape)
    layer.load_state_dict({"weight": torch.from_numpy(weights.T), "bias": torch.from_numpy(bias)})
    total = float(np.sum((wide - wide.mean(axis=0)) ** 2))
    return layer.requires_grad_(False), 1 - float(errors[best]) / total


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


def fit_shrinkage(epochs: Float32, shown: Float32, images: Float32) -> tuple[nn.Linear, float]:
    """Fit how far an epoch's embedding tells that of its image: along each principal component of the images, a gain.

    A Wiener filter. Training by cosine makes the right image the nearest, and leaves noise and length of the rest free;
    a map that was fitted on embeddings of images, which have no noise, would take the noise at its word.

    Parameters
    ----------
    epochs : array of shape (n, D), float32
        Embeddings of epochs that the encoder was not trained on.
    shown : array of shape (n, D), float32
        Those of their images.
    images : array of shape (m, D), float32
        All images, that components and mean are taken from.

    Returns
    -------
    layer : nn.Linear
        Epoch's embedding -> expected image's.
    explained : float
        Share of the variance of ``shown`` about their mean over ``images``, on these very epochs.
    """
    wide, centre = epochs.astype(np.float64), images.mean(axis=0, dtype=np.float64)
    mean = wide.mean(axis=0)
    _, axes = np.linalg.eigh(np.cov(images.astype(np.float64), rowvar=False))
    seen, wanted = (wide - mean) @ axes, (shown - centre) @ axes
    power = np.sum(seen**2, axis=0)
    gains = np.maximum(np.sum(seen * wanted, axis=0), 0) / np.maximum(power, np.finfo(np.float64).tiny)
    weights = (axes * gains) @ axes.T
    layer = nn.Linear(*weights.shape)
    bias = centre - mean @ weights
    layer.load_state_dict({"weight": torch.from_numpy(weights.T), "bias": torch.from_numpy(bias)})
    return layer.requires_grad_(False), 1 - float(np.sum((wanted - seen * gains) ** 2) / np.sum(wanted**2))


def in_a_row(*layers: nn.Module) -> nn.Sequential:
    """Put layers one behind the other, and make one of linear neighbours, by products in float64.

    What the first makes small and the second large again would else be rounded in between.
    """
    flat: list[nn.Module] = []
    for layer in layers:
        for each in layer if isinstance(layer, nn.Sequential) else (layer,):
            if flat and isinstance(flat[-1], nn.Linear) and isinstance(each, nn.Linear):
                flat[-1] = _product(flat[-1], each)
            else:
                flat.append(each)
    return nn.Sequential(*flat)


def _product(first: nn.Linear, second: nn.Linear) -> nn.Linear:
    layer = nn.Linear(first.in_features, second.out_features)
    weight, outer = first.weight.double(), second.weight.double()
    with torch.no_grad():
        layer.weight.copy_(outer @ weight)
        layer.bias.copy_(outer @ first.bias.double() + second.bias.double())
    return layer.requires_grad_(False)


def typical_length(embeddings: Float32) -> float:
    """Median length of vectors (n, D)."""
    return float(np.median(np.linalg.norm(embeddings, axis=1)))
