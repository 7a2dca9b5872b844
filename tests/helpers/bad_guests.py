"""Raw sockets that speak HTTP and WebSocket badly."""

from __future__ import annotations

import asyncio
import random
import struct
from collections.abc import Callable

HANDSHAKE = (
    "GET /ws HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)
_PATHS = (
    "/",
    "/ws",
    "/metrics",
    "/js/main.js",
    "/../x",
    "/%",
    "//",
    "/ws?token=" + "a" * 300,
    "*",
    "http://x/",
    "/\xff",
)
_HEADERS = (
    "Host: 127.0.0.1:{port}",
    "Host: evil",
    "Host:",
    "Origin: null",
    "Content-Length: -1",
    "Content-Length: 99999999999",
    "Transfer-Encoding: chunked",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: x",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Version: 99",
    "Sec-WebSocket-Extensions: permessage-deflate; server_max_window_bits=99",
    "Expect: 100-continue",
    "Range: bytes=0-",
    'If-None-Match: "',
    "Authorization: Bearer " + "x" * 500,
    "Cookie: " + "a=b;" * 500,
    " folded",
    "no colon",
    "\x00: \x01",
)


def frame(dice: random.Random) -> bytes:
    """One WebSocket frame: mostly wrong in its opcode, flags, mask, length or payload."""
    opcode = dice.choice((0, 1, 2, 3, 7, 8, 9, 10, 11, 15))
    flags = dice.choice((0x80, 0x80, 0x80, 0x00, 0xC0, 0xF0, 0x90))
    size = dice.choice((0, 1, 2, 5, 125, 126, 127, 200, 1024, 1025, 5000))
    body = dice.randbytes(size)
    if opcode == 8 and dice.random() < 0.5:
        body = struct.pack("!H", dice.choice((0, 999, 1000, 1005, 1006, 4999, 65535))) + body[2:]
    told = dice.choice((size, size, size, size + 1, 1 << 20, 1 << 40, (1 << 64) - 1))
    head = bytes([flags | opcode])
    masked = dice.choice((0x80, 0x80, 0x80, 0x00))
    if told < 126:
        head += bytes([masked | told])
    elif told < 1 << 16:
        head += bytes([masked | 126]) + struct.pack("!H", told)
    else:
        head += bytes([masked | 127]) + struct.pack("!Q", told)
    return head + (dice.randbytes(4) if masked else b"") + body


def request(dice: random.Random, port: int) -> bytes:
    """One HTTP request, more or less."""
    if dice.random() < 0.2:
        return dice.randbytes(dice.choice((1, 16, 400)))
    method = dice.choice(("GET", "GET", "GET", "POST", "HEAD", "PUT", "OPTIONS", "CONNECT", "X" * 300, "G\x00T"))
    lines = [f"{method} {dice.choice(_PATHS)} {dice.choice(('HTTP/1.1', 'HTTP/1.1', 'HTTP/1.0', 'HTTP/9.9', ''))}"]
    lines += [header.replace("{port}", str(port)) for header in dice.sample(_HEADERS, dice.randrange(6))]
    raw = bytearray("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n")
    for _ in range(dice.choice((0, 0, 1, 5))):
        raw[dice.randrange(len(raw))] = dice.randrange(256)
    return bytes(raw) + dice.randbytes(dice.choice((0, 0, 10)))


async def guest(port: int, send: Callable[[asyncio.StreamWriter], None]) -> None:
    """Come, send, take what comes back for a moment, leave, politely or not."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        send(writer)
        await asyncio.wait_for(writer.drain(), 1.0)
        await asyncio.wait_for(reader.read(4096), 0.02)
    except (OSError, TimeoutError):
        pass
    finally:
        writer.transport.abort()


async def attack(port: int, n: int, seed: int, at_once: int = 20) -> int:
    """Send ``n`` bad frames and requests from many connections; give their number."""
    dice = random.Random(seed)  # noqa: S311 - to be repeated
    sent = 0

    def frames(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(HANDSHAKE.replace("{port}", str(port)).encode())
        for _ in range(dice.randrange(1, 4)):  # the first that is wrong ends the connection
            writer.write(frame(dice))
            sent += 1

    def requests(writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        writer.write(request(dice, port))
        sent += 1

    while sent < n:
        await asyncio.gather(*(guest(port, frames if dice.random() < 0.7 else requests) for _ in range(at_once)))
    return sent
