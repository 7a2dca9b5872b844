"""Marker latency and drift: by a photodiode, by the evoked response; and where the live loop applies it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cut import cut
from hypothesis import given, settings
from hypothesis import strategies as st
from small_bundle import SFREQ, ScriptedInlet, eeg_info, events, presentation, write_bundle

from streamdec.acquire.markers import MarkerSettings, TriggerSettings
from streamdec.acquire.recording import RecordedStream, Segment, read
from streamdec.acquire.replay import select
from streamdec.calibrate import latency
from streamdec.config import Config
from streamdec.decode import bundle
from streamdec.errors import CalibrationError, ConfigError
from streamdec.intake import IntakeSettings
from streamdec.serve import intake_settings
from streamdec.types import Chunk, Connection, StreamInfo

MS, MS_PER_MIN = 1e-3, 1e-3 / 60


def sensor(
    onsets: np.ndarray, sfreq: float, *, delay: float, drift: float = 0.0, on: float = 0.1, seed: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """A light sensor's samples and their times: bright for ``on`` s from ``delay`` s after each onset."""
    rng = np.random.default_rng(seed)
    times = np.arange(onsets[0] - 2.0, onsets[-1] + 3.0, 1 / sfreq)
    lit = np.zeros(len(times))
    for light in onsets + delay + drift * (onsets - onsets.mean()):
        lit[(times >= light) & (times < light + on)] = 1.0
    return 20_000 + 3000 * lit + 150 * rng.standard_normal(len(times)) + 20 * np.sin(times / 7), times


def rsvp(n: int = 200, soa: float = 0.2, seed: int = 0) -> np.ndarray:
    """Onsets in sequences of 20, with pauses."""
    rng = np.random.default_rng(seed)
    number = np.arange(n)
    return 100.0 + number * soa + number // 20 * 2.75 + rng.uniform(-MS, MS, n)


@pytest.mark.data
@pytest.mark.parametrize(
    ("name", "seconds", "drift"),
    [("photodiode_unicorn", 64.5, 0.7), ("photodiode_lsl_drift", 89.0, -30.1)],
)
def test_real_photodiodes(data: Path, name: str, seconds: float, drift: float) -> None:
    """Within 3 ms and 3 ms/min of the figures found without streamdec, after de-jitter, median over the run."""
    eeg, markers = select(read(data / "xdf" / f"{name}.xdf"))
    assert markers is not None
    names = [str(i) for i in range(eeg.info.n_chans)]
    times = latency.straightened(eeg)
    found = latency.find_photodiode(eeg.data, times, markers.times, names)
    assert found is not None
    index, measured = found
    assert index == 0
    assert measured.seconds / MS == pytest.approx(seconds, abs=3.0)
    assert measured.drift is not None
    assert measured.drift / MS_PER_MIN == pytest.approx(drift, abs=3.0)
    assert measured.interval[0] <= measured.seconds <= measured.interval[1]
    assert measured.drifts == (abs(drift) > 10)
    assert measured == latency.photodiode(eeg.data[0], times, markers.times, "0")


@given(
    delay=st.floats(-0.05, 0.15),
    drift=st.floats(-50, 50),
    sfreq=st.sampled_from([250.0, 512.0, 1000.0]),
    inverted=st.booleans(),
    seed=st.integers(0, 100),
)
@settings(max_examples=15, deadline=None)
def test_any_delay_and_drift_is_found(delay: float, drift: float, sfreq: float, inverted: bool, seed: int) -> None:
    onsets = rsvp(seed=seed)
    samples, times = sensor(onsets, sfreq, delay=delay, drift=drift * MS_PER_MIN, seed=seed)
    found = latency.photodiode(-samples if inverted else samples, times, onsets, "light")
    assert found.seconds == pytest.approx(delay, abs=1 / sfreq + MS)  # the first sample behind the edge
    assert found.drift == pytest.approx(drift * MS_PER_MIN, abs=2 * MS_PER_MIN)
    assert found.n == len(onsets)


def test_a_first_flash_that_was_cut_off_is_not_the_dark_that_ends_it() -> None:
    """30 onsets, the recording begins in the first one's light: 29 rising edges, 30 falling ones 80 ms later."""
    onsets = rsvp(30)
    samples, times = sensor(onsets, 1000.0, delay=0.052, on=0.08)
    begun = times >= onsets[0] + 0.06
    found = latency.photodiode(samples[begun], times[begun], onsets, "light")
    assert found.seconds == pytest.approx(0.052, abs=2 * MS)
    assert found.n == 29


def test_flashes_that_are_missing_or_of_something_else_do_no_harm() -> None:
    rng = np.random.default_rng(1)
    onsets = rsvp(300)
    seen = np.sort(np.concatenate([rng.choice(onsets, 220, replace=False), rng.uniform(90.0, 210.0, 30)]))
    samples, times = sensor(seen, 500.0, delay=0.04)
    samples[rng.integers(0, len(samples), 40)] += 9000  # spikes of one sample
    found = latency.photodiode(samples, times, onsets, "light")
    assert found.seconds == pytest.approx(0.04, abs=3 * MS)
    assert 200 <= found.n <= 260


def test_a_sensor_that_never_flashes_is_refused() -> None:
    onsets = rsvp()
    times = np.arange(95.0, 180.0, 1 / 250)
    rng = np.random.default_rng(0)
    for dark in (np.full(len(times), 7.0), rng.standard_normal(len(times)), np.full(len(times), np.nan)):
        with pytest.raises(CalibrationError, match="no flash"):
            latency.photodiode(dark, times, onsets, "light")
    elsewhere, late = sensor(onsets[:3] + 60.0, 250.0, delay=0.0)
    with pytest.raises(CalibrationError, match="of 200 onsets have theirs"):
        latency.photodiode(elsewhere, late, onsets, "light")
    assert latency.find_photodiode(rng.standard_normal((4, len(times))), times, onsets, list("abcd")) is None


def test_straightened_stamps_break_where_the_stream_does() -> None:
    rng = np.random.default_rng(0)
    true = np.concatenate([np.arange(2000) / 250, 60.0 + np.arange(1500) / 250])
    stamps = true + rng.uniform(0, 0.02, len(true))
    info = StreamInfo("amp", "EEG", 1, 250.0, "float32")
    stream = RecordedStream(info, stamps, np.zeros((1, len(true))), (Segment(0, len(true), np.empty((0, 2))),))
    np.testing.assert_allclose(latency.straightened(stream), true + 0.01, atol=1.5e-3)


@pytest.mark.parametrize("lag", [1, 3, 17])
def test_evoked_finds_the_lag_of_a_known_response(lag: int) -> None:
    rng = np.random.default_rng(lag)
    wave = rng.standard_normal((3, 40)).cumsum(1).astype(np.float32)
    wide = np.zeros((3, 70))
    wide[:, 5 + lag : 45 + lag] = wave
    noisy = wide + 0.5 * rng.standard_normal((8, 3, 70))
    parts = np.stack([noisy[:, :, i : i + 40] for i in range(31)], axis=1).astype(np.float32)
    found = latency.evoked(parts, np.full(8, 20.0), wave, 250.0, lead=5)
    assert found.seconds == pytest.approx(lag / 250, abs=1 / 250)
    assert found.interval[0] <= lag / 250 <= found.interval[1]
    assert found.n == 160
    with pytest.raises(CalibrationError, match="no delay"):
        latency.evoked(parts[:, 10 + lag :], np.full(8, 20.0), wave, 250.0, lead=5)  # the best lag lies before


@pytest.mark.parametrize("trigger", [False, True])
def test_epochs_are_cut_at_the_light(trigger: bool, tmp_path: Path) -> None:
    """Markers (or trigger edges) that come 60 ms before the light, once the latency is known, change nothing."""
    data, onsets, keys = presentation(12)
    decoder = bundle.read(write_bundle(tmp_path / "bundle"))
    true, _ = cut(
        ScriptedInlet(events(data, onsets, keys, iter(lambda: 25, 0))), decoder.manifest.signal, IntakeSettings()
    )
    early = onsets - round(0.06 * SFREQ)
    if trigger:
        codes = np.zeros((1, data.shape[1]), np.float32)
        for onset in early:
            codes[0, onset : onset + 5] = 7
        info = eeg_info(n_chans=9, ch_names=(*eeg_info().ch_names, "stim"), ch_types=(), units=())
        script = [
            e
            for e in events(np.concatenate([data, codes]), early, keys, iter(lambda: 25, 0))
            if isinstance(e, Chunk | Connection)
        ]
        inlet, how = ScriptedInlet(script, info), TriggerSettings("stim")
    else:
        inlet, how = ScriptedInlet(events(data, early, keys, iter(lambda: 25, 0))), None
    given = IntakeSettings(markers=MarkerSettings(latency=0.06), trigger=how)
    found, _ = cut(inlet, decoder.manifest.signal, given)
    assert len(found) == len(true) == 12
    for one, other in zip(found, true, strict=True):
        assert one.onset_sample == other.onset_sample
        assert one.onset.time == pytest.approx(other.onset.time, abs=1e-9)
        np.testing.assert_array_equal(one.data, other.data)


def test_latency_of_the_config_comes_before_the_bundles(tmp_path: Path) -> None:
    measured = bundle.MarkerLatency(0.06, (0.055, 0.065), "photodiode 'AUX'", 200)
    made = bundle.Calibrated(
        base="0" * 64,
        recording="block.xdf",
        recording_sha256="0" * 64,
        created="2026-01-01",
        latency=measured,
        unit="volts",
    )
    plain = bundle.read(write_bundle(tmp_path / "plain"))
    fitted = bundle.read(write_bundle(tmp_path / "fitted", calibrated=made))
    assert intake_settings(plain, Config()) == IntakeSettings()
    open_ = intake_settings(fitted, Config())
    assert (open_.markers.latency, open_.unit) == (0.06, "volts")
    own = IntakeSettings(unit="millivolts", markers=MarkerSettings(latency=0.0))
    kept = intake_settings(fitted, Config(intake=own))
    assert (kept.markers.latency, kept.unit) == (0.0, "millivolts")
    assert "60.0 ms" in made.line()
    with pytest.raises(ConfigError, match="latency"):
        MarkerSettings(latency=float("nan"))
