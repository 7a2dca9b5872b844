"""A recorded block of known images: taken in as the live loop would, and cut into epochs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from ..acquire.inlet import Inlet
from ..acquire.markers import MarkerReader
from ..acquire.placement import Placement
from ..decode.gallery import Gallery
from ..errors import CalibrationError
from ..intake import Intake, IntakeSettings, cutting
from ..signal.quality import QualitySettings, robust_sd, unit_factor
from ..signal.rate import Rate
from ..signal.spec import Signal
from ..types import Chunk, ClockOffset, Ended, Float32, Float64, Int64, Marker, Onset

MIN_EPOCHS = 20
MIN_IMAGES = 2
N_FOLDS = 5

_BY_IMAGE = 10  # with fewer images than this, folds are stretches of time
_UNITS = {"volts": 1e6, "millivolts": 1e3, "microvolts": 1.0, "nanovolts": 1e-3}
_OTHER_UNIT = 300.0  # as for serve: heads, caps and amplifiers differ by far less
_ALIKE = 30.0
_LISTEN = 60.0  # s of signal a unit is judged by
_WINDOW = 3.0  # s


class Folds:
    """Deals epochs out to folds: whole images, or, where there are few, stretches of time.

    Parameters
    ----------
    image : array of shape (n,) int
        Index in the gallery of what was shown.
    time : array of shape (n,) float64
        When, LSL clock.

    Attributes
    ----------
    by_image : bool
        Whether all epochs of an image are held out together.
    """

    def __init__(self, image: Int64, time: Float64) -> None:
        images = np.unique(image)
        self.by_image = len(images) >= _BY_IMAGE
        order = np.random.default_rng(0).permutation(len(images)) % N_FOLDS
        self._of_image = dict(zip(images.tolist(), order.tolist(), strict=True))
        self._edges = np.quantile(time, np.arange(1, N_FOLDS) / N_FOLDS)

    def __call__(self, image: Int64, time: Float64) -> Int64:
        """Give each epoch its fold, (n,) int."""
        if self.by_image:
            return np.array([self._of_image.get(each, each % N_FOLDS) for each in image.tolist()], np.int64)
        return np.searchsorted(self._edges, time).astype(np.int64)


def stream_unit(
    inlet: Inlet, signal: Signal, settings: IntakeSettings, channel_sd: dict[str, float]
) -> tuple[str, float]:
    """Find out in which unit the samples really come, by their scale.

    Parameters
    ----------
    inlet : Inlet
        Not yet open.
    signal : Signal
    settings : IntakeSettings
    channel_sd : dict of str to float
        Robust standard deviations of the training signal, microvolt.

    Returns
    -------
    unit : str
        "" where the header (or the settings) is right, or nothing is known of the training signal's scale.
    ratio : float
        Scale of the stream over that of the training signal, with the unit that was believed.

    Raises
    ------
    CalibrationError
        No unit explains the scale.
    """
    lenient = msgspec.structs.replace(settings, quality=QualitySettings.off())
    measured: list[Float64] = []
    names: Sequence[str] = ()
    with inlet:
        inlet.open(0.0)
        intake = Intake(signal, inlet.eeg, lenient)
        n = intake.rate.to_samples(_WINDOW)
        names = [name for name in signal.ch_names if name not in intake.map.missing]
        due = n
        while (event := inlet.pull(0.0)) is not None and due <= n * _LISTEN / _WINDOW:
            intake(event)
            while intake.ring.end >= due:
                measured.append(robust_sd(intake.ring.view(due - n, n)))
                due += n
        said = settings.unit or next(iter(inlet.eeg.units), "")
    known = np.array([channel_sd.get(name, np.nan) for name in names])
    with np.errstate(invalid="ignore", divide="ignore"):
        ratios = np.median(measured, axis=0) / known if measured else np.full(len(names), np.nan)
    ratios = ratios[np.isfinite(ratios) & (ratios > 0)]
    if not len(ratios):
        return "", 1.0
    ratio = float(np.median(ratios))
    if 1 / _OTHER_UNIT <= ratio <= _OTHER_UNIT:
        return "", ratio
    factor = unit_factor(said) / ratio
    unit = min(_UNITS, key=lambda name: abs(float(np.log(_UNITS[name] / factor))))
    if not 1 / _ALIKE <= _UNITS[unit] / factor <= _ALIKE:
        raise CalibrationError(
            "scale of the EEG stream",
            got=f"{ratio:.1e} times that of the training signal, which no unit explains",
            do="check gain and electrodes",
        )
    return unit, ratio


def placed(
    inlet: Inlet, rows: Sequence[int], settings: IntakeSettings, sfreq: float
) -> tuple[Float32, Float64, Float64]:
    """Channels of the stream on the live loop's clock, which expects the bundle's ``sfreq``, and its markers.

    Returns
    -------
    data : array of shape (len(rows), n_times) float32
        In the stream's own unit, not filtered.
    times : array of shape (n_times,) float64
    onsets : array of shape (n_onsets,) float64
        LSL clock, without any latency.
    """
    parts: list[Float32] = []
    times: list[Float64] = []
    onsets: list[float] = []
    with inlet:
        inlet.open(0.0)
        place, reader = Placement(inlet.eeg, sfreq, settings.clock, settings.counter), MarkerReader(settings.markers)
        while (event := inlet.pull(0.0)) is not None:
            if isinstance(event, Chunk):
                parts.append(event.data[list(rows)])
                times += [run.times for run in place(event)]
            elif isinstance(event, Marker):
                onset = reader(event)
                onsets += [onset.time] if isinstance(onset, Onset) else []
            elif isinstance(event, ClockOffset):
                (place.clock if event.stream == "eeg" else reader).offset(event)
            elif event.state == "found" and event.stream == "eeg":
                place.restart(event.reason)
            elif event.state == "found":
                reader.restart()
            elif event.state == "ended":
                break
    data = np.concatenate(parts, axis=1) if parts else np.empty((len(rows), 0), np.float32)
    return data, np.concatenate(times) if times else np.empty(0), np.sort(onsets)


class Taken(msgspec.Struct, frozen=True, eq=False):
    """What was shown and what each of it evoked, in the order of the onsets.

    ``image`` (n,) index in the gallery; ``time`` (n,) LSL clock of the onsets; ``features`` (n, ...) what was made of
    each epoch. ``strangers`` how often a marker named what is not in the gallery; ``ended`` onsets without an epoch,
    by outcome.
    """

    image: Int64
    time: Float64
    features: Float32
    strangers: dict[str, int]
    ended: dict[str, int]


def take(
    inlet: Inlet, signal: Signal, settings: IntakeSettings, gallery: Gallery, make: Callable[[Float32], Float32]
) -> Taken:
    """Cut the block as the live loop would, and make something of each epoch.

    Parameters
    ----------
    inlet : Inlet
        Not yet open.
    signal : Signal
    settings : IntakeSettings
    gallery : Gallery
        What it does not know is counted and left out.
    make : callable
        (n_chans, n_times) float32, microvolt -> what to keep.

    Raises
    ------
    CalibrationError
        Too little was shown.
    """
    kept: list[tuple[float, int, Float32]] = []
    strangers: Counter[str] = Counter()
    ended: Counter[str] = Counter()
    for each in cutting(inlet, signal, settings):
        index = gallery.index_of(each.onset.key)
        if index is None:
            strangers[each.onset.key] += 1
        elif isinstance(each, Ended):
            ended[each.outcome] += 1
        else:
            kept.append((each.onset.time, index, make(each.data)))
    if not kept:
        seen = f" (markers {', '.join(map(repr, list(strangers)[:5]))})" if strangers else ""
        lost = f" ({', '.join(f'{n} {why}' for why, n in ended.items())})" if ended else ""
        raise CalibrationError(
            "the block",
            got=f"no epoch of an image in the gallery{seen}{lost}",
            allowed=f"stimulus keys of the gallery, such as {', '.join(map(repr, gallery.ids[:3]))}",
            do="show images of the bundle's gallery, or set intake.markers.pattern and keys",
        )
    kept.sort(key=lambda each: each[0])
    image = np.array([index for _, index, _ in kept], np.int64)
    n_images = len(np.unique(image))
    if n_images < MIN_IMAGES or len(kept) < MIN_EPOCHS:
        raise CalibrationError(
            "the block is too short",
            got=f"{len(kept)} epochs of {n_images} image{'s' * (n_images != 1)}",
            allowed=f"{MIN_EPOCHS} epochs of {MIN_IMAGES} images or more; 300 of 50 make it worth while",
        )
    time = np.array([onset for onset, _, _ in kept])
    return Taken(image, time, np.stack([made for _, _, made in kept]), dict(strangers), dict(ended))


def widened(signal: Signal, before: float, after: float) -> Signal:
    """The same signal with epochs that begin ``before`` seconds earlier and end ``after`` seconds later."""
    return msgspec.structs.replace(signal, tmin=signal.tmin - before, tmax=signal.tmax + after)


def soa(times: Float64, rate: Rate) -> float:
    """Median time from one onset to the next, seconds; at least a sample."""
    return max(float(np.median(np.diff(np.sort(times)))), 1 / rate.sfreq) if len(times) > 1 else np.inf
