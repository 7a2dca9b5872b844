"""A recording played again: as an in-process inlet, or as LSL outlets in real time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from ..types import Event, StreamInfo
from .recording import RecordedStream, Recording

if TYPE_CHECKING:
    from .lsl import StreamQuery


def select(
    recording: Recording, eeg: StreamQuery | None = None, markers: StreamQuery | None = None
) -> tuple[RecordedStream, RecordedStream | None]:
    """The EEG stream and the marker stream. Raises StreamNotFound, StreamAmbiguous."""
    raise NotImplementedError


class ReplayInlet:
    """A recording as an inlet."""

    eeg: StreamInfo
    markers: StreamInfo | None

    def __init__(
        self,
        recording: Recording,
        eeg: StreamQuery | None = None,
        markers: StreamQuery | None = None,
        *,
        chunk: float = 0.02,
        speed: float | None = None,
    ) -> None:
        raise NotImplementedError

    def open(self, timeout: float = 0.0) -> None:
        """Start."""

    def pull(self, timeout: float = 0.0) -> Event | None:
        """Next event."""

    def close(self) -> None:
        """Let go."""


def play(
    recording: Recording,
    *,
    prefix: str = "",
    chunk: float = 0.02,
    wait: float = 0.0,
    stop: Callable[[], bool] = lambda: False,
    outlet: Callable[[StreamInfo], object] | None = None,
    clock: Callable[[], float] | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Play every stream as an LSL outlet, in real time."""
    raise NotImplementedError
