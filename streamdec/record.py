"""``streamdec record``: an EEG stream and its markers into a session's folder, without a bundle.

What somebody with a new cap starts with: ``streamdec-train prepare recording`` and ``streamdec calibrate`` take it.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np

from .acquire.lsl.inlet import LslInlet
from .acquire.lsl.library import local_clock
from .config import Config
from .errors import ConfigError, RecordingError, StreamdecError, StreamMismatch
from .feed import schema
from .sessions import events
from .sessions.log import Log
from .sessions.minutes import Kept
from .sessions.undecoded import Arrived, Listener
from .signal.montage import has_position
from .signal.quality import check_scale, robust_sd, unit_factor
from .types import Chunk, Event, Float32, StreamInfo

_SCALE_AFTER = 3.0  # seconds of signal before its scale is judged
_TAIL = 2.0  # seconds of EEG that belong to the last marker
_USUAL = 20.0  # microvolt: robust standard deviation of EEG as it comes; caps differ by far less than units do


def record(
    config: Config, log: Log, *, seconds: float | None, markers: int | None = None, stopped: Callable[[], bool]
) -> Path:
    """Record until ``stopped``.

    Parameters
    ----------
    config : Config
        Its ``record`` names the folder of sessions, its ``inlet`` the streams, its ``intake`` how markers name stimuli,
        the unit, and a trigger channel where there are no markers.
    log : Log
        Told what is recorded, what is odd about it, and what came.
    seconds : float or None
        How long; None: until ``stopped``.
    markers : int or None
        End when so many have come, and what the last one evoked.
    stopped : callable
        Whether to end.

    Returns
    -------
    Path
        The session's folder.

    Raises
    ------
    ConfigError
        There is no folder named, or it is a file's name.
    StreamError
        The streams cannot be had.
    RecordingError
        The folder cannot be made, or written any more; it holds what came before.
    """
    if not config.record or config.record.endswith(".xdf"):
        raise ConfigError(
            "where to record",
            got=repr(config.record),
            allowed="a folder, for a folder per session",
            do="name one; the recording is streams.xdf in the session's folder",
        )
    log.session = uuid.uuid4().hex
    query = None if config.intake.trigger else config.inlet.markers
    with LslInlet(config.inlet.eeg, query, stall=config.inlet.stall) as inlet:
        inlet.open(config.inlet.wait or float("inf"))
        eeg = inlet.eeg
        listener, scale = Listener(eeg, config.intake), _Scale(eeg, config.intake.unit)
        as_json = msgspec.json.encode(config)
        kept = Kept(Path(config.record), log.session, None, eeg, inlet.markers, as_json, log, local_clock)
        reason = "stopped"
        try:
            kept.wait()
            log.say(f"recording {eeg.name!r}, {eeg.n_chans} channels at {eeg.sfreq:g} Hz, to {kept.path}")
            until = _Until(seconds, markers, stopped)
            while not kept.recorder.broken and not (reason := until(listener.arrived)):
                event = inlet.pull(0.2)
                if event is None:
                    continue
                kept.recorder.event(event)
                for said in listener(event):
                    if isinstance(said, schema.Onset):
                        kept.row(events.shown(said, kept.start))
                    else:
                        log.state(said)
                for warning in scale(event):
                    log.say(warning, "warning")
        except StreamdecError as error:
            reason = str(error)
            raise
        finally:
            log.say(f"{kept.path}: {listener.arrived.line()}")
            kept.ended(reason or "the recording broke off", arrived=listener.arrived)
            broken = kept.close()
    if broken:
        raise RecordingError(f"{kept.path} is not whole", got=broken, do="free the disk, or take a faster one")
    return kept.path


class _Until:
    """When to end: after so many seconds, after so many markers and what the last one evoked, or when told to."""

    def __init__(self, seconds: float | None, markers: int | None, stopped: Callable[[], bool]) -> None:
        self._markers, self._stopped = markers, stopped
        self._ends = {} if seconds is None else {f"{seconds:g} s are over": local_clock() + seconds}

    def __call__(self, arrived: Arrived) -> str:
        """Tell why to end now, "" to go on."""
        if self._stopped():
            return "stopped"
        if self._markers is not None and arrived.markers >= self._markers:
            self._ends.setdefault(f"{self._markers} markers came", local_clock() + _TAIL)
        now = local_clock()
        return next((why for why, end in self._ends.items() if now >= end), "")


class _Scale:
    """Says once, after some seconds, what is odd about the scale of the channels."""

    def __init__(self, eeg: StreamInfo, unit: str) -> None:
        self._eeg, self._unit = eeg, unit
        self._early: list[Float32] = []
        self._wanted = _SCALE_AFTER * eeg.sfreq

    def __call__(self, event: Event) -> list[str]:
        if self._wanted <= 0 or not isinstance(event, Chunk):
            return []
        self._early.append(event.data.copy())
        self._wanted -= len(event.stamps)
        if self._wanted > 0:
            return []
        data, self._early = np.concatenate(self._early, axis=1), []
        return _odd(data, self._eeg, self._unit)


def _odd(data: Float32, eeg: StreamInfo, unit: str) -> list[str]:
    """Say what is odd about the EEG channels' scale: nothing of it is lost, but a decoder will ask."""
    units = eeg.units or ("",) * eeg.n_chans
    rows = [row for row, name in enumerate(eeg.ch_names) if has_position(name)]
    if not rows:
        return ["no channel has the name of an electrode: a decoder will need intake.positional"]
    sd = robust_sd(data[rows])
    flat = [eeg.ch_names[row] for row, each in zip(rows, sd, strict=True) if each == 0]
    said = [f"flat channels: {', '.join(flat)}"] if flat else []
    try:
        measured = sd * np.array([unit_factor(unit or units[row]) for row in rows])
        check_scale(measured, np.full(len(rows), _USUAL))
    except StreamMismatch as error:
        said.append(f"{error} (intake.unit)")
    return said
