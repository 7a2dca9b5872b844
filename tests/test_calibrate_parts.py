"""Alignment, the head and the figures of calibration, against oracles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import linalg

from streamdec.calibrate import align, head, judge
from streamdec.decode.adapt import Adaptation, AdaptedEngine
from streamdec.errors import BundleError


def some_covariances(n: int, p: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((p, p))
    x = rng.standard_normal((n, p, 3 * p)) * rng.uniform(0.5, 2, (n, p, 1))
    return mixing @ (x @ x.transpose(0, 2, 1) / (3 * p)) @ mixing.T


def test_aligned_epochs_have_the_reference_covariance() -> None:
    of_block, reference = some_covariances(40, 6), some_covariances(1, 6, seed=1)[0]
    matrix = align.aligner("euclidean", of_block, reference)
    np.testing.assert_allclose(matrix @ of_block.mean(axis=0) @ matrix.T, reference, rtol=1e-8, atol=1e-10)
    matrix = align.aligner("riemannian", of_block, reference)
    np.testing.assert_allclose(matrix @ align.geometric_mean(of_block) @ matrix.T, reference, rtol=1e-8, atol=1e-10)


def test_geometric_mean(rng: np.random.Generator) -> None:
    """Of two it is known in closed form; it goes along with any change of basis; of many it is a stationary point."""
    a, b = some_covariances(2, 5)
    root = linalg.sqrtm(a)
    inverse = np.linalg.inv(root)
    closed = root @ linalg.sqrtm(inverse @ b @ inverse) @ root
    np.testing.assert_allclose(align.geometric_mean(np.stack([a, b])), closed, rtol=1e-4)
    many, basis = some_covariances(30, 5), rng.standard_normal((5, 5))
    mean = align.geometric_mean(many)
    np.testing.assert_allclose(align.geometric_mean(basis @ many @ basis.T), basis @ mean @ basis.T, rtol=1e-3)
    inverse = np.linalg.inv(linalg.sqrtm(mean))
    assert np.abs(np.mean([linalg.logm(inverse @ each @ inverse) for each in many], axis=0)).max() < 1e-4


@pytest.mark.parametrize(("n", "dim"), [(30, 8), (12, 20)])
def test_the_change_is_the_ridge_solution(n: int, dim: int, rng: np.random.Generator) -> None:
    embeddings = rng.standard_normal((n, dim)).astype(np.float32)
    features = rng.standard_normal((n, dim)).astype(np.float32) + embeddings
    parts = head.decompose(embeddings, features)
    made = head.low_rank(parts, 3.0)
    z = embeddings - embeddings.mean(axis=0, dtype=np.float64)
    wanted = features - features.mean(axis=0, dtype=np.float64)
    scale = np.vdot(z, wanted) / np.vdot(wanted, wanted)
    penalty = 3.0 * np.sum(z**2) / n
    change = np.linalg.solve(z.T @ z + penalty * np.eye(dim), z.T @ (scale * wanted - z)).T
    np.testing.assert_allclose(made.left @ made.right, change, atol=2e-5)
    np.testing.assert_allclose(made(embeddings), z + z @ change.T, atol=2e-4)
    np.testing.assert_allclose(made(embeddings[3]), made(embeddings)[3], atol=1e-5)


def test_a_low_rank_keeps_the_largest_part(rng: np.random.Generator) -> None:
    embeddings = rng.standard_normal((40, 30)).astype(np.float32)
    parts = head.decompose(embeddings, rng.standard_normal((40, 30)).astype(np.float32) + embeddings)
    full, five = head.low_rank(parts, 1.0, None), head.low_rank(parts, 1.0, 5)
    assert five.left.shape == (30, 5)
    u, s, vt = np.linalg.svd(full.left @ full.right)
    np.testing.assert_allclose(five.left @ five.right, (u[:, :5] * s[:5]) @ vt[:5], atol=1e-4)
    nothing = head.recentred(parts)
    np.testing.assert_allclose(nothing(embeddings), embeddings - embeddings.mean(axis=0), atol=1e-6)


def test_an_adapted_engine_turns_embeddings_and_keeps_their_length() -> None:
    class Twice:
        shape, dim = (1, 3), 3

        def __call__(self, epoch):
            return (2 * epoch[0]).astype(np.float32)

        def warm_up(self, n_runs=20):
            return 0.0

        def close(self):
            pass

    turn = Adaptation(
        np.array([1, 0, 0], np.float32), np.array([[0], [1], [0]], np.float32), np.array([[1, 0, 0]], np.float32)
    )
    engine = AdaptedEngine(Twice(), turn)
    out = engine(np.array([[2, 0, 0]], np.float32))
    np.testing.assert_allclose(out, 4 * np.array([1, 1, 0]) / np.sqrt(2), rtol=1e-6)
    assert engine(np.ones((1, 3), np.float32)) is out  # a static buffer
    with pytest.raises(BundleError, match="shapes"):
        Adaptation(np.zeros(3, np.float32), np.zeros((3, 2), np.float32), np.zeros((1, 3), np.float32))


@given(st.integers(0, 1000))
def test_ranks_are_those_of_the_gallery(seed: int) -> None:
    from streamdec.decode import gallery

    rng = np.random.default_rng(seed)
    similarities = rng.integers(0, 4, (5, 7)).astype(np.float32)  # many ties
    target = rng.integers(0, 7, 5)
    expected = [gallery.rank(row, own) + 1 for row, own in zip(similarities, target, strict=True)]
    np.testing.assert_array_equal(judge.ranks(similarities, target), expected)


def test_intervals_hold_what_they_promise() -> None:
    """Images of different difficulty, 12 decisions on each: the true share lies in 95 % of the intervals."""
    rng = np.random.default_rng(1)
    hits = 0
    for _ in range(200):
        easy = np.repeat(rng.beta(2, 6, 30), 12)
        image = np.repeat(np.arange(30), 12)
        low, high = judge.share(rng.random(360) < easy, image)[1]
        hits += low <= 0.25 <= high
    assert 180 <= hits <= 199
    never = judge.accuracy(np.where(np.eye(20, 21) > 0, -1, 0).astype(np.float32), np.arange(20), 1, np.zeros(20))
    assert never.top1 == 0
    assert 0.1 < never.top1_interval[1] < 0.25  # of 20, none is not never


def test_a_change_is_taken_only_for_a_gain_beyond_its_error() -> None:
    rng = np.random.default_rng(2)
    image = np.repeat(np.arange(40), 5)
    old = rng.standard_normal(200)
    assert judge.better([old, old + 0.2 + 0.1 * rng.standard_normal(200)], image) == 1
    assert judge.better([old, old - 0.2, old + 1e-9 * rng.standard_normal(200) - 1e-9], image) == 0
    picked = [judge.better([old, old + rng.standard_normal(200)], image) for _ in range(100)]
    assert 5 <= sum(picked) <= 30  # one standard error: 16 % of changes that do nothing


def test_repetitions_are_dealt_out_in_full_groups() -> None:
    image = np.array([3, 1, 3, 3, 1, 3, 3])
    dealt = [group.tolist() for group in judge.groups(image, 2)]
    assert dealt == [[1, 4], [0, 2], [3, 5]]
