"""The worker process: opens the tiers of one kind, warms up, and does one request at a time.

Its main thread works. A second one holds the line to the dispatcher: it sends a beat twice a second whatever the main
thread is at, takes in what is to be done and what is to be stopped, and dials again when the dispatcher falls silent.
A third one ends the process when its stdin does, that is, when its parent is gone.
"""

from __future__ import annotations

import gc
import hashlib
import importlib
import os
import queue
import signal
import socket
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import NoReturn, cast

import msgspec

from ...errors import ConfigError, EngineError, StreamdecError
from .generator import open_generator
from .job import LADDER, Kind, Result
from .link import (
    MAX_IMAGE,
    Beat,
    Cancel,
    Card,
    Done,
    Failed,
    FromWorker,
    Hello,
    Introduce,
    Job,
    Line,
    Progress,
    Quit,
    ToWorker,
    Waiter,
)
from .spec import Generator
from .supervise import UNABLE, die_with_parent
from .tiers.base import Worked, plain

BEAT = 0.5
"""Seconds between two beats."""
SILENCE = 3.0
"""Seconds without a beat after which the other side, on another machine, is taken to be gone."""
STUCK = 10.0
"""The same on one machine, where a process can only be starved, or stopped."""
MODULE = "streamdec.decode.generate.worker"
"""This program."""
OPENS = "streamdec.decode.generate.tiers.open:open_tiers"

_SHOW = 0.05  # seconds between two reports of progress
_RUNS, _MEASURE = 5, 1.0  # of the warm-up: so many runs of a tier are measured, or so many seconds
_FAREWELL = 1.0  # seconds for the last words to leave
_VICTIM = 500  # of 1000: where memory runs out, the system ends a worker before anything else
_NICE = 10  # while it loads and warms up; behind a dispatcher, whose own 10 it inherits, 19


class WorkerPlan(msgspec.Struct, frozen=True):
    """What a worker is told.

    ``generator`` folder; ``endpoint`` of the dispatcher and ``keys`` folder, "" for none; ``opens`` ``module:function``
    that loads its tiers, as :func:`~.tiers.open.open_tiers` does.
    """

    name: str
    kind: Kind
    generator: str
    endpoint: str
    keys: str = ""
    device: str = "cpu"
    threads: int = 1
    opens: str = OPENS


class _Task:
    """A job, when it came, and whether it is to be stopped."""

    def __init__(self, job: Job, came: float) -> None:
        self.job, self.until = job, came + job.seconds
        self.stop = threading.Event()


class Post(threading.Thread):
    """The thread that holds the line.

    Attributes
    ----------
    tasks : queue
        What is to be done.
    """

    def __init__(self, plan: WorkerPlan, say: Callable[[str], None]) -> None:
        super().__init__(daemon=True)
        self.tasks: queue.SimpleQueue[_Task] = queue.SimpleQueue()
        self._plan, self._say = plan, say
        self._patience = SILENCE if plan.endpoint.startswith("tcp") else STUCK
        self._line: Line[ToWorker] = Line(plan.endpoint, ToWorker, "worker", Path(plan.keys) if plan.keys else None)
        self._out: deque[FromWorker] = deque()
        self._bell, self._door = socket.socketpair()
        for end in (self._bell, self._door):
            end.setblocking(False)
        self._hello: Hello | None = None
        self._open: list[_Task] = []  # not done yet
        self._ending = False

    def send(self, message: FromWorker) -> None:
        """Have a message sent. The first Hello is kept: it is said again to whoever asks."""
        if isinstance(message, Hello):
            self._hello = message
        self._out.append(message)
        self._ring()

    def done(self, task: _Task) -> None:
        """A task is over."""
        self._open.remove(task)

    def finish(self) -> None:
        """Send what is left, and let go of the line."""
        self._ending = True
        self._ring()
        self.join(2 * _FAREWELL)

    def run(self) -> None:
        """Hold the line; where that fails, end the process, which is of no use then."""
        try:
            self._hold()
        except Exception as error:  # such as keys that cannot be read any more
            self._say(plain(f"{type(error).__name__}: {error}"))
            os._exit(1)

    def _hold(self) -> None:
        waiter, heard, beat = Waiter(), time.monotonic(), 0.0
        met: bool | None = None  # in touch with the dispatcher; None: not yet
        waiter.add(self._line)
        waiter.add(self._door.fileno())
        while not self._ending:
            waiter.wait(beat - time.monotonic())
            while self._rung():
                pass
            now = time.monotonic()
            while (message := self._line.receive()) is not None:
                heard = now
                if not met:
                    met = True
                    self._say(f"in touch with the session at {self._plan.endpoint}")
                self._take(message, now)
            self._empty()
            if now >= beat:
                beat = now + BEAT
                self._line.send(Beat())
            if now - heard > self._patience:
                heard = now
                waiter.remove(self._line)
                self._line.redial()
                waiter.add(self._line)
                if met is None:
                    self._say(
                        f"no sign of a session at {self._plan.endpoint}: does it run, does its generate.listen say so, "
                        "and is this key on its list?"
                    )
                elif met:
                    self._say(f"the session at {self._plan.endpoint} is silent; dialling again")
                met = False
        self._empty()
        self._line.close(_FAREWELL)

    def _empty(self) -> None:
        while self._out:
            self._line.send(self._out.popleft())

    def _take(self, message: ToWorker, now: float) -> None:
        match message:
            case Job():
                task = _Task(message, now)
                self._open.append(task)
                self.tasks.put(task)
            case Cancel():
                for task in list(self._open):
                    if task.job.request.id == message.id:
                        task.stop.set()
            case Introduce():
                for task in list(self._open):
                    task.stop.set()
                if self._hello is not None:
                    self._out.append(self._hello)
            case Quit():
                self._say(message.reason)
                os._exit(1 if message.again else UNABLE)
            case Beat():
                pass

    def _ring(self) -> None:
        with suppress(BlockingIOError):  # it has been rung often enough
            self._bell.send(b"!")

    def _rung(self) -> bool:
        try:
            return bool(self._door.recv(4096))
        except BlockingIOError:
            return False


def fingerprint(manifest: Generator) -> str:
    """Name what makes the results of a generator: its files. Where it keeps models elsewhere may differ by machine."""
    return hashlib.sha256(msgspec.json.encode(sorted(manifest.files.items()))).hexdigest()


def run(plan: WorkerPlan, post: Post) -> NoReturn:
    """Open the tiers, warm up, and work.

    Raises
    ------
    StreamdecError
        They cannot be had.
    """
    generator = open_generator(plan.generator)
    module, _, function = plan.opens.partition(":")
    opens = getattr(importlib.import_module(module), function)
    tiers = cast(list[Worked], opens(generator, plan.kind, plan.device, plan.threads))
    if not tiers:
        raise ConfigError(f"generator {plan.generator}", got="no tier", allowed=" or ".join(LADDER[plan.kind][1:]))
    cards = []
    for tier in tiers:
        tier.warm_up()
        cards.append(measure(tier))
    gc.collect()
    gc.freeze()
    yield_always()
    hello = Hello(
        plan.name, plan.kind, fingerprint(generator.manifest), plan.device, socket.gethostname(), tuple(cards)
    )
    post.send(hello)
    known = {tier.name: tier for tier in tiers}
    while True:
        task = post.tasks.get()
        id_ = task.job.request.id
        try:
            if task.job.tier not in known:
                raise EngineError(f"tier {task.job.tier}", allowed=", ".join(known))
            post.send(Done(id_, work(known[task.job.tier], task, post.send)))
        except EngineError as error:
            post.send(Failed(id_, str(error)))
        except Exception as error:  # whatever it is, the next job may meet what it left behind: begin anew
            post.send(Failed(id_, f"{type(error).__name__}: {error}"))
            raise
        finally:
            post.done(task)


def work(tier: Worked, task: _Task, send: Callable[[FromWorker], None]) -> Result:
    """Do one task."""
    id_, due = task.job.request.id, 0.0

    def progress(result: Result, units: int) -> bool:
        nonlocal due
        now = time.monotonic()
        if now >= due and units < task.job.units and len(result.image) <= MAX_IMAGE:  # the last is in the result
            due = now + _SHOW
            send(Progress(id_, msgspec.structs.replace(result, units=units)))
        return not task.stop.is_set()

    result = tier.run(task.job.request, task.job.units, task.until, time.monotonic, progress)
    if len(result.image) > MAX_IMAGE:
        raise EngineError(f"picture by {tier.name}", got=f"{len(result.image)} bytes", allowed=f"up to {MAX_IMAGE}")
    return result


def measure(tier: Worked) -> Card:
    """Run a tier on its example, with the most units, and note what that costs."""
    runs: list[tuple[float, int, float | None]] = []
    end = time.monotonic() + _MEASURE
    while not runs or (len(runs) < _RUNS and time.monotonic() < end):
        stamps: list[float] = []

        def progress(result: Result, units: int, stamps: list[float] = stamps) -> bool:
            stamps.append(time.monotonic())
            return True

        began = time.monotonic()
        result = tier.run(tier.example, tier.units[1], float("inf"), time.monotonic, progress)
        seconds = time.monotonic() - began
        each = (stamps[-1] - stamps[0]) / (len(stamps) - 1) if len(stamps) > 1 else None
        runs.append((seconds, max(1, result.units), each))
    return Card(tier.name, tier.units, tuple(runs))


def step_back() -> None:
    """Load behind the hot loop, and be the first to go where memory runs out. Threads to come inherit it."""
    os.nice(_NICE)
    if sys.platform == "linux":
        with suppress(
            PermissionError
        ):  # who started it set it higher, as some containers do, and it may not be lowered
            Path("/proc/self/oom_score_adj").write_text(str(_VICTIM), encoding="ascii")


def yield_always() -> None:
    """From here on run only when nothing else wants the processor, with all threads there are.

    Not before: on a machine that is busy with other things nothing would ever be loaded.
    """
    # The hot loop's event-to-result on two cores that others were using too, 63 channels at 1 kHz, both workers never
    # at rest (small models), two runs of 120 in turn: p99 5.9 and 7.6 ms without workers; 9.1 and 8.1 so; 9.1 and 14.5
    # with workers at the hot loop's own priority.
    if sys.platform != "linux":
        os.nice(19 - _NICE)
        return
    for thread in Path("/proc/self/task").iterdir():
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setscheduler(int(thread.name), os.SCHED_IDLE, os.sched_param(0))


def main() -> int:
    """Run as ``python -m streamdec.decode.generate.worker PLAN``, until stdin ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    die_with_parent()
    step_back()

    def watch() -> None:
        while os.read(0, 4096):  # not by sys.stdin, whose lock would be missed at the end
            pass
        os._exit(0)

    def say(line: str) -> None:
        os.write(2, f"{line}\n".encode())  # its parent listens; in one piece, as two threads write

    threading.Thread(target=watch, daemon=True).start()
    plan = msgspec.json.decode(sys.argv[1], type=WorkerPlan)
    try:
        post = Post(plan, say)
    except ConfigError as error:
        say(str(error))
        return UNABLE
    post.start()
    try:
        run(plan, post)
    except StreamdecError as error:
        say(str(error))
        return UNABLE
    finally:
        post.finish()


if __name__ == "__main__":
    sys.exit(main())
