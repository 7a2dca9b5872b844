"""``streamdec sessions list``: what sessions there are, one row each."""

from __future__ import annotations

import datetime
from pathlib import Path

import msgspec

from ..errors import StreamdecError
from ..feed.schema import Counts
from ..types import StreamInfo
from . import folder
from .recorded import Recorded
from .repair import newest_counts
from .undecoded import Arrived


class Row(msgspec.Struct, frozen=True):
    """One session, as texts. ``note`` what to know of it, "" where all is well."""

    name: str
    start: str
    length: str
    streams: str
    decided: str
    bundle: str
    state: str
    note: str = ""


def row(path: Path) -> Row:
    """Describe a session. One that ended is known from ``session.json``; of another all is read."""
    try:
        about = folder.read_about(path)
        state, end = folder.state(path, about), about.end
        seconds, counts = about.seconds, None if end is None else end.counts
        arrived = None if end is None else end.arrived
        if end is None and state != "recording":
            session = Recorded.open(path)
            seconds, counts = session.last - about.start.lsl, newest_counts(session)
            arrived = session.arrived
    except StreamdecError as error:
        return Row(path.name, "", "", "", "", "", "broken", str(error))
    note = "streamdec sessions repair" if end is None and state == "cut off" else ""
    if end is not None:
        note = end.broken or end.repaired
    started = datetime.datetime.fromisoformat(about.start.utc).astimezone()
    return Row(
        path.name,
        f"{started:%Y-%m-%d %H:%M}",
        "" if seconds is None else f"{round(seconds) // 60}:{round(seconds) % 60:02d}",
        ", ".join(_stream(info) for info in (about.eeg, about.markers) if info is not None),
        _decided(counts, arrived),
        "none" if about.bundle is None else f"{about.bundle.name} ({about.bundle.hash[:8]})",
        state,
        note,
    )


def _decided(counts: Counts | None, arrived: Arrived | None) -> str:
    if counts is not None:
        return f"{counts.decided} of {counts.onsets}"
    return "" if arrived is None else f"none of {arrived.onsets}"


def _stream(info: StreamInfo) -> str:
    return f"{info.n_chans} ch {info.sfreq:g} Hz" if info.sfreq else info.name
