"""Flat, railed and noisy channels; the scale of a stream."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import ConfigError, StreamMismatch
from ..types import Float32, Float64
from .montage import has_position

_MICROVOLTS = {
    "": 1.0,
    **dict.fromkeys(("v", "volt", "volts"), 1e6),
    **dict.fromkeys(("mv", "millivolt", "millivolts"), 1e3),
    **dict.fromkeys(("uv", "µv", "μv", "microvolt", "microvolts", "µvolts", "uvolts"), 1.0),
    **dict.fromkeys(("nv", "nanovolt", "nanovolts"), 1e-3),
}

# A stream off by a prefix of the unit is off by 1e3 or 1e6; heads, caps and amplifiers differ by far less than 300.
_OTHER_UNIT = 300.0
_UNLIKE = 5.0


class QualitySettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a channel of an epoch is bad. A channel with a NaN or an infinity always is.

    ``flat`` a channel whose peak-to-peak stays below this many microvolts. ``railed`` one of which more than this
    fraction of the samples lies exactly on its own highest or lowest value; both before the filters. ``noisy`` one
    whose peak-to-peak exceeds this many microvolts behind them; None accepts any.
    """

    flat: float = 0.1
    railed: float = 0.2
    noisy: float | None = None

    @classmethod
    def off(cls) -> QualitySettings:
        """Accept every channel without a NaN or an infinity."""
        return cls(flat=0.0, railed=1.0, noisy=None)


class Verdict(msgspec.Struct, frozen=True):
    """What is wrong with an epoch.

    ``bad`` channels that must not be used, in the epoch's order; ``reasons`` why, per bad channel: "nan", "flat",
    "railed" or "noisy". ``reject`` why the epoch cannot be saved by interpolation, "" where it can.
    """

    bad: tuple[str, ...] = ()
    reasons: Mapping[str, str] = {}
    reject: str = ""


_GOOD = Verdict()


class Quality:
    """Judge epochs channel by channel.

    Parameters
    ----------
    ch_names : sequence of str
        Channels of the epochs.
    settings : QualitySettings
    """

    def __init__(self, ch_names: Sequence[str], settings: QualitySettings = QualitySettings()) -> None:  # noqa: B008
        if not 0 < settings.railed <= 1:
            raise ConfigError("quality.railed", got=settings.railed, allowed="a fraction above 0, at most 1")
        if settings.noisy is not None and not settings.noisy > settings.flat:
            raise ConfigError("quality.noisy", got=settings.noisy, allowed=f"above quality.flat, {settings.flat}")
        self.ch_names = tuple(ch_names)
        self.settings = settings
        self._only_finite = settings == QualitySettings.off()

    def check(self, data: Float32, raw: Float32 | None = None) -> Verdict:
        """Judge one epoch.

        Parameters
        ----------
        data : array of shape (n_chans, n_times) float32
            Microvolt.
        raw : array of shape (n_chans, n_times) float32, optional
            The same samples before the filters: behind one, what is stuck goes on moving. NaN are passed over.
        """
        if self._only_finite and np.isfinite(np.vdot(data, data)):  # an eighth of the passes below
            return _GOOD
        low, high = data.min(axis=1), data.max(axis=1)
        finite = np.isfinite(low) & np.isfinite(high)
        span = np.subtract(high, low, out=np.zeros_like(high), where=finite)
        wrong = ~finite
        if self.settings.noisy is not None:
            wrong |= span > self.settings.noisy
        if raw is None:
            raw = data
        else:
            low, high = np.fmin.reduce(raw, axis=1), np.fmax.reduce(raw, axis=1)
            with np.errstate(invalid="ignore"):
                span = high - low
        flat = span < self.settings.flat
        most = self.settings.railed * raw.shape[1]
        railed = np.maximum(_at(raw, low, most), _at(raw, high, most)) > most
        wrong |= flat | railed
        if not wrong.any():
            return _GOOD
        reasons = {
            name: "nan" if not finite[row] else "flat" if flat[row] else "railed" if railed[row] else "noisy"
            for row, name in enumerate(self.ch_names)
            if wrong[row]
        }
        lost = [f"{name} ({reason})" for name, reason in reasons.items() if not has_position(name)]
        if len(reasons) == len(self.ch_names):
            reject = "every channel is bad"
        elif lost:
            reject = f"bad, and not to interpolate without a known position: {', '.join(lost)}"
        else:
            reject = ""
        return Verdict(tuple(reasons), reasons, reject)


def _at(data: Float32, level: Float32, most: float) -> npt.NDArray[np.intp]:
    """Count each channel's samples at its level; zeros where one count over all shows that none has over ``most``."""
    equal = data == level[:, None]
    if np.count_nonzero(equal) - (len(data) - 1) <= most:  # each channel is at its extreme once at least
        return np.zeros(len(data), np.intp)
    counts: npt.NDArray[np.intp] = equal.sum(axis=1)
    return counts


def unit_factor(unit: str) -> float:
    """Give the factor from a unit, as stream headers spell it, to microvolt.

    "" (the header says nothing) counts as microvolt: most amplifiers that say nothing send it, and
    :func:`check_scale` finds those that do not.

    Raises
    ------
    StreamMismatch
        It is not a unit of voltage.
    """
    factor = _MICROVOLTS.get(unit.strip().lower())
    if factor is None:
        raise StreamMismatch(
            "unit of a channel", got=repr(unit), allowed="V, mV, µV, nV", do="state the unit in the intake's config"
        )
    return factor


def robust_sd(data: Float32) -> Float64:
    """Estimate each channel's standard deviation from the median absolute deviation.

    Parameters
    ----------
    data : array of shape (n_chans, n_times)
        Samples; NaN are left out.

    Returns
    -------
    array of shape (n_chans,) float64
        In the unit of the data; NaN for a channel without samples.
    """
    if data.shape[1] and not np.isnan(data).any():
        wide = data.astype(np.float64)
        return np.asarray(1.4826 * np.median(np.abs(wide - np.median(wide, axis=1, keepdims=True)), axis=1), np.float64)
    out = np.full(len(data), np.nan)
    for row, channel in enumerate(data):
        seen = channel[~np.isnan(channel)].astype(np.float64)
        if len(seen):
            out[row] = 1.4826 * np.median(np.abs(seen - np.median(seen)))
    return out


def check_scale(measured: Float64, trained: Float64) -> str:
    """Compare the scale of a stream with the one a decoder was trained on.

    Parameters
    ----------
    measured, trained : array of shape (n_chans,) float64
        Robust standard deviations, microvolt, of the same channels; NaN or 0 where not known. The median of their
        ratio counts, so that single bad channels do not.

    Returns
    -------
    str
        A warning for the user, "" where the scales agree within a factor of 5.

    Raises
    ------
    StreamMismatch
        They are more than a factor of 300 apart: another unit.
    """
    known = (measured > 0) & (trained > 0)
    if not known.any():
        return "the scale of the stream cannot be judged: no channel moves, or the bundle states no scale"
    ratio = float(np.median(measured[known] / trained[known]))
    got = f"{np.median(measured[known]):.3g} µV"
    usual = f"about {np.median(trained[known]):.3g} µV"
    if not 1 / _OTHER_UNIT <= ratio <= _OTHER_UNIT:
        raise StreamMismatch(
            "scale of the EEG stream (robust standard deviation)",
            got=f"{got}, a factor of {ratio:.1e}",
            allowed=usual,
            do="the stream's unit is not what its header says: state the true unit in the config of the intake",
        )
    if not 1 / _UNLIKE <= ratio <= _UNLIKE:
        return f"the stream's standard deviation is {got}, the bundle was trained on {usual}: check gain and electrodes"
    return ""
