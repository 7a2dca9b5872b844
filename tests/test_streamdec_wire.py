from __future__ import annotations

import contextlib

import msgspec
import numpy as np
import pytest
from feed_messages import gallery, messages, one_of_each, onset, retrieval
from hypothesis import example, given
from hypothesis import strategies as st

from streamdec.errors import FeedError
from streamdec.feed import schema
from streamdec.feed.wire import Received, TooNew, parse


def frames(message: schema.AnyMessage | schema.SnapshotEnd, *payloads: bytes, json: bool = False) -> list[bytes]:
    codec = msgspec.json if json else msgspec.msgpack
    return [message.topic.encode(), codec.encode(message), *payloads]


@pytest.mark.parametrize("json", [False, True])
def test_both_encodings_are_told_apart(json: bool) -> None:
    for message in one_of_each():
        received = parse(frames(message, json=json))
        assert isinstance(received, Received)
        assert received.message == message
        assert received.fresh


def test_arrays_come_as_arrays() -> None:
    array = np.arange(6, dtype="<f4").reshape(2, 3)
    message = msgspec.structs.replace(retrieval(), payloads=(schema.embedding(0, array),))
    received = parse(frames(message, array.tobytes()))
    assert isinstance(received, Received)
    (got,) = received.payloads
    assert isinstance(got, np.ndarray)
    np.testing.assert_array_equal(got, array)
    assert got.dtype == array.dtype
    assert not got.flags.writeable


def test_pictures_come_as_bytes_in_the_order_of_the_header() -> None:
    message = msgspec.structs.replace(gallery(b"", b""), payloads=tuple(reversed(gallery(b"", b"").payloads)))
    received = parse(frames(message, b"first", b"second"))
    assert isinstance(received, Received)
    assert received.payloads == (b"second", b"first")


@pytest.mark.parametrize(
    "entry",
    [
        schema.Payload(1, "embedding", dtype="<f4", shape=(2,)),
        schema.Payload(-1, "image"),
        schema.Payload(0, "embedding", dtype="|O", shape=(1,)),
        schema.Payload(0, "embedding", dtype=">f4", shape=(2,)),
        schema.Payload(0, "embedding", dtype="<f4", shape=(3,)),
        schema.Payload(0, "embedding", dtype="<f4", shape=(-1, -2)),
        schema.Payload(0, "embedding", dtype="<f4", shape=(2**40, 2**40)),
        schema.Payload(0, "embedding", dtype="<f8", shape=(1,) * 65),
        schema.Payload(1, "embedding", dtype="<f4", shape=(0, 2**63 - 1)),
    ],
)
def test_payloads_that_do_not_fit_are_refused(entry: schema.Payload) -> None:
    message = msgspec.structs.replace(retrieval(), payloads=(entry,))
    with pytest.raises(FeedError, match="payload"):
        parse(frames(message, bytes(8)))
    with pytest.raises(FeedError, match="payload"):
        parse(frames(message, bytes(8), b""))


def test_unknown_topics_and_fields_are_skipped() -> None:
    header = msgspec.to_builtins(onset()) | {"new_field": [1, 2]}
    received = parse([b"onset", msgspec.msgpack.encode(header)])
    assert isinstance(received, Received)
    assert received.message == onset()
    assert parse([b"weather", msgspec.json.encode({"topic": "weather", "version": 1, "wind": 3})]) is None


@pytest.mark.parametrize("json", [False, True])
def test_newer_version_is_named(json: bool) -> None:
    codec = msgspec.json if json else msgspec.msgpack
    with pytest.raises(TooNew, match=r"got 2; allowed: up to 1; upgrade"):
        parse([b"onset", codec.encode({"topic": "onset", "version": 2, "all": "different"})])


def test_topic_frame_must_agree_with_the_header() -> None:
    with pytest.raises(FeedError, match="differ"):
        parse([b"stats", frames(onset())[1]])


def test_end_of_a_snapshot() -> None:
    end = schema.SnapshotEnd(session="s", request="r", messages=3, seqs={"onset": 4})
    assert parse(frames(end)) == end


@given(st.lists(st.binary(max_size=200), max_size=4))
@example([])
@example([b"onset"])
@example([b"\xff", b"\xc1"])
@example([b"onset", b"{" * 3000])
@example([b"onset", b'{"topic":"onset","new":' + b"[" * 100_000])
def test_garbage_is_a_feed_error_and_nothing_else(noise: list[bytes]) -> None:
    with contextlib.suppress(FeedError):
        assert parse(noise) is None or len(noise) >= 2


@given(messages(), st.booleans(), st.data())
def test_damaged_messages_are_read_or_refused(message: schema.AnyMessage, json: bool, data: st.DataObject) -> None:
    topic, header = frames(message, json=json)
    at = data.draw(st.integers(0, len(header) - 1))
    damaged = header[:at] + data.draw(st.binary(max_size=3)) + header[at + 1 :]
    with contextlib.suppress(FeedError):
        parse([topic, damaged, b"payload"])
