from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdec.errors import ConfigError
from streamdec.signal.ring import Ring
from streamdec.types import Float32, Float64


def samples(first: int, n: int) -> tuple[Float32, Float64]:
    count = np.arange(first, first + n)
    return np.stack([count, -count, count * 0.5]).astype(np.float32), count * 0.001


@given(
    st.integers(1, 40).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
    st.lists(st.tuples(st.booleans(), st.integers(0, 100)), max_size=30),
)
def test_every_view_is_what_was_written(sizes: tuple[int, int], writes: list[tuple[bool, int]]) -> None:
    n_times, longest = sizes
    ring = Ring(3, n_times, longest)
    data, times = np.empty((3, 0), np.float32), np.empty(0)
    for skip, n in writes:
        if skip and len(times):
            ring.skip(n, (len(times) + n) * 0.001)
            data = np.concatenate([data, np.full((3, n), np.nan, np.float32)], axis=1)
            times = np.concatenate([times, np.arange(len(times), len(times) + n) * 0.001])
        else:
            new = samples(len(times), n)
            ring.write(*new)
            data, times = np.concatenate([data, new[0]], axis=1), np.concatenate([times, new[1]])
    end, start = len(times), max(0, len(times) - n_times)
    assert (ring.start, ring.end) == (start, end)
    np.testing.assert_allclose(ring.times(start, end - start), times[start:], atol=1e-12)
    assert end == 0 or ring.newest == pytest.approx(times[-1], abs=1e-12)
    for first in range(start, end + 1):
        n = min(longest, end - first)
        np.testing.assert_array_equal(ring.view(first, n), data[:, first : first + n])


@pytest.mark.parametrize("n", [1, 7, 1000])
def test_chunk_size_does_not_matter(n: int) -> None:
    ring, whole = Ring(3, 300, 120), samples(0, 1000)
    for first in range(0, 1000, n):
        ring.write(whole[0][:, first : first + n], whole[1][first : first + n])
    np.testing.assert_array_equal(ring.view(777, 120), whole[0][:, 777:897])
    np.testing.assert_array_equal(ring.times(700, 300), whole[1][700:])


def test_views_are_not_copies_and_input_is_not_kept() -> None:
    ring, (data, times) = Ring(3, 100, 50), samples(0, 130)
    before = data.copy()
    ring.write(data, times)
    np.testing.assert_array_equal(data, before)
    view = ring.view(80, 50)
    assert np.shares_memory(view, ring.view(90, 40))
    data[:] = 0
    np.testing.assert_array_equal(view, before[:, 80:130])


def test_what_is_not_held_cannot_be_seen() -> None:
    ring = Ring(3, 100, 50)
    assert np.isnan(ring.newest)
    ring.write(*samples(0, 130))
    for first, n in [(29, 10), (100, 31), (-1, 2), (30, 51), (130, 1), (50, -1)]:
        with pytest.raises(IndexError, match=r"holds 30\.\.130"):
            ring.view(first, n)
    assert ring.times(30, 100).shape == (100,)
    with pytest.raises(IndexError):
        ring.times(29, 5)


def test_times_of_missing_samples_lie_on_a_line() -> None:
    ring = Ring(1, 20, 5)
    ring.write(np.zeros((1, 1), np.float32), np.array([10.0]))
    ring.skip(3, 14.4)
    ring.write(np.ones((1, 1), np.float32), np.array([14.4]))
    np.testing.assert_allclose(ring.times(0, 5), [10.0, 11.1, 12.2, 13.3, 14.4])
    np.testing.assert_array_equal(ring.view(0, 5)[0], [0, np.nan, np.nan, np.nan, 1])


@pytest.mark.parametrize(("n_times", "longest"), [(10, 11), (10, 0), (0, 0)])
def test_a_ring_holds_its_longest_epoch(n_times: int, longest: int) -> None:
    with pytest.raises(ConfigError, match="ring buffer"):
        Ring(2, n_times, longest)
