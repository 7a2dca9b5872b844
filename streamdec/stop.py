"""How a program that runs until somebody stops it hears that somebody does, and how it ends one that it started."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def until_signal() -> Iterator[Callable[[], bool]]:
    """Within it, SIGINT and SIGTERM set a flag that the yielded function reads.

    Before it is first called nobody looks, for as long as it takes to find a stream: until then they raise
    KeyboardInterrupt.
    """
    signalled = asked = False

    def handle(number: int, frame: FrameType | None) -> None:
        nonlocal signalled
        signalled = True
        if not asked:
            raise KeyboardInterrupt

    def stopped() -> bool:
        nonlocal asked
        asked = True
        return signalled

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stopped
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def end(process: subprocess.Popen[str], patience: float = 5.0) -> None:
    """End a child: SIGTERM, as a user would, and SIGKILL where that takes longer than ``patience`` seconds."""
    process.terminate()
    try:
        process.wait(patience)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()
