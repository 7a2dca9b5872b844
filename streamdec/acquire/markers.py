"""Markers -> onsets: marker streams and trigger channels."""

from __future__ import annotations

from typing import Literal

import msgspec

from ..types import ClockOffset, Float32, Float64, Marker, Onset


class MarkerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a marker names a stimulus."""

    pattern: str = "(?P<key>.+)"
    field: str = "id"
    ignore: str = ""
    keys: dict[str, str] = {}


class TriggerSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A trigger channel in the EEG stream; codes are named as :class:`MarkerSettings` says."""

    channel: str
    mask: int = 0xFFFF


class Refused(msgspec.Struct, frozen=True):
    """A marker that is no onset."""

    text: str
    reason: Literal["ignored", "duplicate", "garbage"]


class MarkerReader:
    """Markers of one stream -> onsets."""

    def __init__(self, settings: MarkerSettings = MarkerSettings()) -> None:  # noqa: B008 - frozen
        raise NotImplementedError

    def offset(self, offset: ClockOffset) -> None:
        """Take a measured clock offset of the marker stream."""

    def restart(self) -> None:
        """The connection is new: the next offset replaces the last one."""

    def __call__(self, marker: Marker) -> Onset | Refused:
        """Read a marker."""
        raise NotImplementedError

    # lost: int property, markers known to be lost by their "seq"


class TriggerReader:
    """Edges of a trigger channel -> onsets."""

    def __init__(self, trigger: TriggerSettings, markers: MarkerSettings = MarkerSettings()) -> None:  # noqa: B008 - frozen
        raise NotImplementedError

    def reset(self) -> None:
        """Forget the channel's state: what it shows next is no edge."""

    def __call__(self, samples: Float32, position: int, times: Float64, arrival: float) -> list[Onset | Refused]:
        """Read the channel's next samples."""
        raise NotImplementedError
