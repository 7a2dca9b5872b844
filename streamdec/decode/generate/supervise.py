"""Processes that are started again when they die, ever later while they go on dying, and never outlive their parent."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import msgspec

from ...priority import processors, spread, start_at_once

FIRST, LONGEST = 0.5, 30.0
"""Seconds before a restart: the first, and the longest."""
GOOD = 60.0
"""Seconds of life after which the past is forgotten."""
LOADING = 600.0
"""Seconds after which a process that is still not up is taken to hang: large models come from slow disks."""
UNABLE = 2
"""Exit status of a process that would only fail again; the last line that it writes says why."""

_PR_SET_PDEATHSIG = 1
_TAIL = 4096  # bytes kept of what it says


class BackOff:
    """How long to wait before a restart: half a second, doubled each time, up to half a minute."""

    def __init__(self) -> None:
        self._next = FIRST

    def after(self, lived: float) -> float:
        """Tell how many seconds to wait after a life of ``lived`` seconds."""
        if lived >= GOOD:
            self._next = FIRST
        wait, self._next = self._next, min(2 * self._next, LONGEST)
        return wait


class Keeper:
    """Keeps one of our programs running: ``python -P -m MODULE PLAN``, which lives as long as its stdin is open.

    Parameters
    ----------
    module : str
        The program.
    threads : int
        Of the numeric libraries in it.
    said : callable, optional
        Takes each line that it writes to stderr.
    loop : int, optional
        The thread of the hot loop, 0 for the caller's: while it stays on some processors, the program loads on others.

    Attributes
    ----------
    due : float
        When it is to be started (again), by the caller's clock; infinity while it runs, or shall not run any more.
    """

    def __init__(
        self, module: str, threads: int = 1, said: Callable[[str], None] | None = None, loop: int | None = None
    ) -> None:
        self.due = 0.0
        self._module = module
        self._threads, self._said, self._loop = threads, said, loop
        self._processors = processors()  # those there are, before the loop stays on one
        self._process: subprocess.Popen[bytes] | None = None
        self._back_off = BackOff()
        self._unborn = ""
        self._started = 0.0
        self._tail = b""
        self._line = b""

    @property
    def pid(self) -> int | None:
        """Of the process, None where there is none."""
        return None if self._process is None else self._process.pid

    @property
    def descriptor(self) -> int | None:
        """Becomes readable when the process says something, or ends; None where there is none."""
        return None if self._process is None or self._process.stderr is None else self._process.stderr.fileno()

    def start(self, now: float, plan: msgspec.Struct) -> None:
        """Start it, with ``plan`` as JSON for its argument. Where it cannot be, :meth:`ended` tells."""
        assert self._process is None
        command = [sys.executable, "-P", "-m", self._module, msgspec.json.encode(plan).decode()]
        self._started, self.due = now, float("inf")
        try:
            self._process = start_at_once(lambda: _spawn(command, self._threads), self._processors - self._taken())
        except OSError as error:  # no memory, no more processes
            self._unborn = f"it cannot be started: {error.strerror}"
            return
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)
        self._tail = self._line = b""

    def loaded(self) -> None:
        """It has loaded: from now on it may use the loop's processors too."""
        if self._process is not None and (taken := self._taken()):
            spread(self._process.pid, self._processors | taken)

    def ended(self, now: float) -> str | None:
        """Tell, once, why it has ended; None while it runs. From then on :attr:`due` says when to start it again."""
        if self._unborn:
            why, self._unborn = self._unborn, ""
            self.due = now + self._back_off.after(0.0)
            return why
        if self._process is None:
            return None
        self._listen(self._process)
        status = self._process.poll()
        if status is None:
            return None
        self._listen(self._process)
        self._release(self._process)
        self.due = float("inf") if status == UNABLE else now + self._back_off.after(now - self._started)
        return _why(status, self._tail)

    def kill(self) -> None:
        """End it at once; :meth:`ended` will tell."""
        if self._process is not None:
            self._process.kill()

    def let_go(self) -> None:
        """Tell it to end, by closing its stdin."""
        self.due = float("inf")
        if self._process is not None and self._process.stdin is not None:
            self._process.stdin.close()

    def close(self, timeout: float) -> None:
        """End it: gently, and after ``timeout`` seconds by force. Idempotent."""
        self.let_go()
        if self._process is None:
            return
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._release(self._process)

    def _taken(self) -> frozenset[int]:
        """Processors on which the hot loop stays, and may: all of them where it does not stay."""
        try:
            return frozenset() if self._loop is None else processors(self._loop)
        except ProcessLookupError:  # it is gone, and so will this process be
            return frozenset()

    def _listen(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stderr is not None
        while True:
            try:
                said = os.read(process.stderr.fileno(), 65_536)
            except BlockingIOError:
                return
            if not said:
                return
            self._tail = (self._tail + said)[-_TAIL:]
            if self._said is not None:
                *lines, self._line = (self._line + said)[-_TAIL:].split(b"\n")
                for line in lines:
                    self._said(line.decode("utf-8", "replace"))

    def _release(self, process: subprocess.Popen[bytes]) -> None:
        for end in (process.stdin, process.stderr):
            if end is not None:
                end.close()
        self._process = None


def die_with_parent() -> None:
    """Have this process ended when its parent is gone, even where it hangs and does not see its stdin end."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _spawn(command: Sequence[str], threads: int) -> subprocess.Popen[bytes]:
    """Start a program that imports nothing of the caller's, in a process group of its own: a Ctrl-C is for the parent.

    Not in a session of its own: Linux shares the processor out by session first (autogroups), and a program that is to
    stand back behind the parent would be its equal.
    """
    paths = [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    libraries = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    return subprocess.Popen(  # noqa: S603 - our own program
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        env={**os.environ, **libraries, "PYTHONPATH": os.pathsep.join(paths)},
        process_group=0,
    )


def _why(status: int, tail: bytes) -> str:
    """Say why a process ended, from its exit status and the last line it wrote."""
    if status < 0:
        name = signal.Signals(-status).name
        return f"ended by {name}{', out of memory?' if name == 'SIGKILL' else ''}"
    lines = [line for line in tail.decode("utf-8", "replace").splitlines() if line.strip()]
    last = " ".join("".join(c if c.isprintable() else " " for c in lines[-1]).split())[:300] if lines else ""
    if status == UNABLE and last:
        return last
    return f"ended with status {status}{f': {last}' if last else ''}"
