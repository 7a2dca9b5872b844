from __future__ import annotations

import numpy as np
import pytest

from streamdec.signal.quality import Quality
from streamdec.signal.rate import Rate
from streamdec.signal.ring import Ring
from streamdec.signal.scope import Excerpt, Scope

CH_NAMES = ("Fz", "Cz", "Pz")


def excerpts(samples: np.ndarray, sfreq: float, sizes: list[int]) -> tuple[Scope, list[Excerpt]]:
    """Write ``samples`` in chunks, look after each."""
    rate = Rate(sfreq)
    ring = Ring(len(samples), rate.to_samples(40.0), rate.to_samples(3.0))
    scope = Scope(ring, None, rate, Quality(CH_NAMES))
    found: list[Excerpt] = []
    at = 0
    while at < samples.shape[1]:
        size = sizes[len(found) % len(sizes)]
        ring.write(samples[:, at : at + size], 100 + np.arange(at, min(at + size, samples.shape[1])) / sfreq)
        at += size
        found.extend(scope())
    return scope, found


@pytest.mark.parametrize("sfreq", [1000.0, 512.0, 250.0, 30.0])
@pytest.mark.parametrize("sizes", [[1], [7], [100], [3, 250, 1, 17]])
def test_excerpts_do_not_depend_on_the_chunks(sfreq: float, sizes: list[int]) -> None:
    samples = np.random.default_rng(0).normal(0, 10, (3, Rate(sfreq).to_samples(4.0))).astype(np.float32)
    sizes = [min(size, Rate(sfreq).to_samples(0.9)) for size in sizes]
    scope, found = excerpts(samples, sfreq, sizes)
    block = round(sfreq / scope.sfreq)
    n = found[0].data.shape[1] * block
    assert 20 <= scope.sfreq <= 130
    assert len(found) == samples.shape[1] // n
    whole = np.concatenate([excerpt.data for excerpt in found], axis=1)
    expected = samples[:, : whole.shape[1] * block].reshape(3, -1, block).mean(axis=2, dtype=np.float64)
    np.testing.assert_allclose(whole, expected, atol=1e-4)
    times = [excerpt.time for excerpt in found]
    np.testing.assert_allclose(times, 100 + (np.arange(len(found)) * n + (block - 1) / 2) / sfreq, atol=1e-9)


def test_a_backlog_is_passed_over_but_for_its_last_second() -> None:
    samples = np.zeros((3, 20_000), np.float32)
    samples[:] = np.arange(20_000) // 100
    _, found = excerpts(samples, 1000.0, [20_000])
    assert [round(float(excerpt.data[0, 0]), 3) for excerpt in found] == list(range(190, 200))


def test_channels_are_judged_and_missing_samples_shown() -> None:
    samples = np.random.default_rng(1).normal(0, 10, (3, 2000)).astype(np.float32)
    samples[1] = 5.0
    samples[2, 1050] = np.nan
    _, found = excerpts(samples, 1000.0, [10])
    assert not found[8].bad
    assert all(excerpt.bad == {"Cz": "flat"} for excerpt in found[9:])
    assert np.isnan(found[10].data[2]).all()
    assert np.isfinite(np.delete(found[10].data, 2, axis=0)).all()
    assert sum(bool(np.isnan(excerpt.data).any()) for excerpt in found) == 1
