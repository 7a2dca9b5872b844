"""LslInlet and LslOutlet on real streams between real processes, with the faults of real amplifiers."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading

import numpy as np
import pytest
from amplifier import Amplifier

from streamdec.acquire.clock import SampleClock
from streamdec.acquire.lsl import link
from streamdec.acquire.lsl.inlet import LslInlet
from streamdec.acquire.lsl.library import local_clock, loopback
from streamdec.acquire.lsl.link import find
from streamdec.acquire.lsl.outlet import LslOutlet
from streamdec.acquire.query import StreamQuery
from streamdec.errors import ConfigError, StreamAmbiguous, StreamMismatch, StreamNotFound
from streamdec.types import Chunk, ClockOffset, Connection, Marker, StreamInfo

pytestmark = pytest.mark.lsl


class Listener:
    """Pulls from an inlet, runs its samples through a SampleClock as a session does, keeps everything."""

    def __init__(self, inlet, start=0.0):
        self.inlet, self.start = inlet, start
        self.clock = SampleClock(inlet.eeg.sfreq)
        self.events, self.counts, self.errors, self.arrivals, self.breaks = [], [], [], [], []

    def until(self, done, seconds=10.0):
        """Pull until ``done`` or fail."""
        end = local_clock() + seconds
        while not done(self):
            assert local_clock() < end, f"waited {seconds} s; connections {self.states()}, {len(self.counts)} samples"
            event = self.inlet.pull(0.1)
            if event is not None:
                self.take(event)
        return self

    def take(self, event):
        if not isinstance(event, Chunk):
            self.events.append(event)
            if isinstance(event, ClockOffset) and event.stream == "eeg":
                self.clock.offset(event)
            if isinstance(event, Connection) and event.stream == "eeg" and event.state == "found":
                self.clock.restart("found")
            return
        assert event.data.shape == (self.inlet.eeg.n_chans, len(event.stamps))
        for run in self.clock.place(event.stamps):
            if run.missing or run.new_segment:
                self.breaks.append((len(self.counts) + run.start, run.missing, run.new_segment))
            true = self.start + event.data[1, run.start : run.stop].astype(np.float64)
            self.errors.extend((run.times - true) * self.inlet.eeg.sfreq)
        self.counts.extend(event.data[0].astype(int).tolist())
        self.arrivals.extend([event.arrival] * len(event.stamps))

    def states(self, stream="eeg"):
        return [e.state for e in self.events if isinstance(e, Connection) and e.stream == stream]

    def connection(self, state, stream="eeg"):
        return next(e for e in self.events if isinstance(e, Connection) and (e.state, e.stream) == (state, stream))

    def markers(self):
        return [e for e in self.events if isinstance(e, Marker)]


def samples(n):
    return lambda listener: len(listener.counts) >= n


def state(name, stream="eeg"):
    return lambda listener: name in listener.states(stream)


def opened(name, markers=False, timeout=10.0, **options):
    inlet = LslInlet(StreamQuery(name=name), StreamQuery(name=f"{name}-m") if markers else None, **options)
    inlet.open(timeout)
    return inlet


def info(name, **fields):
    defaults = {"type": "EEG", "n_chans": 2, "sfreq": 250.0, "dtype": "float32", "source_id": f"{name}-id"}
    return StreamInfo(name=name, **(defaults | fields))


@pytest.fixture(autouse=True)
def _short_look(monkeypatch):
    """With liblsl's waves at 50 ms a second stream shows at once."""
    monkeypatch.setattr(link, "_SECOND_LOOK", 0.15)


@pytest.fixture
def outlet():
    made = []

    def make(name, **fields):
        made.append(LslOutlet(info(name, **fields)))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.mark.parametrize("dtype", ["double64", "int16"])
def test_every_sample_in_order_with_its_stamp(stream_name, dtype):
    with Amplifier(stream_name, dtype=dtype) as amplifier, opened(stream_name) as inlet:
        listener = Listener(inlet, amplifier.start).until(samples(500))
    assert (np.diff(listener.counts) == 1).all()
    assert listener.breaks == [(0, 0, True)]
    if dtype != "int16":  # which cannot hold the true time
        assert np.abs(listener.errors).max() < 0.5
    assert inlet.eeg.ch_names == ("E0", "E1", "E2", "E3")
    assert inlet.eeg.units == ("microvolts",) * 4
    first = [type(event) for event in listener.events[:2]]
    assert first == [Connection, ClockOffset]
    assert listener.connection("connected").info == inlet.eeg


def test_packets_smaller_than_those_pulled(stream_name):
    """Chunks are what has arrived, and nothing is waited for beyond the first sample."""
    with Amplifier(stream_name, sfreq=1000.0, chunk=10) as amplifier, opened(stream_name) as inlet:
        listener = Listener(inlet, amplifier.start).until(samples(1000))
    ages = np.array(listener.arrivals) - amplifier.start - np.array(listener.counts) / 1000
    assert np.median(ages[500:]) < 0.02


@pytest.mark.parametrize("markers", ["string", "int32", "float32"])
def test_markers_between_the_chunks(stream_name, markers):
    with Amplifier(stream_name, markers=markers) as amplifier, opened(stream_name, markers=True) as inlet:
        listener = Listener(inlet, amplifier.start).until(lambda heard: len(heard.markers()) >= 5)
    found = listener.markers()
    first = round((found[0].stamp - amplifier.start) / 0.1)
    write = {"string": "stim-{}", "int32": "{}", "float32": "{}.0"}[markers].format
    assert [marker.value for marker in found] == [write(first + k) for k in range(len(found))]
    assert [marker.stamp for marker in found] == pytest.approx(
        [amplifier.start + 0.1 * (first + k) for k in range(len(found))]
    )
    offsets = [event.stream for event in listener.events if isinstance(event, ClockOffset)]
    assert offsets[:2] == ["eeg", "markers"]
    assert all(b.arrival >= a.arrival for a, b in zip(listener.events, listener.events[1:], strict=False))


def test_marker_stream_that_states_a_rate(stream_name, outlet):
    outlet(stream_name)
    outlet(f"{stream_name}-m", type="Markers", n_chans=1, sfreq=10_000.0, dtype="int32")
    with opened(stream_name, markers=True) as inlet:
        assert inlet.markers is not None
        assert inlet.markers.sfreq == 0.0


def test_bytes_that_are_no_text(stream_name, outlet):
    eeg = outlet(stream_name)
    source = outlet(f"{stream_name}-m", type="Markers", n_chans=1, sfreq=0.0, dtype="string")
    with opened(stream_name, markers=True) as inlet:
        source.push(["caf\xe9", "", b"caf\xe9"], np.array([1.0, 2.0, 3.0]) + local_clock())
        eeg.push(np.zeros((2, 5), np.float32), local_clock())
        listener = Listener(inlet).until(lambda heard: len(heard.markers()) == 3)
    assert [marker.value for marker in listener.markers()] == ["café", "", "caf\ufffd"]


def test_no_stream_says_which_there_are(stream_name, outlet):
    outlet(stream_name)
    with pytest.raises(StreamNotFound, match=f"{stream_name!r} \\(EEG, 250 Hz, 2 channels"):
        opened("nowhere", timeout=0.3)


def test_missing_markers_are_named(stream_name, outlet):
    outlet(stream_name)
    with pytest.raises(StreamNotFound, match=f"no markers stream with name '{stream_name}-m'"):
        opened(stream_name, markers=True, timeout=0.5)
    assert not any(thread.name.startswith("streamdec-seek") for thread in threading.enumerate())


def test_several_streams_are_listed_not_chosen(stream_name, outlet):
    outlet(stream_name, source_id="left")
    outlet(stream_name, source_id="right")
    with pytest.raises(StreamAmbiguous, match=r"'left'.*'right'|'right'.*'left'"):
        opened(stream_name)
    with LslInlet(StreamQuery(name=stream_name, source_id="left"), None) as inlet:
        inlet.open(5.0)
        assert inlet.eeg.source_id == "left"
    with LslInlet(StreamQuery(predicate=f"name='{stream_name}' and starts-with(source_id, 'ri')"), None) as inlet:
        inlet.open(5.0)
        assert inlet.eeg.source_id == "right"


@pytest.mark.parametrize("fields", [{"sfreq": 0.0}, {"dtype": "string", "n_chans": 1}])
def test_streams_that_are_no_eeg(stream_name, outlet, fields):
    outlet(stream_name, **fields)
    with pytest.raises(StreamMismatch, match="not numbers at a fixed rate"):
        opened(stream_name)


def test_open_waits_for_a_stream_that_comes_later(stream_name):
    inlet = LslInlet(StreamQuery(name=stream_name), None)
    opening = threading.Thread(target=inlet.open, args=(float("inf"),))
    opening.start()
    with Amplifier(stream_name) as amplifier:
        opening.join(10.0)
        assert not opening.is_alive()
        with inlet:
            Listener(inlet, amplifier.start).until(samples(50))


def test_pull_returns_when_nothing_comes(stream_name, outlet):
    outlet(stream_name)
    with opened(stream_name, stall=60.0) as inlet:
        while inlet.pull(0.0) is not None:
            pass
        assert inlet.pull(0.02) is None


def test_gaps_in_the_data(stream_name):
    with Amplifier(stream_name, gaps=((2.0, 0.5), (3.0, 0.02))) as amplifier, opened(stream_name) as inlet:
        listener = Listener(inlet, amplifier.start).until(lambda heard: heard.counts and heard.counts[-1] > 1750)
    steps = np.diff(listener.counts)
    at = np.flatnonzero(steps > 1)
    assert steps[at].tolist() == [251, 11]
    assert listener.breaks == [(0, 0, True), *[(i + 1, steps[i] - 1, False) for i in at]]
    assert np.abs(listener.errors).max() < 0.5


def test_queue_overflow(stream_name):
    """The reader sleeps, liblsl drops the oldest samples: a gap, and right stamps after it."""
    with Amplifier(stream_name) as amplifier, opened(stream_name, buffer_seconds=1.0) as inlet:
        listener = Listener(inlet, amplifier.start).until(samples(300))
        threading.Event().wait(2.5)
        listener.until(samples(1200))
    counts, errors = np.array(listener.counts), np.array(listener.errors)
    (at,) = np.flatnonzero(np.diff(counts) > 1)
    assert counts[at + 1] - counts[at] > 500
    assert [i for i, _, _ in listener.breaks] == [0, at + 1]
    assert np.abs(errors[at + 1 :]).max() < 1.0


def test_wrong_nominal_rate(stream_name):
    with Amplifier(stream_name, sfreq=500.0, true=512.0) as amplifier, opened(stream_name) as inlet:
        listener = Listener(inlet, amplifier.start).until(samples(1000))
    assert listener.clock.sfreq_effective == pytest.approx(512.0, rel=1e-3)
    assert np.abs(listener.errors).max() < 1.0
    assert listener.breaks == [(0, 0, True)]


def test_killed_and_restarted(stream_name):
    """kill -9, then the same source again with a new uid: lost, found, a new segment, right at once."""
    with Amplifier(stream_name, markers="string") as amplifier, opened(stream_name, markers=True) as inlet:
        listener = Listener(inlet, amplifier.start).until(samples(300))
        amplifier.kill()
        killed = local_clock()
        listener.until(lambda heard: state("lost")(heard) and state("lost", "markers")(heard))
        assert listener.connection("lost").arrival - killed < 0.5
        heard_before = len(listener.markers())
        with Amplifier(stream_name, markers="string") as again:
            listener.start = again.start
            n = len(listener.counts)
            listener.until(lambda heard: len(heard.counts) > n + 500 and len(heard.markers()) > heard_before + 3)
    assert listener.states() == ["connected", "lost", "found"]
    assert listener.states("markers") == ["connected", "lost", "found"]
    assert listener.connection("found").info.uid != listener.connection("connected").info.uid
    assert listener.breaks == [(0, 0, True), (n, 0, True)]
    assert np.abs(listener.errors[n:]).max() < 1.0
    found = listener.events.index(listener.connection("found"))
    assert any(isinstance(event, ClockOffset) for event in listener.events[found:])


def test_frozen_and_resumed(stream_name):
    """SIGSTOP: stalled within half a second; SIGCONT: one burst, nothing lost, no new segment."""
    with Amplifier(stream_name) as amplifier, opened(stream_name) as inlet:
        listener = Listener(inlet, amplifier.start).until(samples(300))
        amplifier.signal(signal.SIGSTOP)
        frozen = local_clock()
        listener.until(state("stalled"))
        assert listener.connection("stalled").arrival - frozen < 0.5
        amplifier.signal(signal.SIGCONT)
        listener.until(samples(1000))
    assert listener.states() == ["connected", "stalled", "resumed"]
    assert (np.diff(listener.counts) == 1).all()
    assert listener.breaks == [(0, 0, True)]
    assert np.abs(listener.errors).max() < 1.0


def test_successor_of_a_stream_that_hangs(stream_name):
    """The old outlet never says goodbye; the new one takes its place."""
    with Amplifier(stream_name) as amplifier, opened(stream_name) as inlet:
        listener = Listener(inlet, amplifier.start).until(samples(300))
        amplifier.signal(signal.SIGSTOP)
        listener.until(state("stalled"))
        with Amplifier(stream_name) as again:
            listener.start = again.start
            n = len(listener.counts)
            listener.until(samples(n + 300))
    assert listener.states() == ["connected", "stalled", "lost", "found"]
    assert np.abs(listener.errors[n:]).max() < 1.0


def test_another_rate_on_return_is_refused(stream_name):
    with Amplifier(stream_name) as amplifier, opened(stream_name) as inlet:
        listener = Listener(inlet, amplifier.start).until(samples(100))
        amplifier.kill()
        listener.until(state("lost"))
        with Amplifier(stream_name, sfreq=250.0):
            listener.until(state("refused"))
        assert listener.connection("refused").reason == "rate 250.0, before 500.0"
        n = len(listener.counts)
        with Amplifier(stream_name) as again:
            listener.start = again.start
            listener.until(samples(n + 100))
    assert listener.states() == ["connected", "lost", "refused", "found"]


def test_close_is_idempotent_and_leaves_no_thread(stream_name, outlet):
    source = outlet(stream_name)
    inlet = opened(stream_name)
    source.close()
    Listener(inlet).until(state("lost"))
    inlet.close()
    inlet.close()
    assert not any(thread.name.startswith("streamdec-seek") for thread in threading.enumerate())


def test_outlet_sends_the_header_it_was_given(stream_name, outlet):
    header = (
        "<info><name>x</name><channel_count>2</channel_count><channel_format>float32</channel_format>"
        "<desc><channels><channel><label>O1 &amp; O2</label></channel></channels>"
        "<cap><name>Waveguard</name></cap></desc></info>"
    )
    outlet(stream_name, header=header)
    (found,) = [one for one in find(0.3) if one.name == stream_name]
    assert found.ch_names == ("O1 & O2", "")
    assert "<cap>" in found.header
    assert "Waveguard" in found.header
    assert (found.sfreq, found.type, found.source_id) == (250.0, "EEG", f"{stream_name}-id")


def test_outlet_stamps_each_sample(stream_name, outlet):
    source = outlet(stream_name)
    assert not source.have_consumers()
    with opened(stream_name) as inlet:
        assert source.have_consumers()
        stamps = local_clock() + np.array([0.0, 0.001, 0.5])
        source.push(np.arange(6, dtype=np.float32).reshape(2, 3), stamps)
        chunks = []
        while sum(len(chunk.stamps) for chunk in chunks) < 3:
            event = inlet.pull(1.0)
            if isinstance(event, Chunk):
                chunks.append(Chunk(event.data.copy(), event.stamps.copy(), event.arrival))
    np.testing.assert_array_equal(np.concatenate([c.stamps for c in chunks]), stamps)
    np.testing.assert_array_equal(np.concatenate([c.data for c in chunks], 1), [[0, 1, 2], [3, 4, 5]])


@pytest.mark.parametrize("fields", [{}, {"name": "both ' and \""}, {"predicate": "name='"}])
def test_queries_that_cannot_be_asked(fields):
    with pytest.raises(ConfigError):
        LslInlet(StreamQuery(**fields), None).open(1.0)


def test_quotes_in_a_name(stream_name, outlet):
    name = f"{stream_name} o'clock"
    outlet(name)
    with opened(name) as inlet:
        assert inlet.eeg.name == name


def test_sessions_do_not_see_each_other(stream_name, outlet, tmp_path, monkeypatch):
    outlet(stream_name)
    config = tmp_path / "lsl_api.cfg"
    config.write_text(loopback("another session"), encoding="utf-8")
    monkeypatch.setenv("LSLAPICFG", str(config))
    code = "from streamdec.acquire.lsl.link import find; print(len(find(0.3)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "0"
