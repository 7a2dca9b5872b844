"""Adaptation of the embedding to a person: recentred, and moved by ridge regression towards the images' features.

With z an embedding less its mean over the block, the change minimises ``|z + change @ z - scale * (feature - mean
feature)|² + alpha |change|²`` over the epochs: with a strong penalty nothing changes, so that a short block can do
little harm. ``scale`` is how much of the features the embeddings show already.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..decode.adapt import Adaptation
from ..types import Float32, Float64

ALPHAS = (0.3, 1.0, 3.0, 10.0, 30.0, 100.0)
"""Penalties, in units of the embeddings' mean squared length."""
RANK = 64
"""Of the change, at most."""


class Decomposition(NamedTuple):
    """Centred embeddings ``u * s @ vt``, their ``mean`` (D,), and what is left to explain, ``uᵀ (target - z)``."""

    s: Float64
    vt: Float64
    mean: Float64
    residual: Float64
    unit: float


def decompose(embeddings: Float32, features: Float32) -> Decomposition:
    """Prepare the regression, once for all penalties.

    Parameters
    ----------
    embeddings : array of shape (n, D)
        Of single epochs.
    features : array of shape (n, D)
        The gallery's, of what was shown.
    """
    mean = embeddings.mean(axis=0, dtype=np.float64)
    z = embeddings - mean
    wanted = features - features.mean(axis=0, dtype=np.float64)
    scale = max(float(np.vdot(z, wanted) / max(float(np.vdot(wanted, wanted)), 1e-30)), 0.0)
    u, s, vt = np.linalg.svd(z, full_matrices=False)
    kept = s > 1e-6 * max(float(s[0]), 1e-30)
    u, s, vt = u[:, kept], s[kept], vt[kept]
    return Decomposition(s, vt, mean, u.T @ (scale * wanted - z), float(np.sum(s**2)) / len(z))


def low_rank(parts: Decomposition, alpha: float, rank: int | None = RANK) -> Adaptation:
    """Solve for one penalty; None leaves the rank as it is."""
    gain = parts.s / (parts.s**2 + alpha * parts.unit)
    change = gain[:, None] * parts.residual  # (k, D): the change is vtᵀ @ this, transposed
    if rank is None or len(change) <= rank:
        return _adaptation(parts.mean, change.T, parts.vt)
    u, s, vt = np.linalg.svd(change, full_matrices=False)
    return _adaptation(parts.mean, (s[:rank, None] * vt[:rank]).T, u[:, :rank].T @ parts.vt)


def recentred(parts: Decomposition) -> Adaptation:
    """Only the mean over the block taken away."""
    dim = len(parts.mean)
    return _adaptation(parts.mean, np.empty((dim, 0)), np.empty((0, dim)))


def _adaptation(offset: Float64, left: Float64, right: Float64) -> Adaptation:
    return Adaptation(*(np.ascontiguousarray(array, np.float32) for array in (offset, left, right)))
