"""Recordings on disk -> streams: XDF, THINGS-EEG2 raw .npy, and whatever mne reads."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import DataError, RecordingError
from ..types import Chunk, Event, Float64, Marker, StreamInfo
from . import journal, xdf
from .safe_npy import read_npy

STREAMS = "streams.xdf"
"""The recording in a session's folder."""

_BLOCK = 1 << 16  # samples converted at a time


class Segment(msgspec.Struct, frozen=True, eq=False):
    """What lies between two resets of the sender's clock.

    ``start`` its first sample, ``stop`` the one behind its last. ``offsets`` (n, 2) float64: the sender's clock when an
    offset was measured, and the offset, which added to a stamp gives the LSL clock.
    """

    start: int
    stop: int
    offsets: Float64


class RecordedStream(msgspec.Struct, frozen=True, eq=False):
    """One stream of a recording, as it was stored.

    ``stamps`` (n_times,) float64, sender's clock, raw. ``data`` (n_chans, n_times) in the stream's own type and unit,
    texts as an object array of str. ``segments`` cover all samples, in order.
    """

    info: StreamInfo
    stamps: Float64
    data: npt.NDArray[Any]
    segments: tuple[Segment, ...]

    @property
    def times(self) -> Float64:
        """(n_times,) float64: the stamps on the recorder's LSL clock; offsets are interpolated."""
        times = self.stamps.copy()
        for segment in self.segments:
            if len(segment.offsets):
                stretch = times[segment.start : segment.stop]
                stretch += np.interp(stretch, segment.offsets[:, 0], segment.offsets[:, 1])
        return times

    @property
    def texts(self) -> list[str]:
        """One text per sample, as a marker stream delivers it live: several channels are joined by commas."""
        return [",".join(map(_text, values)) for values in self.data.T.tolist()] if len(self.data) else []

    @property
    def offsets(self) -> Float64:
        """(n, 2) float64: the clock offsets of all segments."""
        return np.concatenate([np.empty((0, 2)), *(segment.offsets for segment in self.segments)])

    def part(self, start: int, stop: int) -> RecordedStream:
        """Return the samples from ``start`` until before ``stop``, with the offsets that map them to the same times."""
        segments = tuple(
            Segment(max(segment.start, start) - start, min(segment.stop, stop) - start, segment.offsets)
            for segment in self.segments
            if segment.start < stop and segment.stop > start
        )
        return RecordedStream(self.info, self.stamps[start:stop], self.data[:, start:stop], segments)

    def between(self, first: float, last: float) -> RecordedStream:
        """Return the samples from ``first`` until before ``last``, LSL clock."""
        start, stop = np.searchsorted(np.maximum.accumulate(self.times), (first, last))
        return self.part(int(start), int(stop))


class Events:
    """The events of a session, in the loop's order: made anew at each iteration, chunks are views of the streams.

    Parameters
    ----------
    streams : sequence of RecordedStream
        EEG, and markers where there are any.
    entries : list of journal.Entry
        What the recorder wrote down.
    """

    def __init__(self, streams: tuple[RecordedStream, ...], entries: list[journal.Entry]) -> None:
        self.streams = streams
        self._entries = entries

    def __iter__(self) -> Iterator[Event]:
        data, stamps = self.streams[0].data, self.streams[0].stamps
        markers = iter(_markers(self.streams[1]) if len(self.streams) > 1 else ())
        start = 0
        for entry in self._entries:
            if isinstance(entry, journal.Packet):
                stop = start + entry.n_times
                if stop > len(stamps):
                    return
                yield Chunk(data[:, start:stop], stamps[start:stop], entry.arrival)
                start = stop
            elif isinstance(entry, journal.Text):
                marker = next(markers, None)
                if marker is None:
                    return
                yield Marker(*marker, entry.arrival)
            elif not isinstance(entry, journal.Lost):
                yield entry.event()

    def between(self, first: float, last: float) -> Events:
        """Return what arrived from ``first`` until before ``last``, LSL clock, and earlier states of the streams."""
        counts = np.zeros((2, 2), int)  # samples and markers: before, and within
        kept: list[journal.Entry] = []
        for entry in self._entries:
            arrival = first if isinstance(entry, journal.Lost) else entry.arrival
            if arrival >= last:
                break
            content = isinstance(entry, journal.Packet | journal.Text)
            if content:
                n_times = entry.n_times if isinstance(entry, journal.Packet) else 1
                counts[int(isinstance(entry, journal.Text)), int(arrival >= first)] += n_times
            if arrival >= first or not content:
                kept.append(entry)
        streams = tuple(
            stream.part(before, before + within) for stream, (before, within) in zip(self.streams, counts, strict=False)
        )
        return Events(streams, kept)

    def problems(self) -> Iterator[str]:
        """Say what the recorder could not take, and what is in the list but not in the streams."""
        lost = sum(entry.n for entry in self._entries if isinstance(entry, journal.Lost))
        if lost:
            yield f"{lost} events or messages could not be recorded: a replay differs from the session"
        samples = sum(entry.n_times for entry in self._entries if isinstance(entry, journal.Packet))
        markers = sum(isinstance(entry, journal.Text) for entry in self._entries)
        for name, listed, stream in zip(("samples", "markers"), (samples, markers), self.streams, strict=False):
            if listed > len(stream.stamps):
                yield f"{listed - len(stream.stamps)} {name} are missing: the replay ends before them"


class Recording(msgspec.Struct, frozen=True, eq=False):
    """A recording.

    ``events`` what came in, in the loop's order, and ``feed`` the JSON headers of what went out, where our recorder
    wrote the file; the EEG stream is then the first of ``streams``, the marker stream the second. ``description`` JSON
    of what the session ran with. ``problems`` what could not be read, or was not recorded; ``finished`` whether the
    recorder came to its end.
    """

    path: Path
    streams: tuple[RecordedStream, ...]
    events: Events | None = None
    feed: tuple[str, ...] = ()
    session: str = ""
    description: str = ""
    problems: tuple[str, ...] = ()
    finished: bool = True

    @property
    def start(self) -> float:
        """LSL clock of the first sample or marker, seconds; 0 where there is none."""
        return min((float(stream.times[0]) for stream in self.streams if len(stream.stamps)), default=0.0)

    def between(self, start: float | None, stop: float | None) -> Recording:
        """Return the part from ``start`` to ``stop`` seconds after the start; None for its beginning or end."""
        if start is None and stop is None:
            return self
        first = -np.inf if start is None else self.start + start
        last = np.inf if stop is None else self.start + stop
        if self.events is None:
            return msgspec.structs.replace(self, streams=tuple(stream.between(first, last) for stream in self.streams))
        events = self.events.between(first, last)
        return msgspec.structs.replace(self, streams=events.streams, events=events)


def read(path: Path | str) -> Recording:
    """Read a recording, by its suffix.

    Parameters
    ----------
    path : Path or str
        The folder of a session; XDF (.xdf, .xdfz, .xdf.gz); a raw THINGS-EEG2 dictionary (.npy); FIF, BrainVision,
        EDF, BDF, EEGLAB and everything else that mne reads, with the ``recordings`` extra. Volts become microvolts,
        annotations a marker stream.

    Raises
    ------
    RecordingError
        It is not there, is none of these, or is damaged from its beginning. Of a file that is damaged later, such as
        one whose recorder was killed, what is whole is read, and ``problems`` says what is not.
    """
    path = Path(path)
    if not path.exists():
        raise RecordingError(f"no recording at {path}")
    if (path / STREAMS).is_file():
        return _read_xdf(path / STREAMS)
    name = path.name.lower()
    if name.endswith((".xdf", ".xdfz", ".xdf.gz")):
        return _read_xdf(path)
    return _read_things(path) if name.endswith(".npy") else _read_mne(path)


def _read_xdf(path: Path) -> Recording:
    raw, problems = xdf.read(path)
    logs = {stream.info.name: stream for stream in raw if stream.info.name in (journal.EVENTS, journal.FEED)}
    streams = [stream for stream in raw if stream.info.name not in logs]
    if journal.EVENTS in logs:
        recording = _read_session(path, streams, logs, problems)
    else:
        recording = Recording(path, tuple(map(_recorded, streams)), problems=tuple(problems))
    return msgspec.structs.replace(recording, finished=all(stream.finished for stream in raw))


def _recorded(raw: xdf.RawStream) -> RecordedStream:
    return RecordedStream(raw.info, raw.stamps, raw.values.T, _at_resets(raw))


def _read_session(
    path: Path, raw: list[xdf.RawStream], logs: dict[str, xdf.RawStream], problems: list[str]
) -> Recording:
    head = journal.read_head(logs[journal.EVENTS].info.header)
    if head is None:
        raise RecordingError(
            f"{path}", got="a session of another version", do="read it with the streamdec that wrote it"
        )
    infos = [head.eeg]
    if head.markers is not None:
        joined = head.markers.n_chans > 1  # by commas, into the one text that the loop took in
        infos.append(msgspec.structs.replace(head.markers, n_chans=1, dtype="string") if joined else head.markers)
    if len(raw) < len(infos):
        raise RecordingError(f"{path}", got="a session whose streams are missing")
    entries, damaged = journal.read_entries(_column(logs[journal.EVENTS]))
    if damaged:
        problems.append("the list of events is damaged: the replay ends there")
    streams = tuple(
        RecordedStream(info, stream.stamps, stream.values.T, _cut(stream, *_found(entries, role)))
        for info, stream, role in zip(infos, raw, ("eeg", "markers"), strict=False)
    )
    events = Events(streams, entries)
    feed = tuple(_column(logs[journal.FEED])) if journal.FEED in logs else ()
    return Recording(path, streams, events, feed, head.session, head.description, (*problems, *events.problems()))


def _column(raw: xdf.RawStream) -> list[str]:
    texts: list[str] = raw.values[:, 0].tolist()
    return texts


def _markers(stream: RecordedStream) -> Iterator[tuple[str, float]]:
    return zip(stream.texts, stream.stamps.tolist(), strict=True)


def _found(entries: list[journal.Entry], role: str) -> tuple[list[int], list[int]]:
    """Return how many samples and offsets there were each time a stream was found again."""
    samples, offsets = [], []
    n_samples = n_offsets = 0
    counted = journal.Packet if role == "eeg" else journal.Text
    for entry in entries:
        if isinstance(entry, counted):
            n_samples += entry.n_times if isinstance(entry, journal.Packet) else 1
        elif isinstance(entry, journal.Offset):
            n_offsets += entry.stream == role
        elif isinstance(entry, journal.Change) and entry.stream == role and entry.state == "found":
            samples.append(n_samples)
            offsets.append(n_offsets)
    return samples, offsets


def _cut(raw: xdf.RawStream, samples: list[int], offsets: list[int]) -> tuple[Segment, ...]:
    """Make segments that begin at ``samples``, with the offsets that begin at ``offsets``."""
    stops, behind = [*samples, len(raw.stamps)], [*offsets, len(raw.offsets)]
    return tuple(
        Segment(start, stop, raw.offsets[first:last])
        for start, stop, first, last in zip([0, *samples], stops, [0, *offsets], behind, strict=True)
        if stop > start
    )


def _at_resets(raw: xdf.RawStream) -> tuple[Segment, ...]:
    """Cut where the sender's clock was reset; a sample belongs to the nearer clock offset.

    As pyxdf does, so that a recording means the same in both.
    """
    times = raw.offsets[:, 0]
    cuts = _resets(raw.offsets)
    samples, start = [], 0
    for cut in cuts:
        rest = raw.stamps[start:]
        nearer = np.abs(rest - times[cut - 1]) < np.abs(rest - times[cut])
        start += len(rest) if nearer.all() else int(np.argmin(nearer))
        samples.append(start)
    return _cut(raw, samples, cuts)


def _resets(offsets: Float64) -> list[int]:
    """Return which offsets are the first after a reset: measured too early or too late, and of quite another value."""
    if len(offsets) < 2:
        return []
    wait, change = np.diff(offsets, axis=0).T
    reset = (wait < 0) | (
        _stands_out(wait, seconds=5.0, deviations=5.0) & _stands_out(change, seconds=1.0, deviations=10.0)
    )
    return [int(k) + 1 for k in np.flatnonzero(reset)]


def _stands_out(values: Float64, *, seconds: float, deviations: float) -> npt.NDArray[np.bool_]:
    apart = np.abs(values - np.median(values))
    return np.greater(apart, max(seconds, deviations * float(np.median(apart))))


def _read_things(path: Path) -> Recording:
    """Read a raw THINGS-EEG2 dictionary: volts, and trigger codes in a channel of type stim."""
    try:
        content = read_npy(path)
    except DataError as error:
        raise RecordingError(str(error)) from error
    wanted = {"raw_eeg_data", "ch_names", "ch_types", "sfreq"}
    if not isinstance(content, dict) or not wanted <= content.keys():
        got = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise RecordingError(f"{path}", got=got, allowed=f"a dictionary with {', '.join(sorted(wanted))}")
    volts, names, kinds = content["raw_eeg_data"], list(content["ch_names"]), list(content["ch_types"])
    if np.ndim(volts) != 2 or not len(volts) == len(names) == len(kinds):
        raise RecordingError(f"{path}", got=f"{np.shape(volts)} samples, {len(names)} names, {len(kinds)} types")
    in_volts = np.array([kind != "stim" for kind in kinds])
    info = _info(path, names, kinds, in_volts, float(content["sfreq"]))
    stream = _continuous(info, in_volts, volts.shape[1], lambda start, stop: volts[:, start:stop])
    return Recording(path, (stream,))


def _read_mne(path: Path) -> Recording:
    try:
        import mne
        from mne.io.constants import FIFF
    except ImportError as error:
        do = "pip install 'streamdec[recordings]'"
        raise RecordingError(f"{path} needs mne", allowed="XDF and raw THINGS .npy without it", do=do) from error
    with warnings.catch_warnings(record=True) as caught, mne.utils.catch_logging(verbose="warning"):
        warnings.simplefilter("always")
        try:
            raw = mne.io.read_raw(path, preload=False)
            kinds = raw.get_channel_types()
            in_volts = np.array([ch["unit"] == FIFF.FIFF_UNIT_V for ch in raw.info["chs"]]) & (
                np.array(kinds) != "stim"
            )
            info = _info(path, raw.ch_names, kinds, in_volts, float(raw.info["sfreq"]))
            stream = _continuous(info, in_volts, raw.n_times, lambda start, stop: raw.get_data(start=start, stop=stop))
        except Exception as error:  # mne's readers raise whatever their format's parser does
            do = "see mne.io.read_raw for the formats"
            raise RecordingError(f"mne cannot read {path}", got=f"{type(error).__name__}: {error}", do=do) from error
    problems = tuple(dict.fromkeys(" ".join(str(warning.message).split()) for warning in caught))
    return Recording(path, (stream, _annotations(raw, path)), problems=problems)


def _info(
    path: Path, names: Sequence[str], kinds: Sequence[str], in_volts: npt.NDArray[np.bool_], sfreq: float
) -> StreamInfo:
    units = tuple("microvolts" if volts else "" for volts in in_volts)
    return StreamInfo(
        path.stem, "EEG", len(names), sfreq, "float32", ch_names=tuple(names), ch_types=tuple(kinds), units=units
    )


def _continuous(
    info: StreamInfo,
    in_volts: npt.NDArray[np.bool_],
    n_times: int,
    block: Callable[[int, int], npt.NDArray[np.floating[Any]]],
) -> RecordedStream:
    """Take samples block by block: an hour in float64 beside its float32 would be three times the memory."""
    scale = np.where(in_volts, 1e6, 1.0)[:, None]
    values = np.empty((n_times, info.n_chans), np.float32)
    for start in range(0, n_times, _BLOCK):
        stop = min(start + _BLOCK, n_times)
        values[start:stop] = (block(start, stop) * scale).T
    stamps = np.arange(n_times) / info.sfreq
    return RecordedStream(info, stamps, values.T, _whole(n_times))


def _annotations(raw: Any, path: Path) -> RecordedStream:
    """Take annotations as markers, at their own onsets: mne's events are rounded to samples."""
    annotations = raw.annotations
    onsets = np.asarray(annotations.onset, np.float64)
    if annotations.orig_time is not None:  # onsets count from there, samples from the first one stored
        onsets = onsets + (annotations.orig_time - raw.info["meas_date"]).total_seconds() - raw.first_time
    data = np.array([str(text) for text in annotations.description], object)[None]
    info = StreamInfo(f"{path.stem}-annotations", "Markers", 1, 0.0, "string")
    return RecordedStream(info, onsets, data, _whole(len(onsets)))


def _whole(n_times: int) -> tuple[Segment, ...]:
    return (Segment(0, n_times, np.empty((0, 2))),) if n_times else ()


def _text(value: object) -> str:
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
