"""LSL: the inlet with its own supervisor, and the outlet. The only file that imports pylsl.

Streams are opened with raw stamps and without liblsl's recovery: its smoothed stamps are wrong after every loss, and
its recovery hides the loss. Here a lost stream is announced, looked for by a thread that lives until it is found, and
must have the header it had before.
"""

from __future__ import annotations

import ctypes
import math
import threading
import time
import zlib
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, NamedTuple, Self
from xml.etree import ElementTree

import msgspec
import numpy as np
import numpy.typing as npt
import pylsl
from pylsl.lib import lib
from pylsl.util import LostError

from ..errors import ConfigError, StreamAmbiguous, StreamdecError, StreamError, StreamMismatch, StreamNotFound
from ..types import Chunk, ClockOffset, Connection, Event, Float64, Marker, StreamInfo, StreamRole
from .header import read_header, write_header
from .query import StreamQuery as StreamQuery
from .query import quoted

_MAX_CHUNK = 4096  # samples handed out at once
_MAX_MARKERS = 64
_SLICE = 0.05  # s the EEG pull blocks before markers and the supervisor get a look
_GLANCE = 0.02  # s between two looks for a stream
_SECOND_LOOK = 0.6  # s given to a second stream that matches to show itself
_PATIENCE = 3.0  # s for a header, a connection or a clock offset; liblsl needs 0.64 s for its first offset
_OFFSET_EVERY = 2.5  # s; liblsl measures every 2 s in a thread of its own
_PROBE_EVERY = 0.1  # s; only a pull shows that a marker stream is lost
_LOST = -2  # liblsl's error code
_FIRST_PORT, _PORTS, _SLOTS = 17000, 64, 200  # of the sessions on this machine, below the ephemeral ports


def _function(name: str, restype: Any, *argtypes: Any) -> Any:
    """Bind a function of liblsl anew: the ones pylsl holds are shared, and its argument types open."""
    function = lib[name]
    function.restype, function.argtypes = restype, argtypes
    return function


_pointer, _ulong, _double, _int = ctypes.c_void_p, ctypes.c_ulong, ctypes.c_double, ctypes.c_int
_local_clock = _function("lsl_local_clock", _double)
_available = _function("lsl_samples_available", ctypes.c_uint32, _pointer)
_pull = _function("lsl_pull_chunk_f", _ulong, _pointer, _pointer, _pointer, _ulong, _ulong, _double, _pointer)
_correction = _function("lsl_time_correction_ex", _double, _pointer, _pointer, _pointer, _double, _pointer)


def local_clock() -> float:
    """LSL clock of this machine, seconds."""
    return float(_local_clock())


def loopback(session_id: str) -> str:
    """Write the configuration (lsl_api.cfg) that keeps liblsl to this machine, and to processes of the same session.

    liblsl reads the file that ``LSLAPICFG`` names, once, at its first call in a process. Waves of 50 ms instead of 500
    find the second and third outlet at once. Ports of its own, because an outlet that finds all of a range taken by
    other sessions goes where nobody looks for it; and a query waits for answers no longer than 1 s, because each of
    those under way takes a port: 13 for one stream that is looked for with the usual 3 and 5 s, so 4.
    """
    return f"""[log]
level = -3
[ports]
IPv6 = disable
BasePort = {_FIRST_PORT + _PORTS * (zlib.crc32(session_id.encode()) % _SLOTS)}
PortRange = {_PORTS}
[multicast]
ResolveScope = machine
Interfaces = {{127.0.0.1}}
ListenAddress = 127.0.0.1
[lab]
SessionID = {session_id}
KnownPeers = {{127.0.0.1}}
[tuning]
MulticastMinRTT = 0.05
MulticastMaxRTT = 1.0
UnicastMinRTT = 0.05
UnicastMaxRTT = 1.0
"""


def find(timeout: float) -> list[StreamInfo]:
    """List every stream that shows within ``timeout`` s, with its full header where that comes in time."""
    resolver = pylsl.ContinuousResolver()
    time.sleep(timeout)
    shorts = {info.uid(): info for info in resolver.results()}
    with ThreadPoolExecutor(8) as pool:
        infos = [info for info in pool.map(_described, shorts.values()) if info is not None]
    return sorted(infos, key=lambda info: (info.type, info.name, info.uid))


def _described(short: pylsl.StreamInfo) -> StreamInfo | None:
    try:
        header = pylsl.StreamInlet(short, recover=False).info(_PATIENCE).as_xml()
    except (TimeoutError, RuntimeError):  # LostError is one
        header = short.as_xml()
    try:
        return read_header(header)
    except StreamError:
        return None


def _listed(infos: list[StreamInfo]) -> str:
    return ", ".join(map(_one_line, infos)) or "no stream at all"


def _one_line(info: StreamInfo) -> str:
    place = f"source_id {info.source_id!r} on {info.hostname}"
    return f"{info.name!r} ({info.type}, {info.sfreq:g} Hz, {info.n_chans} channels, {place})"


class _Contact(NamedTuple):
    inlet: Any
    info: StreamInfo


class _Offset(NamedTuple):
    """``value``, ``uncertainty`` and ``measured`` in seconds; the latter on the sender's clock."""

    value: float
    uncertainty: float
    measured: float


class _Refusal(NamedTuple):
    reason: str
    info: StreamInfo


class _Seen(NamedTuple):
    """There is one; the first contact takes a while."""


_News = _Seen | _Contact | _Offset | _Refusal | StreamdecError


class _Link:
    """One stream: what is asked for, the connection, and the thread that makes connections while there is none."""

    def __init__(self, role: StreamRole, query: StreamQuery, buffer_seconds: float) -> None:
        self.role, self.query = role, query
        self.buffer = max(1, math.ceil(buffer_seconds))
        self.info: StreamInfo | None = None  # of the first contact: what comes later must fit it
        self.inlet: Any = None
        self.uid = ""
        self.measured = math.nan  # sender's clock of the last offset; NaN: none yet, samples must wait
        self.due = 0.0  # LSL clock of the next look at the offset
        self.news: SimpleQueue[_News] = SimpleQueue()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def ready(self) -> bool:
        return self.inlet is not None and not math.isnan(self.measured)

    def seek(self, excluded: str = "") -> None:
        """Look for the stream in a thread, but not for the outlet with the uid ``excluded``."""
        self.rest()
        self._stop, self.news = threading.Event(), SimpleQueue()
        self._thread = threading.Thread(
            target=_connect,
            args=(self.role, self.query, self.info, self.buffer, {excluded}, self._stop, self.news),
            name=f"streamdec-seek-{self.role}",
            daemon=True,
        )
        self._thread.start()

    def rest(self) -> None:
        """Stop looking; what was found meanwhile is let go."""
        self._stop.set()
        self.news = SimpleQueue()

    def adopt(self, contact: _Contact) -> None:
        self.inlet, self.uid = contact.inlet, contact.info.uid
        self.info = self.info or contact.info
        self.measured = math.nan

    def drop(self) -> None:
        self.inlet, self.measured = None, math.nan

    def close(self) -> None:
        self.rest()
        self.drop()
        if self._thread is not None and self._thread.is_alive():  # a signal may come before it has started
            self._thread.join(2 * _PATIENCE)


def _connect(
    role: StreamRole,
    query: StreamQuery,
    known: StreamInfo | None,
    buffer: int,
    excluded: set[str],
    stop: threading.Event,
    news: SimpleQueue[_News],
) -> None:
    """Look for a stream until it is found, connect, measure its clock; the program of the seeking thread."""
    predicate = query.xpath() if known is None else _identity(known)
    try:
        # Not resolve_bypred: liblsl 1.18.0 overruns its timeout by 5 s where it coincides with a wave of queries.
        resolver = pylsl.ContinuousResolver(pred=predicate, forget_after=1.0)
    except RuntimeError:
        news.put(ConfigError("stream query", got=predicate, allowed="an XPath 1.0 predicate"))
        return
    while not stop.wait(_GLANCE):
        fresh = _fresh(resolver, excluded)
        if not fresh:
            continue
        if known is None:
            news.put(_Seen())
            stop.wait(_SECOND_LOOK)
            fresh.update(_fresh(resolver, excluded))
            if len(fresh) > 1:
                what = f"several {role} streams match {query.describe()}"
                several = [read_header(short.as_xml()) for short in fresh.values()]
                news.put(StreamAmbiguous(what, got=_listed(several), do="name one by its source_id"))
                return
        uid, short = fresh.popitem()
        try:
            inlet = pylsl.StreamInlet(short, max_buflen=buffer, recover=False)
            info = read_header(inlet.info(_PATIENCE).as_xml())
            inlet.open_stream(_PATIENCE)
        except (TimeoutError, RuntimeError):  # gone again
            continue
        except StreamError as error:
            excluded.add(uid)
            news.put(_Refusal(str(error), known) if known else error)
            continue
        if role == "markers":  # some senders state a rate
            info = msgspec.structs.replace(info, sfreq=0.0)
        reason = _unfit(role, info, known)
        if reason:
            excluded.add(uid)
            news.put(_Refusal(reason, info))
            continue
        news.put(_Contact(inlet, info))
        offset = _offset(inlet, _PATIENCE)
        if offset is not None:
            news.put(offset)
            return
        reason = "its clock offset cannot be measured: it is gone again, or UDP to its ports 16572 and up is blocked"
        news.put(_Refusal(reason, info))
        del inlet
        stop.wait(1.0)


def _fresh(resolver: pylsl.ContinuousResolver, excluded: set[str]) -> dict[str, pylsl.StreamInfo]:
    found = {short.uid(): short for short in resolver.results()}
    return {uid: short for uid, short in found.items() if uid not in excluded}


def _identity(info: StreamInfo) -> str:
    """Which outlet may take the place of a lost one."""
    place = f"source_id={quoted(info.source_id)}" if info.source_id else f"hostname={quoted(info.hostname)}"
    return f"name={quoted(info.name)} and type={quoted(info.type)} and {place}"


def _unfit(role: StreamRole, info: StreamInfo, known: StreamInfo | None) -> str:
    """Why a stream cannot be used, or not in the place of the one that was lost; "" where it can."""
    if known is not None:
        names = {"n_chans": "channels", "dtype": "format", "sfreq": "rate", "ch_names": "labels", "units": "units"}
        pairs = [(name, getattr(known, key), getattr(info, key)) for key, name in names.items()]
        return "; ".join(f"{name} {after}, before {before}" for name, before, after in pairs if before != after)
    if role == "eeg" and (info.dtype == "string" or info.sfreq <= 0):
        return f"{info.dtype} samples at {info.sfreq:g} Hz, not numbers at a fixed rate"
    return ""


def _offset(inlet: Any, timeout: float) -> _Offset | None:
    """Clock offset of a stream; None where it is not known yet. With ``timeout`` 0 it takes 30 microseconds."""
    measured, round_trip, code = _double(), _double(), _int()
    byref = ctypes.byref
    value = _correction(inlet.obj, byref(measured), byref(round_trip), timeout, byref(code))
    return None if code.value else _Offset(value, round_trip.value / 2, measured.value)


class LslInlet:
    """An EEG stream and its markers, as one sequence of events.

    Parameters
    ----------
    eeg : StreamQuery
        Which stream has the samples.
    markers : StreamQuery or None
        Which stream has the markers; None where a trigger channel has them.
    stall : float
        Seconds without a sample after which the EEG stream counts as stalled; at least five of its packets.
    buffer_seconds : float
        Samples that liblsl keeps while nobody pulls; older ones are lost, and show as a gap.

    Attributes
    ----------
    eeg, markers : StreamInfo
        The streams, once :meth:`open` has returned.
    """

    eeg: StreamInfo
    markers: StreamInfo | None

    def __init__(
        self, eeg: StreamQuery, markers: StreamQuery | None, *, stall: float = 0.25, buffer_seconds: float = 60.0
    ) -> None:
        eeg.xpath()
        self._eeg = _Link("eeg", eeg, buffer_seconds)
        self._markers: _Link | None = None
        self._links = [self._eeg]
        if markers is not None:
            markers.xpath()
            self._markers = _Link("markers", markers, 360.0)  # an irregular stream: hundreds of markers
            self._links.append(self._markers)
        self.markers = None
        self._stall = stall
        self._pending: deque[Event] = deque()
        self._looked = False  # at markers and supervisor, since the last EEG pull
        self._stalled = False
        self._heard = 0.0  # LSL clock of the last chunk
        self._packet = 0.0  # usual time between chunks, s
        self._probe_due = 0.0

    def open(self, timeout: float) -> None:
        """Connect to all streams and measure their clocks.

        Parameters
        ----------
        timeout : float
            Seconds to look for them; infinite to wait for ever.

        Raises
        ------
        StreamNotFound, StreamAmbiguous
            No stream matches, or several; says which there are.
        StreamMismatch
            The stream is not of the kind, or its clock cannot be measured.
        """
        deadline = local_clock() + timeout
        for link in self._links:
            link.seek()
        try:
            for link in self._links:
                self._first_contact(link, deadline)
        except BaseException:
            self.close()
            raise
        assert self._eeg.info is not None
        self.eeg = self._eeg.info
        self.markers = self._markers.info if self._markers else None
        n_chans = self.eeg.n_chans
        self._data = np.empty((_MAX_CHUNK, n_chans), np.float32)
        self._stamps = np.empty(_MAX_CHUNK)
        self._first = self._data.ctypes.data, self._stamps.ctypes.data, n_chans, 1
        self._rest = (
            self._data[1:].ctypes.data,
            self._stamps[1:].ctypes.data,
            (_MAX_CHUNK - 1) * n_chans,
            _MAX_CHUNK - 1,
        )
        self._code = _int()
        self._heard = local_clock()

    def pull(self, timeout: float) -> Event | None:
        """Take the next event, or None when none came within ``timeout`` seconds.

        After each chunk the markers that are there come first, then the next chunk: blocked for in C until the first
        sample arrives, then drained. A chunk is a view of the inlet's buffer and holds until the next pull.
        """
        deadline = local_clock() + timeout
        while True:
            if not self._looked:
                self._looked = True
                self._look()
            if self._pending:
                return self._pending.popleft()
            wait = min(max(0.0, deadline - local_clock()), _SLICE)
            self._looked = False
            if self._eeg.ready:
                chunk = self._pull_eeg(wait)
                if chunk is not None:
                    return chunk
            else:
                time.sleep(min(wait, 0.01))
            if not self._pending and local_clock() >= deadline:
                self._look()
                return self._pending.popleft() if self._pending else None

    def close(self) -> None:
        """Let go of the streams. Idempotent."""
        for link in self._links:
            link.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _first_contact(self, link: _Link, deadline: float) -> None:
        while not link.ready:
            try:
                item = link.news.get(timeout=0.1)
            except Empty:
                if link.inlet is None and local_clock() >= deadline:
                    raise StreamNotFound(
                        f"no {link.role} stream with {link.query.describe()}",
                        got=_listed(find(1.0)),
                        do="start the stream, or name one of these",
                    ) from None
                continue
            now = local_clock()
            if isinstance(item, StreamdecError):
                raise item
            if isinstance(item, _Refusal):
                raise StreamMismatch(f"{link.role} stream {item.info.name!r}", got=item.reason)
            if isinstance(item, _Contact):
                link.adopt(item)
                self._pending.append(Connection(link.role, "connected", now, info=item.info))
            elif isinstance(item, _Seen):
                deadline += 3 * _PATIENCE
            else:
                self._measured(link, item, now)

    def _look(self) -> None:
        """Take in whatever is there besides samples."""
        now = local_clock()
        for link in self._links:
            while not link.news.empty():
                self._hear(link, link.news.get(), now)
            if link.ready and now >= link.due:
                offset = _offset(link.inlet, 0.0)
                link.due = now + _OFFSET_EVERY
                if offset is not None and offset.measured != link.measured:
                    self._measured(link, offset, now)
        if self._markers is not None and self._markers.ready:
            self._drain(self._markers, now)

    def _hear(self, link: _Link, item: _News, now: float) -> None:
        """Take in what the seeking thread found."""
        if isinstance(item, _Refusal):
            if not link.ready:
                link.drop()
            self._pending.append(Connection(link.role, "refused", now, item.reason, item.info))
        elif isinstance(item, _Contact):
            if link.inlet is not None:  # stalled, and now its successor is there
                self._pending.append(Connection(link.role, "lost", now, "another outlet took its place"))
            link.adopt(item)
            self._stalled = False if link is self._eeg else self._stalled
            self._pending.append(Connection(link.role, "found", now, "reconnected", item.info))
        elif isinstance(item, _Offset):
            self._heard = now if link is self._eeg else self._heard
            self._measured(link, item, now)

    def _measured(self, link: _Link, offset: _Offset, now: float) -> None:
        link.measured, link.due = offset.measured, now + _OFFSET_EVERY
        self._pending.append(ClockOffset(link.role, offset.value, offset.uncertainty, now))

    def _drain(self, link: _Link, now: float) -> None:
        if now < self._probe_due and not _available(link.inlet.obj):
            return
        self._probe_due = now + _PROBE_EVERY
        try:
            rows, stamps = link.inlet.pull_chunk(0.0, _MAX_MARKERS, as_numpy=True)
        except LostError:
            self._lose(link, now)
            return
        self._pending.extend(
            Marker(_text(row), stamp, now) for row, stamp in zip(rows.tolist(), stamps.tolist(), strict=True)
        )

    def _pull_eeg(self, wait: float) -> Event | None:
        obj, code = self._eeg.inlet.obj, ctypes.byref(self._code)
        n = _pull(obj, *self._first, wait, code)
        if n:
            n += _pull(obj, *self._rest, 0.0, code)
        now = local_clock()
        if n:
            return self._chunk(n // self.eeg.n_chans, now)
        if self._code.value == _LOST:
            self._lose(self._eeg, now)
        elif not self._stalled and now - self._heard > max(self._stall, 5 * self._packet):
            self._stalled = True
            self._pending.append(Connection("eeg", "stalled", now, f"no sample for {now - self._heard:.2f} s"))
            self._eeg.seek(excluded=self._eeg.uid)
        return None

    def _chunk(self, n: int, now: float) -> Event:
        chunk = Chunk(self._data[:n].T, self._stamps[:n], now)
        silence, self._heard = now - self._heard, now
        if not self._stalled:
            self._packet += 0.1 * (min(silence, self._stall) - self._packet)
            return chunk
        self._stalled = False
        self._eeg.rest()
        self._pending.append(chunk)
        return Connection("eeg", "resumed", now, f"after {silence:.2f} s")

    def _lose(self, link: _Link, now: float) -> None:
        link.drop()
        if link is self._eeg:
            self._stalled = False
        self._pending.append(Connection(link.role, "lost", now, "the source is gone"))
        link.seek()


class LslMarkers:
    """A marker stream alone, for programs that take no EEG in.

    Parameters
    ----------
    query : StreamQuery
        Which one. It is looked for until it is there, and again whenever it is lost.

    Raises
    ------
    ConfigError
        The query is none.
    """

    def __init__(self, query: StreamQuery) -> None:
        query.xpath()
        self._link = _Link("markers", query, 360.0)
        self._offset = 0.0
        self._link.seek()

    @property
    def connected(self) -> bool:
        """Whether the stream is being read, as far as :meth:`pull` has seen."""
        return self._link.ready

    def pull(self) -> list[Marker]:
        """Take what has come, stamped on the LSL clock by the offset measured at the connection; never waits.

        Raises
        ------
        StreamAmbiguous
            Several streams match.
        """
        link = self._link
        while not link.news.empty():
            item = link.news.get()
            if isinstance(item, StreamdecError):
                raise item
            if isinstance(item, _Contact):
                link.adopt(item)
            elif isinstance(item, _Offset):
                link.measured, self._offset = item.measured, item.value
            elif isinstance(item, _Refusal):
                link.drop()
        if not link.ready:
            return []
        try:
            rows, stamps = link.inlet.pull_chunk(0.0, _MAX_MARKERS, as_numpy=True)
        except LostError:
            link.drop()
            link.seek()
            return []
        now, stamps = local_clock(), stamps + self._offset
        return [Marker(_text(row), stamp, now) for row, stamp in zip(rows.tolist(), stamps.tolist(), strict=True)]

    def close(self) -> None:
        """Let go of the stream. Idempotent."""
        self._link.close()


def _text(values: list[Any]) -> str:
    """Text of one marker; several channels are joined by commas. Bytes that are no UTF-8 are replaced."""
    return ",".join(value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value) for value in values)


class LslOutlet:
    """A stream of ours.

    Parameters
    ----------
    info : StreamInfo
        What it says of itself. Where ``header`` is given, its ``desc`` element is sent verbatim.

    Raises
    ------
    StreamError
        liblsl cannot open it.
    """

    def __init__(self, info: StreamInfo) -> None:
        self.info = info
        described = pylsl.StreamInfo(info.name, info.type, info.n_chans, info.sfreq, info.dtype, info.source_id)
        for child in ElementTree.fromstring(write_header(info)).find("desc") or ():  # noqa: S314 - our own
            _append(described.desc(), child)
        try:
            self._outlet = pylsl.StreamOutlet(described)
        except RuntimeError as error:
            raise StreamError(f"LSL outlet {info.name!r}", got=error) from error

    def push(self, data: npt.NDArray[Any] | list[str], stamps: Float64 | float) -> None:
        """Send samples.

        Parameters
        ----------
        data : ndarray, shape (n_chans, n_times), or list of str
            Numbers, or for a string stream of one channel its n_times texts.
        stamps : ndarray, shape (n_times,), float64, or float
            LSL clock; one number is the last sample's, the receiver deduces the others from the nominal rate.
        """
        samples = data if isinstance(data, list) else np.ascontiguousarray(data.T)
        self._outlet.push_chunk(samples, stamps if isinstance(stamps, float | int) else stamps.tolist())

    def have_consumers(self) -> bool:
        """Whether anybody listens."""
        return bool(self._outlet.have_consumers())

    def close(self) -> None:
        """Take the stream away. Idempotent."""
        self._outlet = None


def _append(parent: Any, element: ElementTree.Element) -> None:
    if not len(element):
        parent.append_child_value(element.tag, element.text or "")
        return
    node = parent.append_child(element.tag)
    for child in element:
        _append(node, child)
