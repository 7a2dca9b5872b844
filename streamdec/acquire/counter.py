"""A counter channel -> the samples that were lost, whatever the stamps say."""

from __future__ import annotations

import math

import msgspec
import numpy as np

from ..errors import ConfigError
from ..signal.rate import nearest
from ..types import Float32, Float64

_EXACT = 1 << 24  # float32 counts so far
_RESTART = 1.0  # s by which a loss must be longer than the stamps allow for the counter to have begun anew


class CounterSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which channel counts the samples: ``channel`` its label, ``modulo`` the count at which it begins at 0 again."""

    channel: str
    modulo: int = _EXACT

    def __post_init__(self) -> None:
        if not 3 <= self.modulo <= _EXACT:
            raise ConfigError("counter.modulo", got=self.modulo, allowed=f"3 to {_EXACT}, what a float32 can count")


class CounterReader:
    """Counts the samples a counter channel has skipped.

    The channel tells the loss within a lap; whole laps are told by the stamps, and so is everything where the counter
    begins anew. A count that stands still, or is no number, counts as the expected one.

    Parameters
    ----------
    settings : CounterSettings
    sfreq : float
        Hz.

    Attributes
    ----------
    past : bool
        A count was beyond what float32 can count: from then on, until it is low again, nothing is known.
    """

    def __init__(self, settings: CounterSettings, sfreq: float) -> None:
        self._modulo, self._sfreq, self.past = settings.modulo, sfreq, False
        self.reset()

    def reset(self) -> None:
        """Forget the count, for a new connection."""
        self._count: int | None = None
        self._stamp = math.nan

    def __call__(self, samples: Float32, stamps: Float64) -> list[tuple[int, int]] | None:
        """Read the channel's next samples.

        Parameters
        ----------
        samples : ndarray, shape (n,), float32
            The channel as it came, unscaled.
        stamps : ndarray, shape (n,), float64
            Sender's clock, raw.

        Returns
        -------
        list of (int, int) or None
            (i, n): n samples were lost just before sample i; in order. None where the channel cannot tell.
        """
        if not len(samples):
            return []
        magnitudes = np.abs(samples)
        if (magnitudes >= _EXACT).any():
            self.past = True
            self.reset()
            return None
        valid = magnitudes < _EXACT
        counts = np.rint(np.where(valid, samples, 0)).astype(np.int64) % self._modulo
        first = counts[0] - 1 if self._count is None else self._count
        steps = np.diff(counts, prepend=first) % self._modulo
        losses: list[tuple[int, int]] = []
        if not (valid.all() and (steps == 1).all() and self._in_time(stamps)):
            losses = self._losses(counts, valid, stamps)
        else:
            self._count = int(counts[-1])
        self._stamp = float(stamps[-1])
        return losses

    def _in_time(self, stamps: Float64) -> bool:
        """Tell that no stamp is so late that a whole lap could be lost before it."""
        late = np.diff(stamps, prepend=stamps[0] if math.isnan(self._stamp) else self._stamp)
        return bool(late.max() * self._sfreq < 1 + self._modulo / 2)

    def _losses(
        self,
        counts: np.ndarray[tuple[int], np.dtype[np.int64]],
        valid: np.ndarray[tuple[int], np.dtype[np.bool_]],
        stamps: Float64,
    ) -> list[tuple[int, int]]:
        losses: list[tuple[int, int]] = []
        count, before = self._count, self._stamp
        for i, (here, stamp) in enumerate(zip(counts.tolist(), stamps.tolist(), strict=True)):
            step = 1 if count is None or not valid[i] else (here - count) % self._modulo
            passed = (stamp - before) * self._sfreq  # samples, by the stamps
            if math.isfinite(passed):
                if step - passed > _RESTART * self._sfreq:
                    step = nearest(passed)
                step += max(0, nearest((passed - step) / self._modulo)) * self._modulo
            if step > 1:
                losses.append((i, step - 1))
            count = here if valid[i] or count is None else (count + 1) % self._modulo
            before = stamp if math.isfinite(stamp) else before
        self._count = count
        return losses
