"""LSL: inlet with its own supervisor, and outlet. The only file that imports pylsl."""

from __future__ import annotations

from types import TracebackType
from typing import Self

import msgspec
import numpy as np
import numpy.typing as npt

from ..types import Event, Float64, StreamInfo


class StreamQuery(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which stream. All that is given must hold; ``predicate`` is an XPath 1.0 predicate on the header."""

    name: str = ""
    type: str = ""
    source_id: str = ""
    predicate: str = ""

    def describe(self) -> str:
        """In words, for messages."""
        raise NotImplementedError


def local_clock() -> float:
    """LSL clock of this machine, seconds."""
    raise NotImplementedError


def loopback(session_id: str) -> str:
    """Configuration text (lsl_api.cfg) that keeps liblsl to this machine and this session."""
    raise NotImplementedError


def find(timeout: float) -> list[StreamInfo]:
    """Every stream that can be seen, with its full header."""
    raise NotImplementedError


class LslInlet:
    """An EEG stream and its markers, as one sequence of events."""

    eeg: StreamInfo
    markers: StreamInfo | None

    def __init__(self, eeg: StreamQuery, markers: StreamQuery | None, *, stall: float = 0.25, buffer_seconds: float = 60.0) -> None:
        raise NotImplementedError

    def open(self, timeout: float) -> None:
        """Connect to both streams. ``timeout`` may be infinite."""

    def pull(self, timeout: float) -> Event | None:
        """The next event."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the streams."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class LslOutlet:
    """A stream of ours."""

    def __init__(self, info: StreamInfo) -> None:
        raise NotImplementedError

    def push(self, data: npt.NDArray[np.generic] | list[str], stamps: Float64 | float) -> None:
        """Send samples: (n_chans, n_times) numbers or n_times strings; ``stamps`` (n_times,), or the last sample's."""

    def have_consumers(self) -> bool:
        """Whether anybody listens."""
        raise NotImplementedError

    def close(self) -> None:
        """Take the stream away."""
