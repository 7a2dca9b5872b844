"""Hostile bytes against every port of a session, and a hostile publisher against the subscriber.

    python tools/fuzz_feed.py [--frames 120000] [--seed 0] [--keys]

A simulated subject is decoded by `streamdec serve` with the demo's generator, workers of other machines invited. Each
kind of attack sends its share of the frames, to the feed's three ports and the workers' in turn: noise, broken
handshakes, frames of any length and flags behind a good one, requests and subscriptions of any bytes, large ones. All
the while a subscriber reads. Printed for each kind: frames, the resident memory of the serving processes before and
after, the slowest decision. With --keys the ports are encrypted, and the attackers have no key. Then a publisher sends
the subscriber broken, mutated and large messages, and answers its questions with such.

Exit code 1 where a process ended, memory grew by more than 64 MiB, a message was missed, no decision came after an
attack, or the session did not end cleanly.
"""

from __future__ import annotations

import argparse
import os
import random
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import msgspec
import psutil
import zmq

from streamdec.access import make_keys
from streamdec.acquire.lsl.library import loopback
from streamdec.demo import FULL_BUNDLE, FULL_GENERATOR, amplifier_process
from streamdec.errors import FeedError
from streamdec.feed import schema
from streamdec.feed.address import resolve
from streamdec.feed.subscriber import Subscriber
from streamdec.simulate.amplifier import CATCH

MOST_GROWTH = 64 << 20  # bytes
BURST = 100  # frames of one connection
GREETING = b"\xff" + bytes(7) + b"\x01\x7f" + b"\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
CONFIG = f"""
[intake.markers]
ignore = "{CATCH}"
[generate]
listen = "tcp://127.0.0.1:0"
keys = "{{keys}}"
[generate.caption]
workers = 0
[generate.reconstruction]
workers = 0
[feed]
keys = "{{keys}}"
"""


class Bytes:
    """Random bytes of all kinds."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)  # noqa: S311 - no secret

    def some(self, most: int) -> bytes:
        """Return up to ``most`` bytes, short ones more often."""
        return self.chance.randbytes(int(most * self.chance.random() ** 3))

    def mutated(self, good: bytes) -> bytes:
        """Return ``good`` with some bytes changed, lost or added."""
        out = bytearray(good)
        for _ in range(self.chance.randint(1, 8)):
            at = self.chance.randrange(len(out) + 1)
            match self.chance.randrange(3):
                case 0:
                    out[at : at + 1] = self.chance.randbytes(1)
                case 1:
                    del out[at : at + self.chance.randint(1, 20)]
                case _:
                    out[at:at] = self.some(20)
        return bytes(out)

    def frame(self) -> bytes:
        """Return a ZMTP frame: any flags, a length that need not be true."""
        body = self.some(2000)
        length = self.chance.choice((len(body), len(body), len(body), self.chance.getrandbits(7)))
        if self.chance.random() < 0.02:
            length = self.chance.getrandbits(self.chance.choice((16, 32, 63, 64)))
        flags = self.chance.choice((0, 1, 2, 3, 4, 6, self.chance.getrandbits(8)))
        return bytes((flags,)) + (struct.pack(">Q", length) if flags & 2 else bytes((length & 255,))) + body

    def command(self) -> bytes:
        """Return a ZMTP command, such as a peer may send at any time."""
        name = self.chance.choice((b"SUBSCRIBE", b"CANCEL", b"PING", b"PONG", b"ERROR", b"READY", b"HELLO", b"X"))
        body = bytes((len(name),)) + name + self.some(200)
        return b"\x04" + bytes((min(len(body), 255),)) + body[:255]

    def question(self) -> list[bytes]:
        """Return something like a request for a snapshot."""
        topics = [self.chance.choice((b"retrieval", b"session", b"", self.some(50))) for _ in range(3)]
        frames = [self.chance.choice((b"snapshot", b"snapshot", self.some(50))), self.some(1500), *topics]
        return frames[: self.chance.randint(1, 5)]


def ready(kind: bytes) -> bytes:
    """Return the command that ends a handshake."""
    body = b"\x05READY\x0bSocket-Type" + struct.pack(">I", len(kind)) + kind
    return b"\x04" + bytes((len(body),)) + body


# --- attacks on a port: each sends up to BURST frames, and tells how many --------------------------------------------


def noise(port: int, make: Bytes) -> int:
    """Connections that do not speak ZMTP."""
    return _raw(port, [make.some(3000) for _ in range(BURST)])


def handshakes(port: int, make: Bytes) -> int:
    """Handshakes that go wrong."""
    for _ in range(BURST // 2):
        _raw(port, [make.mutated(GREETING), make.mutated(ready(b"SUB"))])
    return BURST


def frames(port: int, make: Bytes) -> int:
    """Good handshakes, then frames of any kind."""
    kind = make.chance.choice((b"SUB", b"XSUB", b"DEALER", b"REQ", b"ROUTER"))
    body = [make.frame() if make.chance.random() < 0.8 else make.command() for _ in range(BURST - 2)]
    return _raw(port, [GREETING, ready(kind), *body])


def subscriptions(port: int, make: Bytes) -> int:
    """Subscriptions to anything, and what else a peer may send up a PUB socket's connection."""
    with _peer(port, zmq.XSUB) as end:
        for _ in range(BURST):
            up = make.chance.choice((b"\x01" + make.some(900), b"\x00" + make.some(900), make.some(3000)))
            end.send_multipart([up] * make.chance.choice((1, 1, 1, 3)), zmq.NOBLOCK)
        return BURST


def requests(port: int, make: Bytes) -> int:
    """Messages that ask for a snapshot, nearly."""
    sent = 0
    with suppress(zmq.Again), _peer(port, zmq.DEALER) as end:  # a frame that is too long ends the connection
        while sent < BURST:
            question = make.question()
            end.send_multipart(question, zmq.NOBLOCK)
            sent += len(question)
    return sent


def large(port: int, make: Bytes) -> int:
    """Frames beyond what a port takes."""
    with suppress(zmq.Again), _peer(port, make.chance.choice((zmq.XSUB, zmq.DEALER))) as end:
        for _ in range(4):
            end.send(bytes(make.chance.choice((2_000, 70_000, 20_000_000))), zmq.NOBLOCK)
    return 4


ATTACKS: dict[str, tuple[Callable[[int, Bytes], int], float]] = {  # and their shares
    "noise": (noise, 0.2),
    "handshakes": (handshakes, 0.1),
    "frames": (frames, 0.3),
    "subscriptions": (subscriptions, 0.2),
    "requests": (requests, 0.2),
    "large": (large, 0.001),
}


def _raw(port: int, blobs: list[bytes]) -> int:
    with socket.create_connection(("127.0.0.1", port), 10) as end, suppress(OSError):  # it may hang up on us
        end.settimeout(1)
        for blob in blobs:
            end.sendall(blob)
    return len(blobs)


@contextmanager
def _peer(port: int, kind: int, linger: int = 300) -> Iterator[zmq.Socket[bytes]]:
    with zmq.Context() as context, context.socket(kind) as end:
        end.linger = linger
        end.connect(f"tcp://127.0.0.1:{port}")
        yield end


# --- the session -----------------------------------------------------------------------------------------------------


@dataclass
class Session:
    """`streamdec serve`, and the subscriber that watches it."""

    process: psutil.Process
    ports: list[int]
    feed: Subscriber
    slowest: float = 0.0
    seen: dict[str, int] = field(default_factory=dict)

    def read(self, seconds: float = 0.0) -> int:
        """Take what has come; return the number of decisions."""
        decisions, until = 0, time.monotonic() + seconds
        while (received := self.feed.receive(max(0.0, until - time.monotonic()))) is not None:
            message = received.message
            self.seen[message.topic] = self.seen.get(message.topic, 0) + 1
            if isinstance(message, schema.Retrieval) and received.fresh:
                decisions += 1
                self.slowest = max(self.slowest, message.timing.latency)
        return decisions

    def memory(self) -> int:
        """Resident bytes of `serve` and its children."""
        return sum(each.memory_info().rss for each in (self.process, *self.process.children(recursive=True)))

    def lives(self) -> bool:
        """Whether no process ended, and decisions come."""
        until = time.monotonic() + 20
        while time.monotonic() < until and self.process.is_running():
            if self.read(0.2):
                return True
        return False


@contextmanager
def session(keys: bool) -> Iterator[tuple[Session, subprocess.Popen[str]]]:
    """Amplifier, serving process and subscriber."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamdec-fuzz-")))
        name = f"fuzz-{os.getpid()}"
        (folder / "lsl_api.cfg").write_text(loopback(name), encoding="utf-8")
        os.environ["LSLAPICFG"] = str(folder / "lsl_api.cfg")
        client = make_keys(folder / "keys", ["witness"])[0] if keys else None
        config = folder / "serve.toml"
        config.write_text(CONFIG.format(keys="keys" if keys else ""), encoding="utf-8")
        amplifier_process(stack, name, 8)
        command = [sys.executable, "-m", "streamdec", "serve", str(FULL_BUNDLE), "--generator", str(FULL_GENERATOR)]
        command += ["--eeg", f"name={name}", "--markers", f"name={name}-markers", "--config", str(config)]
        command += ["--endpoint", "tcp://127.0.0.1:0"]
        process = stack.enter_context(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        stack.callback(process.kill)
        assert process.stdout is not None
        said = dict[str, str]()
        while "feed" not in said:
            line = process.stdout.readline()
            assert line, "serve ended before it was ready"
            what, _, where = line.strip().partition(" at ")
            said[what] = where
        workers = said["workers may join"]
        ports = [int(one.rpartition(":")[2]) for one in (*resolve(said["feed"]).endpoints, workers)]
        feed = stack.enter_context(Subscriber(said["feed"], keys=client))
        yield Session(psutil.Process(process.pid), ports, feed), process


def attack(total: int, seed: int, keys: bool) -> list[str]:
    """Attack a session; return what went wrong."""
    wrong: list[str] = []
    make = Bytes(seed)
    with session(keys) as (victim, process):
        if not victim.lives():
            return ["no decision before the first attack"]
        for name, (send, share) in ATTACKS.items():
            before, victim.slowest, sent, turn = victim.memory(), 0.0, 0, 0
            while sent < share * total:
                sent += send(victim.ports[turn % len(victim.ports)], make)
                turn += 1
                victim.read()
            if not victim.lives():
                wrong.append(f"no decision after {name}")
            growth = victim.memory() - before
            print(f"{name:14s}{sent:8d} frames  {growth / 2**20:+6.1f} MiB  slowest {1e3 * victim.slowest:5.1f} ms")
            if growth > MOST_GROWTH:
                wrong.append(f"memory grew by {growth >> 20} MiB under {name}")
        if victim.feed.gaps or victim.feed.garbage:
            wrong.append(f"missed {victim.feed.gaps}, garbage {victim.feed.garbage}")
        process.terminate()
        if process.wait(20):
            wrong.append(f"serve ended with {process.returncode}")
        print(f"read meanwhile: {victim.seen}")
    return wrong


# --- a hostile publisher ---------------------------------------------------------------------------------------------


def deceive(total: int, seed: int) -> list[str]:
    """Publish to a subscriber whatever it should not believe; return what went wrong."""
    make = Bytes(seed)
    good = [
        [b"onset", msgspec.msgpack.encode(schema.Onset(session="s", seq=n, key="k", text="t", onset_time=0.0))]
        for n in range(50)
    ]
    good.append([b"session", msgspec.json.encode(schema.Session(session="s", seq=1, state="started", time=0.0))])
    good.append([b"stats", msgspec.msgpack.encode(schema.Stats(session="s", seq=1, time=0.0, counts=schema.Counts()))])
    deep = [b"\x91" * 5000, b'{"topic":' + b"[" * 50_000, b"\xdf\xff\xff\xff\xff", b"\xdd\xff\xff\xff\xff"]

    def message() -> list[bytes]:
        topic, header = make.chance.choice(good)
        match make.chance.randrange(10):
            case 0:
                return [topic, header, *(make.some(3000) for _ in range(make.chance.randrange(4)))]
            case 1:
                return [topic, make.chance.choice(deep)]
            case 2:
                return [topic, make.some(3000)]
            case 3:
                return [topic]
            case 4:
                return [b"end", make.mutated(header)]
            case _:
                return [topic, make.mutated(header)]

    sent = errors = 0
    before = psutil.Process().memory_info().rss
    with tempfile.TemporaryDirectory() as folder, zmq.Context() as context:
        endpoint = f"ipc://{folder}/feed"
        ends = [context.socket(kind) for kind in (zmq.XPUB, zmq.ROUTER, zmq.PUB)]
        for end, name in zip(ends, resolve(endpoint).endpoints, strict=True):
            end.linger = 0
            end.bind(name)
        results, router, _ = ends
        results.xpub_nodrop = 1
        feed = Subscriber(endpoint)
        until = time.monotonic() + 60 + total / 500
        while sent < total and time.monotonic() < until:
            while results.poll(0):
                results.recv()
            while router.poll(0):
                peer, *question = router.recv_multipart()
                for lane in (results, ends[2]):
                    with suppress(zmq.Again):
                        lane.send(b"hello/" + question[1], zmq.NOBLOCK)
                for _ in range(make.chance.randrange(4)):
                    router.send_multipart([peer, *message()])
                end_ = schema.SnapshotEnd(
                    session="s", request=question[1].decode(), messages=make.chance.randrange(3), seqs={}
                )
                router.send_multipart([peer, b"end", msgspec.msgpack.encode(end_)])
            with suppress(zmq.Again):  # its queue is full: it reads first
                for _ in range(BURST):
                    parts = message()
                    results.send_multipart(parts, zmq.NOBLOCK)
                    sent += len(parts)
            try:
                while feed.receive(0.002) is not None:
                    pass
            except FeedError:  # a newer version, or no snapshot: said to the user, who may go on
                errors += 1
        growth = psutil.Process().memory_info().rss - before
        garbage = feed.garbage
        feed.close()
        context.destroy(linger=0)
    print(f"{'publisher':14s}{sent:8d} frames  {growth / 2**20:+6.1f} MiB  {garbage} garbage, {errors} errors raised")
    wrong = [] if sent >= total else [f"the subscriber took only {sent} frames"]
    wrong += [f"the subscriber's memory grew by {growth >> 20} MiB"] if growth > MOST_GROWTH else []
    return wrong + ([] if garbage else ["the subscriber counted no garbage"])


def main() -> int:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--frames", type=int, default=120_000, help="against the ports; a quarter more by the publisher"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keys", action="store_true", help="the ports are encrypted")
    options = parser.parse_args()
    wrong = deceive(options.frames // 4, options.seed) + attack(options.frames, options.seed, options.keys)
    for line in wrong:
        print(f"WRONG: {line}")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
