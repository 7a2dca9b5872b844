"""Real-time priority: every waiting thread of the process, none of what it starts, and only where it may."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Sequence

import pytest

from streamdec.priority import allowed, processors

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="asked of Linux only")

PROGRAM = """
import os, subprocess, sys, threading
from streamdec.priority import allowed, go_first, start_at_once
ready, end = threading.Event(), threading.Event()
thread = threading.Thread(target=lambda: (ready.set(), end.wait()))
thread.start()
ready.wait()
print(allowed(), os.sched_getscheduler(0) == os.SCHED_OTHER)
print(go_first())
policies = [os.sched_getscheduler(int(tid)) & ~os.SCHED_RESET_ON_FORK for tid in os.listdir("/proc/self/task")]
print(len(policies) > 1, set(policies) == {os.SCHED_RR}, set(policies) == {os.SCHED_OTHER}, flush=True)
child = "import os; print(os.sched_getscheduler(0) == os.SCHED_OTHER)"
print(subprocess.run([sys.executable, "-c", child], capture_output=True, text=True, check=True).stdout.strip())
before = os.sched_getscheduler(0)
def start():
    print(os.sched_getscheduler(0) == os.SCHED_RR)  # what the process begins with
    return subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
with start_at_once(start) as process:
    print(os.sched_getscheduler(process.pid) == os.SCHED_OTHER, os.sched_getscheduler(0) == before)
    process.kill()
end.set()
"""


STAYING = """
import os, subprocess, sys, time
from streamdec.priority import go_first, processors, spread, start_at_once, stay
all_ = processors()
if "ordinary" not in sys.argv:
    go_first()
stay()
own = processors()
print(len(own), own < all_)
child = "import threading; threading.Thread(target=input).start(); print(1, flush=True); input()"
program = [sys.executable, "-c", child]
start = lambda: subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
with start_at_once(start, all_ - own) as process:
    process.stdout.readline()
    print(processors(process.pid) == all_ - own, processors() == own)
    spread(process.pid, all_)
    threads = [int(thread) for thread in os.listdir(f"/proc/{process.pid}/task")]
    print(len(threads), {processors(thread) == all_ for thread in threads})
    process.kill()
spread(process.pid, all_)  # it has ended
"""

HANDED_ON = str(os.geteuid() == 0 and len(os.sched_getaffinity(0)) > 1)
"""Whether a process begins in real time."""

BEGINNING = """
import os, zmq
from streamdec.priority import go_first
for _ in range(300):
    with zmq.Context() as context, context.socket(zmq.SUB) as socket:
        socket.connect("tcp://127.0.0.1:9")  # its thread begins now
        assert go_first() == ""
    os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, os.sched_param(0))
print("lives")
"""


def run(*before: str, program: str = PROGRAM, after: Sequence[str] = ()) -> list[str]:
    command = [*before, sys.executable, "-c", program, *after]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


@pytest.mark.skipif(not allowed(), reason="no real-time priority for this user")
def test_every_thread_goes_first_and_no_child_does() -> None:
    assert run() == ["True True", "", "True True False", "True", HANDED_ON, "True True"]


@pytest.mark.skipif(not allowed(), reason="no real-time priority for this user")
def test_a_thread_that_only_begins_is_left_to_it() -> None:
    """Libzmq aborts where a thread of its own finds itself in real time with a priority it was not given."""
    assert run(program=BEGINNING) == ["lives"]


@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("setpriv"), reason="only root's setpriv takes the right away")
def test_who_may_not_goes_on_as_before() -> None:
    told = run("setpriv", "--bounding-set", "-sys_nice")
    assert told == ["False True", "Operation not permitted", "True False True", "True", "False", "True True"]


@pytest.mark.skipif(len(processors()) < 2, reason="one processor")
@pytest.mark.parametrize("how", ["ordinary", "real time"])
def test_who_stays_is_left_alone_by_what_it_starts_until_that_has_loaded(how: str) -> None:
    if how == "real time" and not allowed():
        pytest.skip("no real-time priority for this user")
    assert run(program=STAYING, after=[how]) == ["1 True", "True True", "2 {True}"]


def test_with_one_processor_what_is_started_shares_it() -> None:
    shared = STAYING.replace(
        "all_ = processors()", "all_ = processors(); os.sched_setaffinity(0, {min(all_)}); all_ = processors()"
    )
    assert run(program=shared) == ["1 False", "False True", "2 {True}"]
