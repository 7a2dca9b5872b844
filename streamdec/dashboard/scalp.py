"""The EEG as a page shows it: a high-pass for the eye, electrodes seen from above, a scalp map, and the evoked.

The feed's `signal` is behind the bundle's filters, of which there may be none. Here it passes a causal high-pass, so
that offsets and drifts leave the traces on the screen. The evoked is the mean over clean epochs, those that ended
`decided`, cut here from the same signal at the rate of the screen.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np

from ..feed.schema import Epoch, Signal
from ..signal.filters import StreamFilter
from ..signal.montage import has_position, positions, spherical_spline
from ..signal.rate import Rate
from ..signal.spec import BandPass
from ..types import Float32, Float64
from .packet import Packet, array, pack

_LOW = 0.5  # Hz
_TMIN, _TMAX = -0.1, 0.8  # s around the onset
_HELD = 8.0  # s of signal kept to cut epochs from
_PENDING = 200  # onsets that wait for the end of their window
_GRID = 44  # points across the map
_RIM = np.radians(112.0)  # from the top of the head to the map's edge; 10-05 electrodes reach 110 degrees


class Scalp:
    """Signal messages in, packets for browsers out.

    Parameters
    ----------
    ch_names : tuple of str
        Channels of the signal.
    sfreq : float
        Its rate, Hz.
    """

    def __init__(self, ch_names: tuple[str, ...], sfreq: float) -> None:
        self.ch_names, self.sfreq = ch_names, sfreq
        self._bad: tuple[str, ...] = ()
        self._montage = _montage(ch_names, ())
        self._filter = StreamFilter([BandPass(low=_LOW, order=1)], sfreq, len(ch_names))
        self._expected = math.nan  # LSL clock; the next sample's time
        self._buffer: Float32 = np.zeros((len(ch_names), 0), np.float32)
        self._pending: deque[float] = deque(maxlen=_PENDING)
        rate = Rate(sfreq)
        self._held = rate.to_samples(_HELD)
        self._lags, self._before = rate.to_samples(_TMAX - _TMIN), max(1, rate.to_samples(-_TMIN))
        self._sum: Float64 = np.zeros((len(ch_names), self._lags))
        self._count: Float64 = np.zeros((len(ch_names), 1))
        self._n = 0

    @property
    def kept(self) -> list[Packet]:
        """What a browser that comes late needs: the montage and the evoked."""
        evoked = self.evoked()
        return [self._montage] if evoked is None else [self._montage, evoked]

    def signal(self, message: Signal, data: Float32) -> list[Packet]:
        """Take the newest of the signal; give what browsers get of it.

        Parameters
        ----------
        message : Signal
        data : array of shape (n_chans, n_times) float32
        """
        packets: list[Packet] = []
        bad = tuple(sorted(message.bad))
        if bad != self._bad:
            self._bad = bad
            self._montage = _montage(self.ch_names, bad)
            packets.append(self._montage)
        if not abs(message.time - self._expected) < 0.5 / self.sfreq:
            self._filter.reset()
            self._buffer = self._buffer[:, :0]
        self._expected = message.time + data.shape[1] / self.sfreq
        with np.errstate(invalid="ignore"):
            clean = self._filter(data)
        self._buffer = np.concatenate([self._buffer, clean], axis=1)[:, -self._held :]
        self._cut()
        header = {"topic": "signal", "time": message.time, "sfreq": self.sfreq, "bad": message.bad}
        packets.append(Packet("signal", pack(header, clean)))
        return packets

    def ended(self, epoch: Epoch) -> None:
        """Average the epoch, if it is clean, once its window is in."""
        if epoch.outcome == "decided":
            self._pending.append(epoch.onset_time)

    def evoked(self) -> Packet | None:
        """Give the mean of the clean epochs so far, None before the first."""
        if not self._n:
            return None
        with np.errstate(invalid="ignore"):
            mean = self._sum / self._count
        header = {"topic": "evoked", "n": self._n, "tmin": _TMIN, "sfreq": self.sfreq, "rows": len(mean)}
        return Packet("evoked", pack(header, array(mean)))

    def _cut(self) -> None:
        """Average what is complete, on the line between the two nearest samples of each instant."""
        start = self._expected - self._buffer.shape[1] / self.sfreq
        waiting = list(self._pending)
        self._pending.clear()
        for onset in waiting:
            at = (onset + _TMIN - start) * self.sfreq
            first = math.floor(at)
            if first + self._lags + 1 > self._buffer.shape[1]:
                self._pending.append(onset)
            elif first >= 0:
                window = self._buffer[:, first : first + self._lags + 1].astype(np.float64)
                epoch = (1 - (at - first)) * window[:, :-1] + (at - first) * window[:, 1:]
                epoch -= epoch[:, : self._before].mean(axis=1, keepdims=True)
                good = np.isfinite(epoch).all(axis=1)
                good &= [name not in self._bad for name in self.ch_names]
                self._sum[good] += epoch[good]
                self._count[good] += 1
                self._n += 1


def _montage(ch_names: tuple[str, ...], bad: tuple[str, ...]) -> Packet:
    """Electrodes seen from above (azimuthal equidistant, x right, y front), and the matrix of the scalp map."""
    placed = [name for name in ch_names if has_position(name)]
    xyz = positions(placed)
    radius = np.arccos(np.clip(xyz[:, 2], -1, 1)) / _RIM
    azimuth = np.arctan2(xyz[:, 1], xyz[:, 0])
    seen = np.stack([radius * np.cos(azimuth), radius * np.sin(azimuth)], axis=1).tolist()
    xy = dict(zip(placed, seen, strict=True))
    sources = [name for name in placed if name not in bad]
    side = np.linspace(-1, 1, _GRID)
    x, y = np.meshgrid(side, side[::-1])
    inside = np.hypot(x, y) <= 1.1  # a little more than is shown: no ragged rim
    matrix = np.zeros((0, 0), np.float32)
    if len(sources) >= 4:
        polar, around = np.hypot(x, y)[inside] * _RIM, np.arctan2(y, x)[inside]
        points = np.stack([np.sin(polar) * np.cos(around), np.sin(polar) * np.sin(around), np.cos(polar)], axis=1)
        matrix = spherical_spline(positions(sources), points).astype(np.float32)
    header = {
        "topic": "montage",
        "ch_names": ch_names,
        "xy": [xy.get(name) for name in ch_names],
        "sources": [ch_names.index(name) for name in sources],
        "grid": _GRID,
        "inside": np.flatnonzero(inside).tolist() if len(matrix) else [],
    }
    return Packet("montage", pack(header, matrix))
