"""Alignment of the channels: this person's and cap's covariance brought to the training subjects'.

Euclidean alignment (He and Wu 2020, doi:10.1109/TBME.2019.2913914) uses the arithmetic mean of the epochs' covariances,
Riemannian alignment (Zanini et al. 2018, doi:10.1109/TBME.2017.2742541) their geometric mean. Both are one matrix
behind the chain, ``reference^(1/2) @ mean^(-1/2)``, which the chain folds into its own: live it costs nothing.
Whitening replaces the bundle's noise whitener by one fitted on the block as ``prepare`` fits it.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from ..signal.mvnn import noise_covariance, whitener
from ..types import Float32, Float64

Kind: TypeAlias = Literal["kept", "whitening", "euclidean", "riemannian"]
ALIGNER = "aligner"
"""Name of the array, and of the chain's last step."""

_MOST = 64  # covariances whose geometric mean is taken: each iteration decomposes them all
_ITERATIONS = 50
_TOLERANCE = 1e-5


def covariances(epochs: Float32) -> Float64:
    """Shrunk covariance over time of each epoch: (n, n_chans, n_times) -> (n, n_chans, n_chans)."""
    one = np.ones(1)
    return np.stack([noise_covariance(epoch[None], one) for epoch in epochs])


def aligner(kind: Kind, of_block: Float64, reference: Float64) -> Float64:
    """Make the matrix that gives the block the covariance of reference.

    Parameters
    ----------
    kind : {"euclidean", "riemannian"}
    of_block : array of shape (n, n_chans, n_chans)
        Covariances of the block's epochs behind the chain, in the order of the epochs.
    reference : array of shape (n_chans, n_chans)
        That of the training epochs.

    Raises
    ------
    DataError
        A channel of the block is flat.
    """
    mean = geometric_mean(of_block) if kind == "riemannian" else of_block.mean(axis=0)
    return _power(reference, 0.5) @ whitener(mean)


def geometric_mean(matrices: Float64) -> Float64:
    """Mean of covariances by the affine-invariant metric, by fixed-point iteration.

    Of more than 64, that of the means of so many groups of consecutive ones.

    References
    ----------
    Moakher (2005), A differential geometric approach to the geometric mean of symmetric positive-definite matrices,
    SIAM J. Matrix Anal. Appl. 26(3), doi:10.1137/S0895479803436937.
    """
    groups = np.array_split(matrices, min(len(matrices), _MOST))
    points = np.stack([group.mean(axis=0) for group in groups])
    mean: Float64 = points.mean(axis=0)
    for _ in range(_ITERATIONS):
        root, inverse = _power(mean, 0.5), _power(mean, -0.5)
        values, vectors = np.linalg.eigh(inverse @ points @ inverse)
        step = np.mean((vectors * np.log(values)[:, None, :]) @ vectors.transpose(0, 2, 1), axis=0)
        of_step, along = np.linalg.eigh(step)
        mean = root @ ((along * np.exp(of_step)) @ along.T) @ root
        mean = (mean + mean.T) / 2
        if np.sqrt(np.mean(of_step**2)) < _TOLERANCE:
            break
    return mean


def _power(matrix: Float64, exponent: float) -> Float64:
    values, vectors = np.linalg.eigh(matrix)
    out: Float64 = (vectors * np.maximum(values, 1e-12 * values[-1]) ** exponent) @ vectors.T
    return out
