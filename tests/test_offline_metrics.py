"""Figures against their definitions, spelt out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom
from sklearn import metrics as sklearn_metrics

from offline import metrics
from streamdec.intervals import binomial_interval


@given(st.integers(1, 6), st.integers(1, 8), st.integers(0, 1000))
def test_ranks_are_places_in_a_stable_sort(n: int, n_candidates: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.integers(0, 3, (n, n_candidates)).astype(np.float32)  # many ties
    target = rng.integers(0, n_candidates, n)
    naive = [
        sorted(range(n_candidates), key=lambda g, row=row: (-row[g], g)).index(t)
        for row, t in zip(scores, target, strict=True)
    ]
    before = scores.copy()
    assert metrics.ranks(scores, target).tolist() == naive
    assert np.array_equal(scores, before)


@pytest.mark.parametrize("k", [2, 3, 5, 7])
def test_k_way_is_the_mean_over_all_draws(k: int) -> None:
    scores = np.random.default_rng(0).standard_normal((4, 7))
    target = np.array([0, 3, 6, 2])
    wins = [
        all(row[t] > row[list(others)])
        for row, t in zip(scores, target, strict=True)
        for others in itertools.combinations([g for g in range(7) if g != t], k - 1)
    ]
    assert metrics.k_way(metrics.ranks(scores, target), 7, k) == pytest.approx(np.mean(wins))


def test_all_way_is_top_1() -> None:
    rank = np.array([0, 0, 3, 199])
    assert metrics.k_way(rank, 200, 200) == metrics.top_k(rank, 1) == 0.5
    assert metrics.top_k(rank, 5) == 0.75
    assert metrics.mean_average_precision(rank) == pytest.approx((1 + 1 + 1 / 4 + 1 / 200) / 4)


@pytest.mark.parametrize(("hits", "n"), [(0, 10), (10, 10), (3, 10), (72, 200)])
def test_interval_leaves_its_tails(hits: int, n: int) -> None:
    low, high = binomial_interval(hits / n, n)
    assert low <= hits / n <= high
    if hits:
        assert binom.sf(hits - 1, n, low) == pytest.approx(0.025)
    if hits < n:
        assert binom.cdf(hits, n, high) == pytest.approx(0.025)


@given(st.lists(st.tuples(st.integers(0, 4), st.booleans()), min_size=1, max_size=30))
def test_auc_counts_pairs(pairs: list[tuple[int, bool]]) -> None:
    scores, positive = np.array([s for s, _ in pairs]), np.array([p for _, p in pairs])
    wins = [(a > b) + 0.5 * (a == b) for a in scores[positive] for b in scores[~positive]]
    got = metrics.auc(scores, positive)
    assert math.isnan(got) if not wins else got == pytest.approx(np.mean(wins))


@given(st.integers(1, 20), st.integers(1, 4), st.integers(0, 1000))
def test_multi_label_figures_are_scikit_learns(n: int, n_labels: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores, labels = rng.integers(0, 5, (n, n_labels)) / 4, rng.random((n, n_labels)) < 0.4
    got = metrics.multi_label(scores, labels)
    some, both = labels.any(axis=0), labels.any(axis=0) & ~labels.all(axis=0)
    assert got.n_labels == some.sum()
    assert got.hamming == pytest.approx(sklearn_metrics.hamming_loss(labels, scores >= 0.5))
    if some.any():
        wanted = sklearn_metrics.average_precision_score(labels[:, some], scores[:, some], average="macro")
        assert got.mean_average_precision == pytest.approx(wanted)
    if both.any():
        wanted = sklearn_metrics.roc_auc_score(labels[:, both], scores[:, both], average="macro")
        assert got.auc == pytest.approx(wanted)


def test_rsa_sees_the_same_geometry_through_a_rotation_and_none_in_noise() -> None:
    rng = np.random.default_rng(0)
    targets = rng.standard_normal((40, 8))
    turned = targets @ np.linalg.qr(rng.standard_normal((8, 8)))[0]
    distances = metrics.dissimilarity(targets)
    for i, j in ((0, 1), (7, 31)):
        cosine = targets[i] @ targets[j] / np.linalg.norm(targets[i]) / np.linalg.norm(targets[j])
        assert distances[i, j] == pytest.approx(1 - cosine)
    assert metrics.rsa(metrics.dissimilarity(turned), distances) == pytest.approx(1)
    noise = metrics.dissimilarity(rng.standard_normal((40, 8)))
    assert abs(metrics.rsa(noise, distances)) < 0.15
    assert math.isnan(metrics.rsa(noise[:2, :2], distances[:2, :2]))


@pytest.mark.data
@pytest.mark.parametrize("k", [2, 4, 10, 50, 100])
def test_k_way_of_a_real_decoder_is_what_drawing_gives(data, k: int) -> None:
    """10 000 draws of the others, 50 per query; the closed form is within 4 standard errors of what wins."""
    queries = np.load(data / "things_eeg2" / "atm_s_sub-08_test_query_embeddings.npy").astype(np.float64)
    gallery = np.load(data / "things_eeg2" / "vit_h14_test_image_features.npy")
    scores = queries @ gallery.T / np.linalg.norm(queries, axis=1)[:, None]
    rng = np.random.default_rng(k)
    wins = np.zeros((200, 50))
    for i, own in enumerate(wins):
        others = np.delete(scores[i], i)
        drawn = np.argpartition(rng.random((50, 199)), k - 2, axis=1)[:, : k - 1]
        own[:] = scores[i, i] > others[drawn].max(axis=1)
    error = np.sqrt(np.sum(wins.var(axis=1) / 50)) / 200
    found = metrics.k_way(metrics.ranks(scores, np.arange(200)), 200, k)
    assert abs(found - wins.mean()) < 4 * error
