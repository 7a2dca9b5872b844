"""The sending end of the feed: two lanes of messages, and snapshots for those who come later.

*Lanes.* Results and images leave by a PUB socket each, because a PUB socket has one high-water mark for all that it
sends: 1000 results are some megabytes for a subscriber that does not read, 1000 images would be hundreds. A topic has
one lane, so its order holds. That of the results is an XPUB socket, a PUB that tells what is subscribed to: whether
anybody wants what is made on demand.

*Snapshots* follow the Clone pattern (zguide, chapter 5), with the hole in it closed. A subscriber also subscribes to
``hello/<request>``, an id of its own, and sends ``["snapshot", request, topic, ...]`` from a DEALER socket. It gets the
kept messages of these topics and a :class:`~.schema.SnapshotEnd`; at the same instant ``hello/<request>`` goes out on
both lanes. The hello that arrives proves that the subscription has held since before the snapshot: from here on nothing
is missed. Where it does not arrive, the subscription came too late, and the subscriber asks again.

*Threads.* Everything runs in the caller's thread, beside libzmq's own. Payloads are therefore copied once: pyzmq's
zero-copy send starts a Python thread, which would share the interpreter lock with the loop.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from collections.abc import Hashable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Final, Literal, Self, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import zmq

from ..access import Doorman
from ..errors import ConfigError, FeedError
from . import address
from .schema import IMAGE_TOPICS, ON_DEMAND, AnyMessage, Session, SnapshotEnd

Buffer: TypeAlias = bytes | bytearray | memoryview | npt.NDArray[np.generic]
_Frames: TypeAlias = tuple[bytes | zmq.Frame, ...]

_FAREWELL = 200  # ms that close() waits for the last messages to leave
_MAX_REQUEST = 1024  # bytes of one frame of a request or a subscription; the CURVE handshake has frames of 300
_LARGE = 65_536  # bytes
_TRIES = 32  # to find three free ports in a row
_CHANGES = 1024  # of subscriptions, taken in at a time
_UPSTREAM = 64  # messages that one subscriber may send ahead of that


class FeedSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Where the feed is offered, and to whom.

    ``endpoint`` is ``tcp://host:port`` (the feed takes this port and the next two; 0 finds free ones) or ``ipc://path``.
    Who can log in on this machine can read a loopback feed; an ``ipc`` path in a folder of mode 0700 is private.
    ``encoding`` is that of the headers; JSON is larger, and friendlier to a browser. ``keys`` names a folder made by
    `streamdec keys`: the feed is encrypted (CURVE), for the clients on the folder's list alone; needed where
    ``endpoint`` can be reached from another machine. ``results_hwm`` and ``images_hwm`` messages wait for one slow
    subscriber, on either lane, before the newest are dropped for it.
    """

    endpoint: str = address.DEFAULT
    encoding: Literal["msgpack", "json"] = "msgpack"
    keys: str = ""
    results_hwm: int = 1000
    images_hwm: int = 16

    def __post_init__(self) -> None:
        if not address.resolve(self.endpoint).local and not self.keys:
            raise ConfigError(
                "feed endpoint can be reached from other machines, and there are no keys",
                got=repr(self.endpoint),
                allowed="a loopback address, or any with feed.keys",
                do="make keys with `streamdec keys FOLDER CLIENT ...` and set feed.keys to the folder",
            )
        if min(self.results_hwm, self.images_hwm) < 1:
            got = f"{self.results_hwm} and {self.images_hwm}"
            raise ConfigError("feed high-water marks", got=got, allowed="1 message or more")


class Publisher:
    """Publishes the messages of one session. Never blocks, starts no Python thread, belongs to the thread that made it.

    Parameters
    ----------
    settings : FeedSettings
        Where, and to whom.
    session : str
        Id of the session; a new one for each publisher, so that subscribers see a restart.

    Attributes
    ----------
    endpoint : str
        Where the feed is, with the port that was chosen: what :class:`~.subscriber.Subscriber` takes.

    Raises
    ------
    ConfigError
        Where the keys are not as :func:`~streamdec.access.make_keys` made them.
    FeedError
        Where the endpoint cannot be had, such as a port in use.
    """

    def __init__(self, settings: FeedSettings, session: str) -> None:
        self.session: Final = session
        self._json = msgspec.json.Encoder()
        self._encoder: msgspec.json.Encoder | msgspec.msgpack.Encoder = (
            self._json if settings.encoding == "json" else msgspec.msgpack.Encoder()
        )
        self._seqs: dict[str, int] = {}
        self._kept: dict[Hashable, _Frames] = {}
        self._more = False  # may lie there, whatever the descriptors say
        self._on_demand: set[bytes] = set()  # subscriptions that some topic made on demand falls under
        self._context = zmq.Context(io_threads=1)
        try:
            self._doorman = Doorman(self._context, Path(settings.keys)) if settings.keys else None
            self._results = self._open(zmq.XPUB, settings.results_hwm)
            self._images = self._open(zmq.PUB, settings.images_hwm)
            self._router = self._open(zmq.ROUTER, settings.results_hwm)
            self.endpoint: Final = self._bind(settings.endpoint)
        except BaseException:
            self._context.destroy(linger=0)
            raise
        self._poll = select.poll()
        for end in (self._router, self._results, self._images):
            self._poll.register(end.fileno(), select.POLLIN)
        if self._doorman is not None:
            self._poll.register(self._doorman.socket.fileno(), select.POLLIN)

    def publish(self, message: AnyMessage, payloads: Sequence[Buffer] = ()) -> bytes:
        """Send ``message`` with its payload frames, and keep it for snapshots.

        Parameters
        ----------
        message : AnyMessage
            ``session`` and ``seq`` are filled in here.
        payloads : sequence of buffers
            What ``message.payloads`` describes, in its order; arrays go out little-endian, in C order. They are copied
            before this returns.

        Returns
        -------
        bytes
            The header as JSON, whatever the encoding on the wire: what the recorder stores.

        Raises
        ------
        FeedError
            Where the number of payloads is not what the message says.
        """
        described = len(getattr(message, "payloads", ()))
        if len(payloads) != described:
            raise FeedError("feed: payload frames beside the message", got=len(payloads), allowed=described)
        topic = message.topic
        seq = self._seqs[topic] = self._seqs.get(topic, 0) + 1
        message = msgspec.structs.replace(message, session=self.session, seq=seq)
        header = self._encoder.encode(message)
        frames = (topic.encode(), _frame(header), *map(_frame, payloads))
        _send(self._images if topic in IMAGE_TOPICS else self._results, frames)
        self._more = True  # sending takes in subscriptions that came, and their descriptor does not tell of them again

        slot = _slot(message)
        self._kept.pop(slot, None)  # so that the newest stands last
        self._kept[slot] = frames
        return header if self._encoder is self._json else self._json.encode(message)

    def wanted(self, topic: str) -> bool:
        """Tell whether somebody subscribes to ``topic``, one made on demand, as of the last :meth:`serve`."""
        return any(topic.encode().startswith(prefix) for prefix in self._on_demand)

    def serve(self) -> None:
        """Let new subscribers in and answer at most one of their requests. Call it once per packet; it never waits.

        While nobody wants anything and nothing is published it costs one system call over all sockets, about 1 µs.
        """
        if not self._more and not self._poll.poll(0):
            return
        if self._doorman is not None:
            self._doorman.admit()
        _readable(self._images)  # takes in new subscriptions, lets go of subscribers that left
        more = self._subscriptions()
        asked = _readable(self._router)
        if asked:
            self._answer(self._router.recv_multipart(zmq.NOBLOCK))
        # The descriptor of a libzmq socket tells of changes only, not of requests that still lie there.
        self._more = asked or more

    def close(self) -> None:
        """Send what is still queued, for 0.2 s at most, and let go of the ports. Idempotent."""
        self._context.destroy(linger=_FAREWELL)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _subscriptions(self) -> bool:
        """Take in some changes of what is subscribed to on the results' lane; tell whether there are more."""
        for _ in range(_CHANGES):
            try:
                change = self._results.recv(zmq.NOBLOCK)
            except zmq.Again:
                return False
            if any(topic.encode().startswith(change[1:]) for topic in ON_DEMAND):
                (self._on_demand.add if change[:1] == b"\x01" else self._on_demand.discard)(change[1:])
        return True

    def _answer(self, frames: list[bytes]) -> None:
        peer, *question = frames
        if len(question) < 2 or question[0] != b"snapshot":
            return
        request, wanted = question[1], frozenset(question[2:])
        for lane in (self._results, self._images):
            lane.send(b"hello/" + request)
        kept = [message for message in self._kept.values() if message[0] in wanted]
        for message in kept:
            _send(self._router, (peer, *message))
        end = SnapshotEnd(
            session=self.session, request=request.decode("ascii", "replace"), messages=len(kept), seqs=self._seqs
        )
        _send(self._router, (peer, b"end", self._encoder.encode(end)))

    def _open(self, kind: int, hwm: int) -> zmq.Socket[bytes]:
        end: zmq.Socket[bytes] = self._context.socket(kind)
        end.sndhwm = hwm
        end.maxmsgsize = _MAX_REQUEST
        end.rcvhwm = _UPSTREAM  # an XPUB socket keeps what it is sent, without any other limit, until it is taken in
        end.heartbeat_ivl = 5_000  # ms; a subscriber whose machine vanished is let go
        end.heartbeat_timeout = 15_000
        if self._doorman is not None:
            self._doorman.guard(end)
        return end

    def _bind(self, endpoint: str) -> str:
        """Bind the three sockets in a row and return the first endpoint; port 0 tries until three in a row are free."""
        wanted = address.resolve(endpoint)
        ends = (self._results, self._router, self._images)
        for end in ends:
            end.ipv6 = "://[" in endpoint
        for attempt in range(_TRIES):
            bound: list[str] = []
            names = wanted
            try:
                for i, end in enumerate(ends):
                    _bind(end, names.endpoints[i])
                    bound.append(end.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0"))
                    names = address.resolve(bound[0])
            except zmq.ZMQError as error:
                for end, name in zip(ends, bound, strict=False):
                    end.unbind(name)
                if wanted.chosen or attempt == _TRIES - 1:
                    raise _bind_error(names.endpoints[len(bound)], error) from error
            else:
                break
        return bound[0]


def _readable(end: zmq.Socket[bytes]) -> bool:
    """Let the socket do its house-keeping, and tell whether a message waits."""
    return bool(int(end.getsockopt(zmq.EVENTS)) & zmq.POLLIN)


def _send(end: zmq.Socket[bytes], frames: _Frames) -> None:
    """Send one message. PUB and ROUTER drop a message, as a whole, for a peer whose queue is full."""
    last = len(frames) - 1
    for i, frame in enumerate(frames):
        end.send(frame, zmq.SNDMORE if i < last else 0, copy=not isinstance(frame, zmq.Frame))


def _slot(message: AnyMessage) -> Hashable:
    """Name the place of a message in the snapshot: one for each topic.

    A session is more than its last change: its start, of each stream the last description and the last change, and
    the last change of a worker are kept apart.
    """
    if not isinstance(message, Session):
        return type(message)
    described = message.state == "started" or message.eeg is not None or message.markers is not None
    return Session, message.stream, bool(message.worker), described


def _frame(content: Buffer) -> bytes | zmq.Frame:
    """Copy ``content``: if large, into memory of libzmq's that all queues share; if small, bytes are quicker."""
    if isinstance(content, np.ndarray):
        content = content.astype(content.dtype.newbyteorder("<"), copy=False).tobytes()
    return bytes(content) if memoryview(content).nbytes < _LARGE else zmq.Frame(content, copy=True)


def _bind(end: zmq.Socket[bytes], name: str) -> None:
    if name.startswith("ipc://"):  # libzmq takes a path from whoever listens there, without a word
        with socket.socket(socket.AF_UNIX) as probe:
            try:
                taken = probe.connect_ex(name.removeprefix("ipc://")) == 0
            except OSError as error:  # the path is longer than that of a socket can be
                raise zmq.ZMQError(errno.ENAMETOOLONG) from error
            if taken:
                raise zmq.ZMQError(errno.EADDRINUSE)
    end.bind(name)


def _bind_error(name: str, error: zmq.ZMQError) -> FeedError:
    if error.errno == errno.EADDRINUSE:
        do = (
            "stop the program that has it (another `streamdec serve`?) or set feed.endpoint; tcp takes 3 ports in a row"
        )
        return FeedError(f"feed: {name} is in use", do=do)
    why = os.strerror(error.errno) if error.errno else error
    return FeedError(f"feed: cannot bind {name}", got=why, do="set feed.endpoint to an address of this machine")
