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

Exit code 1 where something is lost, the session does not end cleanly, or the hot loop feels it.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import psutil
from bench_live import SIMULATE, show, tag

from streamdec.acquire.lsl.library import local_clock, loopback
from streamdec.bench import Measured, Plan, measure
from streamdec.decode import bundle as bundles
from streamdec.feed.schema import Dropped, Generated, Retrieval, Session
from streamdec.feed.subscriber import Subscriber
from streamdec.types import Float64

BAR = 2.0
SLOWEST = 5  # decisions shown of each run
SOA = 0.2


def kill(pid: int, seed: int) -> None:
    """Do harm to the children of the serving process until stdin ends; print what was done, and when (LSL clock)."""
    chance, done = random.Random(seed), list[tuple[float, str]]()  # noqa: S311 - no secret
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
                done.append((local_clock(), f"{harm} of a {name}"))
    print(json.dumps(done))


def account(endpoint: str) -> None:
    """Count what comes on the feed until the session ends; print it. Each stimulus of the feeder has its own key."""
    decided: set[str] = set()
    ends: dict[str, Counter[str]] = {"caption": Counter(), "reconstruction": Counter()}
    tiers: Counter[str] = Counter()
    dropped: Counter[str] = Counter()
    met, clean = 0, False

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
    print(json.dumps({**seen, "clean": clean, "missed": missed}))


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


def session(options: argparse.Namespace, chaos: bool) -> tuple[Measured, dict[str, object]]:
    """One run, and what was seen of it on the feed."""
    manifest = bundles.read(options.bundle).manifest
    n_events = round(options.minutes * 60 / SOA)
    signal_ = manifest.signal
    plan = Plan(tag(), signal_.ch_names, signal_.sfreq, n_events, SOA, tmin=signal_.tmin, tmax=signal_.tmax)
    watchers: list[subprocess.Popen[str]] = []
    harm: list[tuple[float, str]] = []

    @contextmanager
    def beside(server: subprocess.Popen[str], endpoint: str) -> Iterator[None]:
        with program("account", endpoint) as watcher:
            watchers.append(watcher)
            assert watcher.stdout is not None
            assert watcher.stdout.readline() == "ready\n"
            if not chaos:
                yield
                return
            with program("kill", str(server.pid), str(options.seed)) as killer:
                yield
            assert killer.stdout is not None
            harm.extend(json.loads(killer.stdout.read()))
            show("chaos", harm=Counter(what for _, what in harm))

    before = psutil.cpu_times()
    run = measure(options.bundle, plan, "--generator", str(options.generator), beside=beside)
    passed = np.subtract(psutil.cpu_times(), before)
    stolen = 100 * dict(zip(before._fields, passed, strict=True)).get("steal", 0.0) / passed.sum()
    assert watchers[0].stdout is not None
    seen = json.loads(watchers[0].stdout.read())
    times = {"loop": of_loop(run), "receipt": run.latency}
    quantiles = {
        name: {quantile: round(1e3 * float(np.percentile(time, q)), 2) for quantile, q in QUANTILES.items()}
        for name, time in times.items()
    }
    turn = round(1e3 * run.stages["turn"].max, 2)
    show("chaos", chaos=chaos, n=run.decided, of=n_events, **quantiles, turn_max=turn, stolen=round(stolen, 2), **seen)
    for i in np.argsort(-run.latency)[:SLOWEST]:
        show("slow", chaos=chaos, **where(run, int(i)), after=shortly_before(run, int(i), harm))
    return run, seen


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


def shortly_before(run: Measured, i: int, harm: list[tuple[float, str]]) -> list[str]:
    """What was done in the second before a decision's last packet was pushed, or until it was received."""
    push, receipt = run.receipt[i] - run.latency[i], run.receipt[i]
    return [f"{what} {1e3 * (push - at):.0f} ms before" for at, what in harm if push - at < 1 and at <= receipt]


QUANTILES = {"p50": 50.0, "p99": 99.0, "p99.9": 99.9, "max": 100.0}


def main() -> int:
    """Parse and run."""
    if sys.argv[1:2] == ["account"]:
        account(sys.argv[2])
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
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "lsl_api.cfg"
        config.write_text(loopback(tag()), encoding="utf-8")
        os.environ["LSLAPICFG"] = str(config)
        calm, _ = session(options, chaos=False)
        wild, seen = session(options, chaos=True)
    n = seen["decided"]
    usual = float(np.percentile(of_loop(calm), 99.9))
    worst = max(float(of_loop(wild).max()), wild.stages["turn"].max)
    good = {
        "every request one end": seen["once"] == {"caption": n, "reconstruction": n},
        "ended cleanly": bool(seen["clean"]),
        "hot loop": worst <= BAR * usual,
    }
    receipt = float(wild.latency.max() / np.percentile(calm.latency, 99.9))
    show("chaos", ratio=round(worst / usual, 2), receipt_ratio=round(receipt, 2), bar=BAR, **good)
    return 0 if all(good.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
