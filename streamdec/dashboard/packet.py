"""What goes to a browser, one binary WebSocket message each.

A packet is the length of its header (uint32, little-endian), the header (JSON), and blobs one after the other, whose
lengths the header has in ``blobs``. Headers are those of the feed, without what a browser has no use for; some topics
are the dashboard's own: ``hello``, ``begin`` (a session), ``link``, ``lost``, ``picture``, ``montage``, ``evoked``.
"""

from __future__ import annotations

from collections.abc import Container
from typing import Any

import msgspec
import numpy as np

from ..feed.schema import AnyMessage, Onset, Reconstruction, Retrieval, Session
from ..feed.wire import Received
from ..types import Float32


class Packet(msgspec.Struct, frozen=True):
    """One message to browsers.

    ``data`` as it goes out; ``pictures`` ids of the gallery images that it shows; ``partial`` a better one follows.
    """

    topic: str
    data: bytes
    pictures: tuple[str, ...] = ()
    partial: bool = False


def pack(header: dict[str, Any], *blobs: bytes | Float32) -> bytes:
    """Put a header and its blobs into one message; arrays go out as little-endian float32."""
    raw = [blob if isinstance(blob, bytes) else blob.astype("<f4").tobytes() for blob in blobs]
    text = msgspec.json.encode({**header, "blobs": [len(blob) for blob in raw]})
    return b"".join((len(text).to_bytes(4, "little"), text, *raw))


def packet(received: Received, gallery: Container[str] = ()) -> Packet:
    """Translate a message of the feed.

    Parameters
    ----------
    received : Received
    gallery : container of str
        Images that are sent as pictures of their own, once for each browser: a reconstruction that is one of them
        goes without its own copy.
    """
    message = received.message
    header = msgspec.to_builtins(message)
    header.pop("payloads", None)
    blobs: list[bytes | Float32] = []
    if isinstance(message, Reconstruction) and message.source not in gallery:
        blobs = [payload for payload in received.payloads if isinstance(payload, bytes)]
        header["media"] = [entry.media for entry in message.payloads]
    elif isinstance(message, Session):
        for stream in filter(None, (header["eeg"], header["markers"])):
            stream["header"] = ""  # XML of any length
    return Packet(message.topic, pack(header, *blobs), _pictures(message), getattr(message, "partial", False))


def _pictures(message: AnyMessage) -> tuple[str, ...]:
    match message:
        case Onset():
            return (message.key,)
        case Retrieval():
            return (message.key, *(candidate.id for candidate in message.candidates))
        case Reconstruction():
            return (message.source,) if message.source else ()
        case _:
            return ()


def array(values: Any) -> Float32:
    """Make what :func:`pack` takes."""
    return np.asarray(values, np.float32)
