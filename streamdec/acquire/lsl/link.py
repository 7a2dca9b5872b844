"""Finding a stream and connecting to it, as often as it is lost.

Streams are opened with raw stamps and without liblsl's recovery: its smoothed stamps are wrong after every loss, and
its recovery hides the loss. Here a lost stream is announced, looked for by a thread that lives until it is found, and
must have the header it had before.
"""

from __future__ import annotations

import math
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from queue import SimpleQueue
from typing import Any, NamedTuple

import msgspec
import pylsl

from ...errors import ConfigError, StreamAmbiguous, StreamdecError, StreamError
from ...types import StreamInfo, StreamRole
from ..header import read_header
from ..query import StreamQuery, quoted
from .library import Offset, measured_offset

PATIENCE = 3.0  # s for a header, a connection or a clock offset; liblsl needs 0.64 s for its first offset
_GLANCE = 0.02  # s between two looks for a stream
_SECOND_LOOK = 0.6  # s given to a second stream that matches to show itself


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
        header = pylsl.StreamInlet(short, recover=False).info(PATIENCE).as_xml()
    except (TimeoutError, RuntimeError):  # LostError is one
        header = short.as_xml()
    try:
        return read_header(header)
    except StreamError:
        return None


def listed(infos: list[StreamInfo]) -> str:
    """Say which streams there are, for messages."""
    return ", ".join(map(_one_line, infos)) or "no stream at all"


def _one_line(info: StreamInfo) -> str:
    place = f"source_id {info.source_id!r} on {info.hostname}"
    return f"{info.name!r} ({info.type}, {info.sfreq:g} Hz, {info.n_chans} channels, {place})"


class Contact(NamedTuple):
    """It is found, and connected to."""

    inlet: Any
    info: StreamInfo


class Refusal(NamedTuple):
    """It is found, but cannot be used."""

    reason: str
    info: StreamInfo


class Seen(NamedTuple):
    """There is one; the first contact takes a while."""


News = Seen | Contact | Offset | Refusal | StreamdecError


class Link:
    """One stream: what is asked for, the connection, and the thread that makes connections while there is none."""

    def __init__(self, role: StreamRole, query: StreamQuery, buffer_seconds: float) -> None:
        self.role, self.query = role, query
        self.buffer = max(1, math.ceil(buffer_seconds))
        self.info: StreamInfo | None = None  # of the first contact: what comes later must fit it
        self.inlet: Any = None
        self.uid = ""
        self.measured = math.nan  # sender's clock of the last offset; NaN: none yet, samples must wait
        self.due = 0.0  # LSL clock of the next look at the offset
        self.news: SimpleQueue[News] = SimpleQueue()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def ready(self) -> bool:
        """Connected, and its clock measured."""
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

    def adopt(self, contact: Contact) -> None:
        """Go on with this connection."""
        self.inlet, self.uid = contact.inlet, contact.info.uid
        self.info = self.info or contact.info
        self.measured = math.nan

    def drop(self) -> None:
        """Let go of the connection."""
        self.inlet, self.measured = None, math.nan

    def close(self) -> None:
        """Stop looking, let go. Idempotent."""
        self.rest()
        self.drop()
        if self._thread is not None and self._thread.is_alive():  # a signal may come before it has started
            self._thread.join(2 * PATIENCE)


def _connect(
    role: StreamRole,
    query: StreamQuery,
    known: StreamInfo | None,
    buffer: int,
    excluded: set[str],
    stop: threading.Event,
    news: SimpleQueue[News],
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
            news.put(Seen())
            stop.wait(_SECOND_LOOK)
            fresh.update(_fresh(resolver, excluded))
            if len(fresh) > 1:
                what = f"several {role} streams match {query.describe()}"
                several = [read_header(short.as_xml()) for short in fresh.values()]
                news.put(StreamAmbiguous(what, got=listed(several), do="name one by its source_id"))
                return
        uid, short = fresh.popitem()
        try:
            inlet = pylsl.StreamInlet(short, max_buflen=buffer, recover=False)
            info = read_header(inlet.info(PATIENCE).as_xml())
            inlet.open_stream(PATIENCE)
        except (TimeoutError, RuntimeError):  # gone again
            continue
        except StreamError as error:
            excluded.add(uid)
            news.put(Refusal(str(error), known) if known else error)
            continue
        if role == "markers":  # some senders state a rate
            info = msgspec.structs.replace(info, sfreq=0.0)
        reason = _unfit(role, info, known)
        if reason:
            excluded.add(uid)
            news.put(Refusal(reason, info))
            continue
        news.put(Contact(inlet, info))
        offset = measured_offset(inlet, PATIENCE)
        if offset is not None:
            news.put(offset)
            return
        reason = "its clock offset cannot be measured: it is gone again, or UDP to its ports 16572 and up is blocked"
        news.put(Refusal(reason, info))
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
