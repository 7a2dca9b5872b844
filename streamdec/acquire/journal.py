"""What our recorder adds to an XDF file, so that a session can be played again exactly.

Two streams of texts, stamped with arrival times on the LSL clock. ``streamdec-events`` lists everything that came in,
in the order the loop saw it; samples and markers themselves stand in their own streams, in the same order.
``streamdec-feed`` holds the header of every message that went out, as JSON.

The recording process imports this module: it must stay light.
"""

from __future__ import annotations

from typing import Literal, TypeAlias
from xml.etree import ElementTree

import msgspec

from ..types import ClockOffset, Connection, StreamInfo, StreamRole

EVENTS, FEED = "streamdec-events", "streamdec-feed"
VERSION = 1

State: TypeAlias = Literal["connected", "stalled", "resumed", "lost", "found", "refused", "ended"]


class Head(msgspec.Struct, frozen=True):
    """In the header of the event stream: what the session was. ``description`` JSON of config, bundle and versions."""

    version: int
    session: str
    description: str
    eeg: StreamInfo
    markers: StreamInfo | None


class Packet(msgspec.Struct, frozen=True, array_like=True, tag="packet"):
    """The next ``n_times`` samples of the EEG stream came in as one chunk."""

    n_times: int
    arrival: float


class Text(msgspec.Struct, frozen=True, array_like=True, tag="marker"):
    """The next sample of the marker stream came in."""

    arrival: float


class Offset(msgspec.Struct, frozen=True, array_like=True, tag="offset"):
    """A :class:`ClockOffset`; ``uncertainty`` None where it is unknown, as JSON has no NaN."""

    stream: StreamRole
    value: float
    uncertainty: float | None
    arrival: float

    @classmethod
    def of(cls, event: ClockOffset) -> Offset:
        """Write down an event."""
        unknown = event.uncertainty != event.uncertainty
        return cls(event.stream, event.value, None if unknown else event.uncertainty, event.arrival)

    def event(self) -> ClockOffset:
        """Return what was written down."""
        uncertainty = float("nan") if self.uncertainty is None else self.uncertainty
        return ClockOffset(self.stream, self.value, uncertainty, self.arrival)


class Change(msgspec.Struct, frozen=True, array_like=True, tag="connection"):
    """A :class:`Connection`."""

    stream: StreamRole
    state: State
    arrival: float
    reason: str
    info: StreamInfo | None

    @classmethod
    def of(cls, event: Connection) -> Change:
        """Write down an event."""
        return cls(event.stream, event.state, event.arrival, event.reason, event.info)

    def event(self) -> Connection:
        """Return what was written down."""
        return Connection(self.stream, self.state, self.arrival, self.reason, self.info)


class Lost(msgspec.Struct, frozen=True, array_like=True, tag="lost"):
    """The recorder could not take ``n`` events or messages, about here: the session cannot be played again exactly."""

    n: int


Entry: TypeAlias = Packet | Text | Offset | Change | Lost

_ENTRIES: msgspec.json.Decoder[list[Entry]] = msgspec.json.Decoder(list[Entry])


def read_head(xml: str) -> Head | None:
    """Read what the header of the event stream says of the session; None when it is not ours."""
    text = ElementTree.fromstring(xml).findtext("desc/journal")  # noqa: S314  (expat refuses entity bombs)
    try:
        head = msgspec.json.decode(text or "", type=Head)
    except msgspec.DecodeError:
        return None
    return head if head.version == VERSION else None


def read_entries(texts: list[str]) -> tuple[list[Entry], bool]:
    """Read the event stream's texts; return the entries up to the first that is damaged, and whether one was."""
    entries: list[Entry] = []
    for text in texts:
        try:
            entries += _ENTRIES.decode(text)
        except msgspec.DecodeError:
            return entries, True
    return entries, False
