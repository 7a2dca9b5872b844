"""Figures against their definitions, spelt out."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from offline import metrics


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
    low, high = metrics.binomial_interval(hits / n, n)
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
