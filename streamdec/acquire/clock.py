"""Timestamps -> sample positions: clock offset, jitter, gaps, segments."""

from __future__ import annotations

from typing import NamedTuple

import msgspec

from ..types import ClockOffset, Float64


class ClockSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How stamps are judged.

    ``gap`` samples: on a stream with jitter, a stamp this much later than expected means that samples are missing. ``longest_gap`` s: a longer one opens
    a new segment instead of being filled in.
    """

    gap: float = 2.5
    longest_gap: float = 1.0


class Run(NamedTuple):
    """Samples of a chunk that follow each other without a break.

    ``start``..``stop`` is their slice of the chunk; ``position`` the ring position of the first; ``times`` (n,) float64, LSL clock, non-decreasing.
    ``missing`` samples were lost just before it (``position`` counts them). ``new_segment``: nothing connects it to what came before, ``reason``
    says why.
    """

    start: int
    stop: int
    position: int
    times: Float64
    missing: int
    new_segment: bool
    reason: str


class SampleClock:
    """Places samples of one stream on the ring and on the LSL clock."""

    def __init__(self, sfreq: float, settings: ClockSettings = ClockSettings()) -> None:  # noqa: B008 - frozen
        raise NotImplementedError

    def offset(self, offset: ClockOffset) -> None:
        """Take a measured clock offset of the stream; it holds for the samples that come after."""

    def restart(self, reason: str) -> None:
        """The connection is new: the next sample opens a new segment."""

    def place(self, stamps: Float64) -> list[Run]:
        """Place the next samples. ``stamps`` (n,) float64, sender's clock, raw."""
        raise NotImplementedError

    # sfreq_effective, offset_value, jitter, drift_ppm, segments, gaps, missing: properties
