"""The virtual amplifier as a process of its own: what arrives is the recording, at its true times."""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys

import numpy as np
import pytest

from streamdec.acquire.lsl.inlet import LslInlet
from streamdec.acquire.query import StreamQuery
from streamdec.simulate import amplifier
from streamdec.simulate.schedule import TARGET
from streamdec.simulate.subject import Subject
from streamdec.simulate.world import World
from streamdec.types import Chunk, ClockOffset, Marker

SFREQ = 250.0


def test_streams_say_what_they_are():
    eeg, markers = amplifier.streams(Subject(World(0), 3), "somebody")
    assert (eeg.type, eeg.n_chans, eeg.sfreq, set(eeg.units)) == ("EEG", 63, 1000.0, {"microvolts"})
    assert eeg.ch_names == Subject.ch_names
    assert (markers.name, markers.type, markers.dtype, markers.sfreq) == ("somebody-markers", "Markers", "string", 0.0)


def test_blocks_show_the_same_images_in_another_order():
    subject = Subject(World(0, n_train=1, n_test=30, size=32))
    first, second = itertools.islice(amplifier.blocks(subject, seed=1, n_images=12), 2)
    assert set(first.codes) - {TARGET} == set(second.codes) - {TARGET}
    assert len(set(first.codes) - {TARGET}) == 12
    assert not np.array_equal(first.codes, second.codes)


@pytest.fixture
def process(stream_name):
    program = [sys.executable, "-m", "streamdec.simulate.amplifier", "--name", stream_name, "--sfreq", f"{SFREQ:g}"]
    program += ["--subject", "2", "--session", "5", "--images", "10"]
    child = subprocess.Popen(program, stderr=subprocess.PIPE, text=True)
    yield child
    child.kill()
    child.communicate()


@pytest.mark.lsl
def test_samples_and_markers_arrive_as_recorded_at_their_true_times(process, stream_name):
    chunks: list[Chunk] = []
    markers: list[Marker] = []
    offsets = {"eeg": 0.0, "markers": 0.0}
    with LslInlet(StreamQuery(name=stream_name), StreamQuery(name=f"{stream_name}-markers")) as inlet:
        inlet.open(60.0)
        assert inlet.eeg.ch_names == Subject.ch_names
        while len(markers) < 15 and sum(chunk.data.shape[1] for chunk in chunks) < 30 * SFREQ:
            event = inlet.pull(1.0)
            if isinstance(event, Chunk):
                chunks.append(Chunk(event.data.copy(), event.stamps.copy(), event.arrival))
            elif isinstance(event, Marker):
                markers.append(event)
            elif isinstance(event, ClockOffset):
                offsets[event.stream] = event.value
    process.send_signal(signal.SIGTERM)
    _, complaint = process.communicate(timeout=10)
    assert (process.returncode, complaint) == (0, "")

    subject = Subject(World(0), 2, sfreq=SFREQ)
    noise, truth, onsets, position = subject.noise(5), [], {}, 0
    for schedule in itertools.islice(amplifier.blocks(subject, 5, 10), 12):
        truth.extend(subject.record(schedule, noise))
        ids = subject.world.ids("test")
        for sample, code in zip(schedule.samples, schedule.codes, strict=True):
            onsets[position + int(sample)] = "catch" if code == TARGET else ids[code - 1]
        position += schedule.n_times
    expected = np.concatenate(truth, axis=1)

    data, stamps = np.concatenate([c.data for c in chunks], axis=1), np.concatenate([c.stamps for c in chunks])
    first = int(np.abs(expected - data[:, :1]).sum(axis=0).argmin())
    np.testing.assert_allclose(data, expected[:, first : first + data.shape[1]], atol=1e-3)
    begin = stamps[0] - first / SFREQ
    np.testing.assert_allclose(stamps, begin + (first + np.arange(len(stamps))) / SFREQ, atol=1e-6)
    assert len(markers) == 15
    for marker in markers:
        sample = (marker.stamp - begin) * SFREQ
        assert abs(sample - round(sample)) < 1e-3
        assert onsets[round(sample)] == marker.value
        assert marker.arrival >= marker.stamp + offsets["markers"] - 1e-3  # never early
    for chunk in chunks:
        assert chunk.arrival >= chunk.stamps[-1] + offsets["eeg"] - 1e-3
