"""Crash-safe recording of everything that came in and went out, by a process of its own.

The loop copies each event into shared memory and goes on. The process appends it, about a tenth of a second later, to
an XDF file that any tool opens: the streams with their headers and raw stamps, clock offsets, and :mod:`.journal`'s two
streams, from which the session can be played again exactly. It ends when the loop closes it or dies, and finishes the
file first. Lines that belong beside it, such as a log, go the same way.
"""

from __future__ import annotations

import datetime
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from xml.sax.saxutils import escape

import msgspec

from ..errors import RecordingError
from ..types import Chunk, ClockOffset, Event, Marker, StreamInfo
from . import journal, record_worker, xdf
from .header import write_header
from .spool import Spool


class Recorder:
    """The loop's end: takes events and messages, never waits, and never raises once it is open.

    Parameters
    ----------
    path : Path or str
        The file to write, .xdf. It must not exist.
    eeg, markers : StreamInfo
        The streams whose events will come; ``markers`` None where onsets come from a trigger channel.
    session : str
        Its id.
    description : str
        JSON of what one needs to run it again: config, bundle, versions.
    beside : sequence of str
        Names of text files in the same folder, to which :meth:`line` appends.
    buffer_bytes : int
        How much waits in memory while the disk is slow. 64 MiB hold four minutes of 63 channels at 1 kHz.

    Attributes
    ----------
    dropped : int
        Events, messages and lines that could not be taken: the memory was full, or the recording is broken.

    Raises
    ------
    RecordingError
        The file cannot be made, or is there already.
    """

    def __init__(
        self,
        path: Path | str,
        eeg: StreamInfo,
        markers: StreamInfo | None,
        session: str = "",
        description: str = "{}",
        beside: Sequence[str] = (),
        buffer_bytes: int = 64 << 20,
    ) -> None:
        self.path = Path(path)
        self.dropped = 0
        self._n_chans = eeg.n_chans
        self._has_markers = markers is not None
        self._closed = False
        self._failure = ""
        self._begin(eeg, markers, session, description)
        self._spool, handle, inherit = Spool.create(buffer_bytes)
        try:
            self._process = _start(handle, self.path, eeg.n_chans, self._has_markers, beside, inherit)
        finally:
            for descriptor in inherit:
                os.close(descriptor)

    @property
    def broken(self) -> str:
        """Why nothing is recorded any more, or ""."""
        if not self._closed and not self._failure and (status := self._process.poll()) is not None:
            self._failure = f"the recording process ended with status {status}"
        return self._spool.reason or self._failure

    def wait(self, timeout: float) -> bool:
        """Wait until the process writes, ``timeout`` seconds at most; what comes before that is safe only in memory.

        Returns
        -------
        bool
            Whether it does.
        """
        end = time.monotonic() + timeout
        while not self._spool.reading and not self.broken and time.monotonic() < end:
            time.sleep(0.005)
        return self._spool.reading

    def event(self, event: Event) -> None:
        """Record an event. Its arrays are copied."""
        if isinstance(event, Chunk):
            # Few calls: after a sleep, on a loaded two-core machine, each costs 10 to 30 us, whatever it does.
            stamps, samples = event.stamps.tobytes(), event.data.T.tobytes()
            if len(samples) == len(stamps) // 8 * self._n_chans * 4:
                head = record_worker.CHUNK_HEAD.pack(event.arrival, len(stamps) // 8)
                self._put(record_worker.CHUNK, b"".join((head, stamps, samples)))
            else:
                self._drop()
        elif isinstance(event, Marker):
            if self._has_markers:
                head = record_worker.MARKER_HEAD.pack(event.arrival, event.stamp)
                self._put(record_worker.MARKER, head + event.value.encode("utf-8", "replace"))
            else:
                self._drop()
        else:
            entry = journal.Offset.of(event) if isinstance(event, ClockOffset) else journal.Change.of(event)
            try:
                encoded = msgspec.json.encode(entry)
            except UnicodeEncodeError:  # half a surrogate pair in a stream's name
                self._drop()
            else:
                self._put(record_worker.ENTRY, encoded)

    def message(self, header: bytes) -> None:
        """Record the header of a published message, as it went out: JSON or msgpack."""
        self._put(record_worker.MESSAGE, header)

    def line(self, number: int, text: bytes) -> None:
        """Append to the file with this place in ``beside``; ``text`` ends its line itself."""
        self._put(record_worker.LINE + number, text)

    def close(self, timeout: float = 2.0) -> None:
        """Let the process write what waits, finish the file and end; kill it after ``timeout`` seconds. Idempotent."""
        if self._closed:
            return
        self._closed = True
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            status = self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
            self._failure = f"the recording was not finished within {timeout} s"
        else:
            self._failure = f"the recording process ended with status {status}" if status else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _put(self, kind: int, content: bytes) -> None:
        if self._closed or self._failure or self._spool.failed or not self._spool.put(kind, content):
            self._drop()

    def _drop(self) -> None:
        self.dropped += 1
        self._spool.dropped = self.dropped  # the recording says so too

    def _begin(self, eeg: StreamInfo, markers: StreamInfo | None, session: str, description: str) -> None:
        """Write all headers, so that what is wrong with the path shows at once."""
        head = json.dumps(msgspec.to_builtins(journal.Head(journal.VERSION, session, description, eeg, markers)))
        started = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        chunks = [
            xdf.file_header(started),
            xdf.stream_header(record_worker.EEG, write_header(eeg, dtype="float32")),
            xdf.stream_header(record_worker.EVENTS, _log_header(journal.EVENTS, "Events", head)),
            xdf.stream_header(record_worker.FEED, _log_header(journal.FEED, "Feed", "")),
        ]
        if markers is not None:
            chunks.insert(2, xdf.stream_header(record_worker.MARKERS, write_header(markers, dtype="string", n_chans=1)))
        try:
            with self.path.open("xb") as file:
                file.write(b"".join(chunks))
        except FileExistsError as error:
            raise RecordingError(f"{self.path} is there already", do="name another file") from error
        except OSError as error:
            raise RecordingError(f"cannot write {self.path}: {error.strerror}") from error


def _log_header(name: str, kind: str, head: str) -> str:
    return (
        f'<?xml version="1.0"?><info><name>{name}</name><type>{kind}</type><channel_count>1</channel_count>'
        "<nominal_srate>0</nominal_srate><channel_format>string</channel_format>"
        f"<source_id>{name}</source_id><desc><journal>{escape(head)}</journal></desc></info>"
    )


def _start(
    handle: str, path: Path, n_chans: int, has_markers: bool, beside: Sequence[str], inherit: tuple[int, ...]
) -> subprocess.Popen[bytes]:
    """Start the recording process: a plain interpreter that imports nothing of the loop, in a process group of its own.

    It lives as long as its stdin is open, that is, until the loop closes it or is gone; a Ctrl-C is for the loop alone.
    Not in a session of its own: Linux shares the processor out by session first (autogroups), and it is to stand back
    behind the loop.
    """
    paths = [str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return subprocess.Popen(  # noqa: S603
        [
            sys.executable,
            "-P",  # no module is taken from the folder one happens to be in
            "-m",
            record_worker.__name__,
            handle,
            str(path.resolve()),
            str(n_chans),
            str(int(has_markers)),
            *beside,
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        pass_fds=inherit,
        process_group=0,
    )
