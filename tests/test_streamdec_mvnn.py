"""Noise normalisation against the published procedure, one epoch and one sum at a time."""

from __future__ import annotations

import numpy as np
import pytest

from streamdec.errors import DataError
from streamdec.signal.mvnn import condition_weights, noise_covariance, repetition_covariance, whitener


def naive_ledoit_wolf(x: np.ndarray) -> np.ndarray:
    """(n_times, n_chans) as sklearn.discriminant_analysis._cov(shrinkage='auto') defines it."""
    n, p = x.shape
    sd = x.std(axis=0)
    z = (x - x.mean(axis=0)) / np.where(sd == 0, 1, sd)
    s = sum(np.outer(row, row) for row in z) / n
    mu = np.trace(s) / p
    d2 = np.sum((s - mu * np.eye(p)) ** 2) / p
    b2 = min(sum(np.sum((np.outer(row, row) - s) ** 2) for row in z) / n**2 / p, d2)
    shrunk = b2 / d2 * mu * np.eye(p) + (1 - b2 / d2) * s
    return sd[:, None] * shrunk * sd[None, :]


@pytest.fixture
def epochs() -> np.ndarray:
    rng = np.random.default_rng(0)
    mixing = rng.standard_normal((5, 5))
    return (mixing @ rng.standard_normal((130, 5, 40)) * 3 + 10).astype(np.float32)


@pytest.mark.parametrize("n_times", [40, 5, 3, 2])
def test_one_epoch(epochs: np.ndarray, n_times: int) -> None:
    epochs = epochs[:, :, :n_times]
    before = epochs.copy()
    for epoch in epochs[:20]:
        expected = naive_ledoit_wolf(epoch.T.astype(np.float64))
        np.testing.assert_allclose(noise_covariance(epoch[None], np.ones(1)), expected, rtol=1e-9, atol=1e-9)
    assert np.array_equal(epochs, before)


@pytest.mark.parametrize("n_repetitions", [2, 20])
def test_official_covariance_is_over_repetitions_at_each_instant(epochs: np.ndarray, n_repetitions: int) -> None:
    shown = epochs[:n_repetitions]
    instants = [naive_ledoit_wolf(shown[:, :, t].astype(np.float64)) for t in range(shown.shape[2])]
    np.testing.assert_allclose(repetition_covariance(shown), np.mean(instants, axis=0), rtol=1e-9, atol=1e-9)


def test_against_scikit_learn(epochs: np.ndarray) -> None:
    analysis = pytest.importorskip("sklearn.discriminant_analysis", reason="scikit-learn comes with the report extra")
    expected = np.mean([analysis._cov(epoch.T.astype(np.float64), shrinkage="auto") for epoch in epochs], axis=0)
    np.testing.assert_allclose(noise_covariance(epochs, np.full(130, 1 / 130)), expected, rtol=1e-9)


def test_noise_covariance_is_the_mean_of_the_conditions_means(epochs: np.ndarray) -> None:
    item = np.random.default_rng(1).integers(0, 7, len(epochs))
    single = np.stack([naive_ledoit_wolf(epoch.T.astype(np.float64)) for epoch in epochs])
    expected = np.mean([single[item == i].mean(axis=0) for i in np.unique(item)], axis=0)
    got = noise_covariance(epochs, condition_weights(item))
    np.testing.assert_allclose(got, expected, rtol=1e-9)
    w = whitener(got)
    np.testing.assert_allclose(w @ expected @ w, np.eye(5), atol=1e-9)
    np.testing.assert_allclose(w, w.T)


def test_flat_channel_is_refused(epochs: np.ndarray) -> None:
    epochs[:, 2] = 4.0
    assert np.isfinite(noise_covariance(epochs, np.ones(130))).all()
    with pytest.raises(DataError, match="flat channel"):
        whitener(noise_covariance(epochs, condition_weights(np.zeros(len(epochs), int))))
