"""What comes in, listened to for some seconds: clock, jitter, channels, markers, and the light of the screen."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from ..acquire.inlet import Inlet
from ..acquire.lsl.library import local_clock
from ..acquire.markers import Refused
from ..acquire.placement import Placement
from ..calibrate.latency import photodiode
from ..config import Config
from ..decode.bundle import Bundle
from ..errors import CalibrationError, ConfigError
from ..intake import Intake, Notice
from ..serve import intake_settings, misfits
from ..sessions.undecoded import any_intake
from ..signal.quality import robust_sd
from ..types import Chunk, ClockOffset, Connection, Event, Float32, Float64, Marker, Onset, StreamInfo
from .finding import Finding, judged
from .machine import is_here

_BROKEN = ("stalled", "lost", "refused")
_FRESH = 10.0  # s; stamps further than this from now are on another clock
_JITTER = 5e-3  # s
_PACKET = 0.05  # s
_UNSEEN = 0.02  # s of samples that may be lost unnoticed
_UNCERTAIN = 5e-3  # s, of the clock offset
_LONG = 30.0  # s of listening from which the rate is worth comparing
_DRIFT_PPM = 200.0  # crystals are within 100
_FEW = 10  # onsets
_LIGHT = 0.01  # s between onset and light that cost accuracy


def describe(info: StreamInfo) -> str:
    """Put a stream into one line."""
    rate = f"{info.sfreq:g} Hz" if info.sfreq else "irregular"
    unit = "/".join(sorted({unit or "no unit" for unit in info.units})) or "no unit"
    return (
        f"{info.name!r} type {info.type!r}, {info.n_chans} channels, {rate}, {info.dtype}, {unit}, from {info.hostname}"
    )


class _Heard:
    """What came while listening. Times are on the LSL clock."""

    def __init__(self, eeg: StreamInfo, config: Config, intake: Intake) -> None:
        self._place = Placement(eeg, eeg.sfreq, config.intake.clock, config.intake.counter)
        self.intake = intake
        self._chunks: list[Float32] = []
        self._times: list[Float64] = []
        self.delays: list[float] = []
        self.offsets: list[ClockOffset] = []
        self.onsets: list[Onset] = []
        self.refused: list[Refused] = []
        self.notices: list[Notice] = []
        self.states: list[Connection] = []
        self.markers = 0

    def take(self, event: Event) -> None:
        """Take one event in."""
        if isinstance(event, Chunk):
            self._chunks.append(event.data.copy())
            self._times += [run.times for run in self._place(event)]
            self.delays.append(event.arrival - float(event.stamps[-1]) - self._place.clock.offset_value)
        elif isinstance(event, ClockOffset):
            if event.stream == "eeg":
                self._place.clock.offset(event)
                self.offsets.append(event)
        elif isinstance(event, Marker):
            self.markers += 1
        elif isinstance(event, Connection):
            self.states.append(event)
            if (event.stream, event.state) == ("eeg", "found"):
                self._place.restart(event.reason)
        for output in self.intake(event):
            if isinstance(output, Onset):
                self.onsets.append(output)
            elif isinstance(output, Refused):
                self.refused.append(output)
            elif isinstance(output, Notice):
                self.notices.append(output)

    @property
    def packets(self) -> int:
        """How many came."""
        return len(self._chunks)

    @property
    def data(self) -> Float32:
        """(n_chans, n_times), in the stream's unit."""
        return np.concatenate(self._chunks, axis=1)

    @property
    def times(self) -> Float64:
        """(n_times,) LSL clock of the samples."""
        return np.concatenate(self._times)


def listen(inlet: Inlet, bundle: Bundle | None, config: Config, seconds: float, diode: str) -> Iterator[Finding]:
    """Listen, and judge what came.

    Raises
    ------
    StreamError
        The stream does not fit the bundle.
    ConfigError
        The stream has no channel ``diode``.
    """
    eeg = inlet.eeg
    if diode and diode not in eeg.ch_names:
        raise ConfigError("--photodiode", got=repr(diode), allowed=", ".join(filter(None, eeg.ch_names)) or "no labels")
    if bundle is None:
        intake = any_intake(eeg, config.intake)
    else:
        manifest = bundle.manifest
        intake = Intake(manifest.signal, eeg, intake_settings(bundle, config), (), manifest.channel_sd)
        n, missing = len(manifest.signal.ch_names), intake.map.missing
        text = f"{n - len(missing)} of {n} channels of the bundle are there"
        do = "rename them in the amplifier's software; else they are interpolated"
        yield judged("signal", not missing, text + (f", not {', '.join(missing)}" if missing else ""), do)
        yield from (Finding("bundle", "warning", misfit) for misfit in misfits(bundle, intake))
    heard = _Heard(eeg, config, intake)
    end = local_clock() + seconds
    while local_clock() < end:
        event = inlet.pull(0.1)
        if event is not None:
            heard.take(event)
    yield from _connections(heard)
    if not heard.packets:
        yield Finding("streams", "fatal", f"EEG stream {eeg.name!r} sends no samples")
        return
    yield from _clock(heard, eeg, seconds)
    yield from _signal(heard, eeg)
    yield from _markers(heard, inlet, bundle, seconds)
    if diode:
        yield _light(heard, eeg, diode)


def _connections(heard: _Heard) -> Iterator[Finding]:
    """What broke and was whole again costs the epochs it touched; what stayed broken, the session."""
    for stream in dict.fromkeys(event.stream for event in heard.states):
        broken = [event for event in heard.states if event.stream == stream and event.state in _BROKEN]
        last = next(event for event in reversed(heard.states) if event.stream == stream)
        if last.state in _BROKEN:
            yield Finding("streams", "fatal", f"{stream} stream {last.state}: {last.reason}")
        elif broken:
            first = f"{len(broken)} times, first {broken[0].state}: {broken[0].reason}"
            do = "end what keeps the amplifier's machine or this one busy; use a cable"
            yield Finding("streams", "warning", f"{stream} stream broke {first}", do)


def _clock(heard: _Heard, eeg: StreamInfo, seconds: float) -> Iterator[Finding]:
    clock = heard.intake.clock
    if not is_here(eeg.hostname):
        yield Finding("network", "ok", f"the EEG comes over the network, from {eeg.hostname}")
    delay = float(np.median(heard.delays))
    if abs(delay) > _FRESH:
        do = "let its LSL outlet stamp with lsl_local_clock"
        text = f"stamps are {delay:.1f} s away from now: the sender does not use the LSL clock"
        yield Finding("clock", "warning", text, do)
    else:
        late = float(np.percentile(heard.delays, 99))
        text = (
            f"packets arrive {1e3 * delay:.1f} ms after their last sample was stamped, 99 % within {1e3 * late:.1f} ms"
        )
        yield judged("clock", late - delay < _PACKET, text, "use a cable, end what keeps this machine busy")
    if heard.offsets:
        last = heard.offsets[-1]
        text = f"clock offset {1e3 * last.value:+.3f} ms, known to {1e3 * last.uncertainty:.2f} ms"
        yield judged("clock", not last.uncertainty > _UNCERTAIN, text, "connect the amplifier's machine by cable")
    if seconds < _LONG:
        rate = f"{clock.sfreq_effective:.2f} Hz (its drift shows from --seconds {_LONG:g} on)"
        yield Finding("clock", "ok", f"effective rate {rate}")
    else:
        text = (
            f"effective rate {clock.sfreq_effective:.4f} Hz, {clock.drift_ppm:+.0f} ppm from the nominal {eeg.sfreq:g}"
        )
        do = "the amplifier's LSL program states a wrong rate, or loses samples"
        yield judged("clock", abs(clock.drift_ppm) < _DRIFT_PPM, text, do)
    do = "stamp in the amplifier's own program, at a fixed priority; streamdec straightens what is left"
    yield judged("clock", clock.jitter < _JITTER, f"jitter of the stamps {1e3 * clock.jitter:.2f} ms", do)
    text = f"{clock.gaps} gaps, {clock.missing} samples missing"
    yield judged("clock", not clock.gaps, text, "find out where samples are lost: radio, USB, a busy machine")
    least = clock.least_gap
    text = f"lost samples are noticed from {least} in a row on, {1e3 * least / eeg.sfreq:.0f} ms"
    do = "where the amplifier counts its samples in a channel, name it: intake.counter.channel"
    yield judged("clock", least / eeg.sfreq < _UNSEEN, text, do)


def _signal(heard: _Heard, eeg: StreamInfo) -> Iterator[Finding]:
    data = heard.data
    each = data.shape[1] / heard.packets / eeg.sfreq
    text = f"{data.shape[1]} samples came, in {heard.packets} packets of {1e3 * each:.0f} ms"
    yield judged("signal", each < _PACKET, text, "let the amplifier send smaller packets: each decision waits for one")
    names = eeg.ch_names or tuple(str(i) for i in range(eeg.n_chans))
    flat = [name for name, sd in zip(names, robust_sd(data), strict=False) if sd == 0]
    if flat:
        yield Finding("signal", "warning", f"flat channels: {', '.join(flat)}", "check their electrodes")
    if not any(eeg.units):
        text = "the header names no unit; microvolts are assumed"
        yield Finding("signal", "warning", text, "set intake.unit if that is wrong")
    for notice in heard.notices:
        if notice.state == "warning":
            yield Finding("signal", "warning", f"{notice.stream}: {notice.reason}")


def _markers(heard: _Heard, inlet: Inlet, bundle: Bundle | None, seconds: float) -> Iterator[Finding]:
    if inlet.markers is not None and not heard.markers:
        do = "start the stimulus program, or listen longer with --seconds"
        yield Finding("markers", "warning", f"no marker in {seconds:g} s", do)
    if bundle is not None and heard.onsets:
        known = set(bundle.gallery.ids)
        strange = sorted({onset.key for onset in heard.onsets} - known)
        text = f"{len(heard.onsets)} onsets, e.g. {heard.onsets[0].text!r} -> {heard.onsets[0].key!r}"
        yield Finding("markers", "ok", text if not strange else f"{text}; not in the gallery: {', '.join(strange[:5])}")
    if heard.refused:
        first = heard.refused[0]
        text = f"{len(heard.refused)} markers led to no onset, e.g. {first.text!r}: {first.reason}"
        yield Finding("markers", "warning", text, "see intake.markers in the config, if they should have")


def _light(heard: _Heard, eeg: StreamInfo, diode: str) -> Finding:
    """How long after what ``serve`` takes for the onset the light comes on."""
    onsets = np.array([onset.time for onset in heard.onsets])
    if len(onsets) < _FEW:
        do = "show images meanwhile, or listen longer with --seconds"
        return Finding("photodiode", "warning", f"{len(onsets)} onsets, too few to measure by", do)
    try:
        found = photodiode(heard.data[eeg.ch_names.index(diode)], heard.times, onsets, diode)
    except CalibrationError as error:
        return Finding("photodiode", "warning", str(error))
    do = "streamdec calibrate measures it and puts it into the bundle; or set intake.markers.latency"
    good = abs(found.seconds) < _LIGHT and not found.drifts
    return judged("photodiode", good, f"light after the onset that serve takes: {found.line()}", do)
