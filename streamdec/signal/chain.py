"""The steps each epoch goes through before the encoder. Offline preprocessing runs this same code.

Steps on channels are one matrix product, whatever their number: they commute with steps on time, and an offset per
channel passes through both. Only a clamp keeps its place.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy import fft

from ..errors import ConfigError
from ..types import Float32, Float64
from .rate import nearest
from .spec import Baseline, Clamp, Drop, Pick, Reference, Resample, Scale, Signal, Standardise, Step, Whiten

# (n_chans, n_times) float32 -> the same kind of array
_Run: TypeAlias = Callable[[Float32], Float32]


class Chain:
    """The epoch steps of a signal.

    Parameters
    ----------
    signal : Signal
        Channels, rate, window and steps.
    arrays : mapping of str to array
        What the steps name: a whitener (n_chans, n_chans), means and deviations (n_chans,).

    Attributes
    ----------
    ch_names : tuple of str
        Channels that come out.
    sfreq : float
        Their rate, Hz.
    tmin : float
        Time of their first sample, seconds after the onset.
    shape_in, shape : tuple of int
        (n_chans, n_times) that go in and come out.

    Raises
    ------
    ConfigError
        A step does not fit the epoch, or an array is missing or does not fit the channels.
    """

    def __init__(self, signal: Signal, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        first, n_times = signal.window
        self.shape_in = (len(signal.ch_names), n_times)
        fold = _Fold(signal.ch_names, signal.sfreq, first / signal.sfreq, n_times)
        for step in signal.steps:
            fold.add(step, arrays)
        self._runs = fold.close()
        self.ch_names, self.sfreq, self.tmin = fold.ch_names, fold.sfreq, fold.tmin
        self.shape = (len(fold.ch_names), fold.n_times)

    def __call__(self, epochs: Float32) -> Float32:
        """Process one epoch or many.

        Parameters
        ----------
        epochs : array of shape (..., n_chans, n_times) float32
            Microvolt; not changed.

        Returns
        -------
        array of shape (..., n_chans, n_times) float32
            New, C order, the last two as in ``shape``. An epoch comes out the same, bit for bit, alone or among others.
        """
        if epochs.shape[-2:] != self.shape_in:
            raise ValueError(
                f"epochs of shape {epochs.shape}, the chain takes (..., {', '.join(map(str, self.shape_in))})"
            )
        out = np.empty((*epochs.shape[:-2], *self.shape), np.float32)
        for index in np.ndindex(epochs.shape[:-2]):
            epoch = np.ascontiguousarray(epochs[index], np.float32)
            for run in self._runs:
                epoch = run(epoch)
            out[index] = epoch
        return out


class _Fold:
    """Reads steps one after the other; those on channels gather in one matrix and one offset until a clamp."""

    def __init__(self, ch_names: Sequence[str], sfreq: float, tmin: float, n_times: int) -> None:
        self.ch_names, self.sfreq, self.tmin, self.n_times = tuple(ch_names), sfreq, tmin, n_times
        self._runs: list[_Run] = []
        self._begin()

    def _begin(self) -> None:
        self._matrix: Float64 = np.eye(len(self.ch_names))
        self._offset: Float64 = np.zeros(len(self.ch_names))
        self._times: list[_Run] = []

    def close(self) -> tuple[_Run, ...]:
        self._end()
        return tuple(self._runs)

    def _end(self) -> None:
        n_out, n_in = self._matrix.shape
        if n_out != n_in or not np.array_equal(self._matrix, np.eye(n_in)):
            # Where least is left to multiply, but behind a baseline: offsets of millivolts cost float32 its digits.
            baselines = [at for at, run in enumerate(self._times) if isinstance(run, _Baseline)]
            at = len(self._times) if n_out >= n_in else baselines[0] + 1 if baselines else 0
            self._times.insert(at, _Product(self._matrix.astype(np.float32)))
        self._runs += self._times
        if self._offset.any():
            self._runs.append(_Shift(self._offset[:, None].astype(np.float32)))

    def add(self, step: Step, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        n_chans = len(self.ch_names)
        match step:
            case Pick(channels):
                rows = self._rows("pick", channels)
                self._matrix, self._offset = self._matrix[rows], self._offset[rows]
                self.ch_names = tuple(channels)
            case Reference(channels):
                rows = self._rows("reference", channels or self.ch_names)
                self._left(np.eye(n_chans) - np.isin(np.arange(n_chans), rows) / len(rows))
            case Whiten(array):
                self._left(_array(arrays, array, "whiten", (n_chans, n_chans)))
            case Scale(factor):
                if not (math.isfinite(factor) and factor):
                    raise ConfigError("step scale: factor", got=factor, allowed="a finite number other than 0")
                self._left(factor * np.eye(n_chans))
            case Standardise(mean, std):
                deviations = _array(arrays, std, "standardise", (n_chans,))
                if not (deviations > 0).all():
                    raise ConfigError(f"step standardise: array {std!r}", got="values of 0 or below", allowed="above 0")
                self._offset = self._offset - _array(arrays, mean, "standardise", (n_chans,))
                self._left(np.diag(1 / deviations))
            case Baseline(tmin, tmax):
                start, stop = (nearest((edge - self.tmin) * self.sfreq) for edge in (tmin, tmax))
                if not 0 <= start <= stop < self.n_times:
                    raise ConfigError(
                        "step baseline",
                        got=f"{tmin}..{tmax} s",
                        allowed=f"tmin <= tmax within {self.tmin:g}..{self.tmin + (self.n_times - 1) / self.sfreq:g} s",
                    )
                self._times.append(_Baseline(start, stop + 1))
                self._offset = np.zeros(n_chans)
            case Resample(sfreq):
                if not (math.isfinite(sfreq) and sfreq > 0):
                    raise ConfigError("step resample: sfreq", got=sfreq, allowed="a finite number of Hz above 0")
                if not math.isclose(sfreq, self.sfreq, rel_tol=1e-6):
                    resample = _FourierResample(self.n_times, self.sfreq, sfreq)
                    self._times.append(resample)
                    self.sfreq, self.n_times = sfreq, resample.n_times
            case Drop(n_times):
                if not 0 <= n_times < self.n_times:
                    raise ConfigError(
                        "step drop: n_times", got=n_times, allowed=f"0 to {self.n_times - 1} of {self.n_times} samples"
                    )
                self._times.append(_Drop(n_times))
                self.tmin += n_times / self.sfreq
                self.n_times -= n_times
            case Clamp(limit):
                if not limit > 0:
                    raise ConfigError("step clamp: limit", got=limit, allowed="above 0")
                self._end()
                self._runs.append(_Clip(limit))
                self._begin()

    def _left(self, matrix: Float64) -> None:
        self._matrix, self._offset = matrix @ self._matrix, matrix @ self._offset

    def _rows(self, step: str, channels: Sequence[str]) -> list[int]:
        unknown = [name for name in channels if name not in self.ch_names]
        if unknown or not channels or len(set(channels)) < len(channels):
            raise ConfigError(
                f"step {step}: channels",
                got=", ".join(unknown or channels) or "none",
                allowed=f"each once, of {', '.join(self.ch_names)}",
            )
        return [self.ch_names.index(name) for name in channels]


def _array(arrays: Mapping[str, npt.NDArray[Any]], name: str, step: str, shape: tuple[int, ...]) -> Float64:
    if name not in arrays:
        raise ConfigError(f"step {step}: array {name!r}", got="none", allowed=", ".join(sorted(arrays)) or "no arrays")
    array = np.asarray(arrays[name], np.float64)
    if array.shape != shape:
        raise ConfigError(f"step {step}: array {name!r}", got=f"shape {array.shape}", allowed=f"shape {shape}")
    if not np.isfinite(array).all():
        raise ConfigError(f"step {step}: array {name!r}", got="NaN or infinite values", allowed="finite values")
    return array


@dataclass(frozen=True, slots=True)
class _Product:
    matrix: Float32

    def __call__(self, epoch: Float32) -> Float32:
        return self.matrix @ epoch


@dataclass(frozen=True, slots=True)
class _Shift:
    offset: Float32

    def __call__(self, epoch: Float32) -> Float32:
        return epoch + self.offset


@dataclass(frozen=True, slots=True)
class _Clip:
    limit: float

    def __call__(self, epoch: Float32) -> Float32:
        return np.clip(epoch, -self.limit, self.limit)


@dataclass(frozen=True, slots=True)
class _Baseline:
    start: int
    stop: int

    def __call__(self, epoch: Float32) -> Float32:
        level = epoch[:, self.start : self.stop].mean(axis=1, dtype=np.float64, keepdims=True)
        # subtracted in float64: an offset of millivolts leaves no rounding error of its own size behind
        return np.asarray(epoch - level, np.float32)


@dataclass(frozen=True, slots=True)
class _Drop:
    n_times: int

    def __call__(self, epoch: Float32) -> Float32:
        return epoch[:, self.n_times :]


class _FourierResample:
    """Resample epochs as mne.Epochs.resample does by default (mne 1.9: ``npad="auto", pad="edge", window="auto"``).

    The edges are held for at least 100 samples (an eighth of a short epoch) up to a power of two, and the spectrum
    is cut there or filled with zeros. 63 x 1201 samples to 300 take 0.32 ms by FFT in float32, 0.52 ms as a product
    with a (1201, 300) matrix (one core of a 2.5 GHz Xeon).

    Parameters
    ----------
    n_times : int
        Samples that go in.
    sfreq, sfreq_out : float
        Rates in and out, Hz.

    Attributes
    ----------
    n_times : int
        Samples that come out.
    """

    def __init__(self, n_times: int, sfreq: float, sfreq_out: float) -> None:
        ratio = sfreq_out / sfreq
        self.n_times = max(round(ratio * n_times), 1)
        self._n_in = n_times
        self._n_padded = 2 ** math.ceil(math.log2(n_times + 2 * min(n_times // 8, 100)))
        self._n_fft = max(round(ratio * self._n_padded), 1)
        self._before = (self._n_padded - n_times) // 2
        self._skip = round(ratio * self._before)
        shorter = min(self._n_padded, self._n_fft)
        self._nyquist = shorter // 2 if shorter % 2 == 0 else None

    def __call__(self, epoch: Float32) -> Float32:
        """Resample (n_chans, n_times) float32."""
        padded = np.empty((len(epoch), self._n_padded), np.float32)
        stop = self._before + self._n_in
        padded[:, : self._before] = epoch[:, :1]
        padded[:, self._before : stop] = epoch
        padded[:, stop:] = epoch[:, -1:]
        spectrum = fft.rfft(padded)
        if self._nyquist is not None:
            spectrum[:, self._nyquist] *= 2.0 if self._n_fft < self._n_padded else 0.5
        out: Float32 = fft.irfft(spectrum, self._n_fft)[:, self._skip : self._skip + self.n_times]
        out *= np.float32(self._n_fft / self._n_padded)
        return out
