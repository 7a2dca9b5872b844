"""Messages between hot loop, dispatcher and workers, and the sockets they go by."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import zmq
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from streamdec.access import make_keys
from streamdec.decode.generate import link
from streamdec.decode.generate.job import Answer, Drop, Request, Result
from streamdec.errors import ConfigError
from streamdec.types import Candidate


def request(embedding: Any = (1.0, 2.0), epoch: Any = None) -> Request:
    array = np.asarray(embedding, np.float32)
    return Request(7, "caption", "a", 2, 1.0, 1.3, (Candidate("a", "an a", 0.5, 0.25),), array, epoch)


def same(a: Request, b: Request) -> bool:
    def plain(one: Request) -> Any:
        return {field: getattr(one, field) for field in one.__struct_fields__ if field not in ("embedding", "epoch")}

    return plain(a) == plain(b) and all(
        (x is None and y is None) or (x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes())
        for x, y in ((a.embedding, b.embedding), (a.epoch, b.epoch))
    )


arrays = hnp.arrays(np.float32, hnp.array_shapes(min_dims=1, max_dims=2, min_side=0, max_side=5))


@given(arrays, st.none() | arrays)
def test_arrays_come_as_they_went(embedding: Any, epoch: Any) -> None:
    sent = request(embedding, epoch)
    frames = link.Codec[Any](link.ToDispatcher).pack(sent)
    assert len(frames) == 2 + (epoch is not None)
    got = link.Codec[Any](link.ToDispatcher).unpack(frames)
    assert isinstance(got, Request)
    assert same(got, sent)
    job = link.Job(sent, "llm", 3, 0.2)
    back = link.Codec[Any](link.ToWorker).unpack(link.Codec[Any](link.ToWorker).pack(job))
    assert (back.tier, back.units, back.seconds) == ("llm", 3, 0.2)
    assert same(back.request, sent)


def test_an_array_of_another_type_is_not_sent() -> None:
    with pytest.raises(TypeError, match="cannot be sent"):
        link.Codec[Any](link.ToWorker).pack(request().__class__(**{**_fields(request()), "embedding": np.zeros(2)}))


def _fields(struct: msgspec.Struct) -> dict[str, Any]:
    return {name: getattr(struct, name) for name in struct.__struct_fields__}


ANSWER = Answer(7, "llm", Result(text="a text", units=2, wanted=4), 1.0, 1.2, "caption-1")


@pytest.mark.parametrize(
    "message", [ANSWER, Drop(7, "why"), link.Notice("w", "lost"), link.Up(), link.Ready(), link.Beat()]
)
def test_small_messages_come_as_they_went(message: Any) -> None:
    codec = link.Codec[Any](link.ToLoop)
    assert codec.unpack(codec.pack(message)) == message


@given(st.lists(st.binary(max_size=60), max_size=4))
def test_bytes_that_are_no_message_are_none(frames: list[bytes]) -> None:
    for kinds in (link.ToDispatcher, link.ToLoop, link.ToWorker, link.FromWorker):
        link.Codec[Any](kinds).unpack(frames)


@given(st.integers(0, 2), st.integers(0, 200), st.integers(0, 255))
def test_a_changed_message_is_a_message_or_none(frame: int, place: int, value: int) -> None:
    frames = [bytearray(part) for part in link.Codec[Any](link.ToDispatcher).pack(request(epoch=np.ones((2, 2), "f4")))]
    frames[frame][place % len(frames[frame])] = value
    got = link.Codec[Any](link.ToDispatcher).unpack([bytes(part) for part in frames])
    assert got is None or isinstance(got, (Request, link.Close))


@pytest.mark.parametrize("entry", [[0, [3]], [1, [2]], [-1, [2]], [0, [-2]], [0, [2**40, 2**40]], [0], "x"])
def test_arrays_that_are_not_what_they_say_are_refused(entry: Any) -> None:
    codec = link.Codec[Any](link.ToDispatcher)
    header, array = codec.pack(request())
    fields = msgspec.msgpack.decode(header)
    assert codec.unpack([msgspec.msgpack.encode(fields | {"embedding": [0, [2]]}), array]) is not None
    assert codec.unpack([msgspec.msgpack.encode(fields | {"embedding": entry}), array]) is None


@pytest.mark.parametrize(
    ("listen", "keys", "problem"),
    [
        ("tcp://0.0.0.0:5000", False, "can be reached from other machines, and there are no keys"),
        ("tcp://amplifier:5000", False, "can be reached from other machines"),
        ("tcp://127.0.0.1:70000", False, "allowed: tcp://host:port"),
        ("ipc:///tmp/x", True, "allowed: tcp://host:port"),
    ],
)
def test_where_workers_may_join_is_checked(listen: str, keys: bool, problem: str) -> None:
    with pytest.raises(ConfigError, match=problem):
        link.check_listen(listen, keys)


@pytest.mark.parametrize(("listen", "keys"), [("", False), ("tcp://127.0.0.1:0", False), ("tcp://0.0.0.0:1", True)])
def test_where_workers_may_join(listen: str, keys: bool) -> None:
    link.check_listen(listen, keys)


# --- sockets ----------------------------------------------------------------------------------------------------------


def until(found: Callable[[], Any], seconds: float = 10.0) -> Any:
    end = time.monotonic() + seconds
    while not (result := found()):
        assert time.monotonic() < end, f"not within {seconds} s"
        time.sleep(0.002)
    return result


@pytest.fixture
def opened() -> Iterator[Callable[..., Any]]:
    made: list[Any] = []

    def make(kind: type, *arguments: Any) -> Any:
        made.append(kind(*arguments))
        return made[-1]

    yield make
    for end in made:
        end.close()


def test_a_line_carries_both_ways_and_never_waits(opened: Callable[..., Any], tmp_path: Path) -> None:
    loop = opened(link.Line, f"ipc://{tmp_path}/l", link.ToLoop, "loop")
    assert not loop.send(request()), "nobody is there"
    assert loop.receive() is None
    dispatcher = opened(link.Line, f"ipc://{tmp_path}/l", link.ToDispatcher, "dispatcher")
    until(lambda: dispatcher.send(ANSWER))
    assert until(loop.receive) == ANSWER
    assert loop.send(request())
    assert same(until(dispatcher.receive), request())
    sent = 0
    while loop.send(request(np.zeros(100_000))):
        sent += 1
        assert sent < 10_000, "its queue has a bound"
    assert sent > 0


def test_a_hub_tells_its_workers_apart_and_those_that_left(opened: Callable[..., Any], tmp_path: Path) -> None:
    hub = opened(link.Hub, f"ipc://{tmp_path}/w", "tcp://127.0.0.1:0", None)
    near = opened(link.Line, f"ipc://{tmp_path}/w", link.ToWorker, "worker")
    far = opened(link.Line, hub.listening, link.ToWorker, "worker")
    peers = {}
    for name, line in (("near", near), ("far", far)):
        until(lambda line=line, name=name: line.send(link.Failed(0, name)))
        peer, message = until(hub.receive)
        peers[message.reason] = peer
    assert hub.send(peers["near"], link.Cancel(1))
    assert hub.send(peers["far"], link.Cancel(2))
    assert (until(near.receive).id, until(far.receive).id) == (1, 2)
    near.close()
    until(lambda: not hub.send(peers["near"], link.Beat()))
    far.redial()
    until(lambda: far.send(link.Beat()))
    peer, message = until(hub.receive)
    assert message == link.Beat()
    assert peer != peers["far"]
    assert not hub.send(b"rnobody", link.Beat())


def test_what_is_no_message_is_counted_and_what_is_too_large_cuts_off(
    opened: Callable[..., Any], tmp_path: Path
) -> None:
    hub = opened(link.Hub, f"ipc://{tmp_path}/w")
    context = zmq.Context()
    stranger = context.socket(zmq.DEALER)
    stranger.linger = 0
    try:
        stranger.connect(f"ipc://{tmp_path}/w")
        stranger.send_multipart([b"\xc1"])
        stranger.send_multipart([b"", b""])
        stranger.send_multipart([msgspec.msgpack.encode(link.Beat()), bytes(link.MAX_FRAME + 1)])
        stranger.send(msgspec.msgpack.encode(link.Beat()))  # by a new connection
        assert until(hub.receive)[1] == link.Beat()
        assert hub.garbage == 2
        assert hub.receive() is None
    finally:
        stranger.close()
        context.term()


def test_keys(opened: Callable[..., Any], tmp_path: Path) -> None:
    make_keys(tmp_path / "keys", ["gpu-box"])
    make_keys(tmp_path / "foreign", ["eve"])
    eve = tmp_path / "foreign" / "eve"
    (eve / "feed.key").write_bytes((tmp_path / "keys" / "feed.key").read_bytes())
    hub = opened(link.Hub, f"ipc://{tmp_path}/w", "tcp://127.0.0.1:0", tmp_path / "keys")
    strangers = [opened(link.Line, hub.listening, link.ToWorker, "worker", folder) for folder in (None, eve)]
    friend = opened(link.Line, hub.listening, link.ToWorker, "worker", tmp_path / "keys" / "gpu-box")

    def turned_away() -> bool:
        assert not any(stranger.send(link.Beat()) for stranger in strangers)
        return hub.receive() is None and hub.refused > 0

    until(turned_away)
    until(lambda: hub.receive() or friend.send(link.Beat()))
    assert until(hub.receive)[1] == link.Beat()
    assert not any(stranger.send(link.Beat()) for stranger in strangers)


def test_what_cannot_be_opened(opened: Callable[..., Any], tmp_path: Path) -> None:
    hub = opened(link.Hub, f"ipc://{tmp_path}/w", "tcp://127.0.0.1:0")
    with pytest.raises(ConfigError, match=r"generate\.listen.*in use"):
        link.Hub(f"ipc://{tmp_path}/v", hub.listening)
    with pytest.raises(ConfigError, match="key file"):
        link.Hub(f"ipc://{tmp_path}/u", "tcp://127.0.0.1:0", tmp_path)
    with pytest.raises(ConfigError, match="key file"):
        link.Line(hub.listening, link.ToWorker, "worker", tmp_path)
    with pytest.raises(ConfigError, match="endpoint"):
        link.Line("tcp://", link.ToWorker, "worker")


def test_a_line_leaves_the_context_it_was_given_to_its_owner(tmp_path: Path) -> None:
    with zmq.Context() as context:
        first = link.Line[Any](f"ipc://{tmp_path}/first", link.ToLoop, "loop", context=context)
        second = link.Line[Any](f"ipc://{tmp_path}/second", link.ToLoop, "loop", context=context)
        first.close()
        first.close()
        dispatcher = link.Line[Any](second.endpoint, link.ToDispatcher, "dispatcher")
        until(lambda: dispatcher.send(ANSWER))
        until(lambda: second.receive() == ANSWER)
        with pytest.raises(ConfigError, match="endpoint"):
            link.Line[Any](f"ipc://{tmp_path}/none/such", link.ToLoop, "loop", context=context)
        assert not context.closed
        for line in (dispatcher, second):
            line.close()
