"""What a decoder wants done to the signal: the part of a bundle's manifest that training and the live loop share.

A :class:`Signal` is data. :mod:`.filters` runs its ``filters`` on the stream, :mod:`.chain` its ``steps`` on each
epoch.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from .rate import Rate


class BandPass(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="band_pass", tag_field="kind"):
    """Causal Butterworth filter. ``low``/``high`` edges in Hz; None leaves that side open; ``order`` per edge."""

    low: float | None = None
    high: float | None = None
    order: int = 4


class Notch(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="notch", tag_field="kind"):
    """Causal notch at ``freq`` Hz and ``harmonics - 1`` multiples; ``quality`` is centre frequency over bandwidth."""

    freq: float
    quality: float = 30.0
    harmonics: int = 1


class LineNoise(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="line_noise", tag_field="kind"):
    """Adaptive cancellation of the mains at ``freq`` Hz: sine and cosine fitted per channel over ``window`` s."""

    freq: float
    harmonics: int = 1
    window: float = 1.0


Filter: TypeAlias = BandPass | Notch | LineNoise


class Reference(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="reference", tag_field="kind"):
    """Subtract the mean of ``channels`` (all of them when empty) from every channel."""

    channels: tuple[str, ...] = ()


class Baseline(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="baseline", tag_field="kind"):
    """Subtract each channel's mean over ``tmin``..``tmax`` s, both ends included, as mne.Epochs does."""

    tmin: float
    tmax: float


class Resample(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="resample", tag_field="kind"):
    """Fourier resampling of the epoch to ``sfreq`` Hz, numerically mne.Epochs.resample (1201 samples -> 300)."""

    sfreq: float


class Drop(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="drop", tag_field="kind"):
    """Drop the first ``n_times`` samples (50 at 250 Hz: the 0.2 s before the onset)."""

    n_times: int


class Pick(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="pick", tag_field="kind"):
    """Keep ``channels``, in this order."""

    channels: tuple[str, ...]


class Whiten(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="whiten", tag_field="kind"):
    """Multiply by the symmetric (n_chans, n_chans) matrix ``array``: multivariate noise normalisation (MVNN)."""

    array: str = "whitener"


class Scale(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="scale", tag_field="kind"):
    """Multiply by ``factor``."""

    factor: float


class Standardise(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="standardise", tag_field="kind"):
    """Subtract the (n_chans,) means in array ``mean`` and divide by the (n_chans,) deviations in array ``std``."""

    mean: str = "mean"
    std: str = "std"


class Clamp(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="clamp", tag_field="kind"):
    """Limit every value to -``limit``..``limit``."""

    limit: float


Step: TypeAlias = Reference | Baseline | Resample | Drop | Pick | Whiten | Scale | Standardise | Clamp


class Signal(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From the stream to the encoder's input.

    ``ch_names`` the channels the epoch is cut with, in order; ``sfreq`` rate of the stream in Hz; ``tmin``..``tmax``
    the epoch in seconds around the onset, both ends included; ``filters`` run causally on the stream in the stream's
    rate; ``steps`` run on each epoch. Samples are microvolts throughout.
    """

    ch_names: tuple[str, ...]
    sfreq: float
    tmin: float
    tmax: float
    filters: tuple[Filter, ...] = ()
    steps: tuple[Step, ...] = ()

    @property
    def window(self) -> tuple[int, int]:
        """First sample relative to the onset, and number of samples, at the stream's rate."""
        return Rate(self.sfreq).window(self.tmin, self.tmax)

    def until(self, horizon: float) -> Signal:
        """The same signal with the epoch ended at ``horizon`` s after the onset."""
        return msgspec.structs.replace(self, tmax=horizon)
