"""The messages of the feed, versioned. JSON Schema and the field reference are generated from this file.

A message on the wire is ``[topic, header, payload, ...]``: ``header`` is one of these structs as msgpack (or JSON, by config),
``payload`` frames are raw bytes that the header's :class:`Payload` entries describe. All times are seconds of the LSL clock.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec

from ..types import Candidate, Outcome, StreamInfo

VERSION = 1


class Payload(msgspec.Struct, frozen=True):
    """One binary frame after the header: its place, what it is, and how to read it.

    ``frame`` counts payload frames from 0. Arrays: ``dtype`` little-endian numpy code ("<f4") and ``shape``. Images: ``media`` type.
    """

    frame: int
    kind: Literal["embedding", "image"]
    dtype: str = ""
    shape: tuple[int, ...] = ()
    media: str = ""
    id: str = ""


class Timing(msgspec.Struct, frozen=True):
    """When each stage of one result was done. The only fields that differ when a session is replayed.

    ``due`` the epoch's last sample was due; ``arrival`` the packet that completed it was pulled; ``ready`` epoch cut and cleaned; ``encoded``,
    ``retrieved``; ``published`` just before the message went out. ``latency`` = published - due; ``budget`` what was promised, seconds.
    """

    due: float
    arrival: float
    ready: float
    encoded: float
    retrieved: float
    published: float
    latency: float
    budget: float
    deadline_met: bool


class Message(msgspec.Struct, frozen=True, kw_only=True):
    """What every header has. ``seq`` counts the messages of one topic from 1, so that a gap shows."""

    version: int = VERSION
    session: str = ""
    seq: int = 0


class Onset(Message, frozen=True, kw_only=True, tag="onset", tag_field="topic"):
    """A stimulus came on. ``key`` stimulus key, ``text`` the marker as received, ``onset_time`` LSL clock."""

    key: str
    text: str
    onset_time: float


class Retrieval(Message, frozen=True, kw_only=True, tag="retrieval", tag_field="topic"):
    """The gallery images that match the response best: one decision.

    ``horizon`` seconds after the onset that were used, ``final`` the last horizon. ``repetitions`` of ``key`` behind the evidence. ``candidates`` best
    first. ``rank`` 1-based place of ``key`` itself where it is in the gallery. ``stop`` the stopping rule is met. ``interpolated_channels`` and
    ``interpolated_samples`` say what was filled in; ``flags`` such as "settling", "catch_up". ``residual`` onset minus its sample's time, seconds; ``first_sample`` the
    epoch's place, in samples since the session's first.
    """

    key: str
    onset_time: float
    residual: float
    first_sample: int
    horizon: float
    final: bool
    repetitions: int
    candidates: tuple[Candidate, ...]
    gallery_size: int
    rank: int | None
    stop: bool
    interpolated_channels: tuple[str, ...] = ()
    interpolated_samples: int = 0
    flags: tuple[str, ...] = ()
    payloads: tuple[Payload, ...] = ()
    timing: Timing


class Epoch(Message, frozen=True, kw_only=True, tag="epoch", tag_field="topic"):
    """The one end of an onset: ``decided``, or why not."""

    key: str
    onset_time: float
    outcome: Outcome
    reason: str = ""


class Dropped(Message, frozen=True, kw_only=True, tag="dropped", tag_field="topic"):
    """Something that came in and led to nothing: ``what`` it was, ``text`` of it, ``reason``."""

    what: Literal["marker", "record"]
    text: str
    reason: str


class Counts(msgspec.Struct, frozen=True):
    """The account of a session. ``markers`` = ``ignored`` + ``duplicate`` + ``garbage`` + ``onsets``; ``onsets`` = the five ends + ``open``."""

    markers: int = 0
    ignored: int = 0
    duplicate: int = 0
    garbage: int = 0
    onsets: int = 0
    decided: int = 0
    rejected: int = 0
    lost_data: int = 0
    late: int = 0
    cancelled: int = 0
    open: int = 0
    samples: int = 0
    missing_samples: int = 0
    gaps: int = 0
    segments: int = 0
    unrecorded: int = 0


class Session(Message, frozen=True, kw_only=True, tag="session", tag_field="topic"):
    """The session, its streams and its bundle changed state. ``time`` LSL clock."""

    state: Literal[
        "started", "connected", "stalled", "resumed", "lost", "found", "refused", "gap", "warning", "unrecorded", "ended"
    ]
    time: float
    stream: Literal["", "eeg", "markers"] = ""
    reason: str = ""
    bundle: str = ""
    method: str = ""
    eeg: StreamInfo | None = None
    markers: StreamInfo | None = None
    simulated: bool = False
    budgets: dict[str, float] = {}
    counts: Counts | None = None


class Quantiles(msgspec.Struct, frozen=True):
    """Latency of one stage, seconds, over ``n`` results."""

    n: int
    p50: float
    p95: float
    p99: float
    max: float


class Stats(Message, frozen=True, kw_only=True, tag="stats", tag_field="topic"):
    """Once a second: the account, latencies by stage, the clock, the machine.

    ``sfreq_effective`` Hz by regression; ``clock_offset`` and ``clock_jitter`` seconds; ``drift_ppm`` of the sender's clock; ``memory`` resident bytes.
    """

    time: float
    counts: Counts
    latency: dict[str, Quantiles] = {}
    sfreq_effective: float = 0.0
    clock_offset: float = 0.0
    clock_jitter: float = 0.0
    drift_ppm: float = 0.0
    memory: int = 0


class GalleryEntry(msgspec.Struct, frozen=True):
    """One candidate as the snapshot shows it. ``thumbnail`` is the payload frame of its picture, None without one."""

    id: str
    label: str
    thumbnail: int | None = None


class Gallery(Message, frozen=True, kw_only=True, tag="gallery", tag_field="topic"):
    """The gallery's card, in the snapshot and whenever candidates are added or removed."""

    kind: str
    entries: tuple[GalleryEntry, ...]
    payloads: tuple[Payload, ...] = ()


AnyMessage: TypeAlias = Onset | Retrieval | Epoch | Dropped | Session | Stats | Gallery
TOPICS: tuple[str, ...] = ("onset", "retrieval", "epoch", "dropped", "session", "stats", "gallery")


_VOLATILE = ("timing", "session", "seq", "time")
_OF_THE_MOMENT = ("started", "unrecorded", "ended")


def essence(message: AnyMessage) -> bytes:
    """What must be the same, byte for byte, whenever the same events are played.

    The message as JSON without session id, sequence number and latencies; empty for messages about the machine or the moment (``stats``, the
    gallery's card, a session's start and end).
    """
    if isinstance(message, (Stats, Gallery)) or (isinstance(message, Session) and message.state in _OF_THE_MOMENT):
        return b""
    fields = {key: value for key, value in msgspec.to_builtins(message).items() if key not in _VOLATILE}
    return msgspec.json.encode(fields)
