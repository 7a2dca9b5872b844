"""A program that plays an amplifier with faults: channel 0 counts samples, channel 1 is the true time since the start.

It takes one JSON object of :class:`Plan` fields, says "ready <start>" (LSL clock) once its outlets stand, and
runs until killed.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import asdict, dataclass

import numpy as np


@dataclass(frozen=True)
class Plan:
    """What is played. The header says ``sfreq``, it runs at ``true`` Hz; ``gaps`` (start, seconds) are dropped."""

    name: str
    sfreq: float = 500.0
    true: float = 0.0
    chunk: int = 5
    n_chans: int = 4
    dtype: str = "float32"
    gaps: tuple[tuple[float, float], ...] = ()
    jitter: float = 0.0
    soa: float = 0.1
    markers: str = ""


class Amplifier:
    """The program, running."""

    def __init__(self, name: str, **plan: object) -> None:
        command = [sys.executable, __file__, json.dumps(asdict(Plan(name, **plan)))]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        word, start = self.process.stdout.readline().split()
        assert word == "ready"
        self.start = float(start)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()

    def __enter__(self) -> Amplifier:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def main() -> None:
    import pylsl

    from streamdec.priority import go_first

    plan = Plan(**json.loads(sys.argv[1]))
    true = plan.true or plan.sfreq
    info = pylsl.StreamInfo(plan.name, "EEG", plan.n_chans, plan.sfreq, plan.dtype, f"{plan.name}-eeg")
    channels = info.desc().append_child("channels")
    for i in range(plan.n_chans):
        channel = channels.append_child("channel")
        channel.append_child_value("label", f"E{i}")
        channel.append_child_value("unit", "microvolts")
    outlet = pylsl.StreamOutlet(info, 0, 60)
    marker_outlet = None
    if plan.markers:
        marker_info = pylsl.StreamInfo(f"{plan.name}-m", "Markers", 1, 0, plan.markers, f"{plan.name}-markers")
        marker_outlet = pylsl.StreamOutlet(marker_info)
    rng = np.random.default_rng(0)
    start = pylsl.local_clock() + 0.05
    sys.stdout.write(f"ready {start!r}\n")
    sys.stdout.flush()
    n = marked = 0
    first = False
    while True:
        if not first and outlet.have_consumers():
            first = True
            go_first()  # with liblsl's threads: an amplifier waits for nobody's processor
        n += plan.chunk
        newest = (n - 1) / true
        time.sleep(max(0.0, start + newest - pylsl.local_clock()))
        while marker_outlet is not None and marked * plan.soa <= newest:
            value = f"stim-{marked}" if plan.markers == "string" else marked
            marker_outlet.push_sample([value], start + marked * plan.soa)
            marked += 1
        if any(at <= newest < at + length for at, length in plan.gaps):
            continue
        index = np.arange(n - plan.chunk, n)
        data = np.zeros((plan.chunk, plan.n_chans))
        data[:, 0], data[:, 1] = index, index / true
        outlet.push_chunk(data, start + newest + abs(rng.normal(0, plan.jitter)) if plan.jitter else start + newest)


if __name__ == "__main__":
    main()
