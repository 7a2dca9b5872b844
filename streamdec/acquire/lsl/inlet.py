"""The inlet: an EEG stream and its markers as one sequence of events, and what becomes of them announced."""

from __future__ import annotations

import ctypes
import time
from collections import deque
from queue import Empty
from types import TracebackType
from typing import Self

import numpy as np
from pylsl.util import LostError

from ...errors import StreamdecError, StreamMismatch, StreamNotFound
from ...types import Chunk, ClockOffset, Connection, Event, StreamInfo
from ..query import StreamQuery
from .library import LOST, Offset, local_clock, measured_offset, pull_samples, samples_available
from .link import PATIENCE, Contact, Link, News, Refusal, Seen, find, listed
from .markers import pull_markers

_MAX_CHUNK = 4096  # samples handed out at once
_SLICE = 0.05  # s the EEG pull blocks before markers and the supervisor get a look
_OFFSET_EVERY = 2.5  # s; liblsl measures every 2 s in a thread of its own
_PROBE_EVERY = 0.1  # s; only a pull shows that a marker stream is lost


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
        self._eeg = Link("eeg", eeg, buffer_seconds)
        self._markers: Link | None = None
        self._links = [self._eeg]
        if markers is not None:
            markers.xpath()
            self._markers = Link("markers", markers, 360.0)  # an irregular stream: hundreds of markers
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
        self._code = ctypes.c_int()
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

    def _first_contact(self, link: Link, deadline: float) -> None:
        while not link.ready:
            try:
                item = link.news.get(timeout=0.1)
            except Empty:
                if link.inlet is None and local_clock() >= deadline:
                    raise StreamNotFound(
                        f"no {link.role} stream with {link.query.describe()}",
                        got=listed(find(1.0)),
                        do="start the stream, or name one of these",
                    ) from None
                continue
            now = local_clock()
            if isinstance(item, StreamdecError):
                raise item
            if isinstance(item, Refusal):
                raise StreamMismatch(f"{link.role} stream {item.info.name!r}", got=item.reason)
            if isinstance(item, Contact):
                link.adopt(item)
                self._pending.append(Connection(link.role, "connected", now, info=item.info))
            elif isinstance(item, Seen):
                deadline += 3 * PATIENCE
            else:
                self._measured(link, item, now)

    def _look(self) -> None:
        """Take in whatever is there besides samples."""
        now = local_clock()
        for link in self._links:
            while not link.news.empty():
                self._hear(link, link.news.get(), now)
            if link.ready and now >= link.due:
                offset = measured_offset(link.inlet, 0.0)
                link.due = now + _OFFSET_EVERY
                if offset is not None and offset.measured != link.measured:
                    self._measured(link, offset, now)
        if self._markers is not None and self._markers.ready:
            self._drain(self._markers, now)

    def _hear(self, link: Link, item: News, now: float) -> None:
        """Take in what the seeking thread found."""
        if isinstance(item, Refusal):
            if not link.ready:
                link.drop()
            self._pending.append(Connection(link.role, "refused", now, item.reason, item.info))
        elif isinstance(item, Contact):
            if link.inlet is not None:  # stalled, and now its successor is there
                self._pending.append(Connection(link.role, "lost", now, "another outlet took its place"))
            link.adopt(item)
            self._stalled = False if link is self._eeg else self._stalled
            self._pending.append(Connection(link.role, "found", now, "reconnected", item.info))
        elif isinstance(item, Offset):
            self._heard = now if link is self._eeg else self._heard
            self._measured(link, item, now)

    def _measured(self, link: Link, offset: Offset, now: float) -> None:
        link.measured, link.due = offset.measured, now + _OFFSET_EVERY
        self._pending.append(ClockOffset(link.role, offset.value, offset.uncertainty, now))

    def _drain(self, link: Link, now: float) -> None:
        if now < self._probe_due and not samples_available(link.inlet.obj):
            return
        self._probe_due = now + _PROBE_EVERY
        try:
            self._pending.extend(pull_markers(link.inlet, now))
        except LostError:
            self._lose(link, now)

    def _pull_eeg(self, wait: float) -> Event | None:
        obj, code = self._eeg.inlet.obj, ctypes.byref(self._code)
        n = pull_samples(obj, *self._first, wait, code)
        if n:
            n += pull_samples(obj, *self._rest, 0.0, code)
        now = local_clock()
        if n:
            return self._chunk(n // self.eeg.n_chans, now)
        if self._code.value == LOST:
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

    def _lose(self, link: Link, now: float) -> None:
        link.drop()
        if link is self._eeg:
            self._stalled = False
        self._pending.append(Connection(link.role, "lost", now, "the source is gone"))
        link.seek()
