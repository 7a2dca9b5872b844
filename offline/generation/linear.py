"""Linear maps between embedding spaces, by ridge regression, as layers; and what goes before them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from streamdec.types import Bool, Float32, Float64

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
    total = float(np.sum((wide - wide.mean(axis=0)) ** 2))
    return _linear(weights, bias), 1 - float(errors[best]) / total


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


def fit_expectation(epochs: Float32, shown: Float32, held: Bool) -> tuple[nn.Linear, float]:
    """Fit what the embedding of an epoch lets expect of its image's: ridge regression, penalty by what was held out.

    Training by cosine makes the right image the nearest, and leaves it free by how much and along which directions; a
    map that was fitted on embeddings of images, which have no noise, would take all of it at its word. The encoder is
    surer of samples it was trained on than of new ones: those it was not trained on choose the penalty.

    Parameters
    ----------
    epochs : array of shape (n, D), float32
        Embeddings of epochs.
    shown : array of shape (n, D), float32
        Those of their images.
    held : array of shape (n,), bool
        Whether the encoder was not trained on them; some, not all.

    Returns
    -------
    layer : nn.Linear
        Epoch's embedding -> expected image's.
    explained : float
        Share of the variance of ``shown``, of those held.
    """
    parts, wanted = decompose(epochs[~held]), shown[~held].astype(np.float64)
    scale = float(np.sum(parts.s**2) / len(epochs[~held]))
    found = [solve(parts, wanted, np.full(shown.shape[1], alpha * scale)) for alpha in _ALPHAS]
    errors = [float(np.sum((epochs[held] @ weights + bias - shown[held]) ** 2)) for weights, bias in found]
    best = int(np.argmin(errors))
    total = float(np.sum((shown[held] - wanted.mean(axis=0)) ** 2))
    return _linear(*found[best]), 1 - errors[best] / total


def _linear(weights: Float64, bias: Float64) -> nn.Linear:
    layer = nn.Linear(*weights.shape)
    layer.load_state_dict({"weight": torch.from_numpy(weights.T), "bias": torch.from_numpy(bias)})
    return layer.requires_grad_(False)


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
