"""Calibration from beginning to end: a bundle and a block in, a new bundle and its account out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec

from ..acquire.inlet import Inlet
from ..acquire.query import StreamQuery
from ..acquire.recording import Recording, read
from ..acquire.replay import ReplayInlet, select
from ..config import Config
from ..decode.bundle import Bundle
from ..decode.manifest import Calibrated, MarkerLatency
from ..errors import BundleError, CalibrationError, ConfigError
from ..intake import Intake, IntakeSettings
from ..serve import intake_settings, open_bundle
from ..signal.rate import Rate
from . import measure
from .block import N_FOLDS, Taken, soa, stream_unit, take
from .decoder import Decoder
from .fit import Block, Judged, calibrate
from .write import write

Report = Callable[[str], None]


class Settings(msgspec.Struct, frozen=True):
    """What calibration is told.

    ``photodiode`` channel of the light sensor, by name or number, "" looks for one; ``latency`` seconds, where it is
    known; ``eeg`` and ``markers`` choose the recording's streams where there are several.
    """

    photodiode: str = ""
    latency: float | None = None
    eeg: StreamQuery | None = None
    markers: StreamQuery | None = None


def check(config: Config, out: Path) -> Bundle:
    """Open the config's bundle, if the calibrated one can be written.

    Raises
    ------
    BundleError
        ``out`` exists, or the bundle cannot be used.
    """
    if out.exists():
        raise BundleError(f"bundle {out.name}", got="it exists", do="remove it first, or choose another name")
    return open_bundle(config)


def run(config: Config, path: Path, out: Path, settings: Settings, say: Report) -> Calibrated:
    """Calibrate the config's bundle on a recorded block; write the new bundle; say what was found.

    Raises
    ------
    CalibrationError
        The block is not fit for it.
    BundleError
        ``out`` exists, or the bundle cannot be used.
    """
    bundle = check(config, out)
    if bundle.manifest.calibrated is not None:
        say(f"bundle {bundle.path.name} is {bundle.manifest.calibrated.line()}; it is calibrated anew from there")
    if bundle.manifest.method == "mused":
        say(
            "mused's tokens of a new subject are not fitted here, as they need gradients: streamdec-train prepare "
            "recording, fit mused with base = the run behind this bundle, export; all else is fitted here"
        )
    recording = read(path)
    for problem in recording.problems:
        say(problem)
    taken_in = _Rig(bundle, recording, config, settings)
    unit, ratio = stream_unit(taken_in.open(), bundle.manifest.signal, taken_in.base, bundle.manifest.channel_sd)
    if unit:
        say(f"scale {ratio:.1e} times the training signal's: the samples are {unit}, whatever their header says")
        taken_in.base = msgspec.structs.replace(taken_in.base, unit=unit)
    for line in measure.channels(taken_in.eeg.info, bundle, taken_in.base):
        say(line)
    missing = Intake(bundle.manifest.signal, taken_in.eeg.info, taken_in.base).map.missing

    *early, last = [Decoder(bundle, head, config.engine.threads) for head in bundle.manifest.heads]
    block = Block(last, taken_in.taker(last))
    _describe(block, bundle, say)
    latency, shift, shifts = _latency(taken_in, bundle, settings, block, say)
    say("fitting, and judging what it gains")
    result = calibrate(block, shift, shifts, doubt=settings.latency is None)
    judged = {last.head.horizon: result}
    for decoder in early:
        same = [result.fit.shift] * N_FOLDS
        judged[decoder.head.horizon] = calibrate(
            Block(decoder, taken_in.taker(decoder)), result.fit.shift, same, doubt=False
        )
    for decoder in (*early, last):
        decoder.close()
    applied = _applied(latency, shift, result, bundle, say)
    stated = {**msgspec.to_builtins(settings), "intake": msgspec.to_builtins(taken_in.base)}
    own = taken_in.base.unit or (bundle.manifest.calibrated.unit if bundle.manifest.calibrated else "")
    calibrated = write(out, bundle, judged, applied, own, missing, path, stated)
    for line in _account(result, block):
        say(line)
    if bundle.manifest.simulated:
        say("the bundle was trained on a simulated person: figures of simulated blocks are simulated figures")
    return calibrated


class _Rig:
    """The block as an inlet, and how it is taken in."""

    def __init__(self, bundle: Bundle, recording: Recording, config: Config, settings: Settings) -> None:
        self._bundle, self._recording, self._settings = bundle, recording, settings
        self._trigger = config.intake.trigger is not None
        self.base: IntakeSettings = intake_settings(bundle, config)
        self.eeg, markers = select(recording, settings.eeg, settings.markers, trigger=self._trigger)
        if markers is None and not self._trigger:
            raise CalibrationError(
                "the block", got="no marker stream", do="record the markers too, or set intake.trigger"
            )

    def open(self) -> Inlet:
        """The block from its beginning."""
        chosen = self._settings
        return ReplayInlet(self._recording, chosen.eeg, chosen.markers, trigger=self._trigger)

    @property
    def latency(self) -> float:
        """What epochs are cut by so far, seconds."""
        return self.base.markers.latency or 0.0

    def later(self, seconds: float) -> IntakeSettings:
        """The settings with so much more latency."""
        replace = msgspec.structs.replace
        return replace(self.base, markers=replace(self.base.markers, latency=self.latency + seconds))

    def taker(self, decoder: Decoder) -> Callable[[int], Taken]:
        """Make what cuts a head's epochs at any shift, in samples."""
        signal = self._bundle.manifest.signal.until(decoder.head.horizon)

        def taken(shift: int) -> Taken:
            later = self.later(shift / signal.sfreq)
            return take(self.open(), signal, later, self._bundle.gallery, decoder.front)

        return taken


def _describe(block: Block, bundle: Bundle, say: Report) -> None:
    first = block.first
    n_images = len(set(first.image.tolist()))
    say(f"{len(first.image)} epochs of {n_images} images, of {len(bundle.gallery)} in the gallery")
    if first.strangers:
        some = ", ".join(map(repr, list(first.strangers)[:5]))
        say(f"{sum(first.strangers.values())} markers are not in the gallery and were left out: {some}")
    if first.ended:
        say(f"onsets without an epoch: {', '.join(f'{n} {why}' for why, n in first.ended.items())}")
    if not block.folds.by_image:
        say("few images: folds are stretches of time, so that gains hold for these images alone")


def _latency(
    rig: _Rig, bundle: Bundle, settings: Settings, block: Block, say: Report
) -> tuple[MarkerLatency | None, int, list[int]]:
    """Measure the latency; also how many samples beyond the bundle's own, in all and without each fold."""
    rate = Rate(bundle.manifest.signal.sfreq)
    found: MarkerLatency | None = None
    if settings.latency is not None:
        found = MarkerLatency(settings.latency, (settings.latency, settings.latency), "the command line", 0)
    elif not rig.base.trigger:
        found = measure.by_photodiode(rig.open, rig.eeg, bundle, rig.base, settings.photodiode, say)
    elif settings.photodiode:
        raise ConfigError("--photodiode", got="with intake.trigger", allowed="a marker stream")
    if found is not None:
        say(f"marker latency {found.line()}")
        shift = rate.to_samples(found.seconds - rig.latency)
        return found, shift, [shift] * N_FOLDS
    try:
        between = soa(block.first.time, rate)
        beyond, without = measure.by_evoked(rig.open(), bundle, rig.base, block.folds, between)
    except CalibrationError as error:
        say(f"marker latency not measured, as before: {error}")
        return None, 0, [0] * N_FOLDS
    low, high = beyond.interval
    found = msgspec.structs.replace(
        beyond, seconds=beyond.seconds + rig.latency, interval=(low + rig.latency, high + rig.latency)
    )
    say(f"marker latency {found.line()}")
    return found, rate.to_samples(beyond.seconds), [rate.to_samples(each.seconds) for each in without]


def _applied(
    latency: MarkerLatency | None, shift: int, result: Judged, bundle: Bundle, say: Report
) -> MarkerLatency | None:
    """The latency to go on with: the measured one, unless there is none, or images are found better without it."""
    calibrated = bundle.manifest.calibrated
    before = None if calibrated is None else calibrated.latency
    if latency is not None and shift and not result.fit.shift:
        say("with that latency images are found worse: it is left as it was")
        return before
    return before if latency is None else latency


def _account(result: Judged, block: Block) -> list[str]:
    """What was chosen and what it gained."""
    alpha = "" if result.fit.alpha is None else f" (penalty {result.fit.alpha:g})"
    lines = [f"alignment {result.fit.alignment}, embedding {result.fit.change}{alpha}"]
    how = "images held out" if block.folds.by_image else "stretches of time held out"
    lines.append(f"by {len(result.chosen)}-fold cross-validation within the block, {how}, 95 % intervals:")
    for before, after in zip(result.before, result.after, strict=True):
        lines += [f"before {before.line()}", f"after  {after.line()}"]
    return lines
