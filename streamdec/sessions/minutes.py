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

_BESIDE = (folder.LOG, folder.EVENTS)


class Minutes:
    """An outlet before another one: tells the log of changes of state, and the recorder what came of each onset.

    It works in the hot loop: one comparison of types for most messages, and never a file.

    Parameters
    ----------
    outlet : Outlet
    log : Log

    Attributes
    ----------
    ended : schema.Session or None
        The session's last message.
    """

    def __init__(self, outlet: Outlet, log: Log) -> None:
        self.ended: schema.Session | None = None
        self._outlet, self._log = outlet, log
        self._ends = events.Ends()
        self._row: Callable[[bytes], None] | None = None
        self._start = 0.0

    def keep(self, row: Callable[[bytes], None], start: float) -> None:
        """From now on give each row of ``events.tsv`` to ``row``. ``start`` LSL clock, seconds."""
        self._row, self._start = row, start

    def publish(self, message: schema.AnyMessage, payloads: Sequence[Buffer] = ()) -> bytes:
        """Pass a message on, and take down what there is to it."""
        header = self._outlet.publish(message, payloads)
        if isinstance(message, schema.Session):
            self._log.state(message)
            if message.state == "ended" and not message.stream:
                self.ended = message
        elif self._row is not None and (end := self._ends(message)) is not None:
            self._row(events.line(events.row(*end, self._start)))
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
    bundle : Bundle
    eeg, markers : StreamInfo
    config : bytes
        JSON of the whole config.
    minutes : Minutes
        What the session publishes to.
    log : Log
    clock : callable
        LSL clock, seconds.

    Attributes
    ----------
    path : Path
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
        bundle: Bundle,
        eeg: StreamInfo,
        markers: StreamInfo | None,
        config: bytes,
        minutes: Minutes,
        log: Log,
        clock: Callable[[], float],
    ) -> None:
        manifest = bundle.manifest
        name = folder.BundleName(bundle.path.name, bundle.hash, manifest.method)
        start = folder.Moment(utc(), clock())
        self._about = folder.about(id, start, name, eeg, markers, simulated=manifest.simulated)
        self.path = folder.create(parent, self._about, config)
        description = {"streamdec": __version__, "bundle": bundle.hash, "config": msgspec.Raw(config)}
        self.recorder = Recorder(
            self.path / STREAMS, eeg, markers, id, msgspec.json.encode(description).decode(), _BESIDE
        )
        self._minutes, self._log, self._clock = minutes, log, clock
        log.attach(partial(self.recorder.line, _BESIDE.index(folder.LOG)))
        minutes.keep(partial(self.recorder.line, _BESIDE.index(folder.EVENTS)), start.lsl)

    def close(self) -> None:
        """Finish the recording, and say in ``session.json`` how the session ended. Idempotent."""
        if self._about.end is not None:
            return
        self.recorder.close()
        broken, dropped = self.recorder.broken, self.recorder.dropped
        if dropped and not broken:
            broken = f"{dropped} records could not be taken"
        last = self._minutes.ended
        at, reason = folder.Moment(utc(), self._clock()), "" if last is None else last.reason
        counts = None if last is None else last.counts
        self._about = msgspec.structs.replace(self._about, end=folder.End(at, reason, counts, broken))
        if broken:
            self._log.say(f"the recording is broken: {broken}", "error")
        try:
            folder.write_about(self.path, self._about)
        except OSError as error:
            self._log.say(f"{self.path / folder.ABOUT} does not say how it ended: {error.strerror}", "error")
