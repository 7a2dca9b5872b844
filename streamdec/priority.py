"""The hot loop's place in the queue for a processor: before every ordinary program, where the system allows it.

That is not enough where a processor is in the kernel: most kernels do not take it from a program for which they map or
free memory before that is done, whoever waits. A process that loads a model, or dies of it, does much of that. So the
loop can stay on one processor, and what is started beside it load on the others.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeAlias

Process: TypeAlias = subprocess.Popen[bytes]

_LOWEST = 1  # of the real-time priorities: each goes before all ordinary programs
_PATIENCE = 0.1  # s for a thread to come to wait for something


def go_first() -> str:
    """Run this thread and all that wait for something in real time from now on (Linux: SCHED_RR).

    A thread that wakes up then has a processor at once, however many programs want one. Linux keeps a share of every
    second for the others, whatever the thread does. Threads and processes that are started later are ordinary ones; so
    are threads that computed all the while: they are left out, since one that has not begun yet looks the same, and
    libzmq ends the process where it finds the policy of a beginning thread changed.

    Returns
    -------
    str
        Why it may not, "" where it may.
    """
    if sys.platform != "linux":
        return "asked of Linux only"
    own = str(threading.get_native_id())
    deadline = time.monotonic() + _PATIENCE
    waiting = [thread for thread in Path("/proc/self/task").iterdir() if thread.name != own]
    try:
        _raise(0)
        while waiting and time.monotonic() < deadline:
            waiting = [thread for thread in waiting if not _settled(thread)]
            time.sleep(0.001)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def processors(thread: int = 0) -> frozenset[int]:
    """Those that a thread, this one for 0, may run on (Linux; elsewhere none are told apart)."""
    return frozenset(os.sched_getaffinity(thread)) if sys.platform == "linux" else frozenset()


def stay() -> None:
    """Keep this thread, and what it starts, on the processor that it is on (Linux)."""
    if sys.platform == "linux":
        own = ctypes.CDLL(None).sched_getcpu()
        if own in processors():
            os.sched_setaffinity(0, {own})


def start_at_once(start: Callable[[], Process], among: frozenset[int] = frozenset()) -> Process:
    """Start a process that begins in real time where this thread runs so, and is an ordinary one from then on.

    Who starts a process waits until it has begun, which would be when the ordinary programs leave it a processor. It
    takes the right to hand real time on (root's, CAP_SYS_NICE) and a second processor; else it begins as any other.

    Parameters
    ----------
    start : callable
        Starts the process.
    among : frozenset of int
        Processors that it may run on; without any those of this thread.
    """
    if not among:
        return _start_at_once(start)
    own = processors()
    with suppress(OSError):
        os.sched_setaffinity(0, own | among)
    try:
        process = _start_at_once(start)
        with suppress(OSError):
            os.sched_setaffinity(process.pid, among)
    finally:
        with suppress(OSError):
            os.sched_setaffinity(0, own)
    return process


def spread(pid: int, among: frozenset[int]) -> None:
    """Let all threads of a process run on these processors (Linux). Nothing happens where it has ended."""
    with suppress(OSError):
        for thread in Path(f"/proc/{pid}/task").iterdir():
            with suppress(ProcessLookupError):  # the thread has ended
                os.sched_setaffinity(int(thread.name), among)


def _start_at_once(start: Callable[[], Process]) -> Process:
    if sys.platform != "linux" or os.sched_getscheduler(0) & ~os.SCHED_RESET_ON_FORK != os.SCHED_RR:
        return start()
    if len(os.sched_getaffinity(0)) < 2:  # of its own priority, it would keep the only one for a time slice
        return start()
    with suppress(OSError):
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(_LOWEST))
    try:
        process = start()
        with suppress(OSError):
            os.sched_setscheduler(process.pid, os.SCHED_OTHER, os.sched_param(0))
    finally:
        with suppress(OSError):
            _raise(0)
    return process


def _raise(thread: int) -> None:
    os.sched_setscheduler(thread, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(_LOWEST))


def _settled(thread: Path) -> bool:
    """Raise a thread of /proc that waits for something; False where it computes, or has yet to begin."""
    try:
        if (thread / "stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()[0] != "S":
            return False
        _raise(int(thread.name))
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        pass
    return True


def allowed() -> bool:
    """Tell whether :func:`go_first` would be let, or need not be: nowhere but on Linux is it asked."""
    if sys.platform != "linux":
        return True
    may: list[bool] = []

    def ask() -> None:
        with suppress(OSError):
            _raise(0)
            may.append(True)

    asking = threading.Thread(target=ask)  # it is a thread's own matter: the caller's stays as it is
    asking.start()
    asking.join()
    return bool(may)
