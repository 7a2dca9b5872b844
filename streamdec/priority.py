"""The hot loop's place in the queue for a processor: before every ordinary program, where the system allows it."""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

_LOWEST = 1  # of the real-time priorities: each goes before all ordinary programs


def go_first() -> str:
    """Run all threads of this process in real time from now on (Linux: SCHED_RR); processes that it starts do not.

    A thread that wakes up then has a processor at once, however many programs want one. Linux keeps a share of every
    second for the others, whatever the thread does.

    Returns
    -------
    str
        Why it may not, "" where it may.
    """
    if sys.platform != "linux":
        return "asked of Linux only"
    for thread in Path("/proc/self/task").iterdir():
        try:
            os.sched_setscheduler(int(thread.name), os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(_LOWEST))
        except ProcessLookupError:  # it has ended meanwhile
            continue
        except OSError as error:
            return error.strerror or str(error)
    return ""


def allowed() -> bool:
    """Tell whether :func:`go_first` would be let, or need not be: nowhere but on Linux is it asked."""
    if sys.platform != "linux":
        return True
    may: list[bool] = []

    def ask() -> None:
        try:
            os.sched_setscheduler(0, os.SCHED_RR | os.SCHED_RESET_ON_FORK, os.sched_param(_LOWEST))
        except OSError:
            return
        may.append(True)

    asking = threading.Thread(target=ask)  # it is a thread's own matter: the caller's stays as it is
    asking.start()
    asking.join()
    return bool(may)
