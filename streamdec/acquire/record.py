"""Crash-safe recording of everything that came in and went out, by a process of its own."""

from __future__ import annotations

from pathlib import Path

from ..types import Event, StreamInfo


class Recorder:
    """Hands everything to the recording process. Never waits, never raises once it is open."""

    def __init__(
        self,
        path: Path | str,
        eeg: StreamInfo,
        markers: StreamInfo | None,
        *,
        session: str = "",
        description: str = "{}",
        buffer_bytes: int = 64 << 20,
    ) -> None:
        raise NotImplementedError

    dropped: int
    broken: str

    def event(self, event: Event) -> None:
        """Record an event."""

    def message(self, header: bytes) -> None:
        """Record a published header, JSON."""

    def close(self, timeout: float = 2.0) -> None:
        """Let the process write what is left and end. Idempotent."""
