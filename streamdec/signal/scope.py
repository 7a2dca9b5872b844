"""What a screen wants of the signal: ten times a second the newest samples, decimated, and which channels are bad.

Blocks and excerpts are cut by position in the ring, so they do not depend on how the samples came in packets. On 63
channels at 1 kHz an excerpt takes 0.02 ms, once a second 0.2 ms more to judge the channels; with 256 at 4 kHz 0.07 and
1 ms (2.5 GHz Xeon).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import msgspec
import numpy as np

from ..types import Float32
from .quality import Quality
from .rate import Rate
from .ring import Ring

_BLOCK = 0.01  # seconds that become one sample
_SPAN = 0.1  # seconds of one excerpt
_MOST = 10  # excerpts handed out at once; channels are judged with every so many
_JUDGED = 3  # of them together


class Excerpt(msgspec.Struct, frozen=True, eq=False):
    """A tenth of a second.

    ``data`` (n_chans, n_times) float32, microvolt: means of blocks of samples; a channel of which a sample is missing
    is NaN. ``time`` LSL clock, of the first block's middle. ``bad`` why, by channel, as in
    :class:`~.quality.Verdict`.
    """

    data: Float32
    time: float
    bad: Mapping[str, str]


class Scope:
    """Cuts excerpts from a ring.

    Parameters
    ----------
    ring : Ring
        Filtered samples; ``raw`` the same before the filters, None where there are none.
    rate : Rate
        Of the ring.
    quality : Quality
        Judges its channels.

    Attributes
    ----------
    sfreq : float
        Hz; rate of the excerpts.
    """

    def __init__(self, ring: Ring, raw: Ring | None, rate: Rate, quality: Quality) -> None:
        self._ring, self._raw, self._quality = ring, raw, quality
        self._block = max(1, rate.to_samples(_BLOCK))
        self._n = self._block * max(1, rate.to_samples(_SPAN) // self._block)
        self.sfreq = rate.sfreq / self._block
        weights = np.kron(np.eye(self._n // self._block), np.full((self._block, 1), 1 / self._block))
        self._average = weights.astype(np.float32)  # as a product: a third of the time of mean() over a short axis
        self.ch_names = quality.ch_names
        self._next = 0
        self._bad: Mapping[str, str] = {}

    def __call__(self) -> Iterator[Excerpt]:
        """Hand out what is complete and new; of a backlog, the newest ten."""
        n = self._n
        end = self._ring.end // n * n
        start, self._next = max(self._next, end - _MOST * n), end
        for first in range(start, end, n):
            if first // n % _MOST == _MOST - 1:
                self._bad = self._judge(first + n - _JUDGED * n, _JUDGED * n)
            with np.errstate(invalid="ignore"):  # infinite samples
                data: Float32 = self._ring.view(first, n) @ self._average
            yield Excerpt(data, float(self._ring.times(first, self._block).mean()), self._bad)

    def _judge(self, first: int, n: int) -> Mapping[str, str]:
        raw = None if self._raw is None else self._raw.view(first, n)
        return self._quality.check(self._ring.view(first, n), raw).reasons
