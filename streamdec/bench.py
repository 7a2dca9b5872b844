"""How fast is this machine: a feeder process, `streamdec serve`, and a subscriber, over real LSL and real ZeroMQ.

The feeder plays noise at the bundle's rate and channels, in packets, never early, and logs when it pushed what. A
decision's latency runs from the push of the last sample its epoch needs to the receipt of its message by a subscriber
in a third process.
"""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import TypeAlias

import msgspec
import numpy as np

from .acquire.lsl.library import local_clock, loopback
from .acquire.lsl.outlet import LslOutlet
from .decode import bundle as bundles
from .demo import DEMO_BUNDLE, serve_process
from .errors import StreamError
from .feed.schema import Generation, Quantiles, Retrieval, Session, Stats, Timing
from .feed.subscriber import Subscriber
from .priority import go_first
from .signal.rate import Rate
from .types import Float64, StreamInfo

_LEAD = 3.0  # seconds of signal before the first stimulus
_TAIL = 1.0  # seconds after the last epoch
_NOISE = 10.0  # microvolt


class Plan(msgspec.Struct, frozen=True):
    """What the feeder plays. Markers go out ``late`` s after their onset; ``counter``: channel 0 counts samples."""

    name: str
    ch_names: tuple[str, ...]
    sfreq: float
    n_events: int = 200
    soa: float = 0.2
    chunk: int = 10
    tmin: float = -0.2
    tmax: float = 0.8
    late: float = 0.0
    counter: bool = False

    @property
    def onsets(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """(n_events,) sample of each onset."""
        rate = Rate(self.sfreq)
        return np.array([rate.to_samples(_LEAD + i * self.soa) for i in range(self.n_events)], np.int64)

    @property
    def last_needed(self) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
        """(n_events,) last sample each epoch needs."""
        first, n_times = Rate(self.sfreq).window(self.tmin, self.tmax)
        return self.onsets + first + n_times - 1

    @property
    def n_samples(self) -> int:
        """Samples in all."""
        return int(self.last_needed[-1]) + Rate(self.sfreq).to_samples(_TAIL + self.late)


class Log(msgspec.Struct, frozen=True, eq=False):
    """What the feeder did.

    ``pushed`` (n, 2) float64: LSL clock at the push, samples sent by then; ``start`` LSL clock of sample 0.
    """

    pushed: Float64
    start: float

    def push_of(self, samples: np.ndarray[tuple[int], np.dtype[np.int64]]) -> Float64:
        """LSL clock at which each sample was pushed."""
        row = np.searchsorted(self.pushed[:, 1], samples + 1)
        out: Float64 = self.pushed[row, 0]
        return out


def feed(plan: Plan, log: Path) -> None:
    """Play the plan in real time once both streams have a listener; the program of the feeder process."""
    n_chans = len(plan.ch_names)
    outlet = LslOutlet(
        StreamInfo(
            plan.name, "EEG", n_chans, plan.sfreq, "float32", plan.name,
            ch_names=plan.ch_names, ch_types=("EEG",) * n_chans, units=("microvolts",) * n_chans,
        )
    )  # fmt: skip
    markers = LslOutlet(
        StreamInfo(
            f"{plan.name}-markers", "Markers", 1, 0.0, "int32", f"{plan.name}-markers",
            ch_names=("mk",), ch_types=("stim",), units=("none",),
        )
    )  # fmt: skip
    block = np.random.default_rng(0).normal(0, _NOISE, (n_chans, 64 * plan.chunk)).astype(np.float32)
    print("ready", flush=True)  # noqa: T201 - the parent waits for it
    while not (outlet.have_consumers() and markers.have_consumers()):
        time.sleep(0.01)
    time.sleep(1.5)  # liblsl hands samples on only once the inlets have settled
    go_first()  # with liblsl's threads: an amplifier waits for nobody's processor
    start = local_clock() + 0.05
    pushed: list[tuple[float, int]] = []
    onset_times = start + plan.onsets / plan.sfreq
    sent = marked = 0
    while sent < plan.n_samples:
        newest = start + (sent + plan.chunk - 1) / plan.sfreq
        marker_due = onset_times[marked] + plan.late if marked < plan.n_events else np.inf
        wait = min(newest, marker_due) - local_clock()
        if wait > 0:
            time.sleep(wait)
        if marker_due <= newest:
            marked += 1
            markers.push(np.array([[marked]], np.int32), float(onset_times[marked - 1]))
            continue
        at = sent % block.shape[1]
        data = block[:, at : at + plan.chunk]
        if plan.counter:
            data = data.copy()
            data[0] = np.arange(sent, sent + plan.chunk)
        pushed.append((local_clock(), sent + plan.chunk))
        outlet.push(data, newest)
        sent += plan.chunk
    time.sleep(0.5)
    np.savez(log, pushed=np.array(pushed), start=start)


def start_feeder(plan: Plan, folder: Path) -> tuple[subprocess.Popen[str], Path]:
    """Start the feeder process; it plays once somebody listens. Returns the process and where its log will be."""
    log = folder / f"{plan.name}.npz"
    command = [sys.executable, "-m", "streamdec.bench", msgspec.json.encode(plan).decode(), str(log)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)  # noqa: S603 - our own program
    assert process.stdout is not None
    process.stdout.readline()
    return process, log


def read_log(path: Path) -> Log:
    """The feeder's log."""
    with np.load(path) as file:
        return Log(file["pushed"], float(file["start"]))


class Measured(msgspec.Struct, frozen=True, eq=False):
    """One run.

    ``latency`` (n,) seconds from push to receipt, ``receipt`` (n,) by the LSL clock, ``timing`` of each as the loop saw
    it; ``misplaced`` onsets not on their sample; ``cpu``
    seconds of the serving process per second of stream; ``stages`` of the loop, as it counted them;
    ``memory`` resident bytes; ``generation`` the newest account of what was generated beside it.
    """

    latency: Float64
    receipt: Float64
    timing: tuple[Timing, ...]
    decided: int
    misplaced: int
    cpu: float
    stages: dict[str, Quantiles]
    memory: int
    generation: dict[str, Generation]


Beside: TypeAlias = Callable[[subprocess.Popen[str], str], AbstractContextManager[object]]
"""What goes on beside a run, given the serving process and the endpoint of its feed."""


def measure(bundle: Path, plan: Plan, *more: str, beside: Beside | None = None) -> Measured:
    """Feed, serve with ``more`` options, subscribe: one run over real streams."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="streamdec-bench-")))
        feeder, log_path = start_feeder(plan, folder)
        stack.callback(feeder.kill)
        server, endpoint = serve_process(stack, bundle, plan.name, f"{plan.name}-markers", *more)
        if beside is not None:
            stack.enter_context(beside(server, endpoint))
        received: list[tuple[float, Retrieval]] = []
        account: Stats | None = None
        with Subscriber(endpoint, ("retrieval", "stats", "session")) as subscriber, _uncollected():
            go_first()  # with the feed's own thread: what measures a loop is not to be late itself
            deadline = time.monotonic() + 60 + plan.n_samples / plan.sfreq
            while time.monotonic() < deadline and server.poll() is None:
                got = subscriber.receive(1.0)
                now = local_clock()
                if got is None:
                    if feeder.poll() is not None:
                        break
                    continue
                if isinstance(got.message, Retrieval) and got.message.final:
                    received.append((now, got.message))
                elif isinstance(got.message, Session) and got.message.state == "refused":
                    raise StreamError("the bench's own stream was refused", got=got.message.reason)
                elif isinstance(got.message, Stats):
                    account = got.message
                    if len(received) >= plan.n_events:  # it has the turns of the last decisions too
                        break
            cpu = _cpu_seconds(server.pid)
        if account is None or not received:
            raise StreamError("no decision came back", do="run streamdec doctor")
        feeder.wait(30)
        log = read_log(log_path)
    events = np.array([int(m.key) - 1 for _, m in received], np.int64)
    receipt = np.array([now for now, _ in received])
    latency = receipt - log.push_of(plan.last_needed[events])
    timing = tuple(message.timing for _, message in received)
    cut = np.array([m.onset_time - m.residual for _, m in received])
    true = log.start + plan.onsets[events] / plan.sfreq
    misplaced = int(np.sum(np.abs(cut - true) > 0.5 / plan.sfreq))
    load = cpu / (plan.n_samples / plan.sfreq)
    return Measured(
        latency, receipt, timing, len(received), misplaced, load, account.latency, account.memory, account.generation
    )


@contextmanager
def _uncollected() -> Iterator[None]:
    """Collect no garbage: it takes tens of milliseconds, in which what came would be received late."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def _cpu_seconds(pid: int) -> float:
    """User and system seconds of a running process, from /proc; NaN where there is none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split()
    except OSError:
        return float("nan")
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def bench(bundle: str | None, n_events: int, soa: float, chunk: int) -> Iterator[str]:
    """Measure one bundle on this machine; yield the report line by line."""
    path = Path(bundle) if bundle else DEMO_BUNDLE
    signal = bundles.read(path).manifest.signal
    plan = Plan(
        f"bench-{uuid.uuid4().hex[:8]}", signal.ch_names, signal.sfreq, n_events, soa, chunk, signal.tmin, signal.tmax
    )
    with tempfile.TemporaryDirectory(prefix="streamdec-bench-") as folder:
        if "LSLAPICFG" not in os.environ:
            config = Path(folder) / "lsl_api.cfg"
            config.write_text(loopback(plan.name), encoding="utf-8")
            os.environ["LSLAPICFG"] = str(config)
        stream = f"{len(plan.ch_names)} channels, {plan.sfreq:g} Hz, packets of {chunk}"
        yield f"{stream}, {n_events} stimuli every {soa:g} s: takes {plan.n_samples / plan.sfreq:.0f} s"
        run = measure(path, plan)
    p50, p95, p99 = 1e3 * np.percentile(run.latency, (50, 95, 99))
    worst = 1e3 * run.latency.max()
    spread = f"median {p50:.2f} ms, p95 {p95:.2f}, p99 {p99:.2f}, max {worst:.2f}"
    yield f"push of the last needed sample to receipt: {spread}"
    for stage, of_stage in run.stages.items():
        yield f"  {stage:9s} median {1e3 * of_stage.p50:8.3f} ms, max {1e3 * of_stage.max:8.3f}"
    yield f"{run.decided} of {n_events} decided, {run.misplaced} onsets off their sample"
    yield f"serving process: {100 * run.cpu:.1f} % of a core, {run.memory / 1e6:.0f} MB resident"


if __name__ == "__main__":
    feed(msgspec.json.decode(sys.argv[1], type=Plan), Path(sys.argv[2]))
