from __future__ import annotations

import math
from fractions import Fraction

import mne
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdec.errors import ConfigError
from streamdec.signal.rate import Rate, nearest

rates = st.sampled_from([93.7, 128.0, 250.0, 256.0, 300.0, 512.0, 1000.0, 1024.0, 2048.0, 4000.0, 30012.0])


def nearest_ties_down(position: Fraction) -> int:
    below = math.floor(position)
    return below if position - below <= Fraction(1, 2) else below + 1


@given(st.integers(-(10**7), 10**7), st.integers(-499_990, 500_000))
def test_nearest_is_the_nearest_ties_down(sample: int, millionths: int) -> None:
    position = Fraction(sample) + Fraction(millionths, 1_000_000)
    assert nearest(float(position)) == nearest_ties_down(position) == sample


@pytest.mark.parametrize(("position", "sample"), [(0.5, 0), (-0.5, -1), (1.5, 1), (2.5, 2), (0.5 + 1e-9, 0), (0.51, 1)])
def test_half_way_is_the_earlier_sample_even_with_float_error(position: float, sample: int) -> None:
    assert nearest(position) == sample


@given(rates, st.integers(-(10**6), 10**6))
def test_samples_survive_the_way_to_seconds_and_back(sfreq: float, samples: int) -> None:
    rate = Rate(sfreq)
    assert rate.to_samples(rate.to_seconds(samples)) == samples


@given(rates, st.floats(-1e3, 1e3), st.floats(-1e3, 1e3))
def test_later_is_never_an_earlier_sample(sfreq: float, a: float, b: float) -> None:
    low, high = sorted((a, b))
    assert Rate(sfreq).to_samples(low) <= Rate(sfreq).to_samples(high)


def test_sums_of_decimal_seconds_do_not_lose_a_sample() -> None:
    assert Rate(100.0).to_samples(0.29) == 29  # int(0.29 * 100) is 28
    assert Rate(1000.0).to_samples(0.1 + 0.2) == 300


@pytest.mark.parametrize("sfreq", [128.0, 250.0, 256.0, 1000.0])
@pytest.mark.parametrize(("tmin", "tmax"), [(-0.2, 1.0), (-0.1, 0.2), (0.0, 0.0), (0.05, 0.8)])
def test_window_is_what_mne_cuts(sfreq: float, tmin: float, tmax: float) -> None:
    info = mne.create_info(1, sfreq, "eeg")
    raw = mne.io.RawArray(np.arange(int(sfreq) * 6.0)[None], info, verbose="error")
    onset = int(sfreq) * 3
    cut = mne.Epochs(raw, np.array([[onset, 0, 1]]), tmin=tmin, tmax=tmax, baseline=None, preload=True, verbose="error")
    samples = cut.get_data(copy=False)[0, 0].astype(int)
    first, n_times = Rate(sfreq).window(tmin, tmax)
    assert (first, n_times) == (samples[0] - onset, len(samples))


def test_window_needs_an_order() -> None:
    assert Rate(1000.0).window(0.1, 0.1) == (100, 1)
    with pytest.raises(ConfigError, match="tmin <= tmax"):
        Rate(1000.0).window(0.2, 0.1)


@pytest.mark.parametrize("sfreq", [0.0, -1.0, math.inf, math.nan])
def test_a_rate_is_a_positive_number(sfreq: float) -> None:
    with pytest.raises(ConfigError, match="sampling rate"):
        Rate(sfreq)
