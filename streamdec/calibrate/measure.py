"""What fits a rig to a bundle: unit, channels and marker latency of a block."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from scipy import signal

from ..acquire.inlet import Inlet
from ..acquire.recording import RecordedStream
from ..decode.bundle import Bundle
from ..decode.manifest import MarkerLatency
from ..errors import CalibrationError, ConfigError
from ..intake import Intake, IntakeSettings, cutting
from ..signal.montage import canonical
from ..signal.rate import Rate
from ..types import Epoch, Float32, Float64, StreamInfo
from . import latency as latencies
from .block import N_FOLDS, Folds, placed, widened

_BEFORE, _AFTER = 0.1, 0.3  # s: marker latencies looked for in the evoked response, at most
_LAGS = 1000.0  # a second
_SMOOTH = 30.0  # Hz: above it lies little of an evoked response, and the mains, whose phase images every 200 ms share
_WANDERS = 0.005  # s of scatter of the light about its line on the live clock

Report = Callable[[str], None]


def channels(eeg: StreamInfo, bundle: Bundle, settings: IntakeSettings) -> Iterator[str]:
    """Say how the stream's channels become the bundle's."""
    signal = bundle.manifest.signal
    mapped = Intake(signal, eeg, settings).map
    present = [name for name in signal.ch_names if name not in mapped.missing]
    other = [(eeg.ch_names[k], name) for k, name in zip(mapped.picks, present, strict=True)]
    other = [(theirs, ours) for theirs, ours in other if theirs != ours]
    yield f"{len(present)} of {len(signal.ch_names)} channels are there" + (
        f", under other names: {', '.join(f'{theirs} is {ours}' for theirs, ours in other)}" if other else ""
    )
    if mapped.missing:
        yield f"missing, will be interpolated: {', '.join(mapped.missing)}"


def by_photodiode(
    open_: Callable[[], Inlet],
    stream: RecordedStream,
    bundle: Bundle,
    settings: IntakeSettings,
    asked: str,
    say: Report,
) -> MarkerLatency | None:
    """Measure the latency by a light sensor's channel; None where no channel is one.

    Parameters
    ----------
    open_ : callable
        Gives the block as an inlet.
    stream : RecordedStream
        Its EEG stream, for the offline de-jitter.
    bundle : Bundle
        Its channels are no light sensor's, and neither are trigger lines, unless asked for.
    settings : IntakeSettings
    asked : str
        The sensor's channel, by name or number; "" looks for it.
    say : callable
        Told what is noteworthy.
    """
    names = [name or str(i) for i, name in enumerate(stream.info.ch_names or [""] * stream.info.n_chans)]
    wanted = {canonical(name) for name in bundle.manifest.signal.ch_names}
    kinds = stream.info.ch_types or ("",) * len(names)
    rows = [
        i
        for i, (name, kind) in enumerate(zip(names, kinds, strict=True))
        if canonical(name) not in wanted and not _is_line(name) and not _is_line(kind)
    ]
    if asked:
        if asked not in names and asked not in map(str, range(len(names))):
            raise ConfigError("--photodiode", got=repr(asked), allowed=", ".join(names))
        rows = [names.index(asked) if asked in names else int(asked)]
    if not rows:
        return None
    data, times, onsets = placed(open_(), rows, settings, bundle.manifest.signal.sfreq)
    if asked:
        found = latencies.photodiode(data[0], times, onsets, names[rows[0]])
    else:
        best = latencies.find_photodiode(data, times, onsets, [names[row] for row in rows])
        if best is None:
            return None
        rows, found = [rows[best[0]]], best[1]
    if (found.scatter or 0.0) > _WANDERS:
        straight = latencies.photodiode(stream.data[rows[0]], latencies.straightened(stream), onsets, names[rows[0]])
        say(f"with the stamps on one straight line: {straight.line()}")
        say(
            f"on the live clock the light scatters by {1e3 * (found.scatter or 0.0):.1f} ms about its markers: the "
            "stream's stamps wander, and no constant latency is right for long"
        )
    return found


def by_evoked(
    inlet: Inlet, bundle: Bundle, settings: IntakeSettings, folds: Folds, soa: float
) -> tuple[MarkerLatency, list[MarkerLatency]]:
    """Measure the latency by the evoked response, beyond the one in the settings.

    Looked for between a quarter of the time between images before the marker and three quarters after it, as the
    response to a steady stream of images repeats with it: -0.1 to 0.3 s at most.

    Returns
    -------
    latency : MarkerLatency
    without : list of MarkerLatency
        The same without each of the folds.

    Raises
    ------
    CalibrationError
        The bundle does not say what is expected, or the block does not show it.
    """
    wanted, head = bundle.manifest.signal, bundle.manifest.heads[-1]
    expected = bundle.array(head, "evoked")
    if expected is None:
        raise CalibrationError(
            "marker latency",
            got="no photodiode, and a bundle without its evoked response",
            do="export the bundle again (streamdec-train export), add a photodiode, or give --latency",
        )
    rate = Rate(wanted.sfreq)
    before, after = min(_BEFORE, soa / 4), min(_AFTER, 3 * soa / 4)
    wide = widened(wanted, before, after)
    first, n_times = wanted.window
    lead = first - wide.window[0]
    sums = np.zeros((N_FOLDS, len(wanted.ch_names), wide.window[1]))
    counts = np.zeros(N_FOLDS)
    gallery = bundle.gallery
    for each in cutting(inlet, wide, settings):
        image = gallery.index_of(each.onset.key)
        if isinstance(each, Epoch) and image is not None:
            part = int(folds(np.array([image]), np.array([each.onset.time]))[0])
            sums[part] += each.data
            counts[part] += 1
    some = counts > 0
    if some.sum() < 2:
        raise CalibrationError("evoked response of the block", got=f"{int(counts.sum())} epochs", allowed="more")
    step = max(1, rate.to_samples(1 / _LAGS))
    chain = bundle.chain(head)
    starts = range(lead % step, sums.shape[2] - n_times + 1, step)

    def at_each_lag(mean: Float64) -> Float32:
        return chain(np.stack([mean[:, start : start + n_times] for start in starts]).astype(np.float32))

    means = _smooth(sums[some] / counts[some, None, None], rate.sfreq)
    parts: Float32 = np.stack([at_each_lag(mean) for mean in means])
    expected = _smooth(expected, chain.sfreq).astype(np.float32)
    found = latencies.evoked(parts, counts[some], expected, rate.sfreq / step, lead // step)
    without = []
    for fold in range(N_FOLDS):
        others = np.arange(N_FOLDS)[some] != fold
        without.append(latencies.evoked(parts[others], counts[some][others], expected, rate.sfreq / step, lead // step))
    return found, without


def _is_line(text: str) -> bool:
    """Whether a channel's name or type is that of trigger lines or a counter: they switch with markers, too."""
    return text.strip().lower().startswith(("stim", "sti ", "trig", "ttl", "status", "counter"))


def _smooth(responses: Float32 | Float64, sfreq: float) -> Float64:
    """Low-pass without delay, (..., n_times)."""
    wide = np.asarray(responses, np.float64)
    if sfreq <= 2 * _SMOOTH:
        return wide
    sections = signal.butter(4, _SMOOTH, fs=sfreq, output="sos")
    return np.asarray(signal.sosfiltfilt(sections, wide, padlen=min(24, wide.shape[-1] - 1)), np.float64)
