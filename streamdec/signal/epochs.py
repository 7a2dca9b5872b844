"""Onsets and ring -> epochs: overlapping, late, early, out of order, across gaps. Every onset gets exactly one end."""

from __future__ import annotations

import heapq
import math
from bisect import insort
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec
import numpy as np

from ..errors import ConfigError
from ..types import Ended, Epoch, Float32, Onset, Outcome
from .rate import Rate, nearest
from .ring import Ring


class EpochSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How epochs are cut.

    ``max_open`` onsets that may be open at once; one more ends as "cancelled". ``interpolate_missing`` lost samples
    in a row that are filled in, on a line between their neighbours (held at the epoch's edges); an epoch with more
    in a row ends as "lost_data".
    """

    max_open: int = 256
    interpolate_missing: int = 0


@dataclass(slots=True, order=True)
class _Open:
    """An onset without its end, in the order in which ends are handed out."""

    needs: int  # how many samples there must be
    time: float
    number: int
    onset: Onset = field(compare=False)
    sample: int = field(default=0, compare=False)
    residual: float = field(default=0.0, compare=False)
    limit: int | None = field(default=None, compare=False)  # first sample of the next clock segment
    window: int = field(default=0, compare=False)

    @property
    def rank(self) -> tuple[int, float, int]:
        return self.needs, self.time, self.number


class Epochs:
    """Cut an epoch per onset and horizon as soon as its last sample is in the ring.

    The sample of an onset is the nearest one by the samples' own times, ties down. What is cut depends on samples and
    onsets alone, not on the packets they came in. Nothing is done per packet while no epoch is due.

    Parameters
    ----------
    ring : Ring
        Samples and their times; the caller writes, then calls :meth:`advance`.
    rate : Rate
        Rate of the stream.
    windows : sequence of (float, int, int)
        Horizon in seconds after the onset, first sample relative to the onset's, number of samples; each ends later
        than the one before. Each yields an epoch, the last one the final.
    settings : EpochSettings
    """

    def __init__(
        self,
        ring: Ring,
        rate: Rate,
        windows: Sequence[tuple[float, int, int]],
        settings: EpochSettings = EpochSettings(),  # noqa: B008 - frozen
    ) -> None:
        if settings.max_open < 1:
            raise ConfigError("epochs.max_open", got=settings.max_open, allowed="1 or more")
        if settings.interpolate_missing < 0:
            raise ConfigError("epochs.interpolate_missing", got=settings.interpolate_missing, allowed="0 or more")
        ends = [first + n_times for _, first, n_times in windows]
        if not ends or ends != sorted(set(ends)) or not all(0 < n_times <= ring.longest for _, _, n_times in windows):
            raise ConfigError(
                "epoch windows",
                got="; ".join(f"{n_times} samples to {horizon} s" for horizon, _, n_times in windows) or "none",
                allowed=f"1 to {ring.longest} samples, each ending later than the one before",
            )
        self._ring, self._rate, self._windows, self._settings = ring, rate, tuple(windows), settings
        self._before = min(first for _, first, _ in windows)
        self._segments = [(0, "")]  # first sample, why it began
        self._settling: list[tuple[int, int]] = []
        self._unplaced: list[_Open] = []  # sorted by time: their sample is still to come
        self._placed: list[_Open] = []  # a heap: their last sample is still to come
        self._broken: list[tuple[_Open, str]] = []
        self._number = 0

    @property
    def open(self) -> int:
        """Onsets that have no end yet."""
        return len(self._unplaced) + len(self._placed) + len(self._broken)

    def onset(self, onset: Onset) -> Ended | None:
        """Take an onset in. Call :meth:`advance` next: what is late but still in the ring is served at once.

        Parameters
        ----------
        onset : Onset
            Early, late or out of order. Its ``position`` counts where it has one, else its ``time``.

        Returns
        -------
        Ended or None
            Its end, if it cannot be served: its samples have left the ring or never were, or too many onsets are open.
        """
        if self.open >= self._settings.max_open:
            return Ended(onset, "cancelled", f"{self.open} onsets are open already", onset.arrival)
        if not math.isfinite(onset.time):
            return Ended(onset, "lost_data", "its time is not a number", onset.arrival)
        entry = _Open(0, onset.time, self._number, onset)
        self._number += 1
        refused = self._place(entry)
        return None if refused is None else Ended(onset, *refused, onset.arrival)

    def segment(self, position: int, reason: str) -> None:
        """Begin another clock segment: no epoch spans ``position``, its first sample. Call before that is written."""
        if position == self._segments[-1][0]:
            self._segments[-1] = (position, reason)
            return
        self._segments.append((position, reason))
        while len(self._segments) > 1 and self._segments[1][0] <= self._ring.start:
            del self._segments[0]
        placed, self._placed = self._placed, []
        for entry in placed:
            if entry.limit is None:
                entry.limit = position
            self._wait(entry)

    def settling(self, until: int) -> None:
        """Flag epochs that touch the samples from here (the ring's end) to ``until`` as "settling"."""
        self._settling = [(a, b) for a, b in self._settling if b > self._ring.start]
        self._settling.append((self._ring.end, until))

    def advance(self, arrival: float) -> list[Epoch | Ended]:
        """Hand out what has become complete.

        Parameters
        ----------
        arrival : float
            LSL clock of the event that brought the newest samples or onset, seconds.

        Returns
        -------
        list of Epoch or Ended
            In the order of the samples that completed them, then of the onsets' times, then as the onsets came. The
            data of the epochs are copies.
        """
        ring = self._ring
        if not (
            self._broken
            or (self._placed and self._placed[0].needs <= ring.end)
            or (self._unplaced and self._unplaced[0].time <= ring.newest)
        ):
            return []
        ends: list[tuple[tuple[int, float, int], Epoch | Ended]] = []
        while self._unplaced and self._unplaced[0].time <= ring.newest:
            entry = self._unplaced.pop(0)
            refused = self._place(entry)
            if refused is not None:
                ends.append((entry.rank, Ended(entry.onset, *refused, arrival)))
        while self._placed and self._placed[0].needs <= ring.end:
            entry = heapq.heappop(self._placed)
            ends.append((entry.rank, self._cut(entry, arrival)))
        for entry, reason in self._broken:
            ends.append((entry.rank, Ended(entry.onset, "lost_data", reason, arrival)))
        self._broken.clear()
        ends.sort(key=lambda end: end[0])
        return [end for _, end in ends]

    def close(self, arrival: float) -> list[Ended]:
        """End every open onset as "cancelled", in the order of their times. ``arrival`` LSL clock, seconds."""
        left = [*self._unplaced, *self._placed, *(entry for entry, _ in self._broken)]
        left.sort(key=lambda entry: (entry.time, entry.number))
        self._unplaced, self._placed, self._broken = [], [], []
        return [Ended(entry.onset, "cancelled", "the session ended first", arrival) for entry in left]

    def _place(self, entry: _Open) -> tuple[Outcome, str] | None:
        """Find the onset's sample, or put it off until that is there; say why if neither can be."""
        ring, onset = self._ring, entry.onset
        sample = onset.position
        if sample is None:
            found = self._find(entry)
            if found is None:
                insort(self._unplaced, entry, key=lambda other: (other.time, other.number))
                return None
            if isinstance(found, tuple):
                return found
            sample = found
        elif not ring.start <= sample < ring.end:
            return "late", "its sample has left the ring"
        entry.sample, entry.needs = sample, sample + 1
        entry.residual = onset.time - float(ring.times(sample, 1)[0])
        begins = max(start for start, _ in self._segments if start <= sample)
        entry.limit = min((start for start, _ in self._segments if start > sample), default=None)
        first = sample + self._before
        if first < begins:
            return "lost_data", "it needs samples from before the clock segment began"
        if first < ring.start:
            return "late", f"its first sample has left the ring of {self._rate.to_seconds(ring.n_times):g} s"
        self._wait(entry)
        return None

    def _find(self, entry: _Open) -> int | tuple[Outcome, str] | None:
        """Find the sample nearest to the onset; None if it may still come."""
        ring, time, sfreq = self._ring, entry.time, self._rate.sfreq
        stop = ring.end
        for begins, _ in reversed(self._segments):
            start = max(begins, ring.start)
            if start >= stop:
                continue
            times = ring.times(start, stop - start)
            before = int(np.searchsorted(times, time, side="right")) - 1
            if before < 0:
                if nearest((time - float(times[0])) * sfreq) == 0:
                    return start
                entry.needs = start + 1
            elif before < len(times) - 1:
                step = float(times[before + 1] - times[before])
                return start + before + nearest((time - float(times[before])) / step)
            elif time == times[-1] or (stop < ring.end and nearest((time - float(times[-1])) * sfreq) == 0):
                return stop - 1
            stop = start
        if not ring.end or time > ring.newest:
            return None
        if ring.start and time < ring.times(ring.start, 1)[0]:
            return "late", f"its samples have left the ring of {self._rate.to_seconds(ring.n_times):g} s"
        return "lost_data", "there are no samples at its time"

    def _wait(self, entry: _Open) -> None:
        """Wait for the last sample of the entry's window, or give up where the clock segment ends before it."""
        _, first, n_times = self._windows[entry.window]
        entry.needs = entry.sample + max(1, first + n_times)
        if entry.limit is None or entry.needs <= entry.limit:
            heapq.heappush(self._placed, entry)
            return
        entry.needs = entry.limit + 1
        reason = next((reason for start, reason in self._segments if start == entry.limit), "")
        self._broken.append((entry, reason or "a new clock segment began"))

    def _cut(self, entry: _Open, arrival: float) -> Epoch | Ended:
        ring = self._ring
        horizon, offset, n_times = self._windows[entry.window]
        first = entry.sample + offset
        if first < ring.start:
            return Ended(entry.onset, "late", "its first sample left the ring before its last came", arrival)
        data = ring.view(first, n_times).copy()
        n_missing, in_a_row = _fill_missing(data, self._settings.interpolate_missing)
        if in_a_row > self._settings.interpolate_missing:
            return Ended(entry.onset, "lost_data", f"{in_a_row} samples in a row are missing", arrival)
        settling = any(first < until and since < first + n_times for since, until in self._settling)
        epoch = Epoch(
            onset=entry.onset,
            data=data,
            first=first,
            onset_sample=entry.sample,
            residual=entry.residual,
            horizon=horizon,
            final=entry.window == len(self._windows) - 1,
            due=float(ring.times(first + n_times - 1, 1)[0]),
            n_interpolated=n_missing,
            flags=("settling",) if settling else (),
        )
        if not epoch.final:
            entry.window += 1
            self._wait(entry)
        return epoch


def _fill_missing(data: Float32, limit: int) -> tuple[int, int]:
    """Interpolate samples that are NaN in all channels, in place, unless more than ``limit`` of them are in a row.

    Returns
    -------
    n_missing, in_a_row : int
        How many are missing, and the longest run of them.
    """
    suspect = np.flatnonzero(np.isnan(data[0]))
    if not len(suspect):
        return 0, 0
    missing = suspect[np.isnan(data[:, suspect]).all(axis=0)]
    if not len(missing):
        return 0, 0
    runs = np.split(missing, np.flatnonzero(np.diff(missing) > 1) + 1)
    in_a_row = max(map(len, runs))
    if len(missing) == data.shape[1]:
        in_a_row = max(in_a_row, limit + 1)  # nothing to interpolate from
    if in_a_row <= limit:
        for run in runs:
            left, right = int(run[0]) - 1, int(run[-1]) + 1
            held = right if left < 0 else left
            level = data[:, held, None]
            rise = 0.0 if left < 0 or right == data.shape[1] else data[:, right, None] - level
            data[:, run] = level + rise * (np.arange(1, len(run) + 1, dtype=np.float32) / np.float32(len(run) + 1))
    return len(missing), in_a_row
