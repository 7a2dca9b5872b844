"""The messages of the feed, versioned. ``schema.json`` and ``FIELDS.md`` beside this file are generated from it.

A message on the wire is ``[topic, header, payload, ...]``: ``header`` is one of these structs as msgpack (or JSON, by
config), ``payload`` frames are raw bytes that the header's :class:`Payload` entries describe. All times are seconds of
the LSL clock of the machine that publishes, all durations are seconds, and no number is NaN.

A header has all its fields, always. New topics, and new fields with a default, may come within one version: readers
skip what they do not know. Any other change raises :data:`VERSION`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import FeedError
from ..types import Candidate, Outcome, StreamInfo

VERSION = 1


class Payload(msgspec.Struct, frozen=True):
    """One binary frame after the header: its place, what it is, and how to read it.

    Attributes
    ----------
    frame : place among the payload frames, from 0.
    kind : what it holds: an array (``embedding``, ``signal``) or an encoded picture (``image``).
    dtype : of an array: little-endian numpy code, such as "<f4".
    shape : of an array: its shape, in C order.
    media : of an image: its media type, such as "image/png".
    id : what it belongs to: an image id or a stimulus key.
    """

    frame: int
    kind: Literal["embedding", "signal", "image"]
    dtype: str = ""
    shape: tuple[int, ...] = ()
    media: str = ""
    id: str = ""


def embedding(frame: int, array: npt.NDArray[np.generic], id: str = "") -> Payload:
    """Describe ``array`` as payload ``frame``."""
    return Payload(frame, "embedding", dtype=array.dtype.newbyteorder("<").str, shape=array.shape, id=id)


_MAGIC = {b"\x89PNG": "image/png", b"\xff\xd8": "image/jpeg", b"RIFF": "image/webp"}


def image(frame: int, picture: bytes, id: str = "") -> Payload:
    """Describe an encoded ``picture`` (PNG, JPEG or WebP) as payload ``frame``."""
    media = next((media for magic, media in _MAGIC.items() if picture.startswith(magic)), "application/octet-stream")
    return Payload(frame, "image", media=media, id=id)


class Timing(msgspec.Struct, frozen=True):
    """When each stage of one result was done. The only fields that differ when a session is replayed.

    Attributes
    ----------
    due : LSL clock; the epoch's last sample was due.
    arrival : LSL clock; the packet that completed the epoch was pulled.
    ready : LSL clock; the epoch was cut and cleaned.
    encoded : LSL clock; the encoder was done.
    retrieved : LSL clock; the candidates were ranked.
    published : LSL clock; just before the message went out.
    latency : s; ``published`` - ``due``.
    budget : s; the latency that was promised.
    deadline_met : ``latency`` <= ``budget``.
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
    """What every header has.

    Attributes
    ----------
    topic : kind of the message, the same as the topic frame.
    version : version of this schema.
    session : id of the session; another one means that the publisher was started anew.
    seq : number of this message among those of its topic in this session, from 1, so that a gap shows.
    """

    version: int = VERSION
    session: str = ""
    seq: int = 0

    @property
    def topic(self) -> str:
        """Kind of the message."""
        return str(self.__struct_config__.tag)


class Onset(Message, frozen=True, kw_only=True, tag="onset", tag_field="topic"):
    """A stimulus came on.

    Attributes
    ----------
    key : stimulus key.
    text : the marker as received.
    onset_time : LSL clock.
    """

    key: str
    text: str
    onset_time: float


class Retrieval(Message, frozen=True, kw_only=True, tag="retrieval", tag_field="topic"):
    """The gallery images that match the response best: one decision.

    Attributes
    ----------
    key : stimulus key.
    onset_time : LSL clock.
    residual : s; the onset minus the time of the sample it was put on.
    horizon : s after the onset, up to which samples were used.
    final : this is the last horizon.
    repetitions : presentations of ``key`` behind the evidence, this one included.
    candidates : the best of the gallery, best first.
    gallery_size : number of candidates that were compared.
    rank : place of ``key`` itself, from 1; null where it is not in the gallery.
    stop : the stopping rule is met: more repetitions are not needed.
    interpolated_channels : channels that were filled in from their neighbours.
    interpolated_samples : missing samples that were filled in.
    flags : what else to know, such as "settling" (filters had just restarted) or "catch_up" (after a stall).
    payloads : what the binary frames hold.
    timing : when each stage was done.
    """

    key: str
    onset_time: float
    residual: float
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


class GenerationTiming(msgspec.Struct, frozen=True):
    """When each stage of one generated result was done.

    Attributes
    ----------
    due : LSL clock; the epoch's last sample was due.
    requested : LSL clock; it was asked for, its decision just having been published.
    started : LSL clock; its tier began.
    finished : LSL clock; its tier was done.
    published : LSL clock; just before the message went out.
    latency : s; ``published`` - ``due``.
    budget : s; the latency that was promised.
    deadline_met : ``latency`` <= ``budget``.
    """

    due: float
    requested: float
    started: float
    finished: float
    published: float
    latency: float
    budget: float
    deadline_met: bool


class Generated(Message, frozen=True, kw_only=True):
    """What captions and reconstructions have in common.

    Attributes
    ----------
    key : stimulus key.
    onset_time : LSL clock.
    repetitions : presentations of ``key`` behind the evidence.
    tier : what made it: "bank" or "llm"; "nearest", "latent" or "diffusion".
    units : tokens or diffusion steps that were done; 1 for tiers of one pass.
    wanted : units there would have been with more time.
    partial : what there is so far: another message follows that ends the request.
    worker : name of the worker that made it, "" for the dispatcher.
    probability : of it, where its tier has one.
    timing : when each stage was done.
    """

    key: str
    onset_time: float
    repetitions: int
    tier: str
    units: int
    wanted: int
    partial: bool
    worker: str
    probability: float | None
    timing: GenerationTiming


class Caption(Generated, frozen=True, kw_only=True, tag="caption", tag_field="topic"):
    """A sentence that says what is seen.

    Attributes
    ----------
    text : one line.
    """

    text: str


class Reconstruction(Generated, frozen=True, kw_only=True, tag="reconstruction", tag_field="topic"):
    """A picture of what is seen.

    Attributes
    ----------
    source : id of the gallery image it is, "" for a picture that was made.
    payloads : the picture; none where the gallery has no picture of ``source``.
    """

    source: str
    payloads: tuple[Payload, ...] = ()


class Epoch(Message, frozen=True, kw_only=True, tag="epoch", tag_field="topic"):
    """The one end of an onset.

    Attributes
    ----------
    key : stimulus key.
    onset_time : LSL clock.
    outcome : ``decided``, or how it ended without a decision.
    reason : why there is no decision, in words.
    """

    key: str
    onset_time: float
    outcome: Outcome
    reason: str = ""


class Dropped(Message, frozen=True, kw_only=True, tag="dropped", tag_field="topic"):
    """Something that came in, or was asked for, and led to nothing.

    Attributes
    ----------
    what : what it was; ``caption`` or ``reconstruction``: what it was to be.
    text : of it, as received.
    reason : why it was dropped.
    key : stimulus key of a caption or reconstruction.
    onset_time : LSL clock; of the stimulus, likewise; else null.
    """

    what: Literal["marker", "record", "caption", "reconstruction"]
    text: str
    reason: str
    key: str = ""
    onset_time: float | None = None


class Counts(msgspec.Struct, frozen=True):
    """The account of a session.

    ``markers`` = ``ignored`` + ``duplicate`` + ``garbage`` + ``onsets``;
    ``onsets`` = ``decided`` + ``rejected`` + ``lost_data`` + ``late`` + ``cancelled`` + ``open``.

    Attributes
    ----------
    markers : markers received.
    ignored : markers that are no stimulus, by config.
    duplicate : markers that had come before.
    garbage : markers that could not be read.
    onsets : markers that began an epoch.
    decided : onsets that ended in a decision.
    rejected : onsets with too many channels bad or missing, or that the encoder could not take.
    lost_data : onsets whose samples never came.
    late : onsets whose samples had left the ring buffer.
    cancelled : onsets still open when the session ended.
    open : onsets that wait for their samples.
    samples : EEG samples received, per channel.
    missing_samples : EEG samples lost in gaps, per channel.
    gaps : gaps in the EEG.
    segments : unbroken pieces of the EEG's clock.
    unrecorded : records that the recorder could not take.
    lost_markers : markers that never came: holes in the `seq` of JSON markers.
    """

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
    lost_markers: int = 0


SessionState: TypeAlias = Literal[
    "started",
    "connected",
    "stalled",
    "resumed",
    "lost",
    "found",
    "refused",
    "gap",
    "unrecorded",
    "warning",
    "ended",
]


class Session(Message, frozen=True, kw_only=True, tag="session", tag_field="topic"):
    """The session or one of its streams changed state.

    Attributes
    ----------
    state : what happened.
    time : LSL clock.
    stream : the stream it happened to, "" for the session itself or a worker.
    worker : the worker it happened to, "" where it is none.
    reason : why, in words.
    bundle : name of the bundle; with ``started``.
    method : method of the bundle; with ``started``.
    eeg : the EEG stream, where it was just connected.
    markers : the marker stream, where it was just connected.
    simulated : the EEG comes from a simulated subject.
    budgets : s; latency promised for each kind of result; with ``started``.
    counts : the account so far.
    """

    state: SessionState
    time: float
    stream: Literal["", "eeg", "markers"] = ""
    worker: str = ""
    reason: str = ""
    bundle: str = ""
    method: str = ""
    eeg: StreamInfo | None = None
    markers: StreamInfo | None = None
    simulated: bool = False
    budgets: dict[str, float] = {}
    counts: Counts | None = None


class Quantiles(msgspec.Struct, frozen=True):
    """Latency of one stage.

    Attributes
    ----------
    n : number of results.
    p50 : s; median.
    p95 : s; 95th percentile.
    p99 : s; 99th percentile.
    max : s; the longest.
    """

    n: int
    p50: float
    p95: float
    p99: float
    max: float


class Generation(msgspec.Struct, frozen=True):
    """The account of one kind of generated result.

    ``requests`` = the sum of ``answered`` + ``dropped`` + ``open``.

    Attributes
    ----------
    requests : results asked for.
    answered : results by tier.
    dropped : requests that ended without a result.
    superseded : of these, requests that newer evidence on the same stimulus replaced.
    met : results within their budget.
    open : requests without an end yet.
    """

    requests: int = 0
    answered: dict[str, int] = {}
    dropped: int = 0
    superseded: int = 0
    met: int = 0
    open: int = 0


class Stats(Message, frozen=True, kw_only=True, tag="stats", tag_field="topic"):
    """Once a second: the account, latencies by stage, the clock, the machine.

    Attributes
    ----------
    time : LSL clock.
    counts : the account so far.
    latency : latency by stage of a retrieval; "turn" is any turn of the loop, in which it is away from the streams.
    sfreq_effective : Hz; the EEG's rate by regression.
    clock_offset : s; LSL clock minus the clock of the EEG's sender.
    clock_jitter : s; spread of the EEG's raw stamps around their line.
    drift_ppm : drift of the sender's clock against the LSL clock, parts per million.
    memory : bytes; resident memory of the process.
    generation : account by kind, "caption" and "reconstruction", of what is generated.
    workers : state by worker: "starting", "ready", "lost" (it may come back) or "failed".
    missed : decisions later than their budget.
    """

    time: float
    counts: Counts
    latency: dict[str, Quantiles] = {}
    sfreq_effective: float = 0.0
    clock_offset: float = 0.0
    clock_jitter: float = 0.0
    drift_ppm: float = 0.0
    memory: int = 0
    generation: dict[str, Generation] = {}
    workers: dict[str, str] = {}
    missed: int = 0


class GalleryEntry(msgspec.Struct, frozen=True):
    """One candidate of the gallery.

    Attributes
    ----------
    id : id of the candidate, as in a decision.
    label : what it shows, in words.
    thumbnail : payload frame of its picture, null without one.
    """

    id: str
    label: str
    thumbnail: int | None = None


class Gallery(Message, frozen=True, kw_only=True, tag="gallery", tag_field="topic"):
    """The gallery's card, at the start and whenever candidates are added or removed.

    Attributes
    ----------
    kind : what a candidate is: one stimulus, or the centre of a class.
    entries : the candidates.
    payloads : what the binary frames hold.
    """

    kind: str
    entries: tuple[GalleryEntry, ...]
    payloads: tuple[Payload, ...] = ()


class SnapshotEnd(Message, frozen=True, kw_only=True, tag="end", tag_field="topic"):
    """The last message of a snapshot. It never comes on the results or images socket.

    Attributes
    ----------
    request : id of the request that is answered.
    messages : number of messages the snapshot had before this one.
    seqs : the newest ``seq`` of each topic when the snapshot was taken.
    """

    request: str
    messages: int
    seqs: dict[str, int]


class Signal(Message, frozen=True, kw_only=True, tag="signal", tag_field="topic"):
    """Ten times a second, while somebody subscribes to it: the EEG behind the bundle's filters, to look at.

    It is decimated by block averages. It is not recorded: the recording has what the amplifier sent.

    Attributes
    ----------
    time : LSL clock; middle of the first block.
    sfreq : Hz; blocks per second.
    ch_names : channels, in the array's order.
    bad : why a channel is not usable, by name: "nan", "flat", "railed", "noisy"; "missing" is not in the stream.
    payloads : array (n_chans, n_times) float32, microvolt; NaN where samples are missing.
    """

    time: float
    sfreq: float
    ch_names: tuple[str, ...]
    bad: dict[str, str] = {}
    payloads: tuple[Payload, ...] = ()


AnyMessage: TypeAlias = (
    Onset | Retrieval | Caption | Reconstruction | Epoch | Dropped | Session | Stats | Gallery | Signal
)
TOPICS: tuple[str, ...] = (
    "onset",
    "retrieval",
    "caption",
    "reconstruction",
    "epoch",
    "dropped",
    "session",
    "stats",
    "gallery",
)
ON_DEMAND: tuple[str, ...] = ("signal",)  # published only while somebody subscribes to it
IMAGE_TOPICS: frozenset[str] = frozenset({"gallery", "reconstruction"})  # on the images socket: few messages, large

_UNTIMED = Timing(0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, deadline_met=False)
_JSON = msgspec.json.Decoder(AnyMessage)


def essence(message: AnyMessage) -> bytes:
    """Reduce a message to what is the same, byte for byte, whenever the same events are played.

    Parameters
    ----------
    message : AnyMessage

    Returns
    -------
    bytes
        JSON without the session's id, ``seq`` and timing. Empty for messages that tell of the run rather than of the
        events: session, stats, gallery, records that the recorder could not take, and all that is generated, which
        depends on how fast the machine is.
    """
    match message:
        case Retrieval():
            message = msgspec.structs.replace(message, timing=_UNTIMED)
        case Onset() | Epoch() | Dropped(what="marker"):
            pass
        case _:
            return b""
    return msgspec.json.encode(msgspec.structs.replace(message, session="", seq=0))


def recorded(headers: Iterable[str | bytes]) -> list[AnyMessage]:
    """Decode recorded headers (JSON).

    Raises
    ------
    FeedError
        Where a header is none of this version.
    """
    try:
        return [_JSON.decode(header) for header in headers]
    except msgspec.DecodeError as error:
        do = "read it with the streamdec that recorded it"
        raise FeedError("recorded feed cannot be read", got=str(error), do=do) from error


def joined_essence(messages: Iterable[AnyMessage]) -> bytes:
    """Reduce messages as :func:`essence` does, one line for each that leaves anything."""
    return b"\n".join(filter(None, map(essence, messages)))
