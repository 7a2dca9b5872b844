"""Publisher and subscriber over real sockets."""

from __future__ import annotations

import os
import socket
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
import zmq
from feed_messages import collect, gallery, one_of_each, onset, retrieval, session, signal, stats

from streamdec.access import make_keys
from streamdec.errors import ConfigError, FeedError
from streamdec.feed import schema
from streamdec.feed.address import resolve
from streamdec.feed.publisher import FeedSettings, Publisher
from streamdec.feed.subscriber import Subscriber
from streamdec.feed.wire import Received

FREE = "tcp://127.0.0.1:0"
Publish = Callable[..., Publisher]
Subscribe = Callable[..., Subscriber]


@pytest.fixture
def publish() -> Iterator[Publish]:
    made: list[Publisher] = []

    def make(name: str = "s1", **settings: object) -> Publisher:
        made.append(Publisher(FeedSettings(**({"endpoint": FREE} | settings)), name))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for publisher in made:
        publisher.close()
    assert not [thread for thread in threading.enumerate() if "Garbage" in type(thread).__name__]


@pytest.fixture
def subscribe() -> Iterator[Subscribe]:
    made: list[Subscriber] = []

    def make(publisher: Publisher, *args: object, **options: object) -> Subscriber:
        made.append(Subscriber(publisher.endpoint, *args, **options))  # type: ignore[arg-type]
        return made[-1]

    yield make
    for subscriber in made:
        subscriber.close()


def seqs(got: list[Received], topic: str) -> list[int]:
    return [received.message.seq for received in got if received.message.topic == topic]


def count(n: int) -> Callable[[list[Received]], bool]:
    return lambda got: len(got) >= n


@contextmanager
def unheard(publisher: Publisher) -> Iterator[None]:
    """What is published within reaches no subscriber, as when a queue is full."""
    real = publisher._results
    with zmq.Context() as context, context.socket(zmq.PUB) as publisher._results:
        yield
    publisher._results = real


@pytest.mark.parametrize("encoding", ["msgpack", "json"])
def test_everything_arrives_typed_once_and_in_order(publish: Publish, subscribe: Subscribe, encoding: str) -> None:
    publisher = publish(encoding=encoding)
    publisher.publish(session("started"))
    feed = subscribe(publisher)
    collect(publisher, feed, count(1))
    sent = one_of_each()
    headers = [publisher.publish(message) for message in sent]
    got = collect(publisher, feed, count(len(sent)))
    by_lane = sorted(got, key=lambda received: received.message.topic in schema.IMAGE_TOPICS)
    expected = [msgspec.json.decode(header, type=schema.AnyMessage) for header in headers]
    assert [received.message for received in by_lane] == expected
    assert all(received.fresh and received.message.session == "s1" for received in got)
    assert [message.seq for message in expected] == [2, 3, 1, 1, 1, 1, 1, 1, 1, 1]
    assert feed.gaps == {}
    assert feed.garbage == 0


def test_payloads_arrive_little_endian_and_may_be_overwritten(publish: Publish, subscribe: Subscribe) -> None:
    publisher = publish()
    publisher.publish(session("started"))
    feed = subscribe(publisher)
    collect(publisher, feed, count(1))
    buffer = np.arange(8, dtype=">f4")
    publisher.publish(retrieval("a", 8), [buffer])
    strided = np.arange(40_000, dtype="<f4")[::2]
    publisher.publish(retrieval("b", 20_000), [strided])
    buffer[:] = strided[:] = -1
    publisher.publish(retrieval("c", 0))
    first, second, third = collect(publisher, feed, count(3))
    np.testing.assert_array_equal(first.payloads[0], np.arange(8))
    np.testing.assert_array_equal(second.payloads[0], np.arange(0, 40_000, 2))
    assert third.payloads == ()


def test_payloads_must_be_described(publish: Publish) -> None:
    with pytest.raises(FeedError, match="got 1; allowed: 2"):
        publish().publish(gallery(b"", b""), [b"png"])


def test_late_joiner_gets_the_last_of_each_kind_and_then_misses_nothing(publish: Publish, subscribe: Subscribe) -> None:
    publisher = publish()
    pictures = (os.urandom(100_000), os.urandom(10))
    for message in one_of_each()[:-1]:
        publisher.publish(message)
    publisher.publish(gallery(*pictures), pictures)
    publisher.publish(session("stalled", stream="eeg", reason="no samples for 0.3 s"))
    publisher.publish(onset("last"))
    feed = subscribe(publisher)
    got = collect(publisher, feed, count(9))
    assert not any(received.fresh for received in got)
    states = [r.message.state for r in got if isinstance(r.message, schema.Session)]
    assert states == ["started", "connected", "stalled"]
    assert seqs(got, "onset") == [2]
    (card,) = (received for received in got if isinstance(received.message, schema.Gallery))
    assert card.payloads == pictures
    for _ in range(50):
        publisher.publish(onset())
    more = collect(publisher, feed, count(50))
    assert seqs(more, "onset") == list(range(3, 53))
    assert all(received.fresh for received in more)
    assert feed.gaps == {}


def test_joining_while_messages_stream_misses_none(publish: Publish, subscribe: Subscribe) -> None:
    publisher = publish()
    for _ in range(3):
        publisher.publish(onset())
        feed = subscribe(publisher)
        got: list[Received] = []
        until = time.monotonic() + 20
        while len(got) < 30 and time.monotonic() < until:
            publisher.publish(onset())
            publisher.serve()
            if (received := feed.receive(0.001)) is not None:
                got.append(received)
        numbers = seqs(got, "onset")
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert len(numbers) >= 30
        assert feed.gaps == {}


def test_only_the_topics_asked_for(publish: Publish, subscribe: Subscribe) -> None:
    publisher = publish()
    for message in one_of_each():
        publisher.publish(message)
    feed = subscribe(publisher, ("onset", "stats"))
    assert {r.message.topic for r in collect(publisher, feed, count(2))} == {"onset", "stats"}
    for message in one_of_each():
        publisher.publish(message)
    assert [r.message.topic for r in collect(publisher, feed, count(2))] == ["onset", "stats"]


def test_iteration_ends_with_the_session_and_goes_on_with_the_next(publish: Publish, subscribe: Subscribe) -> None:
    publisher = publish()
    publisher.publish(session("started"))
    feed = subscribe(publisher, ("retrieval",))
    while not feed.session:
        publisher.serve()
        assert feed.receive(0.005) is None
    publisher.publish(retrieval("a"))
    publisher.publish(session("ended"))
    assert [received.message.key for received in feed] == ["a"]  # type: ignore[union-attr]
    publisher.close()

    again = Publisher(FeedSettings(endpoint=publisher.endpoint), "s2")
    stop = threading.Event()

    def second() -> None:
        again.publish(retrieval("b"))
        while not stop.wait(0.005):
            again.serve()
        again.publish(session("ended"))
        again.close()

    thread = threading.Thread(target=second)
    thread.start()
    got = []
    for received in feed:
        got.append(received)
        stop.set()
    thread.join()
    assert [received.message.session for received in got] == ["s2"]
    assert not got[0].fresh
    assert feed.gaps == {}


def test_restart_is_followed_without_a_message(publish: Publish, subscribe: Subscribe) -> None:
    publisher = publish("old")
    for _ in range(5):
        publisher.publish(onset())
    feed = subscribe(publisher)
    collect(publisher, feed, count(1))
    publisher.close()
    publisher = publish("new", endpoint=publisher.endpoint)
    publisher.publish(session("started"))
    (received,) = collect(publisher, feed, count(1))
    assert received.message.session == feed.session == "new"
    publisher.publish(onset())
    assert seqs(collect(publisher, feed, count(1)), "onset") == [1]
    assert feed.gaps == {}


def test_gap_is_counted_and_the_last_of_each_kind_fetched(publish: Publish, subscribe: Subscribe) -> None:
    publisher = publish()
    publisher.publish(onset())
    publisher.publish(session("started"))
    feed = subscribe(publisher)
    collect(publisher, feed, count(2))
    with unheard(publisher):
        publisher.publish(onset())
        publisher.publish(onset())
        publisher.publish(session("lost", stream="eeg"))
    publisher.publish(onset("seen"))
    got = collect(publisher, feed, count(2))
    assert [(r.message.topic, r.message.seq, r.fresh) for r in got] == [("onset", 4, True), ("session", 2, False)]
    assert feed.gaps == {"onset": 2, "session": 1}


def test_loss_of_the_very_last_messages_is_noticed(publish: Publish, subscribe: Subscribe) -> None:
    publisher = publish()
    publisher.publish(onset())
    feed = subscribe(publisher)
    collect(publisher, feed, count(1))
    with unheard(publisher):
        publisher.publish(onset("unseen"))
    (received,) = collect(publisher, feed, count(1))
    assert (received.message.seq, received.fresh) == (2, False)
    assert feed.gaps == {"onset": 1}


def test_subscriber_that_never_reads_costs_nothing(publish: Publish) -> None:
    publisher = publish()
    context = zmq.Context()
    idle = context.socket(zmq.SUB)
    idle.rcvhwm = 10
    idle.subscribe(b"")
    for endpoint in (resolve(publisher.endpoint).endpoints[i] for i in (0, 2)):
        idle.connect(endpoint)
    until = time.monotonic() + 20
    while not idle.poll(10) and time.monotonic() < until:
        publisher.publish(onset())
        publisher.publish(gallery(b""), [b"png"])
    assert idle.poll(0)
    picture = os.urandom(200_000)
    before = psutil.Process().memory_info().rss
    for _ in range(20_000):
        publisher.publish(retrieval(dims=64), [bytes(256)])
        publisher.serve()
    for _ in range(500):
        publisher.publish(gallery(picture), [picture])
    grown = psutil.Process().memory_info().rss - before
    context.destroy(linger=0)
    assert grown < 40e6, f"{grown / 1e6:.0f} MB for 20 000 results and 100 MB of pictures"


def test_request_that_is_never_read_is_bounded(publish: Publish) -> None:
    publisher = publish(results_hwm=8)
    picture = os.urandom(1_000_000)
    publisher.publish(gallery(picture), [picture])
    context = zmq.Context()
    greedy = context.socket(zmq.DEALER)
    greedy.rcvhwm = 1
    greedy.connect(resolve(publisher.endpoint).endpoints[1])
    before = psutil.Process().memory_info().rss
    for _ in range(300):
        greedy.send_multipart([b"snapshot", b"x", b"gallery"])
        publisher.serve()
    until = time.monotonic() + 20
    while publisher._more and time.monotonic() < until:
        publisher.serve()
    grown = psutil.Process().memory_info().rss - before
    context.destroy(linger=0)
    assert grown < 40e6, f"{grown / 1e6:.0f} MB"


def test_nonsense_on_the_snapshot_port_is_ignored(publish: Publish, subscribe: Subscribe) -> None:
    publisher = publish()
    publisher.publish(onset())
    snapshot = resolve(publisher.endpoint).endpoints[1]
    context = zmq.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.connect(snapshot)
    for frames in (
        [b""],
        [b"snapshot"],
        [b"what", b"ever"],
        [b"snapshot", b"\xff\xfe", b"onset", b"\x00"],
        [b"x" * 100_000],
    ):
        dealer.send_multipart(frames)
    host, port = snapshot.removeprefix("tcp://").split(":")
    with socket.create_connection((host, int(port))) as raw:
        raw.sendall(os.urandom(5000))
        feed = subscribe(publisher)
        assert seqs(collect(publisher, feed, count(1)), "onset") == [1]
    context.destroy(linger=0)


def test_garbage_is_skipped_and_counted(subscribe: Subscribe, tmp_path: Path) -> None:
    context = zmq.Context()
    endpoint = f"ipc://{tmp_path}/feed"
    pub = context.socket(zmq.PUB)
    pub.bind(endpoint)
    feed = Subscriber(endpoint, timeout=None)
    until = time.monotonic() + 20
    while feed.garbage < 3 and time.monotonic() < until:
        for frames in ([b"onset", os.urandom(30)], [b"stats"], [b"epoch", b"\x81\xa5topic\xa5onset"]):
            pub.send_multipart(frames)
        assert feed.receive(0.01) is None
    assert feed.garbage >= 3
    pub.send_multipart([b"onset", msgspec.msgpack.encode({"topic": "onset", "version": 7})])
    with pytest.raises(FeedError, match="version"):
        feed.receive(20)
    feed.close()
    context.destroy(linger=0)


def test_messages_without_snapshots_are_an_error(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("streamdec.feed.subscriber._NO_SNAPSHOT", 0.2)
    context = zmq.Context()
    pub = context.socket(zmq.PUB)
    endpoint = f"ipc://{tmp_path}/feed"
    pub.bind(endpoint)

    def hear() -> None:
        for seq in range(2000):
            header = msgspec.msgpack.encode(msgspec.structs.replace(onset(), session="s", seq=seq + 1))
            pub.send_multipart([b"onset", header])
            assert feed.receive(0.01) is None

    with (
        Subscriber(endpoint, timeout=None) as feed,
        pytest.raises(FeedError, match="no snapshot; open all three ports"),
    ):
        hear()
    context.destroy(linger=0)


def test_no_publisher(tmp_path: Path) -> None:
    with Subscriber(f"ipc://{tmp_path}/nobody", timeout=0.05) as feed:
        assert feed.receive(0.01) is None
        assert feed.receive(0) is None
        with pytest.raises(FeedError, match=r"no sign of a publisher at ipc:.*streamdec serve"):
            next(iter(feed))
        assert feed.silence > 0


def test_close_sends_the_last_words(publish: Publish, subscribe: Subscribe) -> None:
    publisher = publish()
    publisher.publish(session("started"))
    feed = subscribe(publisher)
    collect(publisher, feed, count(1))
    for _ in range(200):
        publisher.publish(stats())
    publisher.publish(session("ended"))
    publisher.close()
    publisher.close()
    *rest, last = feed
    assert len(rest) == 200
    assert last.message.state == "ended"  # type: ignore[union-attr]
    feed.close()
    feed.close()


@pytest.mark.parametrize("lane", [0, 1, 2])
def test_port_in_use_is_named_and_nothing_stays_bound(lane: int) -> None:
    probe = Publisher(FeedSettings(endpoint=FREE), "probe")
    first = probe.endpoint
    probe.close()
    endpoints = resolve(first).endpoints
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(("127.0.0.1", int(endpoints[lane].rpartition(":")[2])))
        taken.listen()
        with pytest.raises(FeedError, match=rf"{endpoints[lane]} is in use; stop .* or set feed\.endpoint"):
            Publisher(FeedSettings(endpoint=first), "s")
    Publisher(FeedSettings(endpoint=first), "s").close()


def test_ipc(publish: Publish, subscribe: Subscribe, tmp_path: Path) -> None:
    endpoint = f"ipc://{tmp_path}/feed"
    publisher = publish(endpoint=endpoint)
    assert publisher.endpoint == endpoint
    publisher.publish(onset())
    assert seqs(collect(publisher, subscribe(publisher), count(1)), "onset") == [1]
    with pytest.raises(FeedError, match="in use"):
        Publisher(FeedSettings(endpoint=endpoint), "second")
    publisher.close()
    publish(endpoint=endpoint)
    with pytest.raises(FeedError, match="No such file"):
        Publisher(FeedSettings(endpoint=f"ipc://{tmp_path}/absent/feed"), "s")
    with pytest.raises(FeedError, match=r"File name too long.*set feed\.endpoint"):
        Publisher(FeedSettings(endpoint=f"ipc://{tmp_path}/{'x' * 107}"), "s")


def test_address_of_another_machine() -> None:
    with pytest.raises(ConfigError, match=r"no keys.*streamdec keys"):
        FeedSettings(endpoint="tcp://0.0.0.0:5650")
    with pytest.raises(ConfigError, match=r"no keys"):
        msgspec.convert({"endpoint": "tcp://*:5650"}, FeedSettings)


@pytest.mark.parametrize("settings", [{"results_hwm": 0}, {"images_hwm": -1}, {"endpoint": "inproc://x"}])
def test_settings_are_checked(settings: dict[str, object]) -> None:
    with pytest.raises(ConfigError):
        FeedSettings(**settings)  # type: ignore[arg-type]


@pytest.mark.parametrize("topics", [(), ("retrieval", "weather")])
def test_topics_are_checked(topics: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError, match="feed topics"):
        Subscriber(topics=topics)


@pytest.mark.parametrize(
    "endpoint", [FREE, "tcp://*:5650", "tcp://127.0.0.1", "tcp://a b:5650", "udp://x:1", "ipc://", ""]
)
def test_endpoints_are_checked(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="feed endpoint"):
        Subscriber(endpoint)


class TestKeys:
    """CURVE: who is on the list reads, and nobody else."""

    @pytest.fixture
    def keys(self, tmp_path: Path) -> Path:
        make_keys(tmp_path / "keys", ["anna"])
        return tmp_path / "keys"

    def test_client_on_the_list_reads(self, publish: Publish, subscribe: Subscribe, keys: Path) -> None:
        publisher = publish(endpoint="tcp://0.0.0.0:0", keys=str(keys))
        publisher.publish(onset())
        feed = subscribe(publisher, keys=keys / "anna")
        assert seqs(collect(publisher, feed, count(1)), "onset") == [1]
        publisher.publish(onset())
        assert seqs(collect(publisher, feed, count(1)), "onset") == [2]

    def test_nobody_else_does(self, publish: Publish, subscribe: Subscribe, keys: Path, tmp_path: Path) -> None:
        publisher = publish(keys=str(keys))
        make_keys(tmp_path / "foreign", ["eve"])
        eve = tmp_path / "foreign" / "eve"
        (eve / "feed.key").write_bytes((keys / "feed.key").read_bytes())
        (keys / "clients" / "late.key").write_bytes((tmp_path / "foreign" / "clients" / "eve.key").read_bytes())
        strangers = [subscribe(publisher), subscribe(publisher, keys=eve)]
        friend = subscribe(publisher, keys=keys / "anna")
        publisher.publish(session("started"))
        collect(publisher, friend, count(1))
        for _ in range(60):
            publisher.publish(onset())
            publisher.serve()
            assert [stranger.receive(0.005) for stranger in strangers] == [None, None]
        assert [stranger.session for stranger in strangers] == ["", ""]

    def test_files(self, keys: Path) -> None:
        before = (keys / "feed.secret").read_bytes()
        (folder,) = make_keys(str(keys), ["ben-2"])
        assert folder == keys / "ben-2"
        assert (keys / "feed.secret").read_bytes() == before
        assert sorted(path.name for path in keys.glob("clients/*")) == ["anna.key", "ben-2.key"]
        assert (folder / "feed.key").read_bytes() == (keys / "feed.key").read_bytes()
        for path in (keys / "feed.secret", folder / "client.secret"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert stat.S_IMODE(keys.stat().st_mode) == 0o700

    @pytest.mark.parametrize("name", ["anna", "../up", "clients", ""])
    def test_names(self, keys: Path, name: str) -> None:
        with pytest.raises(ConfigError, match="client"):
            make_keys(keys, [name])

    def test_wrong_files(self, keys: Path, tmp_path: Path) -> None:
        with pytest.raises(ConfigError, match=r"key file .*No such file.*streamdec keys"):
            Publisher(FeedSettings(endpoint=FREE, keys=str(tmp_path / "absent")), "s")
        make_keys(tmp_path / "empty")
        with pytest.raises(ConfigError, match="nobody may come in"):
            Publisher(FeedSettings(endpoint=FREE, keys=str(tmp_path / "empty")), "s")
        (keys / "clients" / "anna.key").write_text("not a key")
        with pytest.raises(ConfigError, match="40 Z85 characters"):
            Publisher(FeedSettings(endpoint=FREE, keys=str(keys)), "s")
        with pytest.raises(ConfigError, match="key file"):
            Subscriber(keys=tmp_path)


def test_what_is_made_on_demand_is_known_to_be_wanted(publish: Publish, subscribe: Subscribe) -> None:
    publisher = publish()
    publisher.publish(session("started"))
    everything_else = subscribe(publisher)
    collect(publisher, everything_else, count(1))
    assert not publisher.wanted("signal")
    first, second = (subscribe(publisher, ("signal", "onset")) for _ in range(2))
    collect(publisher, first, lambda _: first.session == "s1" and publisher.wanted("signal"))
    collect(publisher, second, lambda _: second.session == "s1")
    publisher.publish(signal(), [np.arange(6, dtype=np.float32).reshape(2, 3)])
    for feed in (first, second):
        (received,) = collect(publisher, feed, count(1))
        assert received.payloads[0].tolist() == [[0, 1, 2], [3, 4, 5]]  # type: ignore[union-attr]
    first.close()
    publisher.publish(onset())
    collect(publisher, second, count(1))
    assert publisher.wanted("signal")
    second.close()
    until = time.monotonic() + 10
    while publisher.wanted("signal"):
        assert time.monotonic() < until
        publisher.serve()


def test_what_is_subscribed_to_while_messages_go_out_is_known(publish: Publish) -> None:
    publisher = publish()

    def taken_in(sub: zmq.Socket[bytes], message: schema.AnyMessage) -> None:
        """Have ``publish`` alone, without ``serve``, take in all that was subscribed to up to the message's topic."""
        sub.subscribe(message.topic)
        until = time.monotonic() + 10
        while not sub.poll(1):
            assert time.monotonic() < until
            publisher.publish(message)

    with zmq.Context() as context, context.socket(zmq.SUB) as sub:
        sub.connect(publisher.endpoint)
        sub.subscribe("signal")
        taken_in(sub, onset())
        publisher.serve()
        assert publisher.wanted("signal")
        sub.unsubscribe("signal")
        sub.unsubscribe("onset")
        while sub.poll(0):
            sub.recv_multipart()
        taken_in(sub, stats())
        publisher.serve()
        assert not publisher.wanted("signal")


def test_floods_of_subscriptions_are_taken_in_step_by_step(publish: Publish) -> None:
    publisher = publish()
    with zmq.Context() as context, context.socket(zmq.SUB) as sub:
        sub.connect(publisher.endpoint)
        for i in range(900):  # libzmq holds 1000 for a connection to come
            sub.subscribe(f"{i}")
        sub.subscribe("")  # all there is
        until = time.monotonic() + 10
        while not publisher.wanted("signal"):
            assert time.monotonic() < until
            publisher.serve()
        sub.unsubscribe("")
        while publisher.wanted("signal"):
            assert time.monotonic() < until
            publisher.serve()
