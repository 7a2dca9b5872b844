"""Multivariate noise normalisation (Guggenmos et al. 2018, doi:10.1016/j.neuroimage.2018.02.044), both published ways.

The whitener is the inverse square root of a noise covariance: the mean over stimuli of shrunk covariances,

- ``dim='epochs'`` (NICE, UBP): over the time of each epoch, from the training part alone; :func:`noise_covariance`,
- ``dim='time'`` (THINGS-EEG2's own, gifale95/eeg_encoding @f0c03bf): over the repetitions of a stimulus at each
  instant, mean of training and test part; :func:`repetition_covariance`.

The published procedures call scikit-learn for every epoch or instant; tools/bench_mvnn.py compares speed and numbers.
"""

from __future__ import annotations

import numpy as np

from ..errors import DataError
from ..types import Float32, Float64, Int64

_BLOCK = 1 << 20  # values at once: 8 MB in float64


def noise_covariance(epochs: Float32, weights: Float64) -> Float64:
    """Weighted sum of the epochs' covariances over time, each shrunk as Ledoit and Wolf (2004) do.

    Channels are standardised before shrinking and rescaled after it, as the published preprocessing does
    (doi:10.1016/S0047-259X(03)00096-4; ``sklearn.discriminant_analysis._cov`` with ``shrinkage="auto"``).

    Parameters
    ----------
    epochs : array of shape (n, n_chans, n_times), float32
        Not changed.
    weights : array of shape (n,), float64
        Not negative; :func:`condition_weights` makes the sum the mean over stimuli.

    Returns
    -------
    array of shape (n_chans, n_chans), float64
    """
    _, n_chans, n_times = epochs.shape
    total: Float64 = np.zeros((n_chans, n_chans))
    diagonal: Float64 = np.zeros(n_chans)
    step = max(_BLOCK // (n_chans * n_times), 1)
    for start in range(0, len(epochs), step):
        x, weight = epochs[start : start + step].astype(np.float64), weights[start : start + step]
        x -= x.mean(axis=2, keepdims=True)
        scale = np.sqrt(np.einsum("nct,nct->nc", x, x) / n_times)
        z = x / np.where(scale == 0, 1, scale)[:, :, None]
        over_time = n_times >= n_chans
        # covariance, or the smaller matrix of samples' products: both have the same sum of squares
        gram = (z @ z.transpose(0, 2, 1) if over_time else z.transpose(0, 2, 1) @ z) / n_times
        shrinkage, mu = _shrinkage(z, np.einsum("nij,nij->n", gram, gram))
        kept = weight * (1 - shrinkage)
        if over_time:
            total += np.einsum("nij,ni,nj->ij", gram, scale * kept[:, None], scale, optimize=False)
        else:
            x *= np.sqrt(kept / n_times)[:, None, None]
            samples = x.transpose(1, 0, 2).reshape(n_chans, -1)
            total += samples @ samples.T
        diagonal += (weight * shrinkage * mu) @ scale**2
    return total + np.diag(diagonal)


def _shrinkage(z: Float64, squared: Float64) -> tuple[Float64, Float64]:
    """Share of the identity, and its factor, (n,) each; of samples z (n, p, n_times), ``squared`` norm of their S."""
    _, n_chans, n_times = z.shape
    lengths = np.einsum("nct,nct->nt", z, z)
    mu = lengths.sum(axis=1) / (n_times * n_chans)
    # Mean squared distance of single samples' outer products from their mean, and of that mean from a multiple of I.
    spread = (np.einsum("nt,nt->n", lengths, lengths) / n_times - squared) / (n_chans * n_times)
    distance = (squared - n_chans * mu**2) / n_chans
    spread = np.minimum(spread, distance)
    return np.divide(spread, distance, out=np.zeros_like(spread), where=distance > 0), mu


def condition_weights(item: Int64) -> Float64:
    """Weight of each epoch in the mean over stimuli of the mean over their epochs: (n,) float64, sums to 1."""
    _, inverse, counts = np.unique(item, return_inverse=True, return_counts=True)
    weights: Float64 = 1.0 / (counts[inverse] * len(counts))
    return weights


def repetition_covariance(epochs: Float32) -> Float64:
    """Covariance over the repetitions of one stimulus at each instant, shrunk as above; mean over the instants.

    Parameters
    ----------
    epochs : array of shape (n_repetitions, n_chans, n_times), float32
        Two or more of one stimulus.

    Returns
    -------
    array of shape (n_chans, n_chans), float64
    """
    n_times = epochs.shape[2]
    return noise_covariance(epochs.transpose(2, 1, 0), np.full(n_times, 1 / n_times))


def whitener(covariance: Float64) -> Float64:
    """Inverse square root, symmetric, (n_chans, n_chans) float64.

    Raises
    ------
    DataError
        The covariance has no inverse: a channel is flat or the copy of another.
    """
    values, vectors = np.linalg.eigh(covariance)
    if not values[0] > 1e-10 * values[-1]:
        raise DataError(
            "noise covariance", got=f"eigenvalues {values[0]:.3g} to {values[-1]:.3g}", do="drop the flat channel"
        )
    out: Float64 = (vectors / np.sqrt(values)) @ vectors.T
    return out
