from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import signal as sp

from streamdec.errors import ConfigError
from streamdec.signal import filters as module
from streamdec.signal.filters import StreamFilter
from streamdec.signal.spec import BandPass, Filter, LineNoise, Notch
from streamdec.types import Float32, Float64

SFREQ = 250.0
ALL: tuple[Filter, ...] = (BandPass(0.5, 40.0), Notch(50.0, harmonics=2), LineNoise(50.0, harmonics=2, window=0.5))
EACH = [(BandPass(low=0.5),), (BandPass(high=30.0, order=2),), *[(one,) for one in ALL], ALL]


@pytest.fixture
def eeg() -> Float32:
    rng = np.random.default_rng(3)
    times = np.arange(1000) / SFREQ
    drift = np.cumsum(rng.standard_normal((5, 1000)), axis=1)
    line = 20 * np.sin(2 * np.pi * 50 * times + rng.uniform(0, 6, (5, 1)))
    return (drift + line + np.array([[-9000.0], [0], [5000], [1], [250]])).astype(np.float32)


def in_chunks(run: StreamFilter, data: Float32, sizes: list[int]) -> Float32:
    out, at = [], 0
    while at < data.shape[1]:
        for n in sizes:
            out.append(run(data[:, at : at + n]))
            at += n
    return np.concatenate(out, axis=1)


@pytest.mark.parametrize("filters", EACH)
@pytest.mark.parametrize("sizes", [[1], [7], [0, 3, 200]])
def test_chunk_size_does_not_matter(filters: tuple[Filter, ...], sizes: list[int], eeg: Float32) -> None:
    whole = StreamFilter(filters, SFREQ, 5)(eeg)
    assert whole.dtype == np.float32
    np.testing.assert_array_equal(in_chunks(StreamFilter(filters, SFREQ, 5), eeg, sizes), whole)


@pytest.mark.parametrize("filters", EACH)
def test_layout_does_not_matter_and_input_is_kept(filters: tuple[Filter, ...], eeg: Float32) -> None:
    before = eeg.copy()
    whole = StreamFilter(filters, SFREQ, 5)(eeg)
    np.testing.assert_array_equal(eeg, before)
    np.testing.assert_array_equal(StreamFilter(filters, SFREQ, 5)(np.asfortranarray(eeg)), whole)


@pytest.mark.parametrize("filters", EACH)
def test_reset_is_birth(filters: tuple[Filter, ...], eeg: Float32) -> None:
    run = StreamFilter(filters, SFREQ, 5)
    first = run(eeg)
    run.reset()
    np.testing.assert_array_equal(run(eeg), first)


def test_band_pass_is_scipys_butterworth_started_on_the_first_sample(eeg: Float32) -> None:
    sos = sp.butter(3, [1.0, 30.0], "bandpass", fs=SFREQ, output="sos")
    zi = sp.sosfilt_zi(sos)[:, None, :] * eeg[:, 0].astype(float)[None, :, None]
    expected, _ = sp.sosfilt(sos, eeg.astype(float), zi=zi)
    np.testing.assert_array_equal(StreamFilter((BandPass(1.0, 30.0, 3),), SFREQ, 5)(eeg), expected.astype(np.float32))


@pytest.mark.parametrize(
    ("filters", "freqs", "gains"),
    [
        ((BandPass(1.0, 40.0),), (0.02, 1.0, 10.0, 40.0, 110.0), (0, math.sqrt(0.5), 1, math.sqrt(0.5), 0)),
        ((BandPass(high=20.0, order=2),), (0.1, 20.0), (1, math.sqrt(0.5))),
        ((Notch(50.0, quality=25.0, harmonics=2),), (20.0, 49.0, 50.0, 100.0), (1, math.sqrt(0.5), 0, 0)),
        ((LineNoise(50.0, 2),), (20.0, 47.0, 50.0, 100.0), (1, 1, 0, 0)),
    ],
)
def test_gain(filters: tuple[Filter, ...], freqs: tuple[float, ...], gains: tuple[float, ...]) -> None:
    times = np.arange(int(60 * SFREQ)) / SFREQ
    waves = np.sin(2 * np.pi * np.array(freqs)[:, None] * times).astype(np.float32)
    out = StreamFilter(filters, SFREQ, len(freqs))(waves)[:, times >= 40]
    np.testing.assert_allclose(out.std(axis=1) / waves[:, times >= 40].std(axis=1), gains, atol=0.03)


def weighted_fit(x: Float64, freqs: list[float], window: float, prior: float) -> Float64:
    """What is left of each sample after a fit of constant, sines and cosines to all samples before it and itself."""
    forget = math.exp(-1 / (window * SFREQ))
    left = np.empty_like(x)
    for now in range(len(x)):
        t = np.arange(now + 1)
        waves = [f(2 * np.pi * freq * t / SFREQ) for freq in freqs for f in (np.sin, np.cos)]
        regressors = np.stack([np.ones(now + 1), *waves], axis=1)
        weight = forget ** (now - t)
        normal = regressors.T @ (weight[:, None] * regressors)
        normal[1:, 1:] += prior * forget**now * np.eye(2 * len(freqs))
        coefficients = np.linalg.solve(normal, regressors.T @ (weight * x[: now + 1]))
        left[now] = x[now] - regressors[-1, 1:] @ coefficients[1:]
    return left


def test_line_noise_is_least_squares_with_forgetting(eeg: Float32) -> None:
    x = eeg[:1, :600].astype(float)
    x -= x[:, :1]
    out = StreamFilter((LineNoise(50.0, 2, window=0.2),), SFREQ, 1)(x.astype(np.float32))
    np.testing.assert_allclose(out[0], weighted_fit(x[0], [50.0, 100.0], 0.2, 0.1 * SFREQ / 50.0), atol=5e-3)


def test_line_is_gone_within_cycles_and_the_rest_stays() -> None:
    times = np.arange(2000) / SFREQ
    brain = 5 * np.sin(2 * np.pi * 9.3 * times)
    out = StreamFilter((LineNoise(50.0),), SFREQ, 1)(
        (brain + 40 * np.sin(2 * np.pi * 50 * times + 1) + 3e3)[None].astype(np.float32)
    )
    rest = out[0] - 3e3 - brain
    assert np.abs(rest[50:100]).max() < 2
    assert np.abs(rest[1000:]).max() < 0.1


def test_offsets_make_no_step(eeg: Float32) -> None:
    level = np.repeat(eeg[:, :1], 500, axis=1)
    assert np.abs(StreamFilter((BandPass(low=0.1),), SFREQ, 5)(level)).max() < 1e-3
    np.testing.assert_allclose(StreamFilter(ALL[1:], SFREQ, 5)(level), level, atol=1e-2)


def test_settling_is_when_the_transient_is_gone() -> None:
    for filters in ((BandPass(0.5, 40.0),), (Notch(50.0),), (BandPass(0.1, None, 2), Notch(50.0))):
        run = StreamFilter(filters, SFREQ, 1)
        impulse = np.zeros((1, 4 * run.settling), np.float32)
        run(impulse[:, :1])
        impulse[0, 0] = 1.0
        answer = np.abs(run(impulse)[0])
        assert answer[run.settling :].max() < 0.05 * answer[1:].max()
    assert StreamFilter((), SFREQ, 1).settling == 0
    assert StreamFilter((LineNoise(50.0, window=2.0),), SFREQ, 1).settling == 1000


@given(
    st.lists(st.tuples(st.integers(0, 2), st.integers(0, 119)), max_size=40),
    st.lists(st.integers(1, 30), min_size=1, max_size=8),
)
@settings(max_examples=40)
def test_nan_stays_where_it_is(holes: list[tuple[int, int]], sizes: list[int]) -> None:
    rng = np.random.default_rng(0)
    data = (rng.standard_normal((3, 120)) * 10 + np.array([[300.0], [-20], [0]])).astype(np.float32)
    held = data.copy()
    for row, column in holes:
        data[row, column] = np.nan
    data[2, :] = np.where(np.isnan(data[2]), np.inf, data[2])
    finite = np.isfinite(data)
    for row in range(3):  # the naive way: an unknown sample is the last known one, before the first that first one
        known = np.flatnonzero(finite[row])
        for column in range(120):
            before = known[known <= column]
            if len(known):
                held[row, column] = data[row, before[-1] if len(before) else known[0]]
    out = in_chunks(StreamFilter(ALL, SFREQ, 3), data, sizes)
    assert (np.isnan(out) == ~finite).all()
    np.testing.assert_array_equal(out, StreamFilter(ALL, SFREQ, 3)(data))
    # LineNoise counts the age from the stream's first sample, a channel's own start does not move it
    rest = (BandPass(0.5, 40.0), Notch(50.0, harmonics=2))
    expected = StreamFilter(rest, SFREQ, 3)(held)
    np.testing.assert_allclose(StreamFilter(rest, SFREQ, 3)(data)[finite], expected[finite], atol=1e-3)


def test_a_channel_that_never_starts_does_not_disturb_the_others(eeg: Float32) -> None:
    broken = eeg.copy()
    broken[2] = np.nan
    out, expected = StreamFilter(ALL, SFREQ, 5)(broken), StreamFilter(ALL, SFREQ, 5)(eeg)
    rows = [0, 1, 3, 4]
    np.testing.assert_array_equal(out[rows], expected[rows])
    assert np.isnan(out[2]).all()


def test_no_filters_no_copy(eeg: Float32) -> None:
    assert StreamFilter((), SFREQ, 5)(eeg) is eeg
    empty = eeg[:, :0]
    assert StreamFilter(ALL, SFREQ, 5)(empty).shape == (5, 0)


def test_scipys_public_function_gives_the_same(eeg: Float32) -> None:
    sos = sp.butter(4, [0.5, 40.0], "bandpass", fs=SFREQ, output="sos")
    x, state = eeg.astype(np.float64), np.zeros((5, 4, 2))
    module._run_sections(sos, x, state)
    expected, final = sp.sosfilt(sos, eeg.astype(np.float64), zi=np.zeros((4, 5, 2)))
    np.testing.assert_array_equal(x, expected)
    np.testing.assert_array_equal(np.moveaxis(state, 1, 0), final)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        (BandPass(), "band_pass"),
        (BandPass(40.0, 1.0), "band_pass"),
        (BandPass(5.0, 5.0), "band_pass"),
        (BandPass(0.0, 40.0), "band_pass"),
        (BandPass(1.0, 125.0), "band_pass"),
        (BandPass(1.0, 40.0, 0), "order"),
        (Notch(130.0), "notch.freq"),
        (Notch(50.0, harmonics=3), "notch.freq"),
        (Notch(50.0, harmonics=0), "notch.harmonics"),
        (Notch(50.0, quality=0.0), "notch.quality"),
        (LineNoise(50.0, 3), "line_noise.freq"),
        (LineNoise(50.0, window=0.05), "line_noise.window"),
    ],
)
def test_settings_that_make_no_filter_are_refused(wrong: Filter, match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        StreamFilter((wrong,), SFREQ, 2)
