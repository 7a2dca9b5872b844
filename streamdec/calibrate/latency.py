"""Marker latency: how long after its marker an image's light came on, and how that drifts.

From a light sensor on the screen (:func:`photodiode`), or from the brain (:func:`evoked`): the block's mean response
against the one the bundle expects, which finds the delay of the markers and of this person's brain together.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from scipy import ndimage, stats

from ..acquire.recording import RecordedStream
from ..decode.manifest import MarkerLatency
from ..errors import CalibrationError
from ..types import Float32, Float64

EARLIEST, LATEST = -0.2, 1.0
"""Seconds after its marker between which the light of an image is looked for."""

_STEEPEST = 1e-3  # s/s: the drift looked for, 60 ms/min
_WIDTH = 0.06  # s within which the delays of one screen lie
_TWO_LEVELS = 0.6  # of the way from dark to light that hardly a sample may lie in
_MATCHED = 0.5  # of the onsets must have their flash
_ENDS = 2  # flashes of which a recording may have cut off one edge
_BREAK = 1.0  # s between two stamps that ends a straight line
_VAGUE = 0.02  # s: a latency less certain than this is none
_MOST_PAIRS = 1000  # delays a slope is taken from: its cost goes with their square


def straightened(stream: RecordedStream) -> Float64:
    """Lay one straight line through the stamps of each unbroken stretch: offline de-jitter, as pyxdf's.

    Returns
    -------
    array of shape (n_times,) float64
        LSL clock.
    """
    times = stream.times
    starts = [segment.start for segment in stream.segments if segment.start]
    breaks = np.flatnonzero(np.abs(np.diff(times)) > _BREAK) + 1
    edges = np.unique(np.concatenate([[0], starts, breaks, [len(times)]]).astype(int))
    for start, stop in pairwise(edges.tolist()):
        if stop - start > 1:
            count = np.arange(stop - start, dtype=np.float64)
            slope, level = np.polyfit(count, times[start:stop] - times[start], 1)
            times[start:stop] = times[start] + level + slope * count
    return times


def flashes(samples: Float32 | Float64, times: Float64) -> tuple[Float64, Float64]:
    """Find when the light goes on and off in a light sensor's channel.

    The sensor must show two levels. The edge lies half way between the brightest of the dark and the darkest of the
    light samples (a fifth of each may be on the way), so that a flickering screen does no harm, and is re-armed a
    quarter of that way below. Its time is that of the first sample behind it, as a trigger channel would have it: half
    a sample later than the light, on average.

    Parameters
    ----------
    samples : array of shape (n_times,)
        Any unit; NaN are passed over.
    times : array of shape (n_times,) float64

    Returns
    -------
    on, off : array of shape (n,) float64
        Times of the rising and of the falling edges; empty where there are not two levels.
    """
    none = np.empty(0), np.empty(0)
    seen = np.isfinite(samples)
    values, times = np.asarray(samples, np.float64)[seen], times[seen]
    if len(values) < 3:
        return none
    values = ndimage.median_filter(values, 3)  # spikes of one sample are no light
    low, high = np.percentile(values, (0.5, 99.5))
    if not high > low:
        return none
    middle = _otsu(values, low, high)
    dark, light = values[values < middle], values[values >= middle]
    below, above = np.percentile(dark, 80), np.percentile(light, 20)
    if above - below < _TWO_LEVELS * (np.median(light) - np.median(dark)):
        return none
    edge, armed = (below + above) / 2, (3 * below + above) / 4
    state = np.where(values > edge, 1, np.where(values < armed, 0, -1))
    known = np.maximum.accumulate(np.where(state >= 0, np.arange(len(state)), 0))
    change = np.diff(np.maximum(state[known], 0))
    return times[np.flatnonzero(change > 0) + 1], times[np.flatnonzero(change < 0) + 1]


def photodiode(samples: Float32 | Float64, times: Float64, onsets: Float64, channel: str) -> MarkerLatency:
    """Measure the latency by a light sensor's channel.

    Whether the patch turns light or dark with an image is found out: the edge that follows more onsets counts, and of
    two that follow as many, give or take the block's ends, the sooner one. Every onset is paired with the flash nearest
    to the one line (delay and drift) on which most pairs lie; onsets whose light was not seen and flashes of something
    else fall away.

    Parameters
    ----------
    samples : array of shape (n_times,)
    times : array of shape (n_times,) float64
        LSL clock of the samples.
    onsets : array of shape (n_onsets,) float64
        LSL clock of the markers.
    channel : str
        What to call the channel.

    Raises
    ------
    CalibrationError
        It never flashes, or its flashes do not follow the markers.
    """
    edges = flashes(samples, times)
    if not any(map(len, edges)):
        raise CalibrationError(
            f"photodiode {channel!r}",
            got="no flash: it does not show two levels",
            do="put the sensor on the patch, name another channel with --photodiode, or leave it out",
        )
    paired = [_pair(onsets, each) for each in edges]
    enough = [pair for pair in paired if len(pair[0]) >= max(3, _MATCHED * len(onsets))]
    if not enough:
        raise CalibrationError(
            f"photodiode {channel!r}",
            got=f"{len(edges[0])} flashes, {max(len(at) for at, _ in paired)} of {len(onsets)} onsets have theirs",
            do="check that the patch flashes with every image",
        )
    most = max(len(at) for at, _ in enough)
    as_many = most - max(_ENDS, 0.02 * most)
    at, delays = min((p for p in enough if len(p[0]) >= as_many), key=lambda p: abs(float(np.median(p[1]))))
    return _line(at, delays, f"photodiode {channel!r}")


def find_photodiode(
    data: Float32, times: Float64, onsets: Float64, names: Sequence[str]
) -> tuple[int, MarkerLatency] | None:
    """Find the channel whose flashes follow the markers most steadily.

    Parameters
    ----------
    data : array of shape (n_chans, n_times) float32
    times, onsets
        See :func:`photodiode`.
    names : sequence of str
        What to call the channels.

    Returns
    -------
    int and MarkerLatency, or None
        The channel's index; None where no channel flashes with the markers.
    """
    found: list[tuple[int, MarkerLatency]] = []
    for index, (samples, name) in enumerate(zip(data, names, strict=True)):
        try:
            found.append((index, photodiode(samples, times, onsets, name)))
        except CalibrationError:
            continue
    return min(found, key=lambda each: (-each[1].n, each[1].scatter or 0.0)) if found else None


def evoked(parts: Float32, weights: Float64, expected: Float32, rate: float, lead: int) -> MarkerLatency:
    """Measure the latency by cross-correlation of the block's mean response with the one that is expected.

    Parameters
    ----------
    parts : array of shape (n_parts, n_lags, n_chans, n_times)
        Mean responses of ``n_parts`` stretches of the block, cut at each lag and sent through the chain.
    weights : array of shape (n_parts,)
        Onsets in each part.
    expected : array of shape (n_chans, n_times)
    rate : float
        Lags per second.
    lead : int
        The lag that means no latency.

    Returns
    -------
    MarkerLatency
        Its interval is from the jackknife over the parts; at least a lag wide.

    Raises
    ------
    CalibrationError
        The best lag is the first or the last one, nothing resembles what is expected, or the interval is too wide.
    """
    n = len(parts)
    best, score = _peak(_resemblance(parts, weights, expected))
    if not score > 0 or not np.isfinite(best):
        raise CalibrationError(
            "evoked response of the block",
            got=f"no delay at which it resembles the expected one (correlation {score:.2f})",
            do="measure the latency with a photodiode, or give it: --latency",
        )
    left_out = [_peak(_resemblance(parts, np.where(np.arange(n) == k, 0.0, weights), expected))[0] for k in range(n)]
    spread = np.array(left_out) - np.mean(left_out)
    error = float(np.sqrt((n - 1) / n * np.sum(spread**2)))
    reach = max(float(stats.t.ppf(0.975, n - 1)) * error, 0.5) / rate if np.isfinite(error) else np.inf
    seconds = (best - lead) / rate
    if reach > _VAGUE:
        raise CalibrationError(
            "evoked response of the block",
            got=f"a delay of {1e3 * seconds:.0f} ms, give or take {1e3 * reach:.0f} ms",
            do="record a longer block, or measure the latency with a photodiode",
        )
    source = f"the evoked response (correlation {score:.2f})"
    return MarkerLatency(seconds, (seconds - reach, seconds + reach), source, int(weights.sum()))


def _resemblance(parts: Float32, weights: Float64, expected: Float32) -> Float64:
    """Correlation of the weighted mean of the parts with what is expected, for each lag, (n_lags,)."""
    mean = np.tensordot(weights / weights.sum(), parts, 1).reshape(parts.shape[1], -1)
    wanted = expected.ravel().astype(np.float64)
    lengths = np.linalg.norm(mean, axis=1) * np.linalg.norm(wanted)
    return np.asarray(mean @ wanted / np.maximum(lengths, 1e-30), np.float64)


def _otsu(values: Float64, low: float, high: float) -> float:
    """Give the level that parts two levels best (Otsu 1979, doi:10.1109/TSMC.1979.4310076)."""
    counts, edges = np.histogram(values, 256, (low, high))
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)[:-1]
    above = counts.sum() - below
    sums = np.cumsum(counts * centres)[:-1]
    with np.errstate(invalid="ignore", divide="ignore"):
        between = below * above * (sums / below - (np.sum(counts * centres) - sums) / above) ** 2
    best = np.flatnonzero(between >= np.nanmax(between))
    return float(edges[1 + int(np.median(best))])


def _pair(onsets: Float64, flashes: Float64) -> tuple[Float64, Float64]:
    """Pair onsets with flashes; return the paired onsets and their delays, (n,) each."""
    if not len(flashes) or len(onsets) < 3:
        return np.empty(0), np.empty(0)
    first = np.searchsorted(flashes, onsets + EARLIEST)
    stop = np.searchsorted(flashes, onsets + LATEST)
    owner = np.repeat(np.arange(len(onsets)), stop - first)
    if not len(owner):
        return np.empty(0), np.empty(0)
    index = np.concatenate([np.arange(a, b) for a, b in zip(first, stop, strict=True)])
    delay = flashes[index] - onsets[owner]
    since = onsets[owner] - onsets.mean()
    width = min(_WIDTH, 0.6 * float(np.median(np.diff(flashes)))) if len(flashes) > 1 else _WIDTH
    steps = int(np.ceil(_STEEPEST * np.ptp(onsets) / (width / 3))) or 1
    slopes = sorted(np.linspace(-_STEEPEST, _STEEPEST, 2 * steps + 1), key=abs)
    best = (0.0, 0.0, 0.0)  # how many lie on the line, its slope, its delay at the middle
    for slope in slopes:
        level = np.sort(delay - slope * since)
        counts = np.searchsorted(level, level + width, side="right") - np.arange(len(level))
        centres = level + width / 2
        full = np.flatnonzero(counts >= counts.max())
        at = full[np.argmin(np.abs(centres[full]))]
        if counts[at] > 1.02 * best[0]:
            best = (float(counts[at]), float(slope), float(centres[at]))
    away = np.abs(delay - best[1] * since - best[2])
    order = np.lexsort((away, owner))
    nearest = order[np.concatenate([[True], np.diff(owner[order]) > 0])]
    kept = nearest[away[nearest] <= width]
    return onsets[owner[kept]], delay[kept]


def _line(at: Float64, delays: Float64, source: str) -> MarkerLatency:
    """Median, and a robust slope (Theil and Sen) with its interval."""
    some = np.unique(np.linspace(0, len(at) - 1, min(len(at), _MOST_PAIRS)).astype(int))
    slope, _, low, high = stats.theilslopes(delays[some], at[some], 0.95)
    level = delays - slope * (at - np.median(at))
    rest = np.sort(level - np.median(level))
    n = len(rest)
    reach = int(np.ceil(0.98 * np.sqrt(n)))  # ranks: the median's interval, whatever the distribution
    seconds = float(np.median(delays))
    interval = (
        seconds + float(rest[max(n // 2 - reach, 0)]),
        seconds + float(rest[min((n - 1) // 2 + reach, n - 1)]),
    )
    scatter = 1.4826 * float(np.median(np.abs(rest)))
    return MarkerLatency(seconds, interval, source, n, float(slope), (float(low), float(high)), scatter)


def _peak(scores: Float64) -> tuple[float, float]:
    """Position of the highest score, between samples by a parabola, and the score; NaN at either end."""
    at = int(np.argmax(scores))
    if not 0 < at < len(scores) - 1:
        return float("nan"), float(scores[at])
    before, top, after = scores[at - 1 : at + 2]
    bend = before - 2 * top + after
    return at + (0.5 * float((before - after) / bend) if bend < 0 else 0.0), float(top)
