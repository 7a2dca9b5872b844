"""The subscriber's account, whatever is lost on the way: a publisher without sockets, driven by hypothesis."""

from __future__ import annotations

from collections.abc import Hashable
from types import SimpleNamespace

import msgspec
import pytest
from feed_messages import onset, session, stats
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from streamdec.feed import schema
from streamdec.feed.publisher import _slot
from streamdec.feed.subscriber import Subscriber
from streamdec.feed.wire import Received

KINDS = {"onset": onset, "stats": stats, "session": lambda: session("gap", stream="eeg")}


class Dealer:
    """Holds the subscriber's last question."""

    question: tuple[bytes, ...] | None = None

    def send_multipart(self, frames: list[bytes], flags: int) -> None:
        self.question = tuple(frames)


class Feed(RuleBasedStateMachine):
    """Publishes, loses, answers, restarts: each message must come out once, in order, or be counted."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = pytest.MonkeyPatch()
        self.now = 100.0
        self.patch.setattr("streamdec.feed.subscriber.time", SimpleNamespace(monotonic=lambda: self.now))
        self.feed = Subscriber("ipc://nowhere")
        self.feed._dealer.close()
        self.dealer = Dealer()
        self.feed._dealer = self.dealer  # type: ignore[assignment]
        self.runs = 0
        self.restart()

    def teardown(self) -> None:
        self.feed.close()
        self.patch.undo()

    @rule()
    def restart(self) -> None:
        self.runs += 1
        self.name = f"s{self.runs}"
        self.seqs: dict[str, int] = {}
        self.base: dict[str, int] = {}  # seq of each topic at which the subscriber came to know of it
        self.kept: dict[Hashable, schema.AnyMessage] = {}
        self.got: list[Received] = []
        self.earlier = dict(self.feed.gaps)
        self.dealer.question = None

    @rule(topic=st.sampled_from(sorted(KINDS)), heard=st.booleans(), n=st.integers(1, 4), seconds=st.floats(0, 2))
    def publish(self, topic: str, heard: bool, n: int, seconds: float) -> None:
        for _ in range(n):
            self.now += seconds
            seq = self.seqs[topic] = self.seqs.get(topic, 0) + 1
            message = msgspec.structs.replace(KINDS[topic](), session=self.name, seq=seq)
            self.kept[_slot(message)] = message
            if heard:
                self.base.setdefault(topic, seq - 1)
                self.feed._backlog_since = 0.0  # the time limit for an answer is another test's
                self.feed._take([topic.encode(), msgspec.msgpack.encode(message)], answer=False)

    @rule(seconds=st.floats(0, 3), hellos=st.permutations([b"", b"hello", b"hello"]), through=st.booleans())
    def answer(self, seconds: float, hellos: list[bytes], through: bool) -> None:
        """Let the subscriber ask, and answer; where not ``through``, its subscription comes too late for one lane."""
        self.now += seconds
        self.feed._ask(self.now)
        if self.dealer.question is None:
            return
        _, request, *topics = self.dealer.question
        self.dealer.question = None
        for hello in hellos if through else hellos[:2]:
            if hello:
                self.feed._take([b"hello/" + request], answer=False)
                continue
            kept = [message for message in self.kept.values() if message.topic.encode() in topics]
            for message in kept:
                self.feed._take([message.topic.encode(), msgspec.msgpack.encode(message)], answer=True)
            end = schema.SnapshotEnd(
                session=self.name, request=request.decode(), messages=len(kept), seqs=dict(self.seqs)
            )
            self.feed._take([b"end", msgspec.msgpack.encode(end)], answer=True)
        if through:  # also where it only asked whether a message was missed, and heard of a new session
            for topic in KINDS:
                self.base.setdefault(topic, self.seqs.get(topic, 0))

    @rule()
    def settle(self) -> None:
        """Answer until the subscriber has nothing more to ask; then nothing may be open."""
        for _ in range(4):
            self.answer(3.0, [b"hello", b"", b"hello"], True)
        self.drain()
        known = {(received.message.topic, received.message.seq) for received in self.got}
        for message in self.kept.values():
            assert (message.topic, message.seq) in known
        for topic, newest in self.seqs.items():
            fresh = sum(received.message.topic == topic and received.fresh for received in self.got)
            missed = self.feed.gaps.get(topic, 0) - self.earlier.get(topic, 0)
            assert fresh + missed == newest - self.base[topic], topic

    @invariant()
    def drain(self) -> None:
        while self.feed._ready:
            received = self.feed._ready.popleft()
            if received.message.session == self.name:
                self.got.append(received)
        for topic in KINDS:
            of_topic = [received for received in self.got if received.message.topic == topic]
            assert len({received.message.seq for received in of_topic}) == len(of_topic)
            fresh = [received.message.seq for received in of_topic if received.fresh]
            assert fresh == sorted(fresh)
        assert self.feed.garbage == 0


Feed.TestCase.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
TestFeed = Feed.TestCase


@pytest.mark.parametrize("before", [0, 1])
def test_a_probe_that_meets_a_new_session_joins_it(before: int) -> None:
    """What is lost between that probe and the snapshot is missed; what was published before the probe is not."""
    state = Feed()
    try:
        state.settle()
        state.restart()
        state.publish(topic="onset", heard=False, n=before, seconds=0.0)
        state.answer(seconds=2.0, hellos=[b"", b"hello", b"hello"], through=True)
        assert state.feed.session == state.name
        assert state.feed.gaps == {}
        state.publish(topic="onset", heard=False, n=1, seconds=0.0)
        state.settle()
        assert state.feed.gaps == {"onset": 1}
        assert [(received.message.seq, received.fresh) for received in state.got] == [(before + 1, False)]
    finally:
        state.teardown()
