"""The dashboard's server: one feed in, one WebSocket per browser out, and `/metrics` for Prometheus.

It runs in a process of its own. Nothing that a browser sends goes any further than here.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from importlib import resources
from importlib.resources.abc import Traversable

import msgspec
from aiohttp import WSCloseCode, WSMsgType, web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler, Middleware

from ..errors import StreamdecError
from ..feed.schema import ON_DEMAND, TOPICS
from ..feed.subscriber import Subscriber
from ..feed.wire import Received
from .gate import Gate
from .hub import Hub
from .metrics import CONTENT_TYPE, Metrics
from .packet import pack

PORT = 5680
SHOWN = (*TOPICS, *ON_DEMAND)
"""What the feed is asked for."""

_MOST_BROWSERS = 32
_LONGEST_MESSAGE = 1024  # bytes that a browser may send at once: a token
_TOKEN_WITHIN = 10.0  # s
_HEARTBEAT = 20.0  # s; a browser that vanished is let go
_TICK = 1.0  # s between words on how the feed is doing
_WRONG_TOKEN = 4401  # close code
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml"}
_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-cache",
}


class File(msgspec.Struct, frozen=True):
    """One file of the page."""

    body: bytes
    media: str
    tag: str


def files() -> dict[str, File]:
    """Read the page: every file by its path in a URL. No path of a request reaches the disk."""
    found: dict[str, File] = {}

    def walk(folder: Traversable, path: str) -> None:
        for entry in folder.iterdir():
            if entry.is_dir():
                walk(entry, f"{path}{entry.name}/")
            elif (media := _TYPES.get(entry.name[entry.name.rfind(".") :])) is not None:
                body = entry.read_bytes()
                found[path + entry.name] = File(body, media, sha256(body).hexdigest()[:16])

    walk(resources.files(__package__) / "static", "/")
    found["/"] = found.pop("/index.html")
    return found


def _ours(record: logging.LogRecord) -> bool:
    """Tell our own faults from guests who speak no HTTP or leave in the middle of a word."""
    error = record.exc_info[1] if record.exc_info else None
    return not isinstance(error, (HttpProcessingError, ConnectionError))


def _guard(gate: Gate) -> Middleware:
    """Turn away what asks for another name; give every answer its headers."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        if not gate.knows(request.headers.get("Host", "")):
            return web.Response(status=421, text="this server goes by another name\n", headers=_HEADERS)
        try:
            response = await handler(request)
        except web.HTTPException as error:
            error.headers.update(_HEADERS)
            raise
        if not response.prepared:
            response.headers.update(_HEADERS)
        return response

    return guard


async def _expect_nothing(request: web.Request) -> web.StreamResponse:
    """Refuse ``Expect``: aiohttp's own answer repeats what was sent, and fails where that is no text."""
    return web.Response(status=417, text="nothing can be sent here\n", headers=_HEADERS)


class Dashboard:
    """The web application around a hub.

    Parameters
    ----------
    hub : Hub
    gate : Gate
    """

    def __init__(self, hub: Hub, gate: Gate) -> None:
        self._hub, self._gate = hub, gate
        self._metrics = Metrics(hub)
        self._files = files()
        self._open: set[web.WebSocketResponse] = set()
        self.app = web.Application(middlewares=[_guard(gate)], client_max_size=0)
        for path, handler in (("/ws", self._socket), ("/metrics", self._prometheus), ("/{path:.*}", self._file)):
            self.app.router.add_get(path, handler, expect_handler=_expect_nothing)
        self.app.on_shutdown.append(self._close)

    def runner(self) -> web.AppRunner:
        """Make what runs it, without a line in a log for what guests do."""
        log = logging.getLogger(__name__)
        log.addFilter(_ours)
        return web.AppRunner(self.app, access_log=None, logger=log, handle_signals=False, shutdown_timeout=1.0)

    async def _file(self, request: web.Request) -> web.StreamResponse:
        file = self._files.get(request.path)
        if file is None:
            return web.Response(status=404, text="there is no such page\n")
        response = web.Response(body=file.body, content_type=file.media, charset="utf-8")
        response.etag = file.tag
        if any(tag.value == file.tag for tag in request.if_none_match or ()):
            return web.Response(status=304, headers={"ETag": response.headers["ETag"]})
        return response

    async def _prometheus(self, request: web.Request) -> web.StreamResponse:
        if not self._gate.bearer(request.headers):
            return web.Response(status=401, headers={"WWW-Authenticate": "Bearer"}, text="this needs the token\n")
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _socket(self, request: web.Request) -> web.StreamResponse:
        if not self._gate.same_origin(request.headers):
            return web.Response(status=403, text="this page may not look in\n")
        if len(self._hub.browsers) >= _MOST_BROWSERS:
            return web.Response(status=503, text="too many pages look at this session\n")
        socket = web.WebSocketResponse(heartbeat=_HEARTBEAT, max_msg_size=_LONGEST_MESSAGE, compress=False)
        await socket.prepare(request)
        self._open.add(socket)
        try:
            if await self._let_in(socket):
                await self._serve(socket)
        finally:
            self._open.discard(socket)
        return socket

    async def _let_in(self, socket: web.WebSocketResponse) -> bool:
        """Wait for the token, where one is needed: the first message."""
        await socket.send_bytes(pack({"topic": "hello", "locked": self._gate.locked}))
        if not self._gate.locked:
            return True
        with suppress(TimeoutError):
            first = await socket.receive(_TOKEN_WITHIN)
            if first.type is WSMsgType.TEXT and self._gate.opens(first.data):
                return True
        await socket.close(code=_WRONG_TOKEN, message=b"token")
        return False

    async def _serve(self, socket: web.WebSocketResponse) -> None:
        browser = self._hub.join()
        writing = asyncio.create_task(browser.write(socket))
        try:
            # A page has nothing to say: whatever else comes ends the connection.
            said = await socket.receive()
            if said.type in (WSMsgType.TEXT, WSMsgType.BINARY):
                await socket.close(code=WSCloseCode.POLICY_VIOLATION, message=b"nothing can be sent here")
        finally:
            self._hub.leave(browser)
            writing.cancel()
            with suppress(asyncio.CancelledError, ConnectionError):
                await writing

    async def _close(self, app: web.Application) -> None:
        for socket in tuple(self._open):
            await socket.close(code=WSCloseCode.GOING_AWAY, message=b"the dashboard is closing")


class _Source(threading.Thread):
    """Reads the feed in a thread of its own, and hands each message to the loop of the server, one after the other.

    It waits until a message was taken: a server that cannot follow makes the feed's queue overflow, which is counted.
    """

    def __init__(
        self, feed: Subscriber, hub: Hub, loop: asyncio.AbstractEventLoop, failed: Callable[[BaseException], None]
    ) -> None:
        super().__init__(name="feed", daemon=True)
        self._feed, self._hub, self._loop, self._failed = feed, hub, loop, failed
        self.stopping = False

    def run(self) -> None:
        """Follow the feed until told to stop."""
        tick = 0.0
        try:
            while not self.stopping:
                received = self._feed.receive(0.25)
                now = time.monotonic()
                said = None
                if now >= tick:
                    tick = now + _TICK
                    said = (self._feed.silence, sum(self._feed.gaps.values()), self._feed.garbage)
                if received is not None or said is not None:
                    asyncio.run_coroutine_threadsafe(self._take(received, now, said), self._loop).result()
        except BaseException as error:  # a page that says nothing more would look like a session that does not
            if not self.stopping:
                self._loop.call_soon_threadsafe(self._failed, error)

    async def _take(self, received: Received | None, now: float, said: tuple[float, int, int] | None) -> None:
        if received is not None:
            self._hub.take(received, now)
        if said is not None:
            self._hub.link(*said)


async def serve(
    feed: Subscriber,
    gate: Gate,
    host: str,
    port: int | None,
    say: Callable[[str], None],
    alive: Callable[[], bool] = lambda: True,
) -> None:
    """Serve ``feed`` until SIGINT or SIGTERM, or until ``alive`` says no.

    Parameters
    ----------
    feed : Subscriber
        Of :data:`SHOWN` topics. It is closed at the end.
    gate : Gate
    host, port : str, int or None
        Where to listen; port 0 finds a free one, None does so where :data:`PORT` is taken.
    say : callable
        Told where the page is.
    alive : callable
        Asked once a second.

    Raises
    ------
    StreamdecError
        The port cannot be had, or the feed cannot be understood.
    """
    loop = asyncio.get_running_loop()
    over: asyncio.Future[None] = loop.create_future()

    def end(error: BaseException | None = None) -> None:
        if not over.done():
            if error is None:
                over.set_result(None)
            else:
                over.set_exception(error)

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, end)
    hub = Hub()
    runner = Dashboard(hub, gate).runner()
    await runner.setup()
    source = _Source(feed, hub, loop, end)
    try:
        say(f"dashboard at {await _listen(runner, host, port)}")
        source.start()
        while not over.done():
            await asyncio.wait([over], timeout=_TICK)
            if not alive():
                end()
        await over
    finally:
        source.stopping = True
        await runner.cleanup()
        await asyncio.to_thread(source.join, 2.0) if source.is_alive() else None
        feed.close()


async def _listen(runner: web.AppRunner, host: str, port: int | None) -> str:
    """Open the port; return the page's address."""
    tries = (PORT, 0) if port is None else (port,)
    for one in tries:
        site = web.TCPSite(runner, host.strip("[]"), one)
        try:
            await site.start()
        except OSError as error:
            if one == tries[-1]:
                do = "choose another with --port, or 0 for a free one"
                raise StreamdecError(f"dashboard: cannot listen at {host}:{one}", got=error.strerror, do=do) from error
        else:
            break
    bound = runner.addresses[0][1]
    name = host.strip("[]")
    return f"http://{f'[{name}]' if ':' in name else name}:{bound}/"
