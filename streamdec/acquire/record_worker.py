"""The recording process: takes what the loop left in the spool and appends it to the file. See :mod:`.record`.

It imports this package's light modules, numpy and msgspec, and nothing else.
"""

from __future__ import annotations

import os
import signal
import struct
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from . import journal, xdf
from .spool import Spool

# Kinds of records in the spool, and what stands before their bytes.
CHUNK, MARKER, ENTRY, MESSAGE, LINE = 1, 2, 3, 4, 5
CHUNK_HEAD = struct.Struct("<dq")  # arrival, n_times; then stamps, then samples of (n_times, n_chans) float32
MARKER_HEAD = struct.Struct("<dd")  # arrival, stamp; then UTF-8

# LINE is a line for the first file beside the recording, LINE + 1 for the second, and so on.

# Stream ids in the file.
EEG, MARKERS, EVENTS, FEED = 1, 2, 3, 4

_PERIOD = 0.05  # seconds between two looks into the spool
_BATCH = 4 << 20  # bytes turned into chunks at a time
_BOUNDARY_EVERY = 10.0  # seconds, as LabRecorder
_NICE = 5  # behind the loop, before the workers
_SYNC_EVERY = 1.0  # seconds until what was written is on the disk, whatever happens to the machine


class Writer:
    """Turns records into chunks of the file.

    Parameters
    ----------
    n_chans : int
        Channels of the EEG stream.
    has_markers : bool
        Whether the file has a marker stream.
    """

    def __init__(self, n_chans: int, has_markers: bool) -> None:
        self._n_chans = n_chans
        self._footers = {stream: _Footer() for stream in (EEG, *[MARKERS] * has_markers, EVENTS, FEED)}
        self._now = 0.0  # arrival of the newest event, LSL clock
        self._decoder: msgspec.json.Decoder[journal.Entry] = msgspec.json.Decoder(journal.Entry)

    def chunks(self, records: list[tuple[int, memoryview]]) -> bytes:
        """Return the chunks that hold some records.

        The event list comes last: whatever it mentions is in the file before it.
        """
        packets: list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]] = []
        markers: list[tuple[float, bytes]] = []
        messages: list[tuple[float, bytes]] = []
        offsets: list[bytes] = []
        entries: list[journal.Entry] = []
        for kind, content in records:
            if kind == CHUNK:
                self._now, n_times = CHUNK_HEAD.unpack_from(content)
                middle = CHUNK_HEAD.size + 8 * n_times
                stamps = np.frombuffer(content[CHUNK_HEAD.size : middle], np.float64)
                packets.append((stamps, np.frombuffer(content[middle:], np.float32).reshape(n_times, self._n_chans)))
                entries.append(journal.Packet(n_times, self._now))
            elif kind == MARKER:
                self._now, stamp = MARKER_HEAD.unpack_from(content)
                markers.append((stamp, bytes(content[MARKER_HEAD.size :])))
                entries.append(journal.Text(self._now))
            elif kind == ENTRY:
                entry = self._decoder.decode(content)
                entries.append(entry)
                if isinstance(entry, (journal.Offset, journal.Change)):
                    self._now = entry.arrival
                if isinstance(entry, journal.Offset):
                    offsets.append(self._offset(entry))
            elif kind == MESSAGE:
                messages.append((self._now, _as_json(content)))
        return b"".join(
            (
                self._samples(packets),
                self._texts(MARKERS, markers),
                *offsets,
                self._texts(FEED, messages),
                self._texts(EVENTS, [(self._now, msgspec.json.encode(entries))] if entries else []),
            )
        )

    def lost(self, n: int) -> bytes:
        """Return the chunk that says that ``n`` events or messages could not be taken."""
        return self._texts(EVENTS, [(self._now, msgspec.json.encode([journal.Lost(n)]))])

    def footers(self) -> bytes:
        """Return the chunks that end the file."""
        return b"".join(
            xdf.stream_footer(stream, footer.first, footer.last, footer.count, footer.offsets)
            for stream, footer in self._footers.items()
        )

    def _samples(self, packets: list[tuple[npt.NDArray[np.float64], npt.NDArray[np.float32]]]) -> bytes:
        if not packets:
            return b""
        stamps = np.concatenate([stamps for stamps, _ in packets])
        self._footers[EEG].count_in(stamps)
        return xdf.samples(EEG, stamps, np.concatenate([values for _, values in packets]))

    def _texts(self, stream: int, texts: list[tuple[float, bytes]]) -> bytes:
        if not texts:
            return b""
        stamps = [stamp for stamp, _ in texts]
        self._footers[stream].count_in(stamps)
        return xdf.texts(stream, stamps, [text for _, text in texts])

    def _offset(self, entry: journal.Offset) -> bytes:
        stream = EEG if entry.stream == "eeg" else MARKERS
        if stream not in self._footers:
            return b""
        self._footers[stream].offsets.append((entry.arrival - entry.value, entry.value))
        return xdf.clock_offset(stream, entry.arrival, entry.value)


class _Footer:
    """What a stream's footer says."""

    def __init__(self) -> None:
        self.first = self.last = 0.0
        self.count = 0
        self.offsets: list[tuple[float, float]] = []

    def count_in(self, stamps: Sequence[float] | npt.NDArray[np.float64]) -> None:
        if len(stamps):
            self.first = self.first if self.count else float(stamps[0])
            self.last = float(stamps[-1])
            self.count += len(stamps)


class _File:
    """Appends without a buffer: what was written is with the operating system, whatever happens to this process."""

    def __init__(self, path: Path) -> None:
        self._file = path.open("ab", buffering=0)
        self._size = self._file.tell()
        lock(self._file.fileno(), wait=True)  # who only asks gives it back at once

    def append(self, data: bytes) -> None:
        """Write all of ``data``, or, when the disk is full, nothing of it, and raise OSError."""
        left = memoryview(data)
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError:
            self._file.truncate(self._size)
            raise
        self._size += len(data)

    def sync(self) -> None:
        """Wait until it is on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self.sync()
        self._file.close()


def lock(descriptor: int, *, wait: bool = False) -> bool:
    """Hold a file until its holder closes it or is gone; return whether it is held now.

    Where files cannot be locked this does nothing, and returns True.
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def _as_json(header: memoryview) -> bytes:
    """Give a message's header, JSON or msgpack, as JSON."""
    if bytes(header[:1]) == b"{":
        return bytes(header)
    try:
        return msgspec.json.encode(msgspec.msgpack.decode(header))
    except msgspec.DecodeError:
        return msgspec.json.encode(bytes(header))  # base64: no message of ours, but not lost


def run(
    spool: Spool, path: Path, n_chans: int, has_markers: bool, beside: Sequence[str], ended: threading.Event
) -> int:
    """Move records from the spool to the files until ``ended`` is set; return the process's exit status.

    When the disk is full the file is left whole, the loop is told why, and what comes after is thrown away.
    """
    writer = Writer(n_chans, has_markers)
    boundary_due = time.monotonic() + _BOUNDARY_EVERY
    sync_due = time.monotonic() + _SYNC_EVERY
    try:
        file = _File(path)
        others = {LINE + n: _File(path.with_name(name)) for n, name in enumerate(beside)}
        files = (file, *others.values())
        spool.reading = True
        final, head, dropped = False, spool.head, 0
        while not final:
            final = ended.wait(_PERIOD)
            # Python has no memory barrier: where the processor reorders writes, what is announced now may arrive later.
            until, head = head, spool.head
            while records := spool.peek(head if final else until, _BATCH):
                file.append(writer.chunks(records))
                for kind, other in others.items():
                    other.append(b"".join(content for its, content in records if its == kind))
                spool.release()
            if spool.dropped > dropped:
                lost, dropped = spool.dropped - dropped, spool.dropped
                file.append(writer.lost(lost))
            if time.monotonic() >= boundary_due:
                boundary_due = time.monotonic() + _BOUNDARY_EVERY
                file.append(xdf.boundary())
            if time.monotonic() >= sync_due:
                for each in files:
                    each.sync()
                sync_due = time.monotonic() + _SYNC_EVERY
        file.append(writer.footers())
        for each in files:
            each.close()
    except OSError as error:
        spool.fail(f"{path}: {error.strerror}")
        ended.wait()
        return 1
    return 0


def main() -> int:
    """Run as ``python -m streamdec.acquire.record_worker HANDLE FILE N_CHANS HAS_MARKERS [BESIDE ...]``.

    It goes on until stdin ends.
    """
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.nice(_NICE)
    handle, path, n_chans, has_markers, *beside = sys.argv[1:]
    ended = threading.Event()

    def watch() -> None:
        sys.stdin.buffer.read()
        ended.set()

    threading.Thread(target=watch, daemon=True).start()
    return run(Spool.attach(handle), Path(path), int(n_chans), has_markers == "1", beside, ended)


if __name__ == "__main__":
    sys.exit(main())
