"""One message off the wire -> one typed message. Whatever comes, it is a message or a FeedError."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import FeedError
from .schema import ON_DEMAND, TOPICS, VERSION, AnyMessage, Payload, SnapshotEnd

_DTYPE = re.compile(r"\|[bui]1|<[uif][248]")


class Received(msgspec.Struct, frozen=True, eq=False):
    """One message, as it came.

    Attributes
    ----------
    message : AnyMessage
        The header. Which kind it is, its type says.
    payloads : tuple
        One entry for each of ``message.payloads``: a read-only array, or the bytes of an encoded picture.
    fresh : bool
        False for what had been published before this subscriber joined: the last of its kind, from the snapshot.
    """

    message: AnyMessage
    payloads: tuple[npt.NDArray[np.generic] | bytes, ...] = ()
    fresh: bool = True


class TooNew(FeedError):
    """The publisher speaks a newer version of the feed."""


class _Head(msgspec.Struct):
    """What says of any message whether this reader can know it."""

    topic: str
    version: int = 0


_Wire: TypeAlias = AnyMessage | SnapshotEnd
_MSGPACK = msgspec.msgpack.Decoder(_Wire)
_JSON = msgspec.json.Decoder(_Wire)
_HEAD_MSGPACK = msgspec.msgpack.Decoder(_Head)
_HEAD_JSON = msgspec.json.Decoder(_Head)


def parse(frames: Sequence[bytes]) -> Received | SnapshotEnd | None:
    """Read one message off the wire.

    Parameters
    ----------
    frames : sequence of bytes
        Topic, header as msgpack or JSON, payload frames.

    Returns
    -------
    Received, SnapshotEnd or None
        None for a topic this version does not know.

    Raises
    ------
    TooNew
        Where it is of a newer version than this reader knows.
    FeedError
        Where it is no message of the feed.
    """
    if len(frames) < 2:
        raise FeedError("feed message", got=f"{len(frames)} frames", allowed="topic, header, payloads")
    topic, header, *payloads = frames
    is_json = header.startswith(b"{")  # no msgpack map starts with this byte
    try:
        head = (_HEAD_JSON if is_json else _HEAD_MSGPACK).decode(header)
        if head.version > VERSION:
            raise TooNew("feed version", got=head.version, allowed=f"up to {VERSION}", do="upgrade streamdec here")
        if head.topic != topic.decode("utf-8", "replace"):
            raise FeedError("feed message: topic frame and header differ", got=repr(topic), allowed=repr(head.topic))
        if head.topic not in TOPICS and head.topic not in ON_DEMAND and head.topic != "end":
            return None
        message = (_JSON if is_json else _MSGPACK).decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise FeedError("feed message cannot be read", got=str(error)) from error
    if isinstance(message, SnapshotEnd):
        return message
    described: tuple[Payload, ...] = getattr(message, "payloads", ())
    return Received(message, tuple(_payload(entry, payloads) for entry in described))


def _payload(entry: Payload, frames: Sequence[bytes]) -> npt.NDArray[np.generic] | bytes:
    if not 0 <= entry.frame < len(frames):
        raise FeedError("feed message: payload frame", got=entry.frame, allowed=f"one of {len(frames)}")
    frame = frames[entry.frame]
    if entry.kind == "image":
        return frame
    if not _DTYPE.fullmatch(entry.dtype) or min(entry.shape, default=0) < 0:
        got = f"dtype {entry.dtype!r}, shape {entry.shape}"
        raise FeedError("feed message: payload array", got=got, allowed="little-endian numbers")
    dtype = np.dtype(entry.dtype)
    if math.prod(entry.shape) * dtype.itemsize != len(frame):
        got = f"{len(frame)} bytes"
        raise FeedError("feed message: payload array", got=got, allowed=f"shape {entry.shape} of {entry.dtype}")
    try:
        return np.frombuffer(frame, dtype).reshape(entry.shape)
    except ValueError as error:  # more axes, or longer ones, than an array can have
        raise FeedError("feed message: payload array", got=f"shape {entry.shape}", allowed="one of an array") from error
