"""One hour of a real RSVP timeline through the loop, as fast as it goes: speed, memory, and the same results twice.

    python tools/bench_replay.py ../shared/data/things_eeg1/sub-02_task-rsvp_events.tsv [--bundle BUNDLE] [--seconds
    600]

Markers come from the events table (column `onset`, samples at 1 kHz); the signal is noise. Nothing is held in memory
but one block of it, so the figures are the loop's own.
"""

from __future__ import annotations

import argparse
import csv
import gc
import hashlib
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from streamdec.config import Config
from streamdec.decode import bundle as bundles
from streamdec.feed import schema
from streamdec.serve import engines, session
from streamdec.telemetry import resident_bytes
from streamdec.types import Chunk, Connection, Event, Marker, StreamInfo

SFREQ = 1000.0
E63 = tuple(f"E{i}" for i in range(63))


class TimelineInlet:
    """Noise in packets, and the timeline's markers as they fall due."""

    def __init__(self, ch_names: tuple[str, ...], onsets: np.ndarray, keys: list[str], packet: int) -> None:
        n_chans = len(ch_names)
        self.eeg = StreamInfo(
            "timeline", "EEG", n_chans, SFREQ, "float32", ch_names=ch_names, units=("microvolts",) * n_chans
        )
        self.markers = StreamInfo("timeline-markers", "Markers", 1, 0.0, "string")
        self._block = np.random.default_rng(0).normal(0, 10, (997 * packet, n_chans)).astype(np.float32).T
        self._onsets, self._keys, self._packet = onsets, keys, packet
        self._sent = self._marked = 0
        self._end = int(onsets[-1]) + 2000

    def pull(self, timeout: float) -> Event:
        """The next event."""
        now = self._sent / SFREQ
        if self._marked < len(self._onsets) and self._onsets[self._marked] < self._sent:
            i = self._marked
            self._marked += 1
            return Marker(self._keys[i], float(self._onsets[i]) / SFREQ, now)
        if self._sent >= self._end:
            return Connection("eeg", "ended", now)
        at = self._sent % self._block.shape[1]
        stamps = np.arange(self._sent, self._sent + self._packet) / SFREQ
        self._sent += self._packet
        return Chunk(self._block[:, at : at + self._packet], stamps, float(stamps[-1]))


class DigestOutlet:
    """Keeps nothing but the digest of what must be the same."""

    def __init__(self) -> None:
        self.digest = hashlib.sha256()
        self.decided = 0

    def publish(self, message: schema.AnyMessage, payloads: object = ()) -> bytes:
        """Digest the message."""
        self.digest.update(schema.essence(message))
        self.decided += isinstance(message, schema.Retrieval)
        return b""

    def wanted(self, topic: str) -> bool:
        """Nobody does."""
        return False

    def serve(self) -> None:
        """Nobody asks."""


def play(bundle: bundles.Bundle, onsets: np.ndarray, keys: list[str], packet: int) -> dict[str, object]:
    """One pass over the timeline."""
    inlet, outlet = TimelineInlet(bundle.manifest.signal.ch_names, onsets, keys, packet), DigestOutlet()
    played = session(bundle, inlet.eeg, outlet, Config(), engines(bundle, Config()), time.perf_counter)
    gc.collect()
    memory: list[int] = []
    began = time.perf_counter()
    sample_every = inlet._end / 20
    while True:
        event = inlet.pull(0.0)
        played.step(event)
        if inlet._sent >= len(memory) * sample_every:
            memory.append(resident_bytes())
        if isinstance(event, Connection):
            break
    took = time.perf_counter() - began
    counts = played.close("end")
    hours = inlet._end / SFREQ
    return {
        "seconds_of_stream": hours,
        "took_s": round(took, 2),
        "times_real_time": round(hours / took, 1),
        "decided": counts.decided,
        "onsets": counts.onsets,
        "memory_mb_start": round(memory[2] / 1e6, 1),
        "memory_mb_end": round(memory[-1] / 1e6, 1),
        "memory_mb_max": round(max(memory) / 1e6, 1),
        "sha256": outlet.digest.hexdigest(),
    }


def _nice(path: Path) -> Path:
    """Make the bundle in another process: torch would weigh on the memory that is measured here."""
    code = f"from bench_bundle import nice_bundle; from pathlib import Path; nice_bundle(Path({str(path)!r}), {E63!r})"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent)
    return path


def main() -> None:
    """Parse and run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("events", type=Path)
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--seconds", type=float, default=np.inf)
    parser.add_argument("--packet", type=int, default=100, help="samples per packet; 100 is what replay makes up")
    parser.add_argument("--runs", type=int, default=2)
    options = parser.parse_args()
    with options.events.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    onsets = np.array([int(float(row["onset"])) for row in rows])
    onsets = onsets - onsets[0] + 1000
    onsets = onsets[onsets < options.seconds * SFREQ]
    keys = [str(i % 200 + 1) for i in range(len(onsets))]
    with tempfile.TemporaryDirectory() as folder:
        path = options.bundle or _nice(Path(folder) / "nice.zip")
        bundle = bundles.read(path)
        results = [play(bundle, onsets, keys, options.packet) for _ in range(options.runs)]
    for result in results:
        print(json.dumps(result), flush=True)
    same = len({result["sha256"] for result in results}) == 1
    slowest = min(float(str(result["times_real_time"])) for result in results)
    print(json.dumps({"same_bits": same, "times_real_time": slowest, "bar": 60, "met": same and slowest >= 60}))


if __name__ == "__main__":
    main()
