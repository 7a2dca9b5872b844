"""Between one feed and many browsers: what all of them get, and what one that comes late gets first."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Iterable, Mapping
from typing import Protocol

import numpy as np

from ..feed.schema import Epoch, Gallery, Session, Signal, Stats
from ..feed.wire import Received
from .packet import Packet, pack, packet
from .scalp import Scalp

_RECENT = 300.0  # s of results for who comes late,
_RECENT_BYTES = 8 << 20  # and no more than this
_SIGNAL = 300  # packets of the signal, likewise: half a minute
_SESSION = 200  # changes of the session's state, likewise
_QUEUE = 500  # packets that wait for one browser, beside what it got when it came
_PICTURES = 1024  # that a browser is known to have; it keeps more


class Socket(Protocol):
    """What the hub needs of a WebSocket."""

    async def send_bytes(self, data: bytes) -> None:
        """Send one binary message; waits while the other side does not read."""


class Browser:
    """One page. What it is too slow for is lost to it alone, oldest first, and it is told.

    Parameters
    ----------
    backlog : iterable of Packet
        What it gets first.
    pictures : mapping of str to bytes
        Of the gallery, as packets; each goes out before the first message that shows it.
    """

    def __init__(self, backlog: Iterable[Packet], pictures: Mapping[str, bytes]) -> None:
        self._queue = deque(backlog)
        self._most = len(self._queue) + _QUEUE
        self._pictures = pictures
        self._has: dict[str, None] = {}
        self._awake = asyncio.Event()
        self.lost = 0

    def offer(self, new: Packet) -> None:
        """Queue a packet. Never waits."""
        if len(self._queue) >= self._most:
            # A change of state is worth more than one of many results.
            at = next((i for i, old in enumerate(self._queue) if old.topic != "session"), 0)
            del self._queue[at]
            self.lost += 1
        self._queue.append(new)
        self._awake.set()

    def begin_anew(self) -> None:
        """Forget what waits: another session has begun."""
        self._queue.clear()
        self._has.clear()

    async def write(self, socket: Socket) -> None:
        """Send what is queued, for as long as the socket takes it."""
        told = 0
        while True:
            self._awake.clear()
            while self._queue:
                if self.lost > told:
                    told = self.lost
                    await socket.send_bytes(pack({"topic": "lost", "n": told}))
                next_one = self._queue.popleft()
                for name in next_one.pictures:
                    if name not in self._has and name in self._pictures:
                        self._has[name] = None
                        await socket.send_bytes(self._pictures[name])
                while len(self._has) > _PICTURES:
                    del self._has[next(iter(self._has))]
                await socket.send_bytes(next_one.data)
            await self._awake.wait()


class Hub:
    """Takes the messages of a feed, hands them to every browser, and keeps the last minutes.

    Attributes
    ----------
    stats : newest statistics; ``started`` the start of the session; None before they came.
    silence : s without a sign of the feed; ``missed`` messages of it that never came.
    browsers : those that are there.
    lost : packets that browsers which have left were too slow for.
    """

    stats: Stats | None
    started: Session | None
    _scalp: Scalp | None
    _started: Packet | None

    def __init__(self) -> None:
        self.browsers: set[Browser] = set()
        self.lost = 0
        self._session = ""
        self._pictures: dict[str, bytes] = {}
        self._begin()

    def take(self, received: Received, now: float) -> None:
        """Take a message of the feed. ``now`` monotonic, seconds."""
        message = received.message
        if message.session != self._session:
            self._session = message.session
            for browser in self.browsers:
                browser.begin_anew()
            self._begin()
        if isinstance(message, Gallery):
            self._gallery(message, received)
        elif isinstance(message, Signal):
            self._show(message, received)
        else:
            new = packet(received, self._pictures)
            if isinstance(message, Session) and message.state == "started":
                self.started = message
                self._started = new
                self._tell(new)
            else:
                self._result(new, now)
            if isinstance(message, Stats):
                self.stats = message
                if self._scalp is not None and (evoked := self._scalp.evoked()) is not None:
                    self._tell(evoked)
            elif isinstance(message, Epoch) and received.fresh and self._scalp is not None:
                self._scalp.ended(message)

    def link(self, silence: float, gaps: int, garbage: int) -> None:
        """Say how the feed is doing: ``silence`` seconds without a sign of it, messages missed and not readable."""
        self.silence, self.missed = silence, gaps
        self._link = Packet("link", pack({"topic": "link", "silence": silence, "missed": gaps, "garbage": garbage}))
        self._tell(self._link)

    def join(self) -> Browser:
        """Let a browser in."""
        recent = [one for _, one in self._recent]
        scalp = [] if self._scalp is None else self._scalp.kept
        begun = [self._begun, *filter(None, [self._started])]
        browser = Browser([*begun, *self._changes, *recent, *scalp, *self._signal, self._link], self._pictures)
        self.browsers.add(browser)
        return browser

    def leave(self, browser: Browser) -> None:
        """Let it go."""
        self.browsers.discard(browser)
        self.lost += browser.lost

    def _begin(self) -> None:
        self.stats = self.started = self._scalp = None
        self._pictures.clear()
        self._started = None  # apart from the other changes: a stream that breaks often makes many
        self._changes: deque[Packet] = deque(maxlen=_SESSION)
        self._signal: deque[Packet] = deque(maxlen=_SIGNAL)
        self._recent: deque[tuple[float, Packet]] = deque()
        self._recent_bytes = 0
        self._begun = Packet("begin", pack({"topic": "begin", "session": self._session}))
        self._tell(self._begun)
        self.link(0.0, 0, 0)

    def _show(self, message: Signal, received: Received) -> None:
        data = received.payloads[0] if received.payloads else b""
        if isinstance(data, bytes) or data.shape[:-1] != (len(message.ch_names),) or not message.sfreq > 0:
            return
        if not received.fresh:  # of whenever it was last wanted
            return
        if self._scalp is None or (self._scalp.ch_names, self._scalp.sfreq) != (message.ch_names, message.sfreq):
            self._scalp = Scalp(message.ch_names, message.sfreq)
            for one in self._scalp.kept:
                self._tell(one)
        for one in self._scalp.signal(message, data.astype(np.float32, copy=False)):
            self._tell(one)

    def _gallery(self, message: Gallery, received: Received) -> None:
        self._pictures.clear()
        frames = {
            of.frame: (of.media, picture) for of, picture in zip(message.payloads, received.payloads, strict=True)
        }
        for entry in message.entries:
            media, picture = frames.get(-1 if entry.thumbnail is None else entry.thumbnail, ("", None))
            if isinstance(picture, bytes):
                header = {"topic": "picture", "id": entry.id, "label": entry.label, "media": media}
                self._pictures[entry.id] = pack(header, picture)

    def _result(self, new: Packet, now: float) -> None:
        if new.topic == "session":
            self._changes.append(new)
        elif not new.partial:
            self._recent.append((now, new))
            self._recent_bytes += len(new.data)
            while self._recent_bytes > _RECENT_BYTES or self._recent[0][0] < now - _RECENT:
                self._recent_bytes -= len(self._recent.popleft()[1].data)
        self._tell(new)

    def _tell(self, new: Packet) -> None:
        if new.topic == "signal":
            self._signal.append(new)
        for browser in self.browsers:
            browser.offer(new)
