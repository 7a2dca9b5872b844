"""A program that shows the small bundle's images to an amplifier, in real time, and breaks it on command.

It takes one JSON object of :class:`Plan`, and says once its outlets stand when its first sample is taken. Then each
line on stdin is a fault, as :class:`Player` has them by name, and is answered by one line that says which times and
onsets it hits (LSL clock).
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np

CHUNK = 10


@dataclass(frozen=True)
class Plan:
    """What is played.

    ``script`` an .npz with ``data`` (n_chans, n_times) float32 microvolt, ``onsets`` samples and ``keys``; ``labels``
    and ``sources`` say what the header calls each channel and which row of the data it carries (-1: zeros). The header
    says ``unit`` and ``sfreq``; samples are sent times ``scale`` and taken at ``true`` Hz.
    """

    script: str
    name: str
    labels: tuple[str, ...]
    sources: tuple[int, ...]
    unit: str = "microvolts"
    scale: float = 1.0
    sfreq: float = 250.0
    true: float = 250.0
    source_id: str = "feeder"


class Feeder:
    """The program, running."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        command = [sys.executable, __file__, json.dumps(asdict(plan))]
        self.process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
        )
        try:
            self.start: float = self._answer()["start"]
        except BaseException:
            self.close()
            raise

    def do(self, fault: str, *arguments: object) -> dict[str, Any]:
        """Cause a fault."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([fault, *arguments]) + "\n")
        return self._answer()

    def close(self) -> None:
        """Kill it: its streams vanish without goodbye. Idempotent."""
        self.process.kill()
        self.process.communicate()

    def __enter__(self) -> Feeder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer


class Player:
    """Plays packet by packet; the public methods that take arguments are the faults."""

    def __init__(self, plan: Plan) -> None:
        from streamdec.acquire.lsl.library import local_clock
        from streamdec.acquire.lsl.outlet import LslOutlet
        from streamdec.types import StreamInfo

        self.plan, self.clock = plan, local_clock
        with np.load(plan.script) as script:
            data, self.onsets, self.keys = script["data"], script["onsets"], script["keys"].tolist()
        silence = np.zeros((1, data.shape[1]), np.float32)
        self.data = np.concatenate([data, silence])[list(plan.sources)] * np.float32(plan.scale)
        n = len(plan.labels)
        self.eeg = LslOutlet(
            StreamInfo(
                plan.name, "EEG", n, plan.sfreq, "float32", plan.source_id,
                ch_names=plan.labels, ch_types=("EEG",) * n, units=(plan.unit,) * n if plan.unit else (),
            )
        )  # fmt: skip
        info = StreamInfo(f"{plan.name}-markers", "Markers", 1, 0.0, "string", f"{plan.source_id}-markers")
        self.markers = LslOutlet(info)
        self.start = local_clock() + 0.1
        self.sent = self.marked = 0
        self.lost_until = 0
        self.twice_until = 0
        self.held_until = 0
        self.held: list[int] = []
        self.jitter_until, self.jitter_sd = 0, 0.0
        self.rng = np.random.default_rng(0)

    def step(self) -> None:
        """Send the next packet when its last sample has been taken."""
        stop = self.sent + CHUNK
        while (wait := self._time(stop - 1) - self.clock()) > 0:
            time.sleep(wait)
        while self.onsets[self.marked] < stop:
            if self.marked < self.held_until:
                self.held.append(self.marked)
            else:
                self._mark(self.marked, 2 if self.marked < self.twice_until else 1)
            self.marked += 1
        if self.held and self.marked >= self.held_until and stop - self.onsets[self.held[-1]] > self.plan.true:
            while self.held:
                self._mark(self.held.pop())
        if stop > self.lost_until:
            off = self.rng.normal(0, self.jitter_sd) if stop <= self.jitter_until else 0.0
            self.eeg.push(self.data[:, self.sent : stop], self._time(stop - 1) + off)
        self.sent = stop

    def lose(self, n_chunks: int) -> dict[str, Any]:
        """Lose the next packets."""
        self.lost_until = self.sent + n_chunks * CHUNK
        return {"since": self._time(self.sent), "until": self._time(self.lost_until)}

    def spoil(self, channel: str, value: float | None, seconds: float) -> dict[str, Any]:
        """Hold a channel at a value; None: NaN."""
        stop = self.sent + round(seconds * self.plan.true)
        row = self.plan.labels.index(channel)
        self.data[row, self.sent : stop] = np.nan if value is None else value
        return {"since": self._time(self.sent), "until": self._time(stop)}

    def rail(self, channel: str, limit: float, seconds: float) -> dict[str, Any]:
        """Cut a channel off at +-limit, as an amplifier at the end of its range does."""
        stop = self.sent + round(seconds * self.plan.true)
        row = self.plan.labels.index(channel)
        self.data[row, self.sent : stop] = np.clip(self.data[row, self.sent : stop], -limit, limit)
        return {"since": self._time(self.sent), "until": self._time(stop)}

    def jitter(self, sd: float, seconds: float) -> dict[str, Any]:
        """Stamp the next packets off by ``sd`` seconds."""
        self.jitter_until, self.jitter_sd = self.sent + round(seconds * self.plan.true), sd
        return {"since": self._time(self.sent), "until": self._time(self.jitter_until)}

    def twice(self, n: int) -> dict[str, Any]:
        """Send each of the next markers twice."""
        self.twice_until = self.marked + n
        return self._next(n)

    def hold(self, n: int) -> dict[str, Any]:
        """Send the next markers a second after the last of them, the last one first."""
        self.held_until = self.marked + n
        return self._next(n)

    def early(self, n: int) -> dict[str, Any]:
        """Send the next markers now, before their samples."""
        answer = self._next(n)
        for _ in range(n):
            self._mark(self.marked)
            self.marked += 1
        return answer

    def say(self, text: str, times: int = 1) -> dict[str, Any]:
        """Send a marker of another kind; each further one is a millisecond and a bit later."""
        now = self.clock()
        self.markers.push([text] * times, now + np.arange(times) * 1.1e-3)
        return {"since": now}

    def _next(self, n: int) -> dict[str, Any]:
        at = range(self.marked, self.marked + n)
        return {"times": [self._time(self.onsets[i]) for i in at], "keys": [self.keys[i] for i in at]}

    def _mark(self, i: int, times: int = 1) -> None:
        self.markers.push([self.keys[i]] * times, np.full(times, self._time(self.onsets[i])))

    def _time(self, sample: int) -> float:
        return self.start + float(sample) / self.plan.true


def main() -> None:
    """Play until killed, or until stdin ends."""
    fields = json.loads(sys.argv[1])
    player = Player(Plan(**fields | {"labels": tuple(fields["labels"])}))
    faults: SimpleQueue[str] = SimpleQueue()

    def listen() -> None:
        for line in sys.stdin:
            faults.put(line)
        faults.put("")

    threading.Thread(target=listen, daemon=True).start()
    answer: dict[str, Any] = {"start": player.start}
    while True:
        if answer:
            sys.stdout.write(json.dumps(answer) + "\n")
            sys.stdout.flush()
        player.step()
        try:
            line = faults.get_nowait()
        except Empty:
            answer = {}
            continue
        if not line:
            return
        fault, *arguments = json.loads(line)
        answer = getattr(player, fault)(*arguments)


def write_script(path: Path, data: np.ndarray, onsets: np.ndarray, keys: list[str]) -> Path:
    """Save what a feeder plays."""
    np.savez(path, data=data, onsets=onsets, keys=np.array(keys))
    return path


if __name__ == "__main__":
    main()
