"""The receiving end of the feed: typed messages, none missed without being counted. Public API.

::

    with Subscriber("tcp://127.0.0.1:5650", topics=("retrieval",)) as feed:
        for received in feed:
            print(received.message.key, received.message.candidates[0].label)
"""

from __future__ import annotations

import math
import time
import uuid
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import msgspec
import zmq

from ..access import authenticate
from ..errors import ConfigError, FeedError
from . import address
from .schema import ON_DEMAND, TOPICS, Session, SnapshotEnd
from .wire import Received, TooNew, parse

_LANES = 2
_RETRY = 0.05  # s until the next try where there is no connection yet, or the subscription came too late
_PATIENCE = 1.0  # s for an answer before asking again; gaps are looked into no more often than this
_SILENCE = 2.0  # s without a message before asking whether one was missed
_NO_SNAPSHOT = 10.0  # s that messages may come while no question is answered
_MAX_FRAME = 64 << 20  # bytes


class _Question(msgspec.Struct):
    """A request for a snapshot that is under way; without ``topics`` it asks only whether a message was missed."""

    request: str
    topics: tuple[str, ...]
    items: list[Received] = []
    end: SnapshotEnd | None = None
    hellos: int = 0


class Subscriber:
    """Subscribes to a feed. It first gets the last message of each kind, then every message, each once and in order.

    A subscriber belongs to one thread. One that reads too slowly loses messages; ``gaps`` counts them, and the last of
    each kind is fetched again. When the publisher restarts, the subscriber joins the new session by itself.

    Parameters
    ----------
    endpoint : str
        Of the publisher: ``tcp://host:port`` of the results, or ``ipc://path``.
    topics : sequence of str
        What to receive; by default all but those published on demand alone, ``signal``.
    timeout : float or None
        Seconds without a sign of the publisher after which iteration gives up; None waits for ever.
    keys : path, optional
        The folder that :func:`~streamdec.access.make_keys` made for this client, where the feed is encrypted.

    Attributes
    ----------
    session : str
        Id of the session, "" until one is joined.
    gaps : dict of str to int
        Messages of a topic that were published since this subscriber joined and never arrived.
    garbage : int
        Messages that could not be read.

    Raises
    ------
    ConfigError
        Where the endpoint, a topic or the keys are not usable.
    """

    _last: dict[str, int]  # newest seq of each topic
    _floor: dict[str, int] | None  # the same before something was missed, until a snapshot has filled it in
    _seen: set[tuple[str, int]]  # topic and seq of what came since
    _syncing: bool  # a snapshot is needed before anything else goes out
    _backlog: list[Received]  # what waits for it
    _backlog_since: float
    _question: _Question | None
    _next_ask: float
    _tries: int  # questions since the last that helped

    def __init__(
        self,
        endpoint: str = address.DEFAULT,
        topics: Sequence[str] = TOPICS,
        *,
        timeout: float | None = 10.0,
        keys: str | Path | None = None,
    ) -> None:
        unknown = sorted(set(topics) - set(TOPICS) - set(ON_DEMAND))
        if unknown or not topics:
            raise ConfigError("feed topics", got=unknown or "none", allowed=", ".join((*TOPICS, *ON_DEMAND)))
        self.endpoint = endpoint
        self.timeout = timeout
        self.session = ""
        self.gaps: dict[str, int] = {}
        self.garbage = 0
        self._topics = frozenset(topics)
        self._joined = tuple(sorted({*topics, "session"}))  # the end of a session ends iteration
        self._id = uuid.uuid4().hex
        self._asks = 0
        self._ready: deque[Received] = deque()
        self._sign = time.monotonic()
        self._synced = -math.inf
        self._join("")

        wanted = address.resolve(endpoint)
        results, snapshot, images = wanted.endpoints
        if not wanted.chosen:
            raise ConfigError("feed endpoint", got=repr(endpoint), allowed="the port that the publisher has")
        self._context = zmq.Context(io_threads=1)
        try:
            self._sub = self._open(zmq.SUB, keys)
            self._dealer = self._open(zmq.DEALER, keys)
        except ConfigError:
            self.close()
            raise
        for topic in (*self._joined, f"hello/{self._id}"):
            self._sub.subscribe(topic.encode())
        self._dealer.immediate = True  # no question waits for a publisher that may come some day
        try:
            self._sub.connect(results)
            self._sub.rcvhwm = 16  # from here on: of the images
            self._sub.connect(images)
            self._dealer.connect(snapshot)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError("feed endpoint", got=repr(endpoint), allowed="an address to connect to") from error
        self._poller = zmq.Poller()
        self._poller.register(self._sub, zmq.POLLIN)
        self._poller.register(self._dealer, zmq.POLLIN)

    @property
    def silence(self) -> float:
        """Seconds since the last sign of the publisher. While it lives it gives one every 2 s, if need be on demand."""
        return time.monotonic() - self._sign

    def receive(self, timeout: float | None = None) -> Received | None:
        """Return the next message, or None where none came within ``timeout`` seconds (None: wait for ever).

        Raises
        ------
        FeedError
            Where the publisher speaks a newer version.
        """
        until = math.inf if timeout is None else time.monotonic() + timeout
        while True:
            received = self._next(until)
            if received is None or received.message.topic in self._topics:
                return received

    def __iter__(self) -> Iterator[Received]:
        """Iterate over the messages until the session ends. Iterating again goes on with the next session.

        Images come by a socket of their own: one that was sent just before the end may come after it, and stay unread.

        Raises
        ------
        FeedError
            Where no sign of a publisher came for :attr:`timeout` seconds, or it speaks a newer version.
        """
        self._sign = time.monotonic()
        while True:
            received = self._next(time.monotonic() + _PATIENCE)
            if received is None:
                if self.timeout is not None and self.silence > self.timeout:
                    raise FeedError(
                        f"feed: no sign of a publisher at {self.endpoint} for {self.timeout:g} s",
                        do="is `streamdec serve` running there, at this port, and are your keys on its list?",
                    )
                continue
            message = received.message
            if message.topic in self._topics:
                yield received
            if isinstance(message, Session) and message.state == "ended":
                return

    def close(self) -> None:
        """Leave the feed. Idempotent."""
        self._context.destroy(linger=0)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _next(self, until: float) -> Received | None:
        while not self._ready:
            now = time.monotonic()
            self._ask(now)
            wait = max(0.0, min(until, self._next_ask) - now)
            sockets = dict(self._poller.poll(math.ceil(wait * 1e3)))
            if self._dealer in sockets:
                self._take(self._dealer.recv_multipart(), answer=True)
            if self._sub in sockets:
                self._take(self._sub.recv_multipart(), answer=False)
            if now >= until and not self._ready:
                return None
        return self._ready.popleft()

    def _ask(self, now: float) -> None:
        """Ask for a snapshot where one is needed, or after a silence whether a message was missed."""
        if now < self._next_ask:
            return
        if self._floor is not None and now >= self._synced + _PATIENCE:
            self._syncing = True
        if not self._syncing and self.silence < _SILENCE:
            self._next_ask = self._sign + _SILENCE
            return
        topics = self._joined if self._syncing else ()
        request = f"{self._id}-{self._asks}"
        try:
            self._dealer.send_multipart([b"snapshot", request.encode(), *(t.encode() for t in topics)], zmq.NOBLOCK)
        except zmq.Again:  # not connected
            self._next_ask = now + _RETRY
            return
        self._asks += 1
        self._tries += 1
        self._question = _Question(request, topics)
        self._next_ask = now + _PATIENCE

    def _take(self, frames: list[bytes], *, answer: bool) -> None:
        """Sort out what came: a hello, an answer's message or end, or a message that was just published."""
        self._sign = time.monotonic()
        question = self._question
        if not answer and frames[0].startswith(b"hello/"):
            if question is not None and frames[0] == b"hello/" + question.request.encode():
                question.hellos += 1
                self._settle(question)
            return
        try:
            received = parse(frames)
        except TooNew:
            raise
        except FeedError:
            self.garbage += 1
            return
        if not answer:
            if isinstance(received, Received):
                self._live(received)
        elif question is None or received is None:
            return
        elif isinstance(received, Received):
            question.items.append(received)
            self._next_ask = self._sign + _PATIENCE
        elif received.request == question.request:
            question.end = received
            self._next_ask = self._sign + min(_PATIENCE, _RETRY * self._tries)
            self._settle(question)
        else:
            question.items.clear()  # they answered a question before this one

    def _live(self, received: Received) -> None:
        """Put a published message where it belongs: out, or behind the snapshot that is under way."""
        message, topic = received.message, received.message.topic
        if message.session != self.session:
            self._join(message.session)
        last = self._last.get(topic, message.seq - 1)
        if message.seq <= last:
            return
        self._count(topic, message.seq - last - 1)
        self._last[topic] = message.seq
        if self._floor is not None:
            self._seen.add((topic, message.seq))
        if not self._syncing:
            self._ready.append(received)
            return
        self._backlog.append(received)
        if not self._backlog_since:
            self._backlog_since = self._sign
        if self._sign - self._backlog_since > _NO_SNAPSHOT:
            raise FeedError(
                f"feed: messages come from {self.endpoint}, but no snapshot",
                do="open all three ports of the feed (the one given and the next two)",
            )

    def _settle(self, question: _Question) -> None:
        """Put the snapshot in, once it is whole and the hellos show that the subscription holds."""
        end = question.end
        if end is None or question.hellos < _LANES:
            return
        self._question = None
        if question.topics and len(question.items) != end.messages:  # some did not fit the publisher's queue
            self._next_ask = self._sign + _RETRY
            return
        if end.session != self.session:
            self._join(end.session)
        for topic in self._joined:
            seq = end.seqs.get(topic, 0)
            last = self._last.setdefault(topic, seq)
            self._count(topic, seq - last)
            self._last[topic] = max(last, seq)
        if not question.topics:
            return
        floor = self._floor or {}
        for item in question.items:
            topic, seq = item.message.topic, item.message.seq
            if seq > floor.get(topic, 0) and (topic, seq) not in self._seen:
                self._ready.append(msgspec.structs.replace(item, fresh=False))
        self._ready.extend(self._backlog)
        self._synced = self._sign
        self._in_step()

    def _count(self, topic: str, missed: int) -> None:
        """Count messages that never came; what was seen before them is noted, so that the snapshot can fill in."""
        if missed <= 0:
            return
        self.gaps[topic] = self.gaps.get(topic, 0) + missed
        if self._floor is None:
            self._floor = dict(self._last)
            self._next_ask = max(self._sign, self._synced + _PATIENCE)

    def _join(self, session: str) -> None:
        """Begin anew with a session of which nothing is known."""
        self.session = session
        self._last = {}
        self._in_step()
        self._floor = {}
        self._syncing = True
        self._question = None
        self._next_ask = 0.0

    def _in_step(self) -> None:
        """Forget what was held back for a snapshot."""
        self._syncing = False
        self._tries = 0
        self._floor = None
        self._seen = set()
        self._backlog = []
        self._backlog_since = 0.0

    def _open(self, kind: int, keys: str | Path | None) -> zmq.Socket[bytes]:
        end: zmq.Socket[bytes] = self._context.socket(kind)
        end.maxmsgsize = _MAX_FRAME
        end.reconnect_ivl_max = 1_000  # ms
        # A publisher whose machine vanished is dialled again. Not by ZMTP heartbeats: libzmq sees none while its queue
        # is full, reconnects, and aborts the process at the next read (zeromq/libzmq issue 3937, open in 4.3.5).
        end.tcp_keepalive = 1
        end.tcp_keepalive_idle = end.tcp_keepalive_intvl = 2  # s
        end.tcp_keepalive_cnt = 2
        end.tcp_maxrt = 6_000  # ms
        end.ipv6 = "://[" in self.endpoint
        if keys is not None:
            authenticate(end, Path(keys))
        return end
