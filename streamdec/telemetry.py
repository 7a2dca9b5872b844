"""How long each stage takes, and what the process weighs: fixed memory, no lock, nothing that grows."""

from __future__ import annotations

import math
import os
from pathlib import Path

import numpy as np

# Durations from 1 µs to 100 s in logarithmic bins, 100 per decade: quantiles are right to within 2.3 %.
_LOW, _DECADES, _PER_DECADE = 1e-6, 8, 100


class Histogram:
    """Durations of one stage.

    Keeps counts in logarithmic bins (quantiles to within 2.3 %), and the exact number and maximum.
    """

    def __init__(self) -> None:
        self.counts = np.zeros(_DECADES * _PER_DECADE, np.int64)
        self.n = 0
        self.max = 0.0

    def add(self, seconds: float) -> None:
        """Count one duration in seconds. Below 1 µs, negative ones included, counts as 1 µs; above 100 s as 100 s."""
        place = int(math.log10(seconds / _LOW) * _PER_DECADE) if seconds > _LOW else 0
        self.counts[min(place, len(self.counts) - 1)] += 1
        self.n += 1
        self.max = max(self.max, seconds)

    def quantile(self, q: float) -> float:
        """The ``q`` quantile in seconds, 0 where nothing was counted."""
        if not self.n:
            return 0.0
        place = int(np.searchsorted(np.cumsum(self.counts), math.ceil(q * self.n)))
        return min(_LOW * math.pow(10.0, (place + 0.5) / _PER_DECADE), self.max)


class Telemetry:
    """Latency histograms by stage name."""

    def __init__(self, stages: tuple[str, ...]) -> None:
        self.stages = {stage: Histogram() for stage in stages}

    def add(self, stage: str, seconds: float) -> None:
        """Count one duration of ``stage``, seconds."""
        self.stages[stage].add(seconds)


def resident_bytes() -> int:
    """Resident memory of this process in bytes, 0 where the system does not tell."""
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    except (OSError, IndexError, ValueError):
        return 0
    return pages * os.sysconf("SC_PAGE_SIZE")
