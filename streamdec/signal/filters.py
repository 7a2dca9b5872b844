"""Causal filters on chunks.

The settings stand in :mod:`.spec`. What comes out does not depend on how the samples came in chunks, bit for bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
from scipy import signal as sp

from ..errors import ConfigError
from ..types import Bool, Float32, Float64
from .spec import BandPass, Filter, LineNoise, Notch

try:
    # scipy.signal.sosfilt takes 54 µs for 5 sections on (63, 10), of which its kernel takes 6 (scipy 1.17, 2.5 GHz
    # Xeon). The kernel is private, hence the way out below; the arithmetic is the same.
    from scipy.signal._sosfilt import _sosfilt as _run_sections
except ImportError:  # pragma: no cover - depends on scipy's inside

    def _run_sections(sos: Float64, x: Float64, zi: Float64) -> None:
        x[:], state = sp.sosfilt(sos, x, axis=-1, zi=np.moveaxis(zi, 1, 0))
        zi[:] = np.moveaxis(state, 0, 1)


# A filter counts as settled when its slowest transient has fallen to this fraction.
_SETTLED = 0.01


class StreamFilter:
    """All filters of a signal, in their order, on consecutive chunks.

    Every channel starts at its first sample as if that value had been there for ever, so an offset of millivolts
    makes no step. A sample that is NaN or infinite is NaN in the output and enters the filters as the channel's last
    finite value: for samples that were lost, pass NaN. Without filters the chunk is handed through, not copied.

    Parameters
    ----------
    filters : sequence of Filter
        Settings, run in this order.
    sfreq : float
        Rate of the stream, Hz.
    n_chans : int
        Channels.

    Raises
    ------
    ConfigError
        A frequency is not below half the rate, or a setting makes no filter.
    """

    def __init__(self, filters: Sequence[Filter], sfreq: float, n_chans: int) -> None:
        self._stages: list[_Stage] = [
            _LineFit(item, sfreq, n_chans) if isinstance(item, LineNoise) else _Cascade(_sections(item, sfreq), n_chans)
            for item in filters
        ]
        self.settling = max((stage.settling for stage in self._stages), default=0)
        """Samples from a reset until the slowest filter has settled to 1 %."""
        self._n_chans = n_chans
        self.reset()

    def reset(self) -> None:
        """Go back to birth: every channel starts anew at its next finite sample."""
        self._started: Bool = np.zeros(self._n_chans, dtype=np.bool_)
        self._running = False
        self._held: Float64 = np.zeros(self._n_chans)
        for stage in self._stages:
            stage.reset()

    def __call__(self, chunk: Float32) -> Float32:
        """Filter the next chunk.

        Parameters
        ----------
        chunk : array of shape (n_chans, n_times) float32
            Samples, any number of them; not changed.

        Returns
        -------
        array of shape (n_chans, n_times) float32
        """
        if not self._stages or not chunk.shape[1]:
            return chunk
        finite = np.isfinite(chunk)
        if not (self._running and finite.all()):
            return self._with_gaps(chunk, finite)
        return self._run(chunk.astype(np.float64, order="C"))

    def _run(self, x: Float64) -> Float32:
        self._held = x[:, -1].copy()
        for stage in self._stages:
            stage(x)
        return x.astype(np.float32)

    def _with_gaps(self, chunk: Float32, finite: Bool) -> Float32:
        if not self._running:
            first = finite[:, 0] & ~self._started
            if first.any():
                self._start(first, chunk[:, 0].astype(np.float64))
            later = (finite & ~self._started[:, None]).any(axis=0)
            if later.any():
                split = int(later.argmax())
                return np.concatenate([self(chunk[:, :split]), self(chunk[:, split:])], axis=1)
        newest = np.where(finite, np.arange(chunk.shape[1]), -1)
        np.maximum.accumulate(newest, axis=1, out=newest)
        held = np.take_along_axis(chunk.astype(np.float64), np.maximum(newest, 0), axis=1)
        out = self._run(np.ascontiguousarray(np.where(newest >= 0, held, self._held[:, None])))
        out[~finite] = np.nan
        return out

    def _start(self, rows: Bool, values: Float64) -> None:
        self._started |= rows
        self._running = bool(self._started.all())
        values = np.where(rows, values, 0.0)
        for stage in self._stages:
            values = stage.start(rows, values)


class _Stage(Protocol):
    """One step of the chain. Channels that have not started get zeros and keep a zero state."""

    settling: int

    def reset(self) -> None: ...

    def start(self, rows: Bool, values: Float64) -> Float64:
        """Settle the channels ``rows`` on the constants ``values`` (n_chans,); return what comes out of them."""

    def __call__(self, x: Float64) -> None:
        """Filter (n_chans, n_times) float64, C order, in place."""


class _Cascade:
    """Second-order sections, direct form II transposed."""

    def __init__(self, sos: Float64, n_chans: int) -> None:
        self._sos = np.ascontiguousarray(sos)
        self._step = sp.sosfilt_zi(self._sos)
        self._gain = float(np.prod(sos[:, :3].sum(axis=1) / sos[:, 3:].sum(axis=1)))
        self._state = np.zeros((n_chans, len(sos), 2))
        slowest = max(abs(np.roots(section)).max() for section in sos[:, 3:])
        self.settling = math.ceil(math.log(_SETTLED) / math.log(slowest)) if slowest > 0 else 1

    def reset(self) -> None:
        self._state[:] = 0.0

    def start(self, rows: Bool, values: Float64) -> Float64:
        self._state[rows] = self._step * values[rows, None, None]
        return self._gain * values

    def __call__(self, x: Float64) -> None:
        _run_sections(self._sos, x, self._state)


class _LineFit:
    """Least squares with exponential forgetting: constant, sine and cosine; sine and cosine are subtracted.

    The regressors do not depend on the data, so neither do the normal equations: seen from the newest sample they
    change only while the memory fills. What is left per sample are one-section filters, the correlations with the
    regressors, and a product with a row of gains. A prior worth a tenth of a cycle makes the first samples solvable.
    """

    def __init__(self, settings: LineNoise, sfreq: float, n_chans: int) -> None:
        freqs = _multiples(settings.freq, settings.harmonics, sfreq, "line_noise")
        if not settings.window * settings.freq >= 5:
            raise ConfigError(
                "line_noise.window", got=f"{settings.window} s", allowed="at least five cycles of the line"
            )
        memory = settings.window * sfreq
        forget = math.exp(-1 / memory)
        sections = [[1.0, 0.0, 0.0, 1.0, -forget, 0.0]]
        for freq in freqs:
            angle = 2 * math.pi * freq / sfreq
            poles = [1.0, -2 * forget * math.cos(angle), forget**2]
            sections += [[1.0, -forget * math.cos(angle), 0.0, *poles], [0.0, forget * math.sin(angle), 0.0, *poles]]
        self._sections = [np.array([section]) for section in sections]
        self._gains = _line_gains(
            freqs, sfreq, forget, prior=0.1 * sfreq / settings.freq, n_times=math.ceil(10 * memory)
        )
        self.settling = math.ceil(2 * memory)
        self._states = np.zeros((len(sections), n_chans, 1, 2))
        self._origin = np.zeros((n_chans, 1))
        self._age = 0

    def reset(self) -> None:
        self._states[:] = 0.0
        self._origin[:] = 0.0
        self._age = 0

    def start(self, rows: Bool, values: Float64) -> Float64:
        self._origin[rows, 0] = values[rows]
        return values

    def __call__(self, x: Float64) -> None:
        n = x.shape[1]
        age = np.minimum(np.arange(self._age, self._age + n), len(self._gains) - 1)
        self._age = min(self._age + n, len(self._gains))
        gains = self._gains[age].T
        level = x - self._origin
        for section, state, gain in zip(self._sections, self._states, gains, strict=True):
            correlation = level.copy()
            _run_sections(section, correlation, state)
            correlation *= gain
            x -= correlation


def _line_gains(freqs: Sequence[float], sfreq: float, forget: float, prior: float, n_times: int) -> Float64:
    """Rows that turn correlations into the fitted line at the newest sample, (n_times, 1 + 2 * n_freqs), by age."""
    lag = np.arange(n_times)
    angle = 2 * np.pi / sfreq * np.multiply.outer(lag, freqs)
    regressors = np.ones((n_times, 1 + 2 * len(freqs)))
    regressors[:, 1::2], regressors[:, 2::2] = np.cos(angle), np.sin(angle)
    weight = forget**lag
    normal = np.cumsum(weight[:, None, None] * regressors[:, :, None] * regressors[:, None, :], axis=0)
    line = np.arange(1, regressors.shape[1])
    normal[:, line, line] += prior * weight[:, None]
    newest = regressors[0] * (np.arange(regressors.shape[1]) > 0)
    return np.asarray(np.linalg.solve(normal, np.broadcast_to(newest[:, None], (n_times, len(newest), 1)))[..., 0])


def _sections(settings: BandPass | Notch, sfreq: float) -> Float64:
    if isinstance(settings, Notch):
        if not settings.quality > 0:
            raise ConfigError("notch.quality", got=settings.quality, allowed="above 0")
        freqs = _multiples(settings.freq, settings.harmonics, sfreq, "notch")
        return np.concatenate([sp.tf2sos(*sp.iirnotch(freq, settings.quality, fs=sfreq)) for freq in freqs])
    edges = [edge for edge in (settings.low, settings.high) if edge is not None]
    if not edges or edges != sorted(set(edges)) or not 0 < edges[0] <= edges[-1] < sfreq / 2:
        raise ConfigError(
            "band_pass",
            got=f"low {settings.low}, high {settings.high} Hz at {sfreq:g} Hz",
            allowed="low or high or both, 0 < low < high < half the rate",
        )
    if settings.order < 1:
        raise ConfigError("band_pass.order", got=settings.order, allowed="1 or more")
    kind = "bandpass" if len(edges) == 2 else "highpass" if settings.high is None else "lowpass"
    wanted = edges if len(edges) == 2 else edges[0]
    return np.asarray(sp.butter(settings.order, wanted, kind, fs=sfreq, output="sos"), np.float64)


def _multiples(freq: float, harmonics: int, sfreq: float, name: str) -> list[float]:
    if harmonics < 1:
        raise ConfigError(f"{name}.harmonics", got=harmonics, allowed="1 or more")
    if not 0 < freq * harmonics < sfreq / 2:
        raise ConfigError(
            f"{name}.freq",
            got=f"{freq} Hz with {harmonics} harmonics",
            allowed=f"all above 0 and below half the rate, {sfreq / 2:g} Hz",
            do="leave out the highest harmonics",
        )
    return [freq * k for k in range(1, harmonics + 1)]
