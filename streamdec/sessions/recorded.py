"""A recorded session, read whole: its folder, its streams, its messages."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

import msgspec

from ..acquire.recording import Recording, read
from ..config import Config
from ..feed import schema
from . import events, folder
from .undecoded import Arrived, played

_M = TypeVar("_M", bound=schema.Message)


class Recorded(msgspec.Struct, frozen=True, eq=False):
    """A recorded session.

    Attributes
    ----------
    path : its folder.
    about : what it was.
    recording : its streams and events.
    messages : what it published, in order; pictures and embeddings are not recorded. None without a bundle.
    onsets : of stimuli; as published, or where nothing was decoded as the markers say.
    arrived : what came in, where nothing was decoded.
    """

    path: Path
    about: folder.About
    recording: Recording
    messages: list[schema.AnyMessage]
    onsets: list[schema.Onset]
    arrived: Arrived | None = None

    @classmethod
    def open(cls, path: Path) -> Recorded:
        """Read a session.

        Raises
        ------
        RecordingError
            It is no session, or cannot be read.
        FeedError
            Its messages are of another version.
        """
        about, recording = folder.read_about(path), read(path)
        messages = schema.recorded(recording.feed)
        if about.bundle is not None or recording.events is None:
            return cls(path, about, recording, messages, [m for m in messages if isinstance(m, schema.Onset)])
        config = folder.recorded_config(recording) or Config()
        return cls(path, about, recording, messages, *played(recording.events, about.eeg, config.intake))

    def of(self, kind: type[_M]) -> list[_M]:
        """Give the messages of one kind."""
        return [message for message in self.messages if isinstance(message, kind)]

    @property
    def decisions(self) -> list[schema.Retrieval]:
        """The final decisions."""
        return [decision for decision in self.of(schema.Retrieval) if decision.final]

    @property
    def rows(self) -> list[events.Row]:
        """The rows of ``events.tsv``, made again."""
        start = self.about.start.lsl
        if self.about.bundle is None:
            return [events.shown(onset, start) for onset in self.onsets]
        return events.table(self.messages, start)

    @property
    def table(self) -> bytes:
        """All of ``events.tsv``, as the recorder wrote it."""
        header = events.header(decoded=self.about.bundle is not None)
        return header + b"".join(row.line() for row in self.rows)

    @property
    def account(self) -> schema.Counts | None:
        """The account the session closed with, None where it was killed before."""
        return next((m.counts for m in self.of(schema.Session) if m.state == "ended" and not m.stream), None)

    @property
    def last(self) -> float:
        """LSL clock of the last that came in or went out."""
        times = [float(stream.times.max()) for stream in self.recording.streams if len(stream.stamps)]
        times += [message.time for message in self.of(schema.Session)]
        return max(times, default=self.about.start.lsl)
