"""What is kept of a session while it runs: an outlet that listens, and the folder that is being written."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import msgspec

from .. import __version__
from ..acquire.record import Recorder
from ..acquire.recording import STREAMS
from ..decode.bundle import Bundle
from ..feed import schema
from ..feed.publisher import Buffer
from ..session import Outlet
from ..types import StreamInfo
from . import events, folder
from .log import Log, utc
from .undecoded import Arrived

_BESIDE = (folder.LOG, folder.EVENTS)
_WAIT = 5.0  # seconds


class Minutes:
    """An outlet before another one: tells the log of changes of state, and the recorder what came of each onset.

    It works in the hot loop: one comparison of types for most messages, and never a file.

    Parameters
    ----------
    outlet : Outlet
    log : Log
    """

    def __init__(self, outlet: Outlet, log: Log) -> None:
        self._outlet, self._log = outlet, log
        self._ends = events.Ends()
        self._kept: Kept | None = None

    def keep(self, kept: Kept) -> None:
        """From now on tell ``kept`` what came of each onset, and how the session ended."""
        self._kept = kept

    def publish(self, message: schema.AnyMessage, payloads: Sequence[Buffer] = ()) -> bytes:
        """Pass a message on, and take down what there is to it."""
        header = self._outlet.publish(message, payloads)
        if isinstance(message, schema.Session):
            self._log.state(message)
            if message.state == "ended" and not message.stream and self._kept is not None:
                self._kept.ended(message.reason, counts=message.counts)
        elif self._kept is not None and (end := self._ends(message)) is not None:
            self._kept.row(events.row(*end, self._kept.start))
        return header

    def wanted(self, topic: str) -> bool:
        """Pass it on."""
        return self._outlet.wanted(topic)

    def serve(self) -> None:
        """Pass it on."""
        self._outlet.serve()


class Kept:
    """The folder of a session that runs, and the recorder that writes into it.

    Parameters
    ----------
    parent : Path
        The folder of all sessions.
    id : str
        The session's.
    bundle : Bundle or None
        None where nothing is decoded.
    eeg, markers : StreamInfo
    config : bytes
        JSON of the whole config.
    log : Log
    clock : callable
        LSL clock, seconds.

    Attributes
    ----------
    path : Path
    start : float
        LSL clock, seconds.
    recorder : Recorder
        The session's tape.

    Raises
    ------
    RecordingError
        The folder cannot be made.
    """

    def __init__(
        self,
        parent: Path,
        id: str,
        bundle: Bundle | None,
        eeg: StreamInfo,
        markers: StreamInfo | None,
        config: bytes,
        log: Log,
        clock: Callable[[], float],
    ) -> None:
        name = None if bundle is None else folder.BundleName(bundle.path.name, bundle.hash, bundle.manifest.method)
        start = folder.Moment(utc(), clock())
        simulated = None if bundle is None else bundle.manifest.simulated
        self._about = folder.about(id, start, name, eeg, markers, simulated=simulated)
        self._end = folder.End(start, "")
        self.path, self.start = folder.create(parent, self._about, config), start.lsl
        description: dict[str, object] = {"streamdec": __version__, "config": msgspec.Raw(config)}
        if name is not None:
            description["bundle"] = name.hash
        self.recorder = Recorder(
            self.path / STREAMS, eeg, markers, id, msgspec.json.encode(description).decode(), _BESIDE
        )
        self._log, self._clock = log, clock
        log.attach(partial(self.recorder.line, _BESIDE.index(folder.LOG)))

    def wait(self) -> None:
        """Wait for the recorder's process to start; where it takes too long, what comes waits in memory."""
        self.recorder.wait(_WAIT)

    def row(self, row: events.Row) -> None:
        """Append to ``events.tsv``."""
        self.recorder.line(_BESIDE.index(folder.EVENTS), row.line())

    def ended(self, reason: str, *, counts: schema.Counts | None = None, arrived: Arrived | None = None) -> None:
        """Take down how the session ended; :meth:`close` writes it."""
        self._end = folder.End(self._end.at, reason, counts, arrived)

    def close(self) -> str:
        """Finish the recording, and say in ``session.json`` how the session ended. Idempotent.

        Returns
        -------
        str
            Why not everything was recorded, "" where it was.
        """
        if self._about.end is not None:
            return self._about.end.broken
        self.recorder.close()
        broken, dropped = self.recorder.broken, self.recorder.dropped
        if dropped and not broken:
            broken = f"{dropped} records could not be taken"
        end = msgspec.structs.replace(self._end, at=folder.Moment(utc(), self._clock()), broken=broken)
        self._about = msgspec.structs.replace(self._about, end=end)
        if broken:
            self._log.say(f"the recording is broken: {broken}", "error")
        try:
            folder.write_about(self.path, self._about)
        except OSError as error:
            self._log.say(f"{self.path / folder.ABOUT} does not say how it ended: {error.strerror}", "error")
        return broken
