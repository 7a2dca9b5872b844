"""The folder of a recorded session.

::

    2026-08-06T10-15-00_3f2a9c1d/      when it started (local time), and the beginning of its id
        streams.xdf     everything that came in and went out, by the recorder: what all else can be made of again
        session.json    what it was: About
        config.json     the config, as it was resolved
        log.jsonl       what streamdec said and what changed, one Line each
        events.tsv      what came of each onset

``streamdec serve --record`` makes it and, without a bundle, ``streamdec record``: then nothing was decoded or
published, and ``session.json`` names no bundle.

While a session runs, the recording process holds a lock on ``streams.xdf``.
"""

from __future__ import annotations

import datetime
import platform
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeAlias, TypeVar

import msgspec

from .. import __version__
from ..acquire.record_worker import lock
from ..acquire.recording import STREAMS, Recording
from ..config import Config, convert
from ..errors import RecordingError
from ..feed.schema import Counts
from ..types import StreamInfo
from . import events
from .undecoded import Arrived

ABOUT, CONFIG, LOG, EVENTS = "session.json", "config.json", "log.jsonl", "events.tsv"
SCHEMA = 1

State: TypeAlias = Literal["recording", "complete", "cut off", "repaired", "broken"]

_ROOM = 2048  # bytes kept free in session.json, so that it can be finished on a full disk
_PACKAGES = ("msgspec", "numpy", "onnxruntime", "pylsl", "pyzmq", "scipy")
_T = TypeVar("_T")


class BundleName(msgspec.Struct, frozen=True):
    """What decoded. ``hash`` sha256 of its manifest, which names it."""

    name: str
    hash: str
    method: str


class Moment(msgspec.Struct, frozen=True):
    """One moment on two clocks: ``utc`` time of day, ISO 8601; ``lsl`` LSL clock, seconds."""

    utc: str
    lsl: float


class End(msgspec.Struct, frozen=True):
    """How a session ended.

    Attributes
    ----------
    at : when; of a session that was cut off, the last that was recorded.
    reason : why.
    counts : the account; None where nothing was decoded, or it was killed before the first.
    arrived : what came in, where nothing was decoded.
    broken : why not everything was recorded, "" where it was.
    repaired : what :func:`.repair.repair` found, "" where it was not needed.
    """

    at: Moment
    reason: str
    counts: Counts | None = None
    arrived: Arrived | None = None
    broken: str = ""
    repaired: str = ""


class About(msgspec.Struct, frozen=True):
    """What a session was: ``session.json``.

    Attributes
    ----------
    schema : version of this file.
    id : the session's id, as on the feed.
    start : when it started. What came while the recorder was being made ready is recorded too, and a little older.
    bundle : what decoded; None where nothing did.
    simulated : the EEG comes from a simulated subject, as far as the bundle knows; None without one.
    eeg, markers : the streams, without their headers, which are in the recording.
    versions : of streamdec, Python, and what it runs on.
    end : None while it runs, and where it was killed.
    """

    schema: int
    id: str
    start: Moment
    bundle: BundleName | None
    simulated: bool | None
    eeg: StreamInfo
    markers: StreamInfo | None
    versions: dict[str, str]
    end: End | None = None

    @property
    def seconds(self) -> float | None:
        """How long it was, None where that is not known."""
        return None if self.end is None else self.end.at.lsl - self.start.lsl


def about(
    id: str,
    start: Moment,
    bundle: BundleName | None,
    eeg: StreamInfo,
    markers: StreamInfo | None,
    *,
    simulated: bool | None,
) -> About:
    """Say what a session is that starts now, on this machine."""
    versions = {"streamdec": __version__, "python": platform.python_version()}
    versions |= {package: version(package) for package in _PACKAGES}
    without = msgspec.structs.replace
    return About(
        SCHEMA,
        id,
        start,
        bundle,
        simulated,
        without(eeg, header=""),
        None if markers is None else without(markers, header=""),
        versions,
    )


def create(parent: Path, about: About, config: bytes) -> Path:
    """Make the folder of a session that starts, in ``parent``, which is made where it is not there.

    Parameters
    ----------
    parent : Path
    about : About
    config : bytes
        JSON.

    Raises
    ------
    RecordingError
        It cannot be made.
    """
    started = datetime.datetime.fromisoformat(about.start.utc).astimezone()
    path = parent / f"{started:%Y-%m-%dT%H-%M-%S}_{about.id[:8]}"
    try:
        path.mkdir(parents=True)
        write_about(path, about)
        (path / CONFIG).write_bytes(msgspec.json.format(config, indent=2) + b"\n")
        (path / EVENTS).write_bytes(events.header(decoded=about.bundle is not None))
        (path / LOG).touch()
    except OSError as error:
        do = "name a folder for sessions that can be written"
        raise RecordingError(f"session folder {path}", got=error.strerror, do=do) from error
    return path


def write_about(path: Path, about: About) -> None:
    """Write ``session.json``; once more in its place, so that a full disk has room for how the session ended.

    Raises
    ------
    OSError
        It cannot be written.
    """
    file = path / ABOUT
    text = msgspec.json.format(msgspec.json.encode(about), indent=2) + b"\n"
    if not file.exists():
        file.write_bytes(text + b" " * _ROOM + b"\n")
        return
    with file.open("r+b") as opened:
        opened.write(text)
        opened.truncate()


def read_about(path: Path) -> About:
    """Read ``session.json``.

    Raises
    ------
    RecordingError
        It is not there or is none.
    """
    about = _read(path / ABOUT, About)
    if about.schema > SCHEMA:
        raise RecordingError(f"{path / ABOUT}", got=f"schema {about.schema}", allowed=f"up to {SCHEMA}")
    return about


def _read(file: Path, kind: type[_T]) -> _T:
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except OSError as error:
        raise RecordingError(f"cannot read {file}", got=error.strerror) from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise RecordingError(f"{file}", got=str(error), do="restore it, or replay streams.xdf alone") from error


def find(path: Path) -> list[Path]:
    """Find the sessions: ``path`` itself, or those in it, oldest first.

    Raises
    ------
    RecordingError
        There is none.
    """
    if _is_session(path):
        return [path]
    found = sorted(each for each in _inside(path) if _is_session(each))
    if not found:
        raise RecordingError(f"no session at {path}", allowed="the folder of a session, or of several")
    return found


def recorded_config(recording: Recording) -> Config | None:
    """Give the config that was recorded beside the streams, None where there is none.

    Raises
    ------
    ConfigError
        It is of another version of streamdec.
    """
    try:
        fields = msgspec.json.decode(recording.description or "{}", type=_Description).config
    except msgspec.DecodeError:
        return None
    where = f"config recorded in {recording.path} (name another: --config FILE)"
    return None if fields is None else convert(fields, Config, where)


class _Description(msgspec.Struct):
    config: dict[str, Any] | None = None


def _is_session(path: Path) -> bool:
    return (path / ABOUT).is_file() or (path / STREAMS).is_file()


def _inside(path: Path) -> Iterator[Path]:
    return path.iterdir() if path.is_dir() else iter(())


def state(path: Path, about: About) -> State:
    """Tell how a session is: still recording, complete, cut off, repaired, or broken: not all of it was recorded."""
    if about.end is None:
        return "recording" if is_recording(path) else "cut off"
    if about.end.broken:
        return "broken"
    return "repaired" if about.end.repaired else "complete"


def is_recording(path: Path) -> bool:
    """Tell whether a recording process holds the session."""
    try:
        with (path / STREAMS).open("rb") as file:
            return not lock(file.fileno())
    except OSError:
        return False
