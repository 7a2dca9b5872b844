"""The continuous recording: superposition, the same whatever the chunks."""

from __future__ import annotations

import numpy as np
import pytest

from streamdec.errors import ConfigError
from streamdec.simulate.schedule import TARGET, Schedule, Timing, rsvp
from streamdec.simulate.subject import Subject
from streamdec.simulate.world import World

WORLD = World(0, n_train=6, images_per_concept=2, n_test=12, size=32)
QUICK = Timing(per_sequence=5, before=0.1, after=0.9, targets=0.5)


@pytest.fixture(scope="module")
def subject():
    return Subject(WORLD, 7, sfreq=250.0)


@pytest.fixture(scope="module")
def schedule():
    return rsvp("test", range(12), repetitions=2, seed=3, sfreq=250.0, timing=QUICK)


def recorded(subject, schedule, chunk, noise=None):
    chunks = list(subject.record(schedule, noise, chunk=chunk))
    assert all(one.dtype == np.float32 for one in chunks)
    return np.concatenate(chunks, axis=1)


def test_responses_add_up_where_images_were_shown(subject, schedule):
    evoked = {code: subject.evoked("test", [code - 1])[0] for code in range(1, 13)}
    evoked[TARGET] = subject._forward.evoked(subject._forward.mean_moments)
    assert TARGET in schedule.codes
    expected = np.zeros((63, schedule.n_times + 1000))
    for sample, code in zip(schedule.samples, schedule.codes, strict=True):
        expected[:, sample : sample + 200] += evoked[code]
    np.testing.assert_allclose(recorded(subject, schedule, 250), expected[:, : schedule.n_times], atol=1e-4)


@pytest.mark.parametrize("chunk", [1, 7, 100_000])
def test_chunk_invariance(subject, schedule, chunk):
    whole = recorded(subject, schedule, 250, subject.noise(1))
    np.testing.assert_array_equal(recorded(subject, schedule, chunk, subject.noise(1)), whole)
    assert whole.shape == (63, schedule.n_times)


def test_noise_is_added_and_goes_on_in_the_next_run(subject, schedule):
    noise, alone = subject.noise(2), subject.noise(2)
    clean = recorded(subject, schedule, 250)
    for _ in range(2):
        noisy = recorded(subject, schedule, 250, noise)
        np.testing.assert_allclose(noisy - clean, alone.chunk(schedule.n_times), atol=1e-4)


def test_average_of_many_epochs_is_the_response(subject):
    """The continuous path and the evoked response are one model."""
    n = 400
    lone = Timing(soa=1.0, per_sequence=n, before=0.5, after=0.9, targets=0.0)
    schedule = rsvp("test", [4], repetitions=n, seed=1, sfreq=250.0, timing=lone)
    data = recorded(subject, schedule, 1000, subject.noise())
    epochs = np.stack([data[:, s - 50 : s + 200] for s in schedule.samples])
    epochs -= epochs[..., :50].mean(axis=2, keepdims=True)
    channel = subject.ch_names.index("PO7")
    mean, truth = epochs[:, channel, 50:].mean(axis=0), subject.evoked("test", [4])[0, channel]
    error = epochs[:, channel, 50:].std(axis=0) / np.sqrt(n)
    assert (np.abs(mean - truth) < 5 * error).all()
    assert np.corrcoef(mean, truth)[0, 1] > 0.8


def test_a_schedule_of_another_rate_is_refused(subject):
    with pytest.raises(ConfigError, match="250 Hz"):
        next(subject.record(rsvp("test", [0], sfreq=1000.0)))


def test_an_empty_run(subject):
    nothing = Schedule("test", 250.0, np.empty(0, np.int64), np.empty(0, np.int64), 0)
    assert list(subject.record(nothing, subject.noise())) == []
