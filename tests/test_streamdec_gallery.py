"""Gallery: exact, ties by lowest index, the same with faiss, unchanged while a search is under way."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streamdec.decode import gallery as module
from streamdec.decode.gallery import Gallery, rank, top, unit
from streamdec.errors import ConfigError, EngineError


def naive_order(scores: Any) -> list[int]:
    return sorted(range(len(scores)), key=lambda i: (-float(scores[i]), i))


def make(n: int, dim: int = 16, seed: int = 0) -> Gallery:
    features = np.random.default_rng(seed).standard_normal((n, dim))
    return Gallery(features, [f"id{i}" for i in range(n)], [f"label {i}" for i in range(n)])


@given(
    hnp.arrays(np.float32, st.integers(1, 60), elements=st.sampled_from([-1.0, -0.5, -0.0, 0.0, 0.25, 0.5, 1.0])),
    st.integers(-1, 70),
)
@settings(deadline=None)
def test_top_and_rank_equal_a_stable_sort(scores: Any, k: int) -> None:
    order = naive_order(scores)
    assert top(scores, k).tolist() == order[: max(k, 0)]
    assert [rank(scores, i) for i in order] == list(range(len(order)))


@given(st.integers(1, 400), st.integers(1, 70), st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_equal_candidates_score_equal_bit_for_bit_wherever_they_stand(n: int, dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    few = rng.standard_normal((3, dim))
    which = rng.integers(0, 3, n)
    gallery = Gallery(few[which], [str(i) for i in range(n)], [""] * n)
    query = rng.standard_normal(dim).astype(np.float32)
    scores = gallery.scores(query)
    for i in range(3):
        assert len(set(scores[which == i].tolist())) <= 1
    indices, found = gallery.search(query, 7)
    assert indices.tolist() == naive_order(scores)[:7]
    np.testing.assert_array_equal(found, scores[indices])
    np.testing.assert_array_equal(gallery.scores(query), scores)


def test_scores_are_cosines_and_inputs_are_kept() -> None:
    rng = np.random.default_rng(1)
    features, query = rng.standard_normal((9, 5)) * 100, rng.standard_normal(5).astype(np.float32)
    before = features.copy(), query.copy()
    scores = Gallery(features, list("abcdefghi"), list("abcdefghi")).scores(query)
    expected = [f @ query / np.linalg.norm(f) / np.linalg.norm(query) for f in features]
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    assert scores.dtype == np.float32
    np.testing.assert_array_equal(features, before[0])
    np.testing.assert_array_equal(query, before[1])


def test_unit_keeps_unit_vectors_bit_for_bit() -> None:
    once = unit(np.random.default_rng(2).standard_normal((500, 33)))
    np.testing.assert_array_equal(unit(once), once)
    np.testing.assert_allclose(np.linalg.norm(once.astype(np.float64), axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, 0.0])
def test_vectors_without_direction_are_refused(bad: float) -> None:
    gallery = make(4, 3)
    with pytest.raises(EngineError, match="NaN, infinity or length zero"):
        gallery.scores(np.full(3, bad, dtype=np.float32))
    with pytest.raises(EngineError):
        Gallery(np.full((1, 3), bad), ["a"], ["a"])


def test_wrong_calls_say_what_is_allowed() -> None:
    gallery = make(4, 3)
    with pytest.raises(ConfigError, match=r"query embedding; got shape \(4,\); allowed: \(3,\)"):
        gallery.scores(np.ones(4, dtype=np.float32))
    with pytest.raises(ConfigError, match="'a' twice"):
        Gallery(np.eye(2), ["a", "a"], ["", ""])
    with pytest.raises(ConfigError, match="2 features, 1 ids, 2 labels"):
        Gallery(np.eye(2), ["a"], ["", ""])
    with pytest.raises(ConfigError, match="n_candidates, n_dims"):
        Gallery(np.ones(3), ["a"], ["a"])
    with pytest.raises(ConfigError, match="'id1' twice"):
        gallery.add(["id1"], ["again"], np.ones((1, 3)))
    with pytest.raises(ConfigError, match=r"n_candidates, 3"):
        gallery.add(["new"], ["new"], np.ones((1, 4)))
    with pytest.raises(ConfigError, match="'nobody'"):
        gallery.remove(["id0", "nobody"])


def test_an_empty_gallery_finds_nothing() -> None:
    gallery = Gallery(np.empty((0, 3)), [], [])
    indices, scores = gallery.search(np.ones(3, dtype=np.float32), 5)
    assert indices.shape == scores.shape == (0,)


def test_add_and_remove_leave_the_old_gallery_as_it_was() -> None:
    gallery = make(6, 8)
    query = np.random.default_rng(3).standard_normal(8).astype(np.float32)
    before = gallery.scores(query)
    more = gallery.add(["new"], ["New"], query[None] * 3)
    assert len(gallery) == 6
    assert len(more) == 7
    assert more.search(query, 1)[0].tolist() == [6]
    assert more.index_of("new") == 6
    assert gallery.index_of("new") is None
    less = more.remove(["id0", "id3"])
    assert less.ids == ("id1", "id2", "id4", "id5", "new")
    assert less.labels == ("label 1", "label 2", "label 4", "label 5", "New")
    np.testing.assert_array_equal(less.scores(query), more.scores(query)[[1, 2, 4, 5, 6]])
    np.testing.assert_array_equal(gallery.scores(query), before)
    with pytest.raises(ValueError, match="read-only"):
        gallery.features[0] = 0


@pytest.mark.parametrize("kind", ["spread", "level", "near"])
def test_faiss_finds_what_numpy_finds(monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """Also where half precision cannot tell candidates apart, or where all are equal."""
    rng = np.random.default_rng(4)
    n, dim = 5000, 48
    features = rng.standard_normal((n, dim))
    if kind == "level":
        features = features[rng.integers(0, 3, n)]
    elif kind == "near":
        features = features[:1] + 1e-4 * features
    names = [str(i) for i in range(n)]
    monkeypatch.setattr(module, "FAISS_FROM", n - 1)
    large = Gallery(features, names, names)
    proposed = []
    shortlist = large._shortlist
    monkeypatch.setattr(Gallery, "_shortlist", lambda _, *a: proposed.append(shortlist(*a)) or proposed[-1])
    for k in (0, 1, 10, n):
        for query in rng.standard_normal((5, dim)).astype(np.float32):
            best, scores = large.search(query, k)
            every = large.scores(query)
            np.testing.assert_array_equal(best, top(every, k))
            np.testing.assert_array_equal(scores, every[best])
    assert large._faiss is not None
    # On a spread gallery faiss's proposal is proven; where nearly all tie it must give way to the full comparison.
    answered = [found is not None for found in proposed]
    assert all(answered[:10]) if kind == "spread" else not any(answered)


def test_real_decoder_on_the_real_gallery(data: Path) -> None:
    """ATM-S, subject 8: 72 of 200 first, 145 of 200 among the first five."""
    folder = data / "things_eeg2"
    queries = np.load(folder / "atm_s_sub-08_test_query_embeddings.npy", allow_pickle=False)
    features = np.load(folder / "vit_h14_test_image_features.npy", allow_pickle=False)
    ids = (folder / "things_eeg2_test_image_ids.txt").read_text(encoding="utf-8").split()
    gallery = Gallery(features, ids, ids)
    places = [rank(gallery.scores(query), i) for i, query in enumerate(queries)]
    assert sum(place < 1 for place in places) == 72
    assert sum(place < 5 for place in places) == 145
    found = [gallery.search(query, 5)[0].tolist() for query in queries]
    assert sum(i in five for i, five in enumerate(found)) == 145
