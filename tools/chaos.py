"""A session whose workers are killed and stopped at random: nothing may be lost, and the hot loop may not feel it.

    python tools/chaos.py --minutes 5 [--bundle BUNDLE --generator FOLDER]

A calm run of `streamdec serve` with a generator, then one as long in which every few seconds a worker, or now and then
the dispatcher, gets SIGKILL or SIGSTOP. Printed: whether every decision led to exactly one end per kind on the feed,
how the ends are shared, whether the session ended cleanly, and of both runs

- "loop": what the hot loop took for a decision, from the packet that completed its epoch until it was to be sent;
  "turn_max": its longest turn of any kind, in which it is away from the streams, what is asked of the dispatcher and
  its restarts included. The longest of both with chaos is held against the 99.9th percentile of decisions without.
- "receipt": from the push of that packet by another process to the receipt by a third one. It has the waits of liblsl,
  ZeroMQ and the kernel as well, and, on a virtual machine, those for its host: "stolen", % of the processors' time.
- "stalls": for how long the machine itself stood still, as virtual ones do without counting it as stolen. On each
  processor a thread of a higher priority than the loop's wakes every millisecond; counted is where it came more than
  half a one late, less what it waited for the kernel, which "kernel" counts. "own_ratio" leaves those decisions out
  during which, on any processor, the machine stood still.
- "ran", "queued" of a slow decision: the ms that the loop's thread had a processor, and that it was ready and had none,
  between the looks at it, every few milliseconds, around the decision. A processor that is slower than usual, and one
  that others hold, are so told apart. "workers": what state they were in, as the feed last told.

Exit code 1 where something is lost, the session does not end cleanly, or the hot loop feels it.
"""

from __future__ import annotations

import argparse
import gc
import json
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from bisect import bisect_left, bisect_right
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import NamedTuple, Self, TypeVar

import numpy as np
import psutil
from bench_live import SIMULATE, show, tag

from streamdec.acquire.lsl.library import local_clock, loopback
from streamdec.bench import Measured, Plan, measure
from streamdec.decode import bundle as bundles
from streamdec.feed.schema import Dropped, Generated, Retrieval, Session, Stats
from streamdec.feed.subscriber import Subscriber
from streamdec.priority import allowed
from streamdec.types import Bool, Float64

T = TypeVar("T")

BAR = 2.0
SLOWEST = 5  # decisions shown of each run
WAKE, STALL, LOOK = 1e-3, 0.5e-3, 5e-3  # seconds
SOA = 0.2


class Harm(NamedTuple):
    """What was done when (LSL clock)."""

    at: float
    what: str


def kill(pid: int, seed: int) -> None:
    """Do harm to the children of the serving process until stdin ends; print what was done, and when (LSL clock)."""
    chance, done = random.Random(seed), list[Harm]()  # noqa: S311 - no secret
    server = psutil.Process(pid)
    os.set_blocking(sys.stdin.fileno(), False)
    while sys.stdin.buffer.read(1) != b"":
        time.sleep(chance.uniform(1.0, 5.0))
        programs: dict[str, list[psutil.Process]] = {"worker": [], "dispatcher": []}
        with suppress(psutil.Error):  # they come and go
            for child in server.children(recursive=True):
                for name, found in programs.items():
                    if f"streamdec.decode.generate.{name}" in child.cmdline():
                        found.append(child)
            name = "dispatcher" if chance.random() < 0.1 else "worker"
            if programs[name]:
                harm = chance.choice(("SIGKILL", "SIGKILL", "SIGSTOP"))
                chance.choice(programs[name]).send_signal(getattr(signal, harm))
                done.append(Harm(local_clock(), f"{harm} of a {name}"))
    print(json.dumps(done))


class Late(NamedTuple):
    """When a thread that goes before all others came late: until when (LSL clock), and seconds it waited for whom."""

    until: float
    machine: float
    kernel: float


def stalls(processor: int) -> None:
    """Wake every millisecond on one processor, before all others, until stdin ends; print each :class:`Late`."""
    os.sched_setaffinity(0, {processor})
    found = list[Late]()
    with watching(0), Schedstat("thread-self") as own:
        _, waited = own()
        while sys.stdin.buffer.read(1) != b"":
            due = local_clock() + WAKE
            time.sleep(WAKE)
            now, before, waited = local_clock(), waited, own()[1]
            late = Late(now, now - due - (waited - before), waited - before)
            if max(late.machine, late.kernel) > STALL:
                found.append(late)
    print(json.dumps(found))


class Used(NamedTuple):
    """What a thread had used of its processor when (LSL clock): seconds, and seconds it waited for one."""

    at: float
    ran: float
    queued: float


def used(pid: int) -> None:
    """Look every few milliseconds what a process's first thread has used; print each :class:`Used` that is new."""
    found = [Used(-math.inf, 0.0, 0.0)]
    with watching(1), Schedstat(f"{pid}/task/{pid}") as loop:
        while sys.stdin.buffer.read(1) != b"":
            time.sleep(LOOK)
            with suppress(ProcessLookupError):  # it has ended
                look = Used(local_clock(), *loop())
                if look[1:] != found[-1][1:]:
                    found.append(look)
    print(json.dumps(found[1:]))


@contextmanager
def watching(behind: int) -> Iterator[None]:
    """Go before the loop, at half the real-time priorities less ``behind``, and collect no garbage meanwhile."""
    os.set_blocking(sys.stdin.fileno(), False)
    gc.disable()
    half = os.sched_get_priority_max(os.SCHED_FIFO) // 2
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(half - behind))
    yield
    os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))


class Schedstat:
    """Seconds that a thread of /proc ran until it last gave its processor away, and was ready to run in vain.

    In vain: the kernel was busy with other things, or a thread that goes before it. The file stays open: who watches
    a loop is not to hold it up for longer than it must.
    """

    def __init__(self, thread: str) -> None:
        self._file = os.open(f"/proc/{thread}/schedstat", os.O_RDONLY)

    def __call__(self) -> tuple[float, float]:
        """Read it. Raises ProcessLookupError where the thread has ended."""
        ran, queued, _ = os.pread(self._file, 128, 0).split()
        return int(ran) / 1e9, int(queued) / 1e9

    def __enter__(self) -> Self:
        """Itself."""
        return self

    def __exit__(self, *failure: object) -> None:
        """Close."""
        os.close(self._file)


def account(endpoint: str) -> None:
    """Count what comes on the feed until the session ends; print it. Each stimulus of the feeder has its own key."""
    decided: set[str] = set()
    ends: dict[str, Counter[str]] = {"caption": Counter(), "reconstruction": Counter()}
    tiers: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    met, clean = 0, False
    states: list[tuple[float, dict[str, str]]] = []

    def take(message: object) -> None:
        nonlocal met, clean
        if isinstance(message, Retrieval) and message.final:
            decided.add(message.key)
        elif isinstance(message, Generated) and not message.partial:
            ends[message.topic][message.key] += 1
            tiers[message.tier] += 1
            met += message.timing.deadline_met
        elif isinstance(message, Dropped) and message.what in ends:
            ends[message.what][message.key] += 1
            dropped[message.reason] += 1
        elif isinstance(message, Stats):
            states.append((message.time, message.workers))
        elif isinstance(message, Session) and message.state == "ended":
            clean = True

    with Subscriber(endpoint, timeout=None) as feed:
        print("ready", flush=True)
        for received in feed:
            take(received.message)
        while (late := feed.receive(1.0)) is not None:  # pictures come by a socket of their own
            take(late.message)
        missed = sum(feed.gaps.values())
    once = {kind: sum(each[key] == 1 for key in decided) for kind, each in ends.items()}
    seen = {"decided": len(decided), "once": once, "tiers": tiers, "dropped": dropped, "met": met}
    print(json.dumps([{**seen, "clean": clean, "missed": missed}, states]))


@contextmanager
def program(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """One of the programs above, in a process of its own; its stdin ends with the context."""
    command = [sys.executable, __file__, *arguments]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        assert process.stdin is not None
        process.stdin.close()


@contextmanager
def listing(found: list[T], row: Callable[..., T], *arguments: str) -> Iterator[None]:
    """One of the programs above during the context; the rows that it lists at its end go into ``found``."""
    with program(*arguments) as process:
        yield
    assert process.stdout is not None
    found.extend(row(*told) for told in json.loads(process.stdout.read()))


def session(options: argparse.Namespace, chaos: bool) -> tuple[Measured, Bool, dict[str, object]]:
    """One run, which of its decisions fell into a stall, and what was seen of it on the feed."""
    manifest = bundles.read(options.bundle).manifest
    n_events = round(options.minutes * 60 / SOA)
    signal_ = manifest.signal
    plan = Plan(tag(), signal_.ch_names, signal_.sfreq, n_events, SOA, tmin=signal_.tmin, tmax=signal_.tmax)
    watchers: list[subprocess.Popen[str]] = []
    harm: list[Harm] = []
    lates: list[Late] = []
    looks: list[Used] = []

    @contextmanager
    def beside(server: subprocess.Popen[str], endpoint: str) -> Iterator[None]:
        with ExitStack() as stack:
            watcher = stack.enter_context(program("account", endpoint))
            watchers.append(watcher)
            assert watcher.stdout is not None
            assert watcher.stdout.readline() == "ready\n"
            for processor in sorted(os.sched_getaffinity(0)):
                stack.enter_context(listing(lates, Late, "stalls", str(processor)))
            stack.enter_context(listing(looks, Used, "used", str(server.pid)))
            if chaos:
                stack.enter_context(listing(harm, Harm, "kill", str(server.pid), str(options.seed)))
            yield

    before = psutil.cpu_times()
    run = measure(options.bundle, plan, "--generator", str(options.generator), beside=beside)
    passed = np.subtract(psutil.cpu_times(), before)
    stolen = 100 * dict(zip(before._fields, passed, strict=True)).get("steal", 0.0) / passed.sum()
    assert watchers[0].stdout is not None
    seen, states = json.loads(watchers[0].stdout.read())
    times = {"loop": of_loop(run), "receipt": run.latency}
    quantiles = {
        name: {quantile: round(1e3 * float(np.percentile(time, q)), 2) for quantile, q in QUANTILES.items()}
        for name, time in times.items()
    }
    turn = round(1e3 * run.stages["turn"].max, 2)
    show("chaos", chaos=chaos, n=run.decided, of=n_events, **quantiles, turn_max=turn, stolen=round(stolen, 2), **seen)
    counts = {"stalls": [late.machine for late in lates], "kernel": [late.kernel for late in lates]}
    counted = {
        name: {"n": sum(t > STALL for t in times), "max": ms(max(times, default=0.0))} for name, times in counts.items()
    }
    show("chaos", chaos=chaos, **counted, harm=Counter(each.what for each in harm))
    meanwhile = [within(run, i, lates) for i in range(run.decided)]
    for i in np.argsort(-run.latency)[:SLOWEST]:
        waits = {name: [ms(t) for t in times if t > STALL] for name, times in meanwhile[i].items()}
        spent, after = around(run, int(i), looks), shortly_before(run, int(i), harm)
        workers = [told for at, told in states if at <= run.receipt[i]][-1:]
        show("slow", chaos=chaos, **where(run, int(i)), **spent, after=after, workers=workers, **waits)
    return run, np.array([max(found["stalls"], default=0.0) > STALL for found in meanwhile]), seen


def of_loop(run: Measured) -> Float64:
    """Seconds of each decision that are the loop's own, from the packet that completed its epoch until its sending."""
    return np.array([timing.published - timing.arrival for timing in run.timing])


def where(run: Measured, i: int) -> dict[str, float]:
    """Which decision, the milliseconds it took, and those of its way: to the loop, in the loop, and back from it."""
    timing, push = run.timing[i], run.receipt[i] - run.latency[i]
    moments = (push, timing.arrival, timing.ready, timing.encoded, timing.retrieved, timing.published, run.receipt[i])
    stages = ("arrival", "ready", "encoded", "retrieved", "published", "receipt")
    steps = {name: round(1e3 * step, 2) for name, step in zip(stages, np.diff(moments), strict=True)}
    return {"decision": i + 1, "ms": round(1e3 * float(run.latency[i]), 2), **steps}


def shortly_before(run: Measured, i: int, harm: list[Harm]) -> list[str]:
    """What was done in the second before a decision's last packet was pushed, or until it was received."""
    push, receipt = run.receipt[i] - run.latency[i], run.receipt[i]
    return [f"{what} {1e3 * (push - at):.0f} ms before" for at, what in harm if push - at < 1 and at <= receipt]


def within(run: Measured, i: int, lates: list[Late]) -> dict[str, list[float]]:
    """Seconds that the machine stood still and the kernel was busy, between the push for a decision and its receipt."""
    push, receipt = run.receipt[i] - run.latency[i], run.receipt[i]
    found = [late for late in lates if push <= late.until and late.until - late.machine - late.kernel <= receipt]
    return {"stalls": [late.machine for late in found], "kernel": [late.kernel for late in found]}


def around(run: Measured, i: int, looks: list[Used]) -> dict[str, float]:
    """What the loop's thread used from the last look before the push for a decision until it slept after its sending.

    While it runs it shows what it had when it began to: the first look after the sending may be too early, the next
    change comes with the next turn.
    """
    at = [look.at for look in looks]
    first = looks[bisect_right(at, run.receipt[i] - run.latency[i]) - 1]
    last = looks[min(bisect_left(at, run.timing[i].published), len(looks) - 1)]
    return {"ran": ms(last.ran - first.ran), "queued": ms(last.queued - first.queued)}


def ms(seconds: float) -> float:
    """Milliseconds, rounded."""
    return round(1e3 * seconds, 2)


QUANTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}


def main() -> int:
    """Parse and run."""
    if sys.argv[1:2] == ["account"]:
        account(sys.argv[2])
        return 0
    if sys.argv[1:2] == ["stalls"]:
        stalls(int(sys.argv[2]))
        return 0
    if sys.argv[1:2] == ["used"]:
        used(int(sys.argv[2]))
        return 0
    if sys.argv[1:2] == ["kill"]:
        kill(int(sys.argv[2]), int(sys.argv[3]))
        return 0
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--bundle", type=Path, default=SIMULATE / "demo_full.zip")
    parser.add_argument("--generator", type=Path, default=SIMULATE / "demo_generator")
    options = parser.parse_args()
    if not allowed():
        parser.error("a hot loop is judged in real time, which this user may not have; run it as root")
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "lsl_api.cfg"
        config.write_text(loopback(tag()), encoding="utf-8")
        os.environ["LSLAPICFG"] = str(config)
        calm, stood, _ = session(options, chaos=False)
        wild, stood_wild, seen = session(options, chaos=True)
    n = seen["decided"]
    usual = float(np.percentile(of_loop(calm), 99.9))
    worst = max(float(of_loop(wild).max()), wild.stages["turn"].max)
    good = {
        "every request one end": seen["once"] == {"caption": n, "reconstruction": n},
        "ended cleanly": bool(seen["clean"]),
        "hot loop": worst <= BAR * usual,
    }
    receipt = float(wild.latency.max() / np.percentile(calm.latency, 99.9))
    own = float(of_loop(wild)[~stood_wild].max() / np.percentile(of_loop(calm)[~stood], 99.9))
    ratios = {"ratio": worst / usual, "own_ratio": own, "receipt_ratio": receipt}
    show("chaos", **{name: round(ratio, 2) for name, ratio in ratios.items()}, bar=BAR, **good)
    return 0 if all(good.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
