"""Before a session: which streams are there, do they fit the bundle, and what to change."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

from .acquire.inlet import Inlet
from .acquire.lsl import LslInlet, find, local_clock
from .acquire.markers import Refused
from .config import Config
from .decode.bundle import Bundle
from .errors import StreamdecError, StreamError
from .intake import Intake, Notice
from .serve import engines, intake_settings, misfits, open_bundle
from .signal.quality import robust_sd
from .types import Chunk, Connection, Marker, Onset, StreamInfo

_REHEARSALS = 20
_FRESH = 10.0  # a stamp further than this from now, in seconds, is on another clock
_HOUR_BYTES = 3600


class Finding(msgspec.Struct, frozen=True):
    """One thing the doctor found. A ``fatal`` one keeps ``serve`` from working."""

    level: Literal["ok", "warning", "fatal"]
    text: str

    @property
    def fatal(self) -> bool:
        """Whether ``serve`` would refuse."""
        return self.level == "fatal"

    def line(self) -> str:
        """One line for a terminal."""
        return f"{self.level:8s} {self.text}"


def describe(info: StreamInfo) -> str:
    """A stream in one line."""
    rate = f"{info.sfreq:g} Hz" if info.sfreq else "irregular"
    unit = "/".join(sorted({unit or "no unit" for unit in info.units})) or "no unit"
    return (
        f"{info.name!r} type {info.type!r}, {info.n_chans} channels, {rate}, {info.dtype}, {unit}, from {info.hostname}"
    )


def examine(config: Config, seconds: float) -> Iterator[Finding]:
    """Look at the streams for ``seconds``, judge them, and rehearse the decoder."""
    visible = find(1.0)
    if not visible:
        yield Finding(
            "fatal", "no LSL stream in sight; start the amplifier's LSL outlet, check LSLAPICFG and the firewall"
        )
        return
    for info in visible:
        yield Finding("ok", f"stream {describe(info)}")
    bundle = None
    if config.bundle:
        try:
            bundle = open_bundle(config)
        except StreamdecError as error:
            yield Finding("fatal", str(error))
            return
        if bundle.manifest.calibrated is not None:
            yield Finding("ok", f"bundle {bundle.path.name} is {bundle.manifest.calibrated.line()}")
        yield from _rehearse(bundle, config)
    inlet = LslInlet(
        config.inlet.eeg, None if config.intake.trigger else config.inlet.markers, stall=config.inlet.stall
    )
    try:
        inlet.open(max(seconds, 1.0))
        yield Finding("ok", f"reading EEG {describe(inlet.eeg)}")
        yield from _listen(inlet, bundle, config, seconds)
    except StreamError as error:
        yield Finding("fatal", str(error))
    finally:
        inlet.close()
    if config.record:
        yield from _disk(Path(config.record), inlet)


def _listen(inlet: Inlet, bundle: Bundle | None, config: Config, seconds: float) -> Iterator[Finding]:
    intake = None
    if bundle is not None:
        manifest = bundle.manifest
        intake = Intake(manifest.signal, inlet.eeg, intake_settings(bundle, config), (), manifest.channel_sd)
        if intake.map.missing:
            yield Finding("warning", f"channels missing, will be interpolated: {', '.join(intake.map.missing)}")
        else:
            yield Finding("ok", f"all {len(manifest.signal.ch_names)} channels of the bundle are there")
        yield from (Finding("warning", misfit) for misfit in misfits(bundle, intake))
    onsets: list[Onset] = []
    refused: list[Refused] = []
    notices: list[Notice] = []
    kept: list[np.ndarray[tuple[int, int], np.dtype[np.float32]]] = []
    markers = samples = 0
    age = 0.0
    end = local_clock() + seconds
    while local_clock() < end:
        event = inlet.pull(0.1)
        if event is None:
            continue
        if isinstance(event, Chunk):
            samples += len(event.stamps)
            age = event.arrival - float(event.stamps[-1])
            kept.append(event.data.copy())
        elif isinstance(event, Marker):
            markers += 1
        elif isinstance(event, Connection) and event.state in ("stalled", "lost", "refused"):
            yield Finding("fatal", f"{event.stream} stream {event.state}: {event.reason}")
        if intake is None:
            continue
        for output in intake(event):
            if isinstance(output, Onset):
                onsets.append(output)
            elif isinstance(output, Refused):
                refused.append(output)
            elif isinstance(output, Notice):
                notices.append(output)
    yield from _samples(samples, seconds, age, kept, inlet.eeg, intake)
    yield from (
        Finding("warning", f"{notice.stream}: {notice.reason}") for notice in notices if notice.state == "warning"
    )
    if inlet.markers is not None and not markers:
        yield Finding(
            "warning", f"no marker in {seconds:g} s; start the stimulus program, or listen longer with --seconds"
        )
    if bundle is not None and onsets:
        known = set(bundle.gallery.ids)
        strange = sorted({onset.key for onset in onsets} - known)
        text = f"{len(onsets)} onsets, e.g. {onsets[0].text!r} -> {onsets[0].key!r}"
        yield Finding("ok", text if not strange else f"{text}; not in the gallery: {', '.join(strange[:5])}")
    if refused:
        yield Finding(
            "warning", f"{len(refused)} markers led to no onset, e.g. {refused[0].text!r}: {refused[0].reason}"
        )


def _samples(
    samples: int,
    seconds: float,
    age: float,
    kept: list[np.ndarray[tuple[int, int], np.dtype[np.float32]]],
    eeg: StreamInfo,
    intake: Intake | None,
) -> Iterator[Finding]:
    if not samples:
        yield Finding("fatal", f"EEG stream {eeg.name!r} sends no samples")
        return
    yield Finding("ok", f"{samples} samples came, in {len(kept)} packets")
    if abs(age) > _FRESH:
        yield Finding("warning", f"stamps are {age:.1f} s away from now: the sender does not use the LSL clock")
    data = np.concatenate(kept, axis=1)
    names = eeg.ch_names or tuple(str(i) for i in range(eeg.n_chans))
    flat = [name for name, sd in zip(names, robust_sd(data), strict=False) if sd == 0]
    if flat:
        yield Finding("warning", f"flat channels: {', '.join(flat)}")
    if not any(eeg.units):
        yield Finding("warning", "the header names no unit; microvolts are assumed: set intake.unit if that is wrong")
    if intake is not None:
        clock = intake.clock
        yield Finding(
            "warning" if clock.gaps else "ok",
            f"clock: {clock.sfreq_effective:.3f} Hz effective, jitter {1e3 * clock.jitter:.2f} ms, {clock.gaps} gaps",
        )


def _rehearse(bundle: Bundle, config: Config) -> Iterator[Finding]:
    """Run the decoder on noise, against its budget."""
    manifest = bundle.manifest
    warnings: list[str] = []
    engine = engines(bundle, config, warnings.append)[manifest.heads[-1].horizon]
    yield from (Finding("warning", warning) for warning in warnings)
    chain = bundle.chain(manifest.heads[-1])
    epoch = np.random.default_rng(0).normal(0, 10, (len(manifest.signal.ch_names), manifest.signal.window[1]))
    epoch32 = epoch.astype(np.float32)
    took = []
    for _ in range(_REHEARSALS):
        begun = time.perf_counter()
        engine(chain(epoch32))
        took.append(time.perf_counter() - begun)
    worst, budget = max(took), config.session.budget or manifest.budgets.get("retrieval", 0.05)
    middle = float(np.median(took))
    text = f"decoder {manifest.method!r}: median {1e3 * middle:.1f} ms, worst {1e3 * worst:.1f} ms per epoch"
    level: Literal["ok", "warning"] = "ok" if worst < budget else "warning"
    yield Finding(level, f"{text}; budget {1e3 * budget:.0f} ms")


def _disk(path: Path, inlet: Inlet) -> Iterator[Finding]:
    there = next(folder for folder in (path, *path.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(there).free
    hour = inlet.eeg.n_chans * inlet.eeg.sfreq * 4 * _HOUR_BYTES
    level: Literal["ok", "warning"] = "ok" if free > 2 * hour else "warning"
    yield Finding(level, f"disk: {free / 1e9:.1f} GB free at {there}, an hour takes {hour / 1e9:.1f} GB")
