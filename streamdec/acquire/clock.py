"""Timestamps -> sample positions: clock offset, jitter, gaps, segments.

Samples are counted, and a robust line through the stamps of the last half minute says when each was taken: the medians
of half-blocks of 0.05 s, fitted by least squares with a prior on the slope. The line is renewed on a grid counted in
samples, and a sample gets the line that held before its block: a time never changes once given, and does not depend on
how the samples were packed. Constant lateness of a device is not estimated; the line lies where offline regression puts
it.

What does not fit the line is late or lost. A stamp later than the stream has ever been late means missing samples, at
once; a lesser shift that stays for a whole block means the same, found up to 0.2 s later, where it is far beyond what
whole blocks have strayed of late. A gap that is taken back (the stamps after it are early again) was lateness, and is
remembered as such. On exact stamps a single lost sample shows. A radio link stamps samples in bursts, which hide small
losses from any clock (:attr:`SampleClock.least_gap`): only a counter channel tells of those.

Where a counter channel tells the losses, late stamps are lateness and nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import msgspec
import numpy as np

from ..signal.rate import Rate, nearest
from ..types import ClockOffset, Float64

_BLOCK = 0.1  # s between two lines
_WINDOW = 300  # blocks the line is fitted to
_FRESH_WINDOW = 5  # blocks it keeps where the stamps bend away from it
_JITTER_BLOCKS = 30  # blocks the jitter and the wander are averaged over
_SETTLED = 10  # blocks until small gaps are told from jitter
_UNKNOWN = 0.1  # s a stamp may be late before anything is known of the stream
_DOUBT = 10.0  # lateness may exceed the largest in n blocks by 1 + this / n times
_NEARER = 2.14  # standard deviations of a normal variable, per mean distance of the nearer of two
_BEND = 3  # blocks in a row off to one side mean that the stamps bend away from the line
_STEEPEST = 0.05  # of a period per sample that the stamps of a block may bend away from the line
_MARGIN = 0.6  # samples by which an exact stamp must be late to mean a gap
_SLOPE_SD = 1e-2  # prior on the rate, relative: of a stream never seen
_SLOPE_SD_KEPT = 1e-4  # ... of a stream seen before a gap
_POINT_SD = 1e-7  # s, floor: even exact stamps are rounded


class ClockSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How stamps are judged.

    ``gap`` samples by which a stamp must be later than the stream's known jitter to mean missing samples; less on exact
    stamps, more where they come in bursts: as the stream itself has shown. A gap of ``longest_gap`` s or more opens a
    new segment instead of being filled in.
    """

    gap: float = 2.5
    longest_gap: float = 1.0


class Run(NamedTuple):
    """Samples of a chunk that follow each other without a break.

    ``start``..``stop`` is their slice of the chunk; ``position`` the ring position of the first; ``times`` (n,)
    float64, LSL clock, non-decreasing within a segment. ``missing`` samples were lost just before it (``position``
    counts them). ``new_segment``: nothing connects it to what came before. ``reason`` says why there is a break.
    """

    start: int
    stop: int
    position: int
    times: Float64
    missing: int
    new_segment: bool
    reason: str


class _Break(NamedTuple):
    """A break before the next sample. ``line`` when that sample is expected, None: its own stamp says."""

    missing: int
    new_segment: bool
    reason: str
    line: float | None = None


_NO_BREAK = _Break(0, False, "")


def settled(current: float | None, measured: ClockOffset) -> float:
    """Choose the offset to go on with: the one so far, moved as little as the new one's uncertainty asks for.

    The true offset lies within half the round trip of a measured one, so this follows every real change and no noise.
    It begins at zero where the first measurement allows that: clocks of one machine are one clock, and those of two
    agree so closely only by accident.

    Parameters
    ----------
    current : float or None
        The offset so far, seconds; None: none yet on this connection.
    measured : ClockOffset
        The new measurement.
    """
    if math.isnan(measured.uncertainty):
        return measured.value
    if current is None:
        return 0.0 if abs(measured.value) <= measured.uncertainty else measured.value
    return min(max(current, measured.value - measured.uncertainty), measured.value + measured.uncertainty)


class SampleClock:
    """Places the samples of one stream on the ring and on the LSL clock.

    Positions count on from 0 for ever. A gap advances them by the samples it lost; a longer one, a backward step and a
    reconnect open a new segment and advance them by nothing.

    Parameters
    ----------
    sfreq : float
        Nominal rate, Hz.
    settings : ClockSettings

    Attributes
    ----------
    segments, gaps, missing : int
        Segments begun, gaps found, samples lost in them (those that opened a new segment included).

    Raises
    ------
    ConfigError
        The rate is not a positive number.
    """

    def __init__(self, sfreq: float, settings: ClockSettings = ClockSettings()) -> None:  # noqa: B008 - frozen
        rate = Rate(sfreq)
        self.settings = settings
        self.segments = self.gaps = self.missing = 0
        self._sfreq = sfreq
        self._block = max(4, rate.to_samples(_BLOCK))
        self._ramp = np.arange(self._block, dtype=np.float64)
        self._expected = np.empty(self._block)  # the line at the block's samples, sender's clock
        self._residuals = np.empty(self._block)  # stamps minus the line
        self._positions = np.empty(4 * _WINDOW)
        self._stamps = np.empty(4 * _WINDOW)
        self._reaches = np.zeros(_WINDOW)
        self._blocks = 0
        self._offset: float | None = None
        self._offset_value = 0.0
        self._period = self._prior_period = 1.0 / sfreq
        self._slope_sd = self._prior_sd = _SLOPE_SD
        self._counted = False  # a counter tells the losses
        self._known = False  # the line has been fitted; until then stamps are passed on raw
        self._jitter = 0.0
        self._wander = 0.0  # s, standard deviation of whole blocks about the line
        self._aside = 0  # blocks in a row that lay off the line, negative: early
        self._limit = math.inf  # s by which a whole block must be late to mean missing samples
        self._lateness = 0.0  # s, of gaps that were taken back
        self._latest_gap = (-math.inf, 0.0)  # position behind it, s by which it moved the line
        self._next = 0  # ring position of the next sample
        self._first = 0  # ring position of the block's first sample
        self._base = 0.0  # the line there, sender's clock
        self._filled = 0  # samples in the block so far
        self._since, self._from, self._to = 0, 0, 0  # points: since the last break, of which in use, the last
        self._previous = 0.0  # residual of the last sample, s
        self._latest = -math.inf  # time of the last sample
        self._break: _Break | None = _Break(0, True, "")
        self._judge()

    @property
    def sfreq_effective(self) -> float:
        """Rate by the stamps since the last break, of half a minute at most, Hz.

        The line's own, unless it was fitted to the last stamps alone: a radio link that falls behind for a while bends
        the line, and is no other rate.
        """
        if self._from == self._since:
            return 1.0 / self._period
        kept = slice(self._since, self._to)
        slope, _ = np.polyfit(self._positions[kept] - self._next, self._stamps[kept] - self._base, 1)
        return 1.0 / self._bounded(float(slope))

    @property
    def drift_ppm(self) -> float:
        """Effective against nominal rate, parts per million."""
        return (self.sfreq_effective / self._sfreq - 1.0) * 1e6

    @property
    def jitter(self) -> float:
        """Robust standard deviation of the stamps about the line, seconds."""
        return self._jitter

    @property
    def least_gap(self) -> int:
        """Samples that must be missing in a row to be noticed; one where a counter tells."""
        if self._counted:
            return 1
        return math.floor(min(self._bound, self._limit) / self._period) + 1

    @property
    def offset_value(self) -> float:
        """LSL clock minus sender's clock, as used now, seconds."""
        return self._offset_value

    def offset(self, offset: ClockOffset) -> None:
        """Take a measured clock offset; it holds from the next sample on, and opens a segment if it is far off."""
        before, self._offset = self._offset, settled(self._offset, offset)
        moved = 0.0 if before is None else self._offset - before
        self._offset_value = self._offset
        if abs(moved) > self.settings.gap * self._period:
            self._break = _Break(0, True, f"clock offset moved by {moved:+.3f} s")

    def restart(self, reason: str) -> None:
        """Open a new segment with the next sample; the next offset replaces the last one. The connection is new."""
        self._offset = None
        self._break = _Break(0, True, reason)

    def place(self, stamps: Float64, lost: Sequence[tuple[int, int]] | None = None) -> list[Run]:
        """Place the next samples.

        Parameters
        ----------
        stamps : ndarray, shape (n,), float64
            Sender's clock, raw. A stamp that is not finite is taken for the expected one.
        lost : sequence of (int, int), optional
            What a counter tells: (i, m), m samples were lost just before sample i of these. None: no counter.

        Returns
        -------
        list of Run
            They cover the chunk in order; one, unless something broke.
        """
        n = len(stamps)
        if n == 0:
            return []
        times = np.empty(n)
        runs: list[Run] = []
        start, cause, position = 0, _NO_BREAK, self._next
        self._counted = lost is not None
        losses = iter(lost or ())
        at, missing = next(losses, (n, 0))
        i = 0
        while i < n:
            if i == at:
                self._skip(missing, float(stamps[at]))
                at, missing = next(losses, (n, 0))
            if self._break is not None:
                if i > start:
                    runs.append(Run(start, i, position, times[start:i], *cause[:3]))
                cause, self._break = self._break, None
                self._resume(cause, float(stamps[i]))
                start, position = i, self._next
            k = self._filled
            m = min(at - i, self._block - k)
            residuals = self._residuals[k : k + m]
            np.subtract(stamps[i : i + m], self._expected[k : k + m], out=residuals)
            if not (_largest(residuals) <= self._bound and _smallest(residuals) >= -self._bound):
                m = self._until_break(residuals)
            if m:
                self._take(m, times[i : i + m])
                i += m
        runs.append(Run(start, n, position, times[start:], *cause[:3]))
        return runs

    def _resume(self, cause: _Break, stamp: float) -> None:
        """Go on behind a break."""
        self._next += cause.missing
        if cause.new_segment:
            self.segments += 1
            self._latest = -math.inf
        if not math.isfinite(stamp):
            stamp = self._base + self._filled * self._period
        if cause.line is None:
            self._forget()
        self._begin(self._next, stamp if cause.line is None else cause.line)
        self._previous = stamp - self._base

    def _begin(self, position: int, base: float) -> None:
        """Open a block: its first ring position and the line there."""
        self._first, self._base, self._filled = position, base, 0
        np.multiply(self._ramp, self._period, out=self._expected)
        self._expected += base

    def _forget(self) -> None:
        """Drop the points, keep the slope they gave."""
        self._since, self._from, self._aside = self._to, self._to, 0
        self._prior_period, self._prior_sd = self._period, max(self._slope_sd, _SLOPE_SD_KEPT)

    def _until_break(self, residuals: Float64) -> int:
        """Count the samples before the first that is too late or too early to be jitter; set the break it means."""
        residuals[~np.isfinite(residuals)] = 0.0
        steps = np.diff(residuals, prepend=self._previous)
        margin = self._margin * self._period
        late = (residuals > self._bound) & (steps > margin)
        early = (residuals < -self._bound) & (steps < -margin)
        found = np.flatnonzero(late | early)
        if not len(found):
            return len(residuals)
        ahead = int(found[0])
        shift = float(residuals[ahead])
        if late[ahead] and self._counted and shift < self.settings.longest_gap:
            self._lateness = max(self._lateness, shift)
            self._judge()
            return ahead
        self._forget()
        if late[ahead] and self._counted:
            self._break = _Break(0, True, f"stamps jumped by {shift:+.3f} s, no sample lost")
        elif late[ahead]:
            missing = nearest(shift / self._period)
            # The lost time need not be a whole number of samples: believe the stamp as far as the jitter lets one.
            believed = 1.0 / (1.0 + 12.0 * (self._jitter / self._period) ** 2)
            self._lose(missing, missing * self._period + believed * (shift - missing * self._period), ahead)
        else:
            self._step_back(shift, ahead)
        return ahead

    def _skip(self, missing: int, stamp: float) -> None:
        """Note that a counter has skipped ``missing`` samples before the one at ``stamp``, the next.

        Stamps that jump as far are believed to lie on the line; others begin a line of their own.
        """
        shift = missing * self._period
        line = self._line(0) + shift
        self.gaps += 1
        self.missing += missing
        if shift >= self.settings.longest_gap:
            self._forget()
            self._break = _Break(0, True, f"gap of {shift:.3f} s")
        elif self._break is None or not self._break.new_segment:
            fits = self._known and abs(stamp - line) <= self._bound
            self._forget()
            self._break = _Break(missing, False, f"{missing} samples missing", line if fits else None)

    def _lose(self, missing: int, shift: float, ahead: int) -> None:
        """Note that samples are missing before the one ``ahead`` of the next; the line moves by ``shift`` s."""
        self.gaps += 1
        self.missing += missing
        if shift >= self.settings.longest_gap:
            self._break = _Break(0, True, f"gap of {shift:.3f} s")
            return
        self._latest_gap = (self._next + ahead + missing, shift)
        self._break = _Break(missing, False, f"{missing} samples missing", self._line(ahead) + shift)

    def _step_back(self, shift: float, ahead: int) -> None:
        """Note stamps that are ``-shift`` s early, the sample ``ahead`` of the next first: a clock set, or no gap."""
        position, size = self._latest_gap
        self._latest_gap = (-math.inf, 0.0)
        if self._next + ahead - position <= self._block and size / 2 < -shift < 2 * size:
            self._lateness = max(self._lateness, size)
            self._break = _Break(0, True, f"late by {size:.3f} s, taken for a gap", self._line(ahead) - size)
            self._judge()
        else:
            self._break = _Break(0, True, f"stamps stepped back by {-shift:.3f} s")

    def _line(self, ahead: int) -> float:
        """Expect the sample ``ahead`` of the next at this time, sender's clock."""
        return self._base + (self._filled + ahead) * self._period

    def _take(self, n: int, times: Float64) -> None:
        """Give the block's next ``n`` samples their times."""
        k = self._filled
        np.add(self._expected[k : k + n], self._offset_value, out=times)
        if not self._known:
            times += self._residuals[k : k + n]
            np.maximum.accumulate(times, out=times)
        if times[0] < self._latest:
            np.maximum(times, self._latest, out=times)
        self._latest = float(times[-1])
        self._next += n
        self._filled = k + n
        self._previous = float(self._residuals[k + n - 1])
        if self._filled == self._block:
            self._renew()

    def _renew(self) -> None:
        """Close the block: judge it by the line it was placed with, fit the next line."""
        half = self._block // 2
        centres = (half - 1) / 2, (half + self._block - 1) / 2
        medians = _median(self._residuals[:half]), _median(self._residuals[half:])
        self._observe(centres[0], medians[0], (medians[1] - medians[0]) / (centres[1] - centres[0]))

        point_sd = max(_POINT_SD, 1.25 * self._jitter / math.sqrt(half))
        limit = self._limit = max(self._margin * self._period, 6 * max(point_sd, self._wander))
        bent = 0.5 * self._period + 3 * point_sd
        low, high = min(medians), max(medians)
        expected, shift = self._line(0), (low + high) / 2
        if self._known and (low > limit or high < -limit):
            self._forget()
            if shift > 0 and self._counted:
                self._break = _Break(0, True, f"stamps moved by {shift:+.3f} s, no sample lost")
            elif shift > 0:
                self._lose(nearest(shift / self._period), shift, 0)
            else:
                self._step_back(shift, 0)
        else:
            self._stray(min(abs(low), abs(high)), int(low > bent) - int(high < -bent))
            if self._known and abs(self._aside) >= _BEND:
                self._from = max(self._from, self._to - 2 * _FRESH_WINDOW)
                self._prior_period, self._prior_sd = self._period, _SLOPE_SD
        missing = self._break.missing if self._break else 0
        for centre, median in zip(centres, medians, strict=True):
            if self._break is not None or not self._known or abs(median) <= limit:
                self._add(self._first + missing + centre, self._base + centre * self._period + median)
        self._known = True
        self._begin(self._next + missing, self._fit(point_sd, self._next + missing, expected))
        self._previous += expected - self._base
        if self._break is not None and shift < self.settings.longest_gap:
            self._break = self._break._replace(line=self._base)
        self._judge()

    def _observe(self, centre: float, median: float, bend: float) -> None:
        """Measure how far the block's stamps lie from the straight line through its two medians.

        No steeper than a wrong rate makes it: a block within one burst would seem exact.
        """
        steepest = _STEEPEST * self._period
        bend = min(max(bend, -steepest), steepest)
        scatter = self._ramp * -bend
        scatter += self._residuals
        scatter -= median - bend * centre
        np.abs(scatter, out=scatter)
        self._reaches[self._blocks % _WINDOW] = _largest(scatter)
        self._blocks += 1
        self._jitter += (1.4826 * _median(scatter) - self._jitter) / min(self._blocks, _JITTER_BLOCKS)

    def _stray(self, distance: float, side: int) -> None:
        """Note how far the block's nearer half lies off the line, in s, and to which side, if beyond its jitter.

        Where stamps come in bursts, blocks lie farther off than the jitter of their samples explains.
        """
        self._wander += (_NEARER * distance - self._wander) / min(self._blocks, _JITTER_BLOCKS)
        self._aside = self._aside + side if side * self._aside > 0 else side

    def _add(self, position: float, stamp: float) -> None:
        if self._to == len(self._stamps):
            kept = slice(self._since, self._to)
            n = kept.stop - kept.start
            self._positions[:n], self._stamps[:n] = self._positions[kept], self._stamps[kept]
            self._since, self._from, self._to = 0, self._from - self._since, n
        self._positions[self._to], self._stamps[self._to] = position, stamp
        self._to += 1
        self._since = max(self._since, self._to - 2 * _WINDOW)
        self._from = max(self._from, self._since)

    def _fit(self, point_sd: float, position: int, expected: float) -> float:
        """Least squares through the points with a prior on the slope; returns the line at ``position``."""
        if self._from == self._to:
            return expected
        x = self._positions[self._from : self._to] - position
        y = self._stamps[self._from : self._to] - expected
        x_mean, y_mean = float(_sum(x)) / len(x), float(_sum(y)) / len(y)
        x -= x_mean
        prior = (point_sd / (self._prior_sd * self._prior_period)) ** 2
        weight = float(x @ x) + prior
        period = (float(x @ y) + prior * self._prior_period) / weight
        self._period = self._bounded(period)
        self._slope_sd = point_sd / math.sqrt(weight) / self._period
        return expected + y_mean - self._period * x_mean

    def _bounded(self, period: float) -> float:
        """No stamps make the rate less than half the nominal one, or more than twice it."""
        nominal = 1.0 / self._sfreq
        return min(max(period, nominal / 2), nominal * 2)

    def _judge(self) -> None:
        """Set how far a stamp may lie off the line, from how far stamps did."""
        gap = self.settings.gap
        if not self._known:
            gap = max(gap, _UNKNOWN / self._period)
        reach = max(self._lateness, float(_largest(self._reaches))) / self._period
        self._margin = min(gap, max(_MARGIN, 4 * reach)) if self._blocks >= _SETTLED else gap
        doubt = 1 + _DOUBT / min(max(self._blocks, 1), _WINDOW)
        self._bound = ((1 + doubt) * reach + self._margin) * self._period


# The methods of ndarray cost half a microsecond more.
_largest, _smallest, _sum = np.maximum.reduce, np.minimum.reduce, np.add.reduce


def _median(values: Float64) -> float:
    """Median of a short array; numpy's own costs ten times as much."""
    ordered = values.copy()
    ordered.sort()
    n = len(ordered)
    return float(ordered[n // 2]) if n % 2 else 0.5 * float(ordered[n // 2 - 1] + ordered[n // 2])
