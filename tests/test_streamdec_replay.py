from __future__ import annotations

import itertools
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from streamdec.acquire.record import Recorder
from streamdec.acquire.recording import RecordedStream, Recording, Segment, read
from streamdec.acquire.replay import ReplayInlet, play, select
from streamdec.errors import ConfigError, StreamAmbiguous, StreamNotFound
from streamdec.types import Chunk, ClockOffset, Connection, Event, Marker, StreamInfo

XDF_FILES = (
    "bci_essentials_switch",
    "clock_resets",
    "empty_streams",
    "minimal",
    "photodiode_lsl_drift",
    "photodiode_unicorn",
)
PLAYABLE = [name for name in XDF_FILES if name != "empty_streams"]


class Time:
    """A clock that only moves when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds >= 0
        self.now += seconds


def query(**fields: str) -> Any:
    values = {"name": "", "type": "", "source_id": "", "predicate": ""} | fields
    return SimpleNamespace(**values, describe=lambda: str(fields))


def numbers(name: str, n_times: int, sfreq: float = 100.0, kind: str = "EEG", offsets: Any = ()) -> RecordedStream:
    data = np.random.default_rng(n_times).integers(-99, 99, (2, n_times)).astype(np.int16)
    segments = (Segment(0, n_times, np.array(offsets, float).reshape(-1, 2)),) if n_times else ()
    return RecordedStream(StreamInfo(name, kind, 2, sfreq, "int16"), np.arange(n_times) / sfreq, data, segments)


def texts(name: str, stamps: list[float], kind: str = "Markers") -> RecordedStream:
    data = np.array([f"m{k}" for k in range(len(stamps))], object)[None]
    segments = (Segment(0, len(stamps), np.empty((0, 2))),) if stamps else ()
    return RecordedStream(StreamInfo(name, kind, 1, 0.0, "string"), np.array(stamps, float), data, segments)


def recording(*streams: RecordedStream) -> Recording:
    return Recording(Path("a.xdf"), streams)


def played(inlet: ReplayInlet) -> list[Event]:
    inlet.open()
    return list(iter(lambda: inlet.pull(), None))


def chunks(events: list[Event]) -> list[Chunk]:
    return [event for event in events if isinstance(event, Chunk)]


def test_made_up_packets() -> None:
    eeg = numbers("amp", 105, offsets=[[0.5, 7.0], [0.9, 7.001]])
    events = played(ReplayInlet(recording(eeg, texts("stim", [0.205, 7.3])), chunk=0.02))
    assert [len(chunk.stamps) for chunk in chunks(events)] == [2] * 52 + [1]
    np.testing.assert_array_equal(np.concatenate([c.data for c in chunks(events)], 1), eeg.data.astype(np.float32))
    np.testing.assert_array_equal(np.concatenate([c.stamps for c in chunks(events)]), eeg.stamps)
    assert all(chunk.data.dtype == np.float32 for chunk in chunks(events))
    np.testing.assert_array_equal([c.arrival for c in chunks(events)], [*eeg.times[1::2], eeg.times[-1]])
    arrivals = [event.arrival for event in events]
    assert arrivals == sorted(arrivals)
    states = [(e.stream, e.state, e.info) for e in events if isinstance(e, Connection)]
    assert states[0] == ("eeg", "connected", eeg.info)
    assert states[-1] == ("eeg", "ended", None)
    assert states[1][:2] == ("markers", "connected")
    offsets = [e for e in events if isinstance(e, ClockOffset) and e.stream == "eeg"]
    # The first holds from the beginning, the second from when it was measured.
    assert [(e.value, e.arrival) for e in offsets] == [(7.0, events[0].arrival), (7.001, 0.9 + 7.001)]
    assert [(e.value, e.stamp, e.arrival) for e in events if isinstance(e, Marker)] == [
        ("m0", 0.205, 0.205),
        ("m1", 7.3, 7.3),
    ]


def test_offset_zero_without_measurements() -> None:
    events = played(ReplayInlet(recording(numbers("amp", 10))))
    assert [(e.stream, e.value) for e in events if isinstance(e, ClockOffset)] == [("eeg", 0.0)]


def test_gaps_and_resets_end_packets() -> None:
    stamps = np.arange(40) / 100
    stamps[11:] += 3
    stamps[25:] -= 500
    data = np.zeros((1, 40), np.float32)
    segments = (Segment(0, 25, np.array([[0.0, 10.0]])), Segment(25, 40, np.array([[-496.0, 511.0]])))
    eeg = RecordedStream(StreamInfo("amp", "EEG", 1, 100.0, "float32"), stamps, data, segments)
    events = played(ReplayInlet(recording(eeg), chunk=0.05))
    assert [len(chunk.stamps) for chunk in chunks(events)] == [5, 5, 1, 5, 5, 4, 5, 5, 5]
    found = next(k for k, event in enumerate(events) if isinstance(event, Connection) and event.state == "found")
    offset = events[found + 1]
    assert isinstance(offset, ClockOffset)
    assert offset.value == 511.0
    assert sum(len(chunk.stamps) for chunk in chunks(events[:found])) == 25
    arrivals = [event.arrival for event in events]
    assert arrivals == sorted(arrivals)


@pytest.mark.parametrize("chunk", [0.004, 0.05, 3.0])
@pytest.mark.parametrize("name", PLAYABLE)
@pytest.mark.data
def test_real_recordings(data: Path, name: str, chunk: float) -> None:
    whole = read(data / "xdf" / f"{name}.xdf")
    eeg = None if any(s.info.type == "EEG" for s in whole.streams) else query(type="Data")
    inlet = ReplayInlet(whole, eeg, chunk=chunk)
    events = played(inlet)
    source, markers = select(whole, eeg)
    assert (inlet.eeg, inlet.markers) == (source.info, None if markers is None else markers.info)
    np.testing.assert_array_equal(np.concatenate([c.data for c in chunks(events)], 1), source.data.astype(np.float32))
    np.testing.assert_array_equal(np.concatenate([c.stamps for c in chunks(events)]), source.stamps)
    received = [e for e in events if isinstance(e, Marker)]
    assert markers is not None
    assert [m.value for m in received] == markers.texts
    assert [m.stamp for m in received] == markers.stamps.tolist()
    arrivals = [event.arrival for event in events]
    assert arrivals == sorted(arrivals)
    n_found = sum(isinstance(e, Connection) and e.state == "found" and e.stream == "eeg" for e in events)
    assert n_found == len(source.segments) - 1


def test_zero_samples() -> None:
    events = played(ReplayInlet(recording(numbers("amp", 0), texts("stim", []))))
    assert [type(event) for event in events] == [Connection, ClockOffset, Connection, ClockOffset, Connection]


def test_open_begins_again() -> None:
    inlet = ReplayInlet(recording(numbers("amp", 50)))
    assert inlet.pull() is None
    assert len(played(inlet)) == len(played(inlet))
    inlet.close()
    assert inlet.pull() is None


def session(path: Path) -> list[Event]:
    eeg, stim = StreamInfo("amp", "EEG", 2, 100.0, "float32"), StreamInfo("stim", "Markers", 1, 0.0, "string")
    rng = np.random.default_rng(0)
    events: list[Event] = [Connection("eeg", "connected", 50.0, info=eeg), ClockOffset("eeg", 40.0, 1e-4, 50.0)]
    for k in range(100):
        n_times = int(rng.integers(0, 5))
        samples = rng.standard_normal((n_times, 2)).astype(np.float32)
        arrival = 50.1 + k * 0.03
        events.append(Chunk(samples.T, arrival - 40.05 + np.arange(n_times) * 0.01, arrival))
        if k % 7 == 0:
            events.append(Marker(f"m{k}", arrival - 0.1, arrival))
    with Recorder(path, eeg, stim) as recorder:
        for event in events:
            recorder.event(event)
    return events


def test_part_of_a_session_keeps_packets_and_states(tmp_path: Path) -> None:
    events = session(tmp_path / "a.xdf")
    whole = read(tmp_path / "a.xdf")
    part = whole.between(1.0, 2.0)
    expected = [
        event
        for event in events
        if (event.arrival >= whole.start + 1 or isinstance(event, Connection | ClockOffset))
        and event.arrival < whole.start + 2
    ]
    replayed = played(ReplayInlet(part))[:-1]
    assert [(type(e), e.arrival) for e in replayed] == [(type(e), e.arrival) for e in expected]
    for a, b in zip(chunks(replayed), chunks(expected), strict=True):
        np.testing.assert_array_equal(a.data, b.data)
    stored = sum(len(chunk.stamps) for chunk in chunks(replayed))
    assert part.streams[0].data.shape == (2, stored)


def test_speed_paces_by_arrival() -> None:
    time = Time()
    source = recording(numbers("amp", 200), texts("stim", [0.5]))
    inlet = ReplayInlet(source, speed=4.0, clock=time.clock, sleep=time.sleep)
    inlet.open()
    begin: float | None = None
    for _ in range(100_000):
        before = time.now
        event = inlet.pull(0.003)
        assert time.now - before <= 0.003 + 1e-9
        if event is None:
            continue
        begin = event.arrival if begin is None else begin
        assert time.now - 1000.0 == pytest.approx((event.arrival - begin) / 4, abs=1e-6)
        if isinstance(event, Connection) and event.state == "ended":
            break
    else:
        pytest.fail("it never ended")


@pytest.mark.parametrize("speed", [0.0, -1.0, float("nan")])
def test_impossible_speed(speed: float) -> None:
    with pytest.raises(ConfigError, match="speed"):
        ReplayInlet(recording(numbers("amp", 5)), speed=speed)
    with pytest.raises(ConfigError, match="speed"):
        play(recording(numbers("amp", 5)), speed=speed)


def test_select() -> None:
    amp, other = numbers("amp", 5), numbers("accelerometer", 5, kind="ACC")
    stim, log = texts("stim", [1.0]), texts("log", [1.0], kind="Log")
    whole = recording(other, log, amp, stim)
    assert select(whole) == (amp, stim)
    assert select(whole, trigger=True) == (amp, None)
    assert select(whole, query(name="accelerometer"), query(type="Log")) == (other, log)
    assert select(recording(other, log)) == (other, log)
    assert select(recording(amp)) == (amp, None)
    with pytest.raises(StreamNotFound, match=r"no EEG stream.*'stim'"):
        select(recording(stim))
    with pytest.raises(StreamNotFound, match=r"no marker stream.*nothing.*'stim'"):
        select(whole, None, query(name="nothing"))
    with pytest.raises(StreamAmbiguous, match=r"'amp'.*'amp2'"):
        select(recording(amp, numbers("amp2", 5)))
    with pytest.raises(StreamAmbiguous, match="several marker streams"):
        select(recording(amp, stim, texts("stim2", [])))
    with pytest.raises(ConfigError, match="predicate"):
        select(whole, query(predicate="starts-with(name,'a')"))


class Outlet:
    def __init__(self, info: StreamInfo, time: Time) -> None:
        self.info, self.time = info, time
        self.pushes: list[tuple[float, Any, Any]] = []
        self.closed = False

    def push(self, data: Any, stamps: Any) -> None:
        assert not self.closed
        self.pushes.append((self.time.now, data, stamps))

    def have_consumers(self) -> bool:
        return self.time.now > 1003.0

    def close(self) -> None:
        self.closed = True


def outlets_of(source: Recording, **options: Any) -> list[Outlet]:
    time, made = Time(), []

    def outlet(info: StreamInfo) -> Outlet:
        made.append(Outlet(info, time))
        return made[-1]

    play(source, outlet=outlet, clock=time.clock, sleep=time.sleep, **options)
    assert all(outlet.closed for outlet in made)
    return made


@pytest.mark.parametrize("name", XDF_FILES)
@pytest.mark.data
def test_every_stream_plays(data: Path, name: str) -> None:
    source = read(data / "xdf" / f"{name}.xdf")
    shifts = []
    for stream, outlet in zip(source.streams, outlets_of(source, prefix="again-"), strict=True):
        assert outlet.info.name == f"again-{stream.info.name}"
        assert outlet.info.header == stream.info.header
        sent = [data.tolist() if isinstance(data, np.ndarray) else [data] for _, data, _ in outlet.pushes]
        together = [list(itertools.chain(*rows)) for rows in zip(*sent, strict=True)] if sent else []
        assert together == [row for row in stream.data.tolist() if row]
        for now, _, stamps in outlet.pushes:
            assert now >= stamps.max() - 1e-6  # never early
        stamps = np.concatenate([np.empty(0), *(stamps for _, _, stamps in outlet.pushes)])
        shifts.append(stamps - stream.times)
    constant = np.concatenate(shifts)
    assert np.ptp(constant) < 1e-6  # jitter, gaps and the streams' relation are the recorded ones


def test_a_session_plays_as_it_arrived(tmp_path: Path) -> None:
    events = session(tmp_path / "a.xdf")
    source = read(tmp_path / "a.xdf")
    amp, stim = outlets_of(source)
    expected = [chunk for chunk in chunks(events) if len(chunk.stamps)]
    assert [len(stamps) for _, _, stamps in amp.pushes] == [len(chunk.stamps) for chunk in expected]
    for (now, data, _), chunk in zip(amp.pushes, expected, strict=True):
        np.testing.assert_array_equal(data, chunk.data)
        assert now == pytest.approx(1000 + max(0, chunk.arrival - source.start), abs=1e-6)
    assert [data for _, data, _ in stim.pushes] == [[e.value] for e in events if isinstance(e, Marker)]


def test_twice_as_fast() -> None:
    source = recording(numbers("amp", 101))
    (amp,) = outlets_of(source, speed=2.0)
    assert amp.info.sfreq == 200.0
    assert amp.pushes[-1][0] == pytest.approx(1000.5)
    assert amp.pushes[-1][2][-1] == pytest.approx(1000.5)


def test_waits_for_consumers() -> None:
    (amp,) = outlets_of(recording(numbers("amp", 10)), wait=60.0)
    assert 1003.0 < amp.pushes[0][0] < 1005.0
    (amp,) = outlets_of(recording(numbers("amp", 10)), wait=1.0)
    assert amp.pushes[0][0] < 1003.0


def test_stops_when_asked() -> None:
    asked = itertools.count()
    (amp,) = outlets_of(recording(numbers("amp", 1000)), stop=lambda: next(asked) > 20)
    assert 0 < len(amp.pushes) < 30


def test_several_text_channels_go_out_as_rows() -> None:
    info = StreamInfo("notes", "Notes", 2, 0.0, "string")
    notes = RecordedStream(info, np.array([1.0]), np.array([["a"], ["b"]], object), ())
    (outlet,) = outlets_of(recording(notes))
    assert outlet.pushes[0][1] == [["a", "b"]]


@pytest.mark.lsl
def test_through_lsl(stream_name: str) -> None:
    """What the live inlet receives is what was recorded: samples, texts, and their relation in time."""
    from streamdec.acquire.lsl.inlet import LslInlet
    from streamdec.acquire.query import StreamQuery

    eeg, stim, empty = numbers("amp", 150), texts("stim", [0.3, 0.9, 1.1]), texts("empty", [], kind="Log")
    player = threading.Thread(
        target=play, args=(recording(eeg, stim, empty),), kwargs={"prefix": stream_name, "wait": 30}
    )
    player.start()
    received: list[Event] = []
    with LslInlet(StreamQuery(name=f"{stream_name}amp"), StreamQuery(name=f"{stream_name}stim")) as inlet:
        inlet.open(20.0)
        while (
            sum(len(chunk.stamps) for chunk in chunks(received)) < 150
            or sum(isinstance(e, Marker) for e in received) < 3
        ):
            event = inlet.pull(5.0)
            assert event is not None
            # An inlet's chunks are views that hold until the next pull.
            received.append(
                Chunk(event.data.copy(), event.stamps.copy(), event.arrival) if isinstance(event, Chunk) else event
            )
    player.join()
    samples = np.concatenate([chunk.data for chunk in chunks(received)], 1)
    np.testing.assert_array_equal(samples, eeg.data)
    shift = np.concatenate([chunk.stamps for chunk in chunks(received)]) - eeg.stamps
    assert np.ptp(shift) < 1e-6
    markers = [event for event in received if isinstance(event, Marker)]
    assert [marker.value for marker in markers] == stim.texts
    np.testing.assert_allclose([marker.stamp for marker in markers] - stim.stamps, shift[0], atol=1e-6)
    # Never early: nothing arrives before the instant it is stamped with.
    assert all(chunk.arrival >= chunk.stamps[-1] for chunk in chunks(received))
