"""Recordings on disk -> streams: XDF, THINGS-EEG2 raw .npy, and whatever mne reads."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import msgspec
import numpy.typing as npt

from ..types import Event, Float64, StreamInfo


class RecordedStream(msgspec.Struct, frozen=True, eq=False):
    """One stream of a recording, as it was stored.

    ``stamps`` (n_times,) float64, sender's clock, raw. ``data`` (n_chans, n_times) in the stream's own type and unit; texts are object
    arrays of str. ``offsets`` (n, 2) float64: sender's clock when the offset was measured, and the offset that leads to the LSL
    clock. ``segments`` first and behind-the-last sample of each stretch between two resets of the sender's clock.
    """

    info: StreamInfo
    stamps: Float64
    data: npt.NDArray
    offsets: Float64
    segments: tuple[tuple[int, int], ...]

    @property
    def times(self) -> Float64:
        """(n_times,) float64: the stamps on the LSL clock, the offset interpolated between its measurements."""
        raise NotImplementedError

    @property
    def texts(self) -> list[str]:
        """One text per sample, of the first channel, as a marker stream delivers it."""
        raise NotImplementedError


class Recording(msgspec.Struct, frozen=True, eq=False):
    """A recording. ``events`` what came in, in its order, where our recorder wrote it. ``problems`` what could not be read."""

    path: Path
    streams: tuple[RecordedStream, ...]
    events: Iterable[Event] | None = None
    messages: tuple[str, ...] = ()
    session: str = ""
    description: str = ""
    problems: tuple[str, ...] = ()


def read(path: Path | str) -> Recording:
    """Read a recording. Raises RecordingError."""
    raise NotImplementedError
