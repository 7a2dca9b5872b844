"""Seconds <-> samples: the one rounding rule, used everywhere."""

from __future__ import annotations

import math
from dataclasses import dataclass

from ..errors import ConfigError

# Two instants closer than this fraction of a sample are the same instant: sums of decimal seconds
# (0.1 + 0.2) and products with the rate carry float error far below it, real jitter lies far above.
_TIE = 1e-6


def nearest(position: float) -> int:
    """Round a fractional sample position to the nearest sample, ties down.

    Parameters
    ----------
    position : float
        Samples since some origin, may be negative.

    Returns
    -------
    int
        The nearest sample; exactly half way (to within 1e-6 of a sample) is the earlier one.
    """
    return math.ceil(position - 0.5 - _TIE)


@dataclass(frozen=True, slots=True)
class Rate:
    """A sampling rate.

    Parameters
    ----------
    sfreq : float
        Samples per second, Hz, finite and positive.
    """

    sfreq: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.sfreq) and self.sfreq > 0):
            raise ConfigError("sampling rate", got=self.sfreq, allowed="a finite number of Hz above 0")

    def to_samples(self, seconds: float) -> int:
        """Duration or instant in seconds -> samples, nearest, ties down."""
        return nearest(seconds * self.sfreq)

    def to_seconds(self, samples: int) -> float:
        """Samples -> seconds."""
        return samples / self.sfreq

    def window(self, tmin: float, tmax: float) -> tuple[int, int]:
        """First sample and number of samples of an epoch, both ends included, as mne.Epochs cuts it.

        Parameters
        ----------
        tmin, tmax : float
            Seconds relative to the onset, ``tmin <= tmax``.

        Returns
        -------
        first : int
            First sample relative to the onset's sample.
        n_times : int
            Number of samples.
        """
        first, last = self.to_samples(tmin), self.to_samples(tmax)
        if last < first:
            raise ConfigError("epoch window", got=f"tmin {tmin} s, tmax {tmax} s", allowed="tmin <= tmax")
        return first, last - first + 1
