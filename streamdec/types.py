"""The records that travel from the inlet to the feed. Frozen; every field has its shape, unit and clock.

Two clocks occur. *LSL clock* is ``local_clock`` of this machine, seconds. *Sender's clock* is the LSL clock of the
machine that made the stamp; adding the stream's :class:`ClockOffset` brings it to the LSL clock.

An :data:`Event` is anything that comes in. The loop is a function of the events in their order: whoever plays the
same events again gets the same results.
"""

from __future__ import annotations

from typing import Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

Float32: TypeAlias = npt.NDArray[np.float32]
Float64: TypeAlias = npt.NDArray[np.float64]
Int64: TypeAlias = npt.NDArray[np.int64]
Bool: TypeAlias = npt.NDArray[np.bool_]

StreamRole = Literal["eeg", "markers"]


class StreamInfo(msgspec.Struct, frozen=True):
    """What a stream says of itself.

    Attributes
    ----------
    name : name of the stream.
    type : LSL type, such as "EEG" or "Markers".
    n_chans : number of channels.
    sfreq : Hz; nominal rate, 0 for an irregular stream.
    dtype : format of its samples, as LSL names it.
    source_id : id that stays when the source restarts, "" without one.
    uid : id of this run of the source.
    hostname : machine of the source.
    ch_names : one label per channel, "" where the header says nothing.
    ch_types : one type per channel, "" where the header says nothing.
    units : one unit per channel, "" where the header says nothing.
    header : XML header, verbatim.
    """

    name: str
    type: str
    n_chans: int
    sfreq: float
    dtype: str
    source_id: str = ""
    uid: str = ""
    hostname: str = ""
    ch_names: tuple[str, ...] = ()
    ch_types: tuple[str, ...] = ()
    units: tuple[str, ...] = ()
    header: str = ""


class Chunk(msgspec.Struct, frozen=True, eq=False):
    """EEG samples as pulled.

    ``data`` (n_chans, n_times) float32, in the stream's own unit and channel order. ``stamps`` (n_times,) float64,
    sender's clock, raw. ``arrival`` LSL clock, when the pull returned. A live inlet hands out views of its own
    buffers: they hold until the next pull.
    """

    data: Float32
    stamps: Float64
    arrival: float


class Marker(msgspec.Struct, frozen=True):
    """One sample of the marker stream, as text. ``stamp`` sender's clock, raw; ``arrival`` LSL clock."""

    value: str
    stamp: float
    arrival: float


class ClockOffset(msgspec.Struct, frozen=True):
    """A measured clock offset: LSL clock = sender's clock + ``value``.

    ``value`` and ``uncertainty`` in seconds (uncertainty: half the round trip, NaN where unknown); ``arrival`` LSL
    clock.
    """

    stream: StreamRole
    value: float
    uncertainty: float
    arrival: float


class Connection(msgspec.Struct, frozen=True):
    """A stream's connection changed. ``arrival`` LSL clock. ``info`` is set when a stream was found (again).

    ``connected`` first contact · ``stalled`` no sample for too long · ``resumed`` samples again, same connection ·
    ``lost`` the source is gone · ``found`` connected anew, header fits: a new clock segment begins · ``refused`` a
    stream came back that does not fit, ``reason`` says why · ``ended`` a recording is at its end.
    """

    stream: StreamRole
    state: Literal["connected", "stalled", "resumed", "lost", "found", "refused", "ended"]
    arrival: float
    reason: str = ""
    info: StreamInfo | None = None


Event: TypeAlias = Chunk | Marker | ClockOffset | Connection


class Onset(msgspec.Struct, frozen=True):
    """A stimulus came on.

    ``key`` stimulus key; ``time`` LSL clock, seconds; ``text`` the marker as received; ``arrival`` LSL clock.
    ``position`` is the ring sample where a trigger channel saw the edge, None where only the time is known.
    """

    key: str
    time: float
    text: str
    arrival: float
    position: int | None = None


Outcome = Literal["decided", "rejected", "lost_data", "late", "cancelled"]


class Epoch(msgspec.Struct, frozen=True, eq=False):
    """The window around one onset, as cut from the ring.

    ``data`` (n_chans, n_times) float32, in the unit the montage delivers (microvolt). ``first`` ring position of its
    first sample. ``onset_sample`` ring position of the onset; ``residual`` onset time minus that sample's time,
    seconds. ``horizon`` seconds after the onset up to which samples are in; ``final`` it is the last horizon. ``due``
    LSL clock at which its last sample was due. ``n_interpolated`` missing samples that were filled in,
    ``interpolated_channels`` the channels that were. ``flags`` such as "settling" or "catch_up".
    """

    onset: Onset
    data: Float32
    first: int
    onset_sample: int
    residual: float
    horizon: float
    final: bool
    due: float
    n_interpolated: int = 0
    interpolated_channels: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()


class Ended(msgspec.Struct, frozen=True):
    """An onset that ended without a decision. ``arrival`` LSL clock of the event that ended it."""

    onset: Onset
    outcome: Outcome
    reason: str
    arrival: float


class Candidate(msgspec.Struct, frozen=True):
    """One gallery entry in a decision.

    Attributes
    ----------
    id : id of the entry.
    label : what it shows, in words.
    score : cosine with the evidence.
    probability : calibrated, over the whole gallery.
    """

    id: str
    label: str
    score: float
    probability: float
