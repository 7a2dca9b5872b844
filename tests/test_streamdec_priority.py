"""Real-time priority: every waiting thread of the process, none of what it starts, and only where it may."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import pytest

from streamdec.priority import allowed

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


def run(*before: str, program: str = PROGRAM) -> list[str]:
    done = subprocess.run([*before, sys.executable, "-c", program], capture_output=True, text=True, check=True)
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
