"""Evidence: sums over repetitions, bounded memory, calibrated probability, stopping rule."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdec.decode.evidence import Evidence, EvidenceSettings, Query, calibrate, softmax
from streamdec.decode.gallery import Gallery, top, unit
from streamdec.decode.manifest import Calibration, EvidenceMode, Head
from streamdec.errors import BundleError, ConfigError, EngineError

SHAPE = (3, 8)
DIM = 24
MODES: tuple[EvidenceMode, ...] = ("none", "mean", "log_probability")


def head(horizon: float = 1.0, shape: tuple[int, int] = SHAPE, scale: float = 10.0) -> Head:
    return Head(horizon, "encoder.onnx", shape, shape[0] * shape[1], Calibration((1,), (scale,)))


def encode(epoch: Any) -> Any:
    return epoch.ravel()


def epochs(n: int, seed: int = 0, shape: tuple[int, int] = SHAPE) -> Any:
    return np.random.default_rng(seed).standard_normal((n, *shape)).astype(np.float32)


def test_mean_is_the_mean_of_the_epochs_bit_for_bit() -> None:
    evidence, seen = Evidence("mean", [head()]), []
    x = epochs(40)
    for i in range(40):
        kept = x[i].copy()
        query = evidence.query("key", 1.0, x[i], lambda mean: seen.append(mean.copy()) or encode(mean))
        np.testing.assert_array_equal(x[i], kept)
        np.testing.assert_array_equal(seen[-1], x[: i + 1].mean(axis=0, dtype=np.float64).astype(np.float32))
        np.testing.assert_array_equal(query.embedding, unit(encode(seen[-1])))
        assert (query.repetitions, query.weight, query.horizon) == (i + 1, 1.0, 1.0)
        assert seen[-1].dtype == query.embedding.dtype == np.float32


def test_log_probability_is_the_sum_of_the_log_softmax() -> None:
    scale, n = 7.0, 6
    x = epochs(n, 1)
    counts = tuple(range(1, n + 1))
    calibration = Calibration(counts, tuple(scale * c for c in counts))  # independent epochs: scales add
    evidence = Evidence("log_probability", [Head(1.0, "e.onnx", SHAPE, DIM, calibration)])
    features = np.random.default_rng(2).standard_normal((30, DIM))
    gallery = Gallery(features, [str(i) for i in range(30)], [""] * 30)
    directions = features / np.linalg.norm(features, axis=1, keepdims=True)
    total = np.zeros(30)
    for i in range(n):
        z = x[i].ravel().astype(np.float64)
        logits = scale * directions @ (z / np.linalg.norm(z))
        total += logits - np.log(np.exp(logits).sum())
        query = evidence.query("key", 1.0, x[i], encode)
        scores = gallery.scores(query.embedding)
        np.testing.assert_allclose(
            evidence.probabilities(query, scores), np.exp(total) / np.exp(total).sum(), rtol=1e-5
        )
        assert top(scores, 5).tolist() == np.argsort(-total)[:5].tolist()

    # Candidates that come and go leave it exact: as if they had been there, or not, from the beginning.
    fewer = gallery.remove(["0", "7"])
    left = np.delete(total, [0, 7])
    found = evidence.probabilities(query, fewer.scores(query.embedding))
    np.testing.assert_allclose(found, np.exp(left) / np.exp(left).sum(), rtol=1e-5)


def test_none_takes_every_epoch_alone() -> None:
    evidence = Evidence("none", [head()])
    for x in epochs(3):
        query = evidence.query("key", 1.0, x, encode)
        np.testing.assert_array_equal(query.embedding, unit(encode(x)))
        assert query.repetitions == 1


@pytest.mark.parametrize("mode", ["mean", "log_probability"])
@given(st.lists(st.tuples(st.integers(0, 5), st.sampled_from([0.5, 1.0])), max_size=40), st.sampled_from([None, 1, 3]))
@settings(max_examples=40, deadline=None)
def test_memory_is_bounded_and_the_stimulus_not_shown_for_longest_goes_first(
    mode: EvidenceMode, shown: list[tuple[int, float]], most: int | None
) -> None:
    heads = [head(0.5, (3, 4)), head(1.0, SHAPE)]
    evidence = Evidence(mode, heads, EvidenceSettings(max_keys=3, max_repetitions=most))
    x = epochs(len(shown))
    kept: OrderedDict[int, dict[float, list[Any]]] = OrderedDict()
    for i, (key, horizon) in enumerate(shown):
        if key not in kept and len(kept) == 3:
            kept.popitem(last=False)
        kept.setdefault(key, {0.5: [], 1.0: []})
        kept.move_to_end(key)
        part = x[i, :, : 4 if horizon == 0.5 else 8].copy()
        past = kept[key][horizon]
        if len(past) == most:
            past.clear()
        past.append(part if mode == "mean" else unit(encode(part)))
        query = evidence.query(str(key), horizon, part, encode)
        assert query.repetitions == len(past)
        mean = np.mean(past, axis=0, dtype=np.float64).astype(np.float32).ravel()
        np.testing.assert_array_equal(query.embedding, unit(mean))
        expected = np.linalg.norm(mean.astype(np.float64)) if mode == "log_probability" else 1
        np.testing.assert_allclose(query.weight, expected, rtol=1e-6)
    evidence.reset()
    if shown:
        assert evidence.query(str(shown[0][0]), 1.0, epochs(1)[0], encode).repetitions == 1


@pytest.mark.parametrize("mode", MODES)
def test_the_same_epochs_give_the_same_queries(mode: EvidenceMode) -> None:
    def play() -> bytes:
        evidence = Evidence(mode, [head()], EvidenceSettings(max_keys=2))
        return b"".join(
            evidence.query(str(i % 3), 1.0, x, encode).embedding.tobytes() for i, x in enumerate(epochs(20))
        )

    assert play() == play()


@pytest.mark.parametrize("mode", ["mean", "log_probability"])
@pytest.mark.parametrize("bad", [np.full(SHAPE, np.nan, np.float32), np.ones((1, 8), np.float32)])
def test_a_bad_epoch_leaves_the_sums_alone(mode: EvidenceMode, bad: Any) -> None:
    evidence, other = Evidence(mode, [head()]), Evidence(mode, [head()])
    first, second = epochs(2)
    for each in (evidence, other):
        each.query("key", 1.0, first, encode)
    with pytest.raises(EngineError):
        evidence.query("key", 1.0, bad, encode)
    a, b = evidence.query("key", 1.0, second, encode), other.query("key", 1.0, second, encode)
    np.testing.assert_array_equal(a.embedding, b.embedding)
    assert a.repetitions == b.repetitions == 2


@pytest.mark.parametrize("mode", MODES)
def test_generation_gets_the_embedding_as_it_is_and_what_was_encoded(mode: EvidenceMode) -> None:
    evidence, seen = Evidence(mode, [head()], EvidenceSettings(max_repetitions=3)), list[Any]()
    for x in epochs(5):
        seen = [*seen, x] if len(seen) < 3 else [x]
        query = evidence.query("key", 1.0, x, encode)
        evidence.query("other", 1.0, -x, lambda e: 7 * encode(e))
        again = Evidence(mode, [head()])
        for one in seen:
            query = again.query("key", 1.0, one, encode)
        lengths = [np.linalg.norm(encode(one)) for one in seen]
        expected = {
            "none": encode(x),
            "mean": encode(np.mean(seen, axis=0).astype(np.float32)),
            "log_probability": query.embedding * np.mean(lengths),
        }
        np.testing.assert_allclose(query.raw, expected[mode], rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(unit(query.raw), query.embedding, atol=1e-6)
        np.testing.assert_allclose(query.epoch, np.mean(seen, axis=0) if mode == "mean" else x, rtol=1e-5, atol=1e-6)


def asked(n: int, weight: float = 1.0) -> Query:
    return Query(np.ones(DIM, np.float32), 1.0, n, weight, np.ones(DIM, np.float32), np.ones(SHAPE, np.float32))


def test_probabilities_use_the_calibration_of_the_count_and_the_weight() -> None:
    evidence = Evidence("mean", [Head(1.0, "e.onnx", SHAPE, DIM, Calibration((1, 2), (4.0, 6.0)))])
    scores = np.array([0.1, 0.9, 0.1, 0.9, -1.0], dtype=np.float32)
    for query, scale in ((asked(1), 4.0), (asked(2), 6.0), (asked(9), 6.0), (asked(2, 0.5), 3.0)):
        odds = np.exp(scale * scores.astype(np.float64))
        np.testing.assert_allclose(evidence.probabilities(query, scores), odds / odds.sum(), rtol=1e-12)


def test_stopping_rule() -> None:
    rule = EvidenceSettings(min_repetitions=2, max_repetitions=4, stop_probability=0.8)
    evidence = Evidence("mean", [head()], rule)
    assert [evidence.enough(asked(n), 0.8) for n in (1, 2, 3, 4)] == [False, True, True, True]
    assert [evidence.enough(asked(n), 0.79) for n in (1, 2, 3, 4)] == [False, False, False, True]
    assert not Evidence("mean", [head()]).enough(asked(10_000), 0.9)


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_keys": 0},
        {"max_repetitions": 0},
        {"min_repetitions": 0},
        {"min_repetitions": 3, "max_repetitions": 2},
        {"stop_probability": 0.0},
        {"stop_probability": 1.5},
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="evidence"):
        EvidenceSettings(**wrong)


def test_scale_between_and_beyond_the_fitted_counts() -> None:
    calibration = Calibration((1, 4, 16), (10.0, 20.0, 50.0))
    assert [calibration.at(n) for n in (1, 2, 4, 8, 16, 500)] == pytest.approx([10, 15, 20, 35, 50, 50])
    assert Calibration((2,), (3.0,)).at(1) == 3.0


@pytest.mark.parametrize(
    "wrong", [((), ()), ((1,), ()), ((0,), (1.0,)), ((2, 1), (1.0, 1.0)), ((1,), (-1.0,)), ((1,), (float("nan"),))]
)
def test_wrong_calibrations_are_refused(wrong: Any) -> None:
    with pytest.raises(BundleError, match="calibration"):
        Calibration(*wrong)


def test_softmax_neither_overflows_nor_loses_small_ones() -> None:
    np.testing.assert_allclose(softmax(np.array([1e5, 1e5, -1e5])), [0.5, 0.5, 0])
    x = np.random.default_rng(0).standard_normal((4, 5))
    np.testing.assert_allclose(softmax(x), np.exp(x) / np.exp(x).sum(axis=1, keepdims=True))


def drawn(scale: float, n: int, n_candidates: int, seed: int) -> tuple[Any, Any]:
    """Similarities whose softmax at ``scale`` is the true probability of the target drawn from it."""
    rng = np.random.default_rng(seed)
    similarities = 0.1 * rng.standard_normal((n, n_candidates))
    cumulative = np.cumsum(softmax(scale * similarities), axis=1)
    targets = np.minimum((cumulative < rng.random((n, 1))).sum(axis=1), n_candidates - 1)
    return similarities, targets


def calibration_error(similarities: Any, targets: Any, scale: float) -> float:
    """Expected calibration error, ten bins."""
    probabilities = softmax(scale * similarities)
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == targets
    bins = np.minimum((sure * 10).astype(int), 9)
    return sum(abs(right[bins == b].mean() - sure[bins == b].mean()) * (bins == b).mean() for b in set(bins.tolist()))


def test_calibrate_recovers_the_scale_and_mends_the_probabilities() -> None:
    similarities, targets = drawn(25.0, 6000, 40, 0)
    scale = calibrate(similarities, targets)
    assert scale == pytest.approx(25.0, rel=0.05)
    held_out = drawn(25.0, 6000, 40, 1)
    assert calibration_error(*held_out, scale) < 0.02
    for wrong in (5.0, 100.0):
        assert calibration_error(*held_out, scale) < calibration_error(*held_out, wrong) / 5


def test_calibrate_is_the_minimum_of_the_loss() -> None:
    similarities, targets = drawn(12.0, 300, 10, 2)

    def loss(scale: float) -> float:
        return float(-np.log(softmax(scale * similarities)[np.arange(300), targets]).mean())

    scale = calibrate(similarities, targets)
    grid = np.linspace(0.5, 60, 400)
    assert loss(scale) <= min(map(loss, grid))


def test_calibrate_at_its_limits() -> None:
    perfect = np.eye(5)
    assert calibrate(perfect, np.arange(5), max_scale=200.0) == 200.0
    assert calibrate(-perfect, np.arange(5)) == 0.0
    assert calibrate(np.ones((3, 4)), np.zeros(3, int)) == 0.0
    with pytest.raises(ConfigError, match="similarities"):
        calibrate(np.empty((0, 4)), np.empty(0, int))
    for targets in (np.array([5] * 5), np.array([-1] * 5), np.zeros(4, int)):
        with pytest.raises(ConfigError, match="targets"):
            calibrate(perfect, targets)
