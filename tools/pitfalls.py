"""What becomes of timestamps when samples are lost: our inlet and clock beside liblsl's smoothing, in one run.

A feeder process plays an amplifier (1 kHz, 10-sample chunks, each sample's true time in its channels) with a fault. Two
inlets of this process read it: LslInlet with SampleClock, and liblsl's with all its processing flags. Printed is the
error of the stamps in samples: 0.1 s after the fault, and the worst from there on.

    python tools/pitfalls.py [overflow gap slow fast restart frozen]

Exit code 1 where ours is off by more than a sample.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).parents[1]))

import pylsl

from streamdec.acquire.clock import SampleClock
from streamdec.acquire.lsl.inlet import LslInlet
from streamdec.acquire.lsl.library import local_clock, loopback
from streamdec.acquire.lsl.outlet import LslOutlet
from streamdec.acquire.query import StreamQuery
from streamdec.types import Chunk, ClockOffset, Connection, StreamInfo

_SFREQ = 1000
_CHUNK = 10
_BEFORE, _SETTLE, _FOLLOW = 5.0, _SFREQ // 10, 10.0  # s before the fault, samples until errors count, s after


def feed(name: str, epoch: float, true_rate: float, gap_at: float) -> None:
    """Play until killed, without the half second after ``gap_at`` s. Channels: counter, true time since ``epoch``."""
    outlet = LslOutlet(StreamInfo(name, "EEG", 2, float(_SFREQ), "double64", name))
    print("ready", flush=True)
    start, n = local_clock() + 0.1, 0
    while True:
        n += _CHUNK
        index = np.arange(n - _CHUNK, n)
        true = start + index / true_rate
        time.sleep(max(0.0, float(true[-1]) - local_clock()))
        if not gap_at <= n / true_rate < gap_at + 0.5:
            outlet.push(np.stack([index, true - epoch]), float(true[-1]))


class Bench:
    """A feeder and both inlets. ``ours`` and ``theirs`` hold (counter, error in samples) of every sample."""

    def __init__(self, fault: str, true_rate: float = _SFREQ, gap_at: float = -1.0, buffer_seconds: int = 60) -> None:
        self.name, self.epoch = f"pitfalls-{fault}-{os.getpid()}", local_clock()
        self.command = [sys.executable, __file__, "feed", self.name, repr(self.epoch), repr(true_rate), repr(gap_at)]
        self.start()
        self.inlet = LslInlet(StreamQuery(name=self.name), None, buffer_seconds=buffer_seconds)
        self.inlet.open(10.0)
        self.clock = SampleClock(_SFREQ)
        (info,) = pylsl.resolve_byprop("name", self.name, 1, 10.1)
        self.peer = pylsl.StreamInlet(info, max_buflen=buffer_seconds, processing_flags=pylsl.proc_ALL)
        self.peer.open_stream(5.0)
        self.peer.time_correction(5.0)
        self.ours: list[tuple[float, float]] = []
        self.theirs: list[tuple[float, float]] = []
        self.said: list[str] = []
        self.fault_at = 0.0

    def start(self) -> None:
        """Start the feeder."""
        self.feeder = subprocess.Popen(self.command, stdout=subprocess.PIPE, text=True)
        if self.feeder.stdout is not None:
            self.feeder.stdout.readline()

    def stop(self) -> None:
        """Kill the feeder; it says no goodbye."""
        self.feeder.kill()
        self.feeder.wait()

    def read(self, seconds: float) -> None:
        """Read both inlets for this long."""
        end = local_clock() + seconds
        while local_clock() < end:
            event = self.inlet.pull(0.05)
            if isinstance(event, Chunk):
                true = event.data[1].astype(np.float64) + self.epoch
                times = np.concatenate([run.times for run in self.clock.place(event.stamps)])
                self.ours.extend(zip(event.data[0].tolist(), ((times - true) * _SFREQ).tolist(), strict=True))
            elif isinstance(event, ClockOffset):
                self.clock.offset(event)
            elif isinstance(event, Connection):
                if event.state == "found":
                    self.clock.restart("found")
                if self.fault_at:
                    self.said.append(f"{event.state} {event.arrival - self.fault_at:.2f} s")
            rows, stamps = self.peer.pull_chunk(0.0, 8192)
            for (count, true_time), stamp in zip(rows, stamps, strict=True):
                self.theirs.append((count, (stamp - self.epoch - true_time) * _SFREQ))

    def run(self, fault: Callable[[], None]) -> str:
        """Read, cause the fault, read on; return a row of the table."""
        self.read(_BEFORE)
        since = len(self.ours), len(self.theirs)
        self.fault_at = local_clock()
        fault()
        self.read(_FOLLOW)
        self.stop()
        self.inlet.close()
        self.worst = 0.0
        cells = []
        for samples, first in zip((self.ours, self.theirs), since, strict=True):
            errors = _after_break(np.array(samples[first - 1 :]))
            worst = errors[np.argmax(np.abs(errors))]
            self.worst = self.worst or abs(float(worst))
            cells += [f"{errors[0]:12.3f}", f"{worst:12.3f}"]
        return "".join(cells) + "   " + ", ".join(self.said)


def _after_break(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Errors from 0.1 s after the first break of the counter, or after the first sample where it does not break."""
    broken = np.flatnonzero(np.diff(samples[:, 0]) != 1)
    first = int(broken[0]) + 1 if len(broken) else 1
    errors: npt.NDArray[np.float64] = samples[first + _SETTLE :, 1]
    return errors


def _nothing() -> None:
    pass


def overflow() -> tuple[Bench, str]:
    """Sleep 4 s with room for 1 s: liblsl drops 3 s."""
    bench = Bench("overflow", buffer_seconds=1)
    return bench, bench.run(lambda: time.sleep(4.0))


def gap() -> tuple[Bench, str]:
    """Drop half a second in the amplifier; its stamps stay right."""
    bench = Bench("gap", gap_at=_BEFORE + 5.0)
    return bench, bench.run(_nothing)


def slow() -> tuple[Bench, str]:
    """State 1000 Hz, run at 1000.05."""
    bench = Bench("slow", true_rate=1000.05)
    return bench, bench.run(_nothing)


def fast() -> tuple[Bench, str]:
    """State 1000 Hz, run at 1024."""
    bench = Bench("fast", true_rate=1024.0)
    return bench, bench.run(_nothing)


def restart() -> tuple[Bench, str]:
    """Kill the source, start it again a second later."""
    bench = Bench("restart")

    def fault() -> None:
        bench.stop()
        bench.read(1.0)
        bench.start()

    return bench, bench.run(fault)


def frozen() -> tuple[Bench, str]:
    """Freeze the source for 3 s; then it sends all it has."""
    bench = Bench("frozen")

    def fault() -> None:
        bench.feeder.send_signal(signal.SIGSTOP)
        bench.read(3.0)
        bench.feeder.send_signal(signal.SIGCONT)

    return bench, bench.run(fault)


_FAULTS = {fault.__name__: fault for fault in (overflow, gap, slow, fast, restart, frozen)}


def main() -> int:
    """Run the faults, print the table."""
    if sys.argv[1:2] == ["feed"]:
        feed(sys.argv[2], *map(float, sys.argv[3:]))
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "lsl_api.cfg"
        config.write_text(loopback(f"pitfalls-{os.getpid()}"), encoding="utf-8")
        os.environ["LSLAPICFG"] = str(config)
        print(
            f"{'error in samples':20s}{'ours +0.1 s':>12s}{'worst':>12s}{'ALL +0.1 s':>12s}{'worst':>12s}   announced"
        )
        worst = 0.0
        for name in sys.argv[1:] or _FAULTS:
            bench, row = _FAULTS[name]()
            worst = max(worst, bench.worst)
            print(f"{name:20s}{row}", flush=True)
    return int(worst > 1.0)


if __name__ == "__main__":
    sys.exit(main())
