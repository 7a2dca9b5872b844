"""The noise stream: the same whatever the chunks, and with the parts that EEG has."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.signal
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdec.simulate import noise
from streamdec.simulate.leadfield import CH_NAMES
from streamdec.simulate.noise import Noise

OZ, CZ, FP1 = (CH_NAMES.index(name) for name in ("Oz", "Cz", "Fp1"))


@pytest.fixture(scope="module")
def minutes():
    return Noise(seed=1).chunk(90_000)


@pytest.fixture(scope="module")
def spectrum(minutes):
    return scipy.signal.welch(minutes, 1000, nperseg=8000)


@pytest.mark.parametrize("size", [1, 7, 250, 2000])
def test_chunk_invariance(size):
    whole, parts = Noise(3).chunk(2000), Noise(3)
    chunks = [parts.chunk(min(size, 2000 - first)) for first in range(0, 2000, size)]
    np.testing.assert_array_equal(np.concatenate(chunks, axis=1), whole)


@pytest.fixture(scope="module")
def at_once():
    return Noise(3, sfreq=500.0).chunk(6 * 700)


@settings(max_examples=20, deadline=None)
@given(sizes=st.lists(st.integers(0, 700), min_size=1, max_size=6))
def test_any_chunking(at_once, sizes):
    parts = Noise(3, sfreq=500.0)
    chunks = [parts.chunk(size) for size in sizes]
    assert [chunk.shape for chunk in chunks] == [(63, size) for size in sizes]
    np.testing.assert_array_equal(np.concatenate(chunks, axis=1), at_once[:, : sum(sizes)])


def test_sessions_and_subjects_differ():
    first = Noise(1, 0).chunk(500)
    assert first.dtype == np.float32
    for other in (Noise(1, 1), Noise(2, 0)):
        assert not np.array_equal(other.chunk(500), first)


def test_handed_out_chunks_stay_as_they_are():
    stream = Noise(0)
    first = stream.chunk(300)
    kept = first.copy()
    stream.chunk(1000)
    np.testing.assert_array_equal(first, kept)


def test_background_falls_as_one_over_f(spectrum):
    freqs, power = spectrum
    use = ((freqs > 14) & (freqs < 45)) | ((freqs > 2) & (freqs < 6))
    slope = np.polyfit(np.log(freqs[use]), np.log(power[CZ, use]), 1)[0]
    assert -1.7 < slope < -0.9


def test_alpha_peak_over_the_back_of_the_head(spectrum):
    freqs, power = spectrum
    alpha, around = (freqs > 8.5) & (freqs < 11.5), ((freqs > 6) & (freqs < 7.5)) | ((freqs > 13) & (freqs < 15))
    ratio = power[:, alpha].mean(axis=1) / power[:, around].mean(axis=1)
    assert ratio[OZ] > 3
    assert ratio[OZ] > 2 * ratio[FP1]


def test_alpha_waxes_and_wanes(minutes):
    sos = scipy.signal.butter(4, (8, 12), "bandpass", fs=1000, output="sos")
    envelope = np.abs(scipy.signal.hilbert(scipy.signal.sosfiltfilt(sos, minutes[OZ])))
    assert envelope.std() > 0.3 * envelope.mean()


def test_line_peak(spectrum):
    freqs, power = spectrum
    at, beside = np.argmin(np.abs(freqs - 50)), (np.abs(freqs - 50) > 1) & (np.abs(freqs - 50) < 3)
    assert (power[:, at] > 3 * power[:, beside].mean(axis=1)).all()


def test_blinks_are_frontal_and_as_frequent_as_said(minutes):
    smooth = scipy.signal.sosfiltfilt(scipy.signal.butter(2, (1, 10), "bandpass", fs=1000, output="sos"), minutes)
    peaks, _ = scipy.signal.find_peaks(smooth[FP1], height=0.4 * noise.BLINK, distance=400)
    assert 0.5 * noise.BLINKS < len(peaks) / 1.5 < 1.6 * noise.BLINKS
    assert smooth[FP1, peaks].mean() > 3 * np.abs(smooth[OZ, peaks]).mean()  # Oz sees what reaches Fz, the reference


def test_channels_correlate_as_neighbours(minutes):
    quick = np.diff(minutes[:, ::4], axis=1)
    near = np.corrcoef(quick[CZ], quick[CH_NAMES.index("C1")])[0, 1]
    far = np.corrcoef(quick[CZ], quick[CH_NAMES.index("TP10")])[0, 1]
    assert near > 0.5
    assert near > far + 0.2


def test_size_is_that_of_eeg(minutes):
    deviation = minutes.std(axis=1)
    assert (deviation > 5).all()
    assert (deviation < 60).all()


def test_stationary_from_the_first_second():
    streams = [Noise(0, session) for session in range(8)]
    seconds = [[stream.chunk(1000).std() for _ in range(9)] for stream in streams]
    first, *_, last = np.mean(seconds, axis=0)
    assert 0.6 < first / last < 1.6


@pytest.mark.parametrize("sfreq", [128.0, 256.0, 512.3, 4000.0])
def test_other_rates(sfreq):
    assert np.isfinite(Noise(0, sfreq=sfreq).chunk(1000)).all()
