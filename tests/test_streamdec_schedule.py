"""The RSVP schedule: everything shown as often as said, when said."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from streamdec.errors import ConfigError
from streamdec.simulate.schedule import TARGET, Timing, rsvp


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 60), st.integers(1, 5), st.integers(0, 1000), st.sampled_from([250.0, 512.0, 1000.0]))
def test_each_image_is_shown_as_often_as_said(n, repetitions, seed, sfreq):
    schedule = rsvp("test", range(n), repetitions=repetitions, seed=seed, sfreq=sfreq)
    shown = schedule.codes[schedule.codes != TARGET]
    np.testing.assert_array_equal(np.bincount(shown, minlength=n + 1), [0, *[repetitions] * n])
    assert len(schedule.samples) == len(schedule.codes)
    assert (np.diff(schedule.samples) > 0).all()
    assert schedule.n_times > schedule.samples[-1] + 2 * sfreq
    if n > 1:
        assert (np.diff(shown) != 0).all()
    for one in range(repetitions):
        assert set(shown[one * n : (one + 1) * n]) == set(range(1, n + 1))


def test_timing_is_that_of_things_eeg2():
    schedule = rsvp("train", range(2000), seed=1)
    steps = np.diff(schedule.samples)
    assert schedule.samples[0] == 750
    assert set(steps) == {200, 3700}
    starts = np.flatnonzero(np.r_[True, steps == 3700])
    np.testing.assert_array_equal(np.diff(starts), 20)
    sequences = np.split(schedule.codes, starts[1:])
    catches = [int((one == TARGET).sum()) for one in sequences]
    assert max(catches) == 1
    assert abs(sum(catches) / len(sequences) - 6 / 56) < 0.02


def test_onsets_do_not_drift_at_an_awkward_rate():
    timing = Timing(soa=0.1234, per_sequence=1000, before=0.5, after=0.5, targets=0.0)
    schedule = rsvp("test", range(500), sfreq=512.0, timing=timing)
    assert np.abs(schedule.samples / 512 - (0.5 + 0.1234 * np.arange(500))).max() <= 0.5001 / 512


def test_seed_decides():
    a, b, c = (rsvp("test", range(50), seed=seed).codes for seed in (1, 1, (1, 2)))
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


@pytest.mark.parametrize(("images", "repetitions"), [([], 1), ([1], 0)])
def test_nothing_to_show_is_refused(images, repetitions):
    with pytest.raises(ConfigError, match="at least one image"):
        rsvp("test", images, repetitions=repetitions)
