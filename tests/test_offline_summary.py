"""Means over subjects and seeds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from offline.summary import summarise


@given(st.integers(1, 5), st.integers(1, 4), st.integers(0, 99))
def test_whole_grid(n_subjects: int, n_seeds: int, seed: int) -> None:
    grid = np.random.default_rng(seed).random((n_subjects, n_seeds))
    found = summarise({(f"sub-{i}", s): grid[i, s] for i in range(n_subjects) for s in range(n_seeds)})
    assert found.value == pytest.approx(grid.mean())
    assert (found.n_subjects, found.n_seeds, found.n_runs) == (n_subjects, n_seeds, grid.size)
    for got, axis, n in ((found.over_subjects, 1, n_subjects), (found.over_seeds, 0, n_seeds)):
        assert got is None if n < 2 else got == pytest.approx(grid.mean(axis=axis).std(ddof=1))


def test_a_subject_counts_once_however_many_seeds_it_has() -> None:
    found = summarise({("a", 0): 0.2, ("a", 1): 0.4, ("b", 0): 0.9})
    assert found.value == pytest.approx((0.3 + 0.9) / 2)
    assert found.over_subjects == pytest.approx(np.std([0.3, 0.9], ddof=1))
    assert found.over_seeds is None, "seed 1 lacks a subject"
    assert (found.n_subjects, found.n_seeds, found.n_runs) == (2, 2, 3)
