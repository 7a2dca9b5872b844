"""A recording played again: as an inlet in this process, or as LSL outlets in real time."""

from __future__ import annotations

import heapq
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from types import TracebackType
from typing import Any, Protocol, Self, TypeAlias

import msgspec
import numpy as np

from ..errors import ConfigError, StreamAmbiguous, StreamNotFound
from ..signal.rate import Rate
from ..types import Chunk, ClockOffset, Connection, Event, Float64, Marker, StreamInfo, StreamRole
from .query import StreamQuery
from .recording import RecordedStream, Recording

_OTHER_INLETS = 1.0  # seconds a consumer has for its other inlets once the first is there
_LINGER = 0.5  # seconds before outlets close: what a closed outlet has not sent yet is lost


class Outlet(Protocol):
    """What :func:`play` needs of an outlet; :class:`.lsl.outlet.LslOutlet` is one."""

    def push(self, data: Any, stamps: Float64) -> None:
        """Send samples: (n_chans, n_times) numbers or n_times texts."""

    def have_consumers(self) -> bool:
        """Whether anybody listens."""

    def close(self) -> None:
        """End the stream."""


def select(
    recording: Recording, eeg: StreamQuery | None = None, markers: StreamQuery | None = None, *, trigger: bool = False
) -> tuple[RecordedStream, RecordedStream | None]:
    """Find the EEG stream and the marker stream.

    A recording of ours has one of each, whatever the queries say.

    Parameters
    ----------
    recording : Recording
    eeg : StreamQuery, optional
        By default the one of type EEG, or, where none is, the only regular stream of numbers.
    markers : StreamQuery, optional
        By default the one whose type speaks of markers, or, where none does, the only irregular stream or stream of
        texts.
    trigger : bool
        Onsets come from a channel of the EEG stream: no marker stream is wanted.

    Returns
    -------
    eeg : RecordedStream
    markers : RecordedStream or None
        None where there is none, or none is wanted.

    Raises
    ------
    StreamNotFound, StreamAmbiguous
        With a list of the streams there are.
    """
    if recording.events is not None:
        return recording.streams[0], None if trigger or len(recording.streams) == 1 else recording.streams[1]
    regular = [stream for stream in recording.streams if _is_regular(stream.info)]
    found = _one(recording, "EEG", regular, eeg, [stream for stream in regular if stream.info.type.upper() == "EEG"])
    if found is None:
        raise StreamNotFound(f"no EEG stream in {recording.path}", allowed=_listed(recording.streams))
    if trigger:
        return found, None
    others = [s for s in recording.streams if s is not found and (s.info.sfreq == 0 or s.info.dtype == "string")]
    typical = [stream for stream in others if "marker" in stream.info.type.lower()]
    return found, _one(recording, "marker", others, markers, typical)


def _is_regular(info: StreamInfo) -> bool:
    return info.sfreq > 0 and info.dtype != "string"


def _one(
    recording: Recording,
    role: str,
    candidates: list[RecordedStream],
    query: StreamQuery | None,
    typical: list[RecordedStream],
) -> RecordedStream | None:
    if query is None:
        matching = typical or candidates
    else:
        if query.predicate:
            raise ConfigError(
                "predicate of a stream query", got=query.predicate, allowed="none: a recording is no network"
            )
        wanted = {key: value for key in ("name", "type", "source_id") if (value := getattr(query, key))}
        matching = [s for s in candidates if all(getattr(s.info, key) == value for key, value in wanted.items())]
        if not matching:
            raise StreamNotFound(
                f"no {role} stream in {recording.path}", got=query.describe(), allowed=_listed(recording.streams)
            )
    if len(matching) > 1:
        raise StreamAmbiguous(f"several {role} streams in {recording.path}", got=_listed(matching), do="name one")
    return matching[0] if matching else None


def _listed(streams: Sequence[RecordedStream]) -> str:
    return ", ".join(
        f"{s.info.name!r} (type {s.info.type!r}, {s.info.n_chans} channels, {s.info.sfreq:g} Hz, {s.info.dtype})"
        for s in streams
    ) or "none"  # fmt: skip


class ReplayInlet:
    """A recording as an inlet.

    What our recorder wrote comes as it came then, event for event. Of any other recording the packets are made up:
    ``chunk`` seconds each, arriving with their newest sample; markers arrive when they are stamped, clock offsets when
    they were measured (the first of a segment before its samples), and a reset of the sender's clock is a stream found
    again. Either way the same recording always gives the same events.

    Parameters
    ----------
    recording : Recording
    eeg, markers, trigger
        See :func:`select`.
    chunk : float, optional
        Seconds of a made-up packet; by default 0.02, or 0.1 as fast as it goes, where fewer cost less.
    speed : float, optional
        Recorded seconds per second; None plays as fast as events are pulled.
    clock, sleep : callable
        Seconds; what paces a replay with a speed.
    """

    def __init__(
        self,
        recording: Recording,
        eeg: StreamQuery | None = None,
        markers: StreamQuery | None = None,
        *,
        trigger: bool = False,
        chunk: float | None = None,
        speed: float | None = None,
        clock: Callable[[], float] = time.perf_counter,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if speed is not None and not speed > 0:
            raise ConfigError("replay speed", got=speed, allowed="a number above 0")
        self._recording = recording
        self._streams = select(recording, eeg, markers, trigger=trigger)
        self.eeg = self._streams[0].info
        self.markers = None if self._streams[1] is None else self._streams[1].info
        self._chunk = chunk or (0.1 if speed is None else 0.02)
        self._speed, self._clock, self._sleep = speed, clock, sleep
        self._events: Iterator[Event] = iter(())
        self._next: Event | None = None
        self._lead: float | None = None  # arrival at its speed minus clock

    def open(self, timeout: float = 0.0) -> None:
        """Begin at the beginning."""
        events = self._recording.events
        self._events = _ended(iter(_made_up(*self._streams, self._chunk) if events is None else events))
        self._next = self._lead = None

    def pull(self, timeout: float = 0.0) -> Event | None:
        """Return the next event, or None when none is due within ``timeout`` seconds or all were played."""
        event, self._next = self._next or next(self._events, None), None
        if event is None or self._speed is None:
            return event
        due = event.arrival / self._speed
        if self._lead is None:
            self._lead = due - self._clock()
        wait = due - self._lead - self._clock()
        if wait > 0:
            self._sleep(min(wait, timeout))
        if wait > timeout:
            self._next, event = event, None
        return event

    def close(self) -> None:
        """Stop playing. Idempotent."""
        self._events, self._next = iter(()), None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _ended(events: Iterator[Event]) -> Iterator[Event]:
    event: Event | None = None
    for event in events:
        yield event
    if not (isinstance(event, Connection) and event.state == "ended"):
        yield Connection("eeg", "ended", 0.0 if event is None else event.arrival)


def _made_up(eeg: RecordedStream, markers: RecordedStream | None, chunk: float) -> Iterator[Event]:
    """Give the events of a recording that does not say how they arrived.

    At one instant: the state of streams, then markers, then samples.
    """
    streams: list[tuple[StreamRole, RecordedStream]] = [("eeg", eeg)]
    if markers is not None:
        streams.append(("markers", markers))
    start = min((float(stream.times[0]) for _, stream in streams if len(stream.stamps)), default=0.0)
    states = [_states(role, stream, start) for role, stream in streams]
    chunks = (
        Chunk(eeg.data[:, first:stop].astype(np.float32, copy=False), eeg.stamps[first:stop], arrival)
        for first, stop, arrival in _packets(eeg, chunk)
    )
    return heapq.merge(*states, _texts(markers), chunks, key=lambda event: event.arrival)


def _states(role: StreamRole, stream: RecordedStream, start: float) -> Iterator[Event]:
    """Give connections and clock offsets."""
    times = np.maximum.accumulate(stream.times)
    begins = [start, *(float(times[segment.start]) for segment in stream.segments[1:]), np.inf]
    offsets = [segment.offsets for segment in stream.segments] or [np.empty((0, 2))]
    for k, (measured, (begin, end)) in enumerate(zip(offsets, pairwise(begins), strict=True)):
        yield Connection(
            role, "found" if k else "connected", begin, "the sender's clock was reset" if k else "", stream.info
        )
        if not len(measured):
            yield ClockOffset(role, 0.0, float("nan"), begin)
        arrival = begin
        for n, (collected, value) in enumerate(measured.tolist()):
            arrival = min(max(arrival, collected + value), end) if n else begin
            yield ClockOffset(role, value, float("nan"), arrival)


def _texts(markers: RecordedStream | None) -> Iterator[Event]:
    if markers is not None:
        arrivals = np.maximum.accumulate(markers.times)
        for value, stamp, arrival in zip(markers.texts, markers.stamps.tolist(), arrivals.tolist(), strict=True):
            yield Marker(value, stamp, arrival)


_Packet: TypeAlias = tuple[int, int, float]  # first sample, the one behind the last, arrival


def _packets(stream: RecordedStream, chunk: float) -> Iterator[_Packet]:
    """Cut a regular stream every ``chunk`` seconds, and at gaps and resets; a packet arrives with its newest sample."""
    times = stream.times
    rate = Rate(stream.info.sfreq)
    n_times = max(1, rate.to_samples(chunk))
    arrivals = np.maximum.accumulate(times)
    gaps = np.flatnonzero(np.abs(np.diff(times)) > max(chunk, 1.5 / rate.sfreq)) + 1
    edges = sorted({0, len(times), *gaps.tolist(), *(segment.start for segment in stream.segments)})
    for begin, end in pairwise(edges):
        for start in range(begin, end, n_times):
            stop = min(start + n_times, end)
            yield start, stop, float(arrivals[stop - 1])


def play(
    recording: Recording,
    *,
    speed: float = 1.0,
    prefix: str = "",
    chunk: float = 0.02,
    wait: float = 0.0,
    stop: Callable[[], bool] = lambda: False,
    outlet: Callable[[StreamInfo], Outlet] | None = None,
    clock: Callable[[], float] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Play every stream of a recording as an LSL outlet.

    Samples are pushed when they arrived then, or, where the recording does not say, in packets that are pushed with
    their newest sample: never early. Their stamps are the recorded ones on the recorder's clock, jitter and gaps
    included, moved by one constant to now. At another speed than 1 the stamps are compressed with the pushes, and
    the headers say the rate that is played.

    Parameters
    ----------
    recording : Recording
    speed : float
        Recorded seconds per second.
    prefix : str
        Put in front of the streams' names.
    chunk : float
        Seconds of a packet, where the recording does not say.
    wait : float
        Seconds to wait for a first consumer, who then has one more second to open its other inlets; 0 starts at once.
    stop : callable
        Asked all the time; True ends the play.
    outlet, clock, sleep : callable
        :class:`.lsl.outlet.LslOutlet`, its clock, and how to pass time, unless given.
    """
    if not speed > 0:
        raise ConfigError("replay speed", got=speed, allowed="a number above 0")
    if outlet is None or clock is None:
        from .lsl.library import local_clock
        from .lsl.outlet import LslOutlet

        outlet, clock = outlet or LslOutlet, clock or local_clock
    outlets: list[Outlet] = []
    try:
        for stream in recording.streams:
            info = stream.info
            outlets.append(outlet(msgspec.structs.replace(info, name=prefix + info.name, sfreq=info.sfreq * speed)))
        if wait:
            give_up = clock() + wait
            while not stop() and clock() < give_up and not any(each.have_consumers() for each in outlets):
                sleep(0.05)
            sleep(_OTHER_INLETS)
        start, begin = recording.start, clock()
        times = [stream.times for stream in recording.streams]
        for index, first, behind, arrival in _pushes(recording, chunk):
            due = begin + (arrival - start) / speed
            while (left := due - clock()) > 0 and not stop():
                sleep(min(left, 0.1))
            if stop():
                return
            data = recording.streams[index].data[:, first:behind]
            if data.dtype == object:
                data = data[0].tolist() if len(data) == 1 else data.T.tolist()
            outlets[index].push(data, begin + (times[index][first:behind] - start) / speed)
        sleep(_LINGER)
    finally:
        for each in outlets:
            each.close()


def _pushes(recording: Recording, chunk: float) -> Iterator[tuple[int, int, int, float]]:
    """Give (stream, first sample, the one behind the last, arrival) in the order of arrival."""
    if recording.events is not None:
        position = [0, 0]
        for event in recording.events:
            if isinstance(event, Marker) or (isinstance(event, Chunk) and len(event.stamps)):
                stream = int(isinstance(event, Marker))
                first = position[stream]
                position[stream] += len(event.stamps) if isinstance(event, Chunk) else 1
                yield stream, first, position[stream], event.arrival
        return
    yield from heapq.merge(
        *(_stream_pushes(k, stream, chunk) for k, stream in enumerate(recording.streams)), key=_arrival
    )


def _stream_pushes(index: int, stream: RecordedStream, chunk: float) -> Iterator[tuple[int, int, int, float]]:
    if _is_regular(stream.info):
        for first, stop, arrival in _packets(stream, chunk):
            yield index, first, stop, arrival
    else:
        for n, arrival in enumerate(np.maximum.accumulate(stream.times).tolist()):
            yield index, n, n + 1, arrival


def _arrival(push: tuple[int, int, int, float]) -> float:
    return push[3]
