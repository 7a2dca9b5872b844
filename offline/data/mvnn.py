"""Multivariate noise normalisation (Guggenmos et al. 2018, doi:10.1016/j.neuroimage.2018.02.044), as NICE uses it.

The noise covariance of a session is the mean over stimuli of the mean over their epochs of each epoch's covariance
over time (``dim='epochs'``), from the training part alone; the whitener is its inverse square root.
"""

from __future__ import annotations

import numpy as np

from streamdec.errors import DataError
from streamdec.types import Float32, Float64

from .store import Int64

_BLOCK = 64  # epochs at once: 63 x 250 float64 and their covariances stay in the cache


def noise_covariance(epochs: Float32, weights: Float64) -> Float64:
    """Weighted sum of the epochs' Ledoit-Wolf covariances.

    Parameters
    ----------
    epochs : array of shape (n, n_chans, n_times), float32
    weights : array of shape (n,), float64
        :func:`condition_weights` makes the sum the mean over stimuli.

    Returns
    -------
    array of shape (n_chans, n_chans), float64
    """
    total: Float64 = np.zeros((epochs.shape[1],) * 2)
    for start in range(0, len(epochs), _BLOCK):
        block = slice(start, start + _BLOCK)
        total += np.tensordot(weights[block], ledoit_wolf(epochs[block]), axes=1)
    return total


def condition_weights(item: Int64) -> Float64:
    """Weight of each epoch in the mean over stimuli of the mean over their epochs: (n,) float64, sums to 1."""
    _, inverse, counts = np.unique(item, return_inverse=True, return_counts=True)
    weights: Float64 = 1.0 / (counts[inverse] * len(counts))
    return weights


def ledoit_wolf(epochs: Float32) -> Float64:
    """Covariance over time of each epoch, shrunk as Ledoit and Wolf (2004, doi:10.1016/S0047-259X(03)00096-4).

    Channels are standardised before shrinking and rescaled after it, as the published preprocessing does.

    Parameters
    ----------
    epochs : array of shape (n, n_chans, n_times), float32

    Returns
    -------
    array of shape (n, n_chans, n_chans), float64
    """
    n_chans, n_times = epochs.shape[1:]
    x = epochs - epochs.mean(axis=2, keepdims=True, dtype=np.float64)
    scale = np.sqrt(np.mean(x**2, axis=2))
    x /= np.where(scale == 0, 1, scale)[..., None]
    covariance = x @ x.transpose(0, 2, 1) / n_times
    mu = np.trace(covariance, axis1=1, axis2=2) / n_chans
    squared = np.sum(covariance**2, axis=(1, 2))
    # Mean squared distance of single samples' outer products from their mean, and of that mean from a multiple of I.
    spread = (np.sum(np.sum(x**2, axis=1) ** 2, axis=1) / n_times - squared) / (n_chans * n_times)
    distance = (squared - n_chans * mu**2) / n_chans
    spread = np.minimum(spread, distance)
    shrinkage = np.divide(spread, distance, out=np.zeros_like(spread), where=distance > 0)
    covariance *= 1 - shrinkage[:, None, None]
    covariance += (shrinkage * mu)[:, None, None] * np.eye(n_chans)
    out: Float64 = covariance * (scale[:, :, None] * scale[:, None, :])
    return out


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
