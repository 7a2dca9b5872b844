"""`streamdec` as users run it: `serve` as a process, its feed read by a subscriber, its last words; and `replay`."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from streamdec.acquire.lsl.library import local_clock
from streamdec.feed import schema
from streamdec.feed.subscriber import Subscriber

COMMAND = (sys.executable, "-m", "streamdec")
_T = TypeVar("_T", bound=schema.Message)
_Found = TypeVar("_Found")


def streamdec(*arguments: object, timeout: float = 60.0) -> subprocess.CompletedProcess[str]:
    """Run a command to its end."""
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=timeout, check=False
    )


@contextmanager
def playing(*arguments: object) -> Iterator[subprocess.Popen[bytes]]:
    """`streamdec replay` as LSL streams, in a process of its own."""
    process = subprocess.Popen([*COMMAND, "replay", *map(str, arguments), "--wait", "30"], stdout=subprocess.DEVNULL)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(10)


class Serving:
    """The process and what it said so far, in ``messages``."""

    def __init__(self, *arguments: object) -> None:
        self.process = subprocess.Popen(
            [*COMMAND, "serve", *map(str, arguments), "--endpoint", "tcp://127.0.0.1:0"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        while not (line := self.process.stdout.readline()).startswith("feed at "):
            if not line:
                raise AssertionError(f"not ready: {self.process.communicate()[1]}")
        self.endpoint = line.removeprefix("feed at ").strip()
        self.subscriber = Subscriber(self.endpoint)
        self.messages: list[Any] = []

    def until(self, found: Callable[[], _Found], seconds: float = 40.0) -> _Found:
        """Read the feed until something is found."""
        end = time.monotonic() + seconds
        while not (result := found()):
            if time.monotonic() > end:
                states = [(m.state, m.stream, m.reason) for m in self.of(schema.Session)][-20:]
                raise AssertionError(f"not within {seconds} s; {len(self.messages)} messages, the last states {states}")
            received = self.subscriber.receive(0.2)
            if received is not None:
                self.messages.append(received.message)
        return result

    def of(self, kind: type[_T], since: int = 0) -> list[_T]:
        """Messages of a kind, from the one with the index ``since`` on."""
        return [message for message in self.messages[since:] if isinstance(message, kind)]

    def session(self, state: str, stream: str = "", since: int = 0) -> schema.Session:
        """Wait for a change of state."""
        return self.until(
            lambda: next((m for m in self.of(schema.Session, since) if (m.state, m.stream) == (state, stream)), None)
        )

    def stats(self) -> schema.Stats:
        """Wait for the next account."""
        now = local_clock()
        return self.until(lambda: next((m for m in self.of(schema.Stats) if m.time > now), None))

    def ends(self, times: Iterable[float]) -> list[schema.Epoch]:
        """Wait for the ends of some onsets."""
        return self._at(schema.Epoch, list(times))

    def decisions(self, times: Iterable[float]) -> list[schema.Retrieval]:
        """Wait for the decisions on some onsets."""
        return self._at(schema.Retrieval, list(times))

    def fresh(self, n: int = 5) -> list[schema.Retrieval]:
        """Wait for decisions from now on that carry no flag."""
        since = len(self.messages)
        return self.until(
            lambda: made if len(made := [m for m in self.of(schema.Retrieval, since) if not m.flags]) >= n else []
        )

    def last_words(self) -> tuple[int, str]:
        """Wait for its end; its exit code and what it printed to stderr."""
        _, errors = self.process.communicate(timeout=30)
        return self.process.returncode, errors

    def stop(self, number: int = signal.SIGTERM) -> tuple[schema.Session, int, str]:
        """Send it a signal; its bye on the feed, its exit code, and what it printed to stderr."""
        self.process.send_signal(number)
        bye = self.session("ended")
        return bye, *self.last_words()

    def close(self) -> None:
        """End it, gently at first. Idempotent."""
        self.subscriber.close()
        self.process.terminate()
        try:
            self.process.communicate(timeout=10)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.communicate()

    def __enter__(self) -> Serving:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _at(self, kind: type[_T], times: list[float]) -> list[_T]:
        def found() -> list[_T]:
            made = [[m for m in self.of(kind) if abs(m.onset_time - time) < 2e-3] for time in times]  # type: ignore[attr-defined]
            return [some[0] for some in made] if all(made) else []

        return self.until(found)
