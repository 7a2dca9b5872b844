"""``streamdec record``: an EEG stream and its markers into an XDF file, without a bundle.

What somebody with a new cap starts with: ``streamdec-train prepare recording`` takes the file.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from . import __version__
from .acquire.lsl import LslInlet, local_clock
from .acquire.record import Recorder
from .config import Config
from .errors import ConfigError, RecordingError, StreamMismatch
from .signal.montage import has_position
from .signal.quality import check_scale, robust_sd, unit_factor
from .types import Chunk, Connection, Float32, Marker, StreamInfo

_SCALE_AFTER = 3.0  # seconds of signal before its scale is judged
_TAIL = 2.0  # seconds of EEG that belong to the last marker
_USUAL = 20.0  # microvolt: robust standard deviation of EEG as it comes; caps differ by far less than units do


class Recorded(msgspec.Struct):
    """What came in: ``samples`` of the EEG, ``markers``, and ``breaks``, stalls and losses of a stream."""

    samples: int = 0
    markers: int = 0
    breaks: int = 0

    def line(self) -> str:
        """Say it."""
        return f"{self.samples} samples, {self.markers} markers, {self.breaks} breaks"


def record(
    config: Config,
    path: Path,
    *,
    seconds: float | None,
    markers: int | None = None,
    say: Callable[[str], None],
    stopped: Callable[[], bool],
) -> Recorded:
    """Record until ``stopped``.

    Parameters
    ----------
    config : Config
        Its ``inlet`` names the streams, its ``intake`` the unit, and a trigger channel where there are no markers.
    path : Path
        New file, .xdf.
    seconds : float or None
        How long; None: until ``stopped``.
    markers : int or None
        End when so many have come, and what the last one evoked.
    say : callable
        Takes a line for the user.
    stopped : callable
        Whether to end.

    Raises
    ------
    ConfigError
        The file is no .xdf.
    StreamError
        The streams cannot be had.
    RecordingError
        The file is there already, or cannot be written any more; it holds what came before.
    """
    if path.suffix.lower() != ".xdf":
        raise ConfigError("file to record to", got=path, allowed="a new .xdf file")
    told = Recorded()
    query = None if config.intake.trigger else config.inlet.markers
    with LslInlet(config.inlet.eeg, query, stall=config.inlet.stall) as inlet:
        inlet.open(config.inlet.wait or float("inf"))
        eeg = inlet.eeg
        about = {"streamdec": __version__, "config": msgspec.to_builtins(config)}
        description = msgspec.json.encode(about).decode()
        with Recorder(path, eeg, inlet.markers, uuid.uuid4().hex, description) as recorder:
            say(f"recording {eeg.name!r}, {eeg.n_chans} channels at {eeg.sfreq:g} Hz, to {path}; Ctrl-C ends it")
            end = float("inf") if seconds is None else local_clock() + seconds
            early: list[Float32] = []
            while not stopped() and local_clock() < end:
                event = inlet.pull(0.2)
                if event is None:
                    continue
                recorder.event(event)
                if recorder.broken:
                    raise RecordingError("the recording broke off", got=recorder.broken, do="free the disk, start anew")
                if isinstance(event, Chunk):
                    if told.samples < _SCALE_AFTER * eeg.sfreq <= told.samples + len(event.stamps):
                        for warning in _scale(np.concatenate([*early, event.data], axis=1), eeg, config.intake.unit):
                            say(warning)
                        early.clear()
                    elif told.samples < _SCALE_AFTER * eeg.sfreq:
                        early.append(event.data.copy())
                    told.samples += len(event.stamps)
                elif isinstance(event, Marker):
                    told.markers += 1
                    if told.markers == markers:
                        end = min(end, local_clock() + _TAIL)
                elif isinstance(event, Connection) and event.state != "connected":
                    told.breaks += event.state in ("stalled", "lost")
                    say(f"{event.stream} stream {event.state}: {event.reason}")
    if recorder.broken or recorder.dropped:
        raise RecordingError(
            f"{path} is not whole", got=recorder.broken or f"{recorder.dropped} events lost", do="the disk is too slow"
        )
    return told


def _scale(data: Float32, eeg: StreamInfo, unit: str) -> list[str]:
    """Say what is odd about the EEG channels' scale: nothing of it is lost, but a decoder will ask."""
    units = eeg.units or ("",) * eeg.n_chans
    rows = [row for row, name in enumerate(eeg.ch_names) if has_position(name)]
    if not rows:
        return ["no channel has the name of an electrode: a decoder will need intake.positional"]
    measured = robust_sd(data[rows]) * np.array([unit_factor(unit or units[row]) for row in rows])
    flat = [eeg.ch_names[row] for row, sd in zip(rows, measured, strict=True) if sd == 0]
    said = [f"flat channels: {', '.join(flat)}"] if flat else []
    try:
        check_scale(measured, np.full(len(rows), _USUAL))
    except StreamMismatch as error:
        said.append(f"{error} (intake.unit)")
    return said
