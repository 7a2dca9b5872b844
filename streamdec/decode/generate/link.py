"""What goes between the hot loop, the dispatcher and the workers, and the sockets it goes by.

The hot loop and the dispatcher are one :class:`Line` from end to end. The workers meet the dispatcher at its
:class:`Hub`: those it started by an ipc path, those of other machines by TCP, encrypted (CURVE), where it listens.

A message is a struct as msgpack, in the first frame; an array in it is a frame of its own, after it, float32,
little-endian. A frame beyond :data:`MAX_FRAME`, a message that cannot be read: the sender is cut off, or it is counted
as garbage; neither is seen by anyone. Nobody ever waits to send.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Generic, Literal, TypeAlias, TypeVar

import msgspec
import numpy as np
import zmq

from ...access import TCP, Doorman, authenticate, is_loopback
from ...errors import ConfigError
from ...types import Float32
from .job import Answer, Drop, Kind, Request, Result, Tier

PROTOCOL = 1
MAX_FRAME = 16 << 20
"""Bytes of one frame: an epoch of 256 channels and 4 s at 4 kHz, or a picture."""
MAX_IMAGE = 8 << 20
"""Bytes of an encoded picture."""
MAX_TEXT = 4096
"""Characters of a caption."""

_QUEUE = 256  # messages that wait for a slow peer

WorkerState: TypeAlias = Literal["starting", "ready", "lost", "failed"]
T = TypeVar("T")


# --- messages --------------------------------------------------------------------------------------------------------


class Beat(msgspec.Struct, frozen=True, tag=True):
    """The sender is there."""


class Job(msgspec.Struct, frozen=True, eq=False, tag=True):
    """To a worker: do ``request`` by ``tier`` with ``units``; ``seconds`` from now on no unit is begun any more.

    A duration, because a worker on another machine has another clock.
    """

    request: Request
    tier: Tier
    units: int
    seconds: float


class Cancel(msgspec.Struct, frozen=True, tag=True):
    """To a worker: stop working on request ``id``, and answer with what there is."""

    id: int


class Introduce(msgspec.Struct, frozen=True, tag=True):
    """To a worker: the dispatcher does not know it (any more); it is to say :class:`Hello`, and begin anew."""


class Quit(msgspec.Struct, frozen=True, tag=True):
    """To a worker: it is not wanted (any more), for ``reason``; ``again`` it may come back, started anew."""

    reason: str
    again: bool = False


class Card(msgspec.Struct, frozen=True):
    """What a worker says of one of its tiers: its units, and measured runs of its warm-up.

    ``runs`` (seconds, units, seconds between units or None) each.
    """

    tier: Tier
    units: tuple[int, int]
    runs: tuple[tuple[float, int, float | None], ...] = ()


class Hello(msgspec.Struct, frozen=True, tag=True):
    """From a worker: it is warm. ``generator`` sha256 of its generator's manifest; ``host`` its machine."""

    name: str
    kind: Kind
    generator: str
    device: str
    host: str
    tiers: tuple[Card, ...]
    protocol: int = PROTOCOL


class Progress(msgspec.Struct, frozen=True, tag=True):
    """From a worker: what there is of request ``id`` so far."""

    id: int
    result: Result


class Done(msgspec.Struct, frozen=True, tag=True):
    """From a worker: what came of request ``id``."""

    id: int
    result: Result


class Failed(msgspec.Struct, frozen=True, tag=True):
    """From a worker: nothing came of request ``id``, for ``reason``."""

    id: int
    reason: str


class Notice(msgspec.Struct, frozen=True, tag=True):
    """To the hot loop: a worker's state has changed, for ``reason``; with ``worker`` "", something else to know.

    ``starting`` up to its :class:`Hello`; ``ready``; ``lost``: it died, hung, or was not heard of, and may come back;
    ``failed``: it will not.
    """

    worker: str
    state: WorkerState
    reason: str = ""


class Up(msgspec.Struct, frozen=True, tag=True):
    """To the hot loop: requests may come, workers or not.

    ``listening`` where others may join, "" for nowhere; ``reads_epoch`` a tier does, beside the embedding.
    """

    listening: str = ""
    reads_epoch: bool = False


class Ready(msgspec.Struct, frozen=True, tag=True):
    """To the hot loop: each worker is warm or has failed once."""


class Close(msgspec.Struct, frozen=True, tag=True):
    """To the dispatcher: no more requests come."""


ToDispatcher: TypeAlias = Request | Close
ToLoop: TypeAlias = Answer | Drop | Notice | Up | Ready | Beat
ToWorker: TypeAlias = Job | Cancel | Introduce | Quit | Beat
FromWorker: TypeAlias = Hello | Progress | Done | Failed | Beat


class Codec(Generic[T]):
    """Messages to frames, and frames to messages of the kinds ``receives``. Belongs to one thread."""

    def __init__(self, receives: Any) -> None:
        self._encoder = msgspec.msgpack.Encoder(enc_hook=self._put)
        self._decoder: msgspec.msgpack.Decoder[T] = msgspec.msgpack.Decoder(receives, dec_hook=self._take)
        self._arrays: list[bytes] = []

    def pack(self, message: msgspec.Struct) -> list[bytes]:
        """Make the frames of a message."""
        self._arrays = []
        return [self._encoder.encode(message), *self._arrays]

    def unpack(self, frames: list[bytes]) -> T | None:
        """Read a message; None where it cannot be read."""
        if not frames:
            return None
        self._arrays = frames[1:]
        try:
            return self._decoder.decode(frames[0])
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
            return None

    def _put(self, array: Any) -> tuple[int, tuple[int, ...]]:
        if not isinstance(array, np.ndarray) or array.dtype != np.float32:
            raise TypeError(f"{type(array).__name__} cannot be sent")  # ours: no message has such a field
        self._arrays.append(array.astype("<f4", copy=False).tobytes())
        return len(self._arrays) - 1, array.shape

    def _take(self, _: type, entry: Any) -> Float32:
        place, shape = msgspec.convert(entry, tuple[int, tuple[int, ...]])
        if not 0 <= place < len(self._arrays) or min(shape, default=0) < 0:
            raise ValueError(f"array {place} of shape {shape}")
        frame = self._arrays[place]
        if 4 * math.prod(shape) != len(frame):
            raise ValueError(f"shape {shape} in {len(frame)} bytes")
        return np.frombuffer(frame, "<f4").reshape(shape).astype(np.float32, copy=False)


# --- sockets ---------------------------------------------------------------------------------------------------------


def lasting_context() -> zmq.Context[zmq.Socket[bytes]]:
    """Make a context for lines that come and go; its ``destroy(linger=0)`` ends it, and waits for its threads."""
    return zmq.Context(io_threads=1)


class Line(Generic[T]):
    """One end of a connection with one other. Belongs to the thread that made it.

    Parameters
    ----------
    endpoint : str
        ``ipc://path`` or ``tcp://host:port``.
    receives : type
        Union of the messages that come.
    role : {"loop", "dispatcher", "worker"}
        Whose end it is: the hot loop's is bound, the others connect.
    keys : Path, optional
        A client's folder, made by `streamdec keys`.
    context : zmq.Context, optional
        The caller's, which ends it: the end of one is waited for, that of a line in it is not. Without it, its own.

    Attributes
    ----------
    garbage : int
        Messages that could not be read.

    Raises
    ------
    ConfigError
        The endpoint or the keys are not as they should be.
    """

    def __init__(
        self,
        endpoint: str,
        receives: Any,
        role: Literal["loop", "dispatcher", "worker"],
        keys: Path | None = None,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        self.endpoint, self.garbage = endpoint, 0
        self._codec: Codec[T] = Codec(receives)
        self._role, self._keys = role, keys
        self._owns = context is None
        self._context = context or zmq.Context(io_threads=1)
        self._open()

    def send(self, message: msgspec.Struct) -> bool:
        """Send, or tell that nobody is there, or that too much waits already."""
        try:
            self._socket.send_multipart(self._codec.pack(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> T | None:
        """Take the next message that has come; None where none has."""
        while int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            message = self._codec.unpack(self._socket.recv_multipart(zmq.NOBLOCK))
            if message is not None:
                return message
            self.garbage += 1
        return None

    def redial(self) -> None:
        """Leave a connection from which nothing is heard any more, with all that waits in it, and connect anew."""
        self._socket.close(linger=0)
        self._open()

    def close(self, linger: float = 0.0) -> None:
        """Let go, after ``linger`` seconds at most for what still waits. Idempotent."""
        if self._owns:
            self._context.destroy(linger=round(1e3 * linger))
        else:
            self._socket.close(linger=round(1e3 * linger))

    def _open(self) -> None:
        end: zmq.Socket[bytes] = self._context.socket(zmq.DEALER if self._role == "worker" else zmq.PAIR)
        self._socket = end
        try:
            _bound(end)
            end.immediate = True  # nothing waits for a peer that may come some day
            end.ipv6 = "://[" in self.endpoint
            if self._keys is not None:
                authenticate(end, self._keys)
            if self._role == "loop":
                end.bind(self.endpoint)
            else:
                end.connect(self.endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError("endpoint", got=repr(self.endpoint), allowed="tcp://host:port") from error
        except ConfigError:
            self.close()
            raise


class Hub:
    """The dispatcher's end of the connections with its workers. Belongs to the thread that made it.

    Parameters
    ----------
    local : str
        ``ipc://path`` for the workers it starts.
    listen : str
        ``tcp://host:port`` for those of other machines, port 0 for a free one; "" for none.
    keys : Path, optional
        Folder made by `streamdec keys`; needed where ``listen`` can be reached from another machine.

    Attributes
    ----------
    listening : str
        As ``listen``, with the port that was chosen.
    garbage : int
        Messages that could not be read.

    Raises
    ------
    ConfigError
        ``listen`` is no such address, is taken, or can be reached by anyone; or the keys are not as they should be.
    """

    def __init__(self, local: str, listen: str = "", keys: Path | None = None) -> None:
        check_listen(listen, keys is not None)
        self.garbage, self.listening = 0, ""
        self._codec: Codec[FromWorker] = Codec(FromWorker)
        self._context = zmq.Context(io_threads=1)
        try:
            self._doorman = Doorman(self._context, keys) if listen and keys is not None else None
            self._local = self._open()
            self._local.bind(local)
            self._remote = None
            if listen:
                self._remote = self._open()
                if self._doorman is not None:
                    self._doorman.guard(self._remote)
                self._remote.ipv6 = "://[" in listen
                self._remote.bind(listen)
                self.listening = self._remote.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")
        except zmq.ZMQError as error:
            self.close()
            raise ConfigError("generate.listen", got=f"{listen}: {error}", allowed="a free tcp://host:port") from error
        except ConfigError:
            self.close()
            raise

    @property
    def refused(self) -> int:
        """How often somebody without a key on the list was turned away."""
        return 0 if self._doorman is None else self._doorman.refused

    def send(self, peer: bytes, message: msgspec.Struct) -> bool:
        """Send, or tell that the peer is gone, or that too much waits for it already."""
        end = self._local if peer[:1] == b"l" else self._remote
        try:
            if end is not None:
                end.send_multipart([peer[1:], *self._codec.pack(message)], zmq.NOBLOCK)
        except zmq.ZMQError:  # Again, a full queue, or EHOSTUNREACH
            return False
        return end is not None

    def receive(self) -> tuple[bytes, FromWorker] | None:
        """Take the next message that has come, and who sent it; None where none has."""
        if self._doorman is not None:
            self._doorman.admit()
        for mark, end in ((b"l", self._local), (b"r", self._remote)):
            while end is not None and int(end.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
                peer, *frames = end.recv_multipart(zmq.NOBLOCK)
                message = self._codec.unpack(frames)
                if message is not None:
                    return mark + peer, message
                self.garbage += 1
        return None

    def close(self, linger: float = 0.0) -> None:
        """Let go, after ``linger`` seconds at most for what still waits. Idempotent."""
        self._context.destroy(linger=round(1e3 * linger))

    def _open(self) -> zmq.Socket[bytes]:
        end: zmq.Socket[bytes] = self._context.socket(zmq.ROUTER)
        _bound(end)
        end.router_mandatory = 1
        return end


class Waiter:
    """Waits for lines, hubs and file descriptors alike."""

    def __init__(self) -> None:
        self._poller = zmq.Poller()

    def add(self, what: Line[Any] | Hub | int) -> None:
        """Wait for it too."""
        for end in _ends(what):
            self._poller.register(end, zmq.POLLIN)

    def remove(self, what: Line[Any] | Hub | int) -> None:
        """Wait for it no longer."""
        for end in _ends(what):
            self._poller.unregister(end)

    def wait(self, seconds: float) -> None:
        """Return when something has come, after ``seconds`` at the latest."""
        self._poller.poll(max(0, math.ceil(1e3 * min(seconds, 60.0))))


def check_listen(listen: str, keys: bool) -> None:
    """Check where workers of other machines may join.

    Raises
    ------
    ConfigError
        It is no such address, or can be reached from another machine and there are no keys.
    """
    if not listen:
        return
    match = TCP.fullmatch(listen)
    if match is None or int(match["port"]) > 65_535:
        raise ConfigError("generate.listen", got=repr(listen), allowed="tcp://host:port")
    if not is_loopback(match["host"]) and not keys:
        raise ConfigError(
            "generate.listen can be reached from other machines, and there are no keys",
            got=repr(listen),
            allowed="a loopback address, or any with generate.keys",
            do="make keys with `streamdec keys FOLDER CLIENT ...` and set generate.keys to the folder",
        )


def _bound(end: zmq.Socket[bytes]) -> None:
    end.maxmsgsize = MAX_FRAME
    end.sndhwm = end.rcvhwm = _QUEUE
    end.linger = 0
    end.reconnect_ivl = 100  # ms
    end.reconnect_ivl_max = 1_000
    # A peer whose machine vanished is let go; not by ZMTP heartbeats: see feed/subscriber.py.
    end.tcp_keepalive = 1
    end.tcp_keepalive_idle = end.tcp_keepalive_intvl = 2  # s
    end.tcp_keepalive_cnt = 2
    end.tcp_maxrt = 6_000  # ms


def _ends(what: Line[Any] | Hub | int) -> list[Any]:
    if isinstance(what, int):
        return [what]
    if isinstance(what, Line):
        return [what._socket]
    return [end for end in (what._local, what._remote, what._doorman and what._doorman.socket) if end is not None]
