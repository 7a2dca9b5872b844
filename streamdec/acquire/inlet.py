"""What the loop needs of a source, and of a place to put results: two protocols."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from ..types import Event, StreamInfo


class Inlet(Protocol):
    """Everything that comes in, in one order: EEG chunks, markers, clock offsets, changes of the connection.

    ``eeg`` and ``markers`` describe the streams once :meth:`open` has returned; ``markers`` is None where onsets come
    from a trigger channel.
    """

    eeg: StreamInfo
    markers: StreamInfo | None

    def open(self, timeout: float) -> None:
        """Connect, or raise StreamNotFound, StreamAmbiguous or RecordingError after ``timeout`` seconds."""

    def pull(self, timeout: float) -> Event | None:
        """The next event, or None when none came within ``timeout`` seconds."""

    def close(self) -> None:
        """Let go of the streams. Idempotent."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
