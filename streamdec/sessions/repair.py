"""``streamdec sessions repair``: a session that was cut off becomes a whole one, and says what it lost."""

from __future__ import annotations

import datetime
from pathlib import Path

import msgspec

from ..acquire import xdf
from ..acquire.recording import STREAMS
from ..errors import RecordingError
from ..feed import schema
from . import folder
from .recorded import Recorded


def repair(path: Path) -> str:
    """Make a session whole.

    What the file has no end of, or cannot be read, is left out of it; ``events.tsv`` is made again from the messages;
    ``session.json`` says how it ended and what was lost. A session that is whole is left as it is.

    Parameters
    ----------
    path : Path
        Its folder.

    Returns
    -------
    str
        What was wrong and what is lost, in words; "" where nothing was.

    Raises
    ------
    RecordingError
        It is still being recorded, is no session, or cannot be written.
    """
    if folder.is_recording(path):
        raise RecordingError(f"session {path} is being recorded", do="stop streamdec first")
    before = Recorded.open(path)
    end, recording = before.about.end, before.recording
    whole = recording.finished and not recording.problems
    if end is not None and (whole or (end.repaired and recording.finished)):
        return _table(before)
    _table(before)
    if end is not None and end.repaired and end.at.lsl <= before.last:  # a repair that did not come to the file
        said = end.repaired
    else:
        said = "; ".join((_loss(before), *recording.problems))
    if end is None:
        at = folder.Moment(_utc(before.about.start, before.last), before.last)
        end = folder.End(at, "cut off", newest_counts(before), before.arrived, repaired=said)
    else:
        end = msgspec.structs.replace(end, repaired=said)
    about = msgspec.structs.replace(before.about, end=end)
    if whole:
        _write(path, about)
    else:
        xdf.repair(path / STREAMS, lambda: _write(path, about))  # once the file is whole nobody sees what it lacked
    return said


def _write(path: Path, about: folder.About) -> None:
    try:
        folder.write_about(path, about)
    except OSError as error:
        raise RecordingError(f"cannot write {path / folder.ABOUT}", got=error.strerror) from error


def _table(session: Recorded) -> str:
    """Write ``events.tsv`` again where it is not what the messages say; tell whether it was."""
    file, made = session.path / folder.EVENTS, session.table
    try:
        if file.is_file() and file.read_bytes() == made:
            return ""
        file.write_bytes(made)
    except OSError as error:
        raise RecordingError(f"cannot write {file}", got=error.strerror) from error
    return f"{folder.EVENTS} was made again"


def _loss(session: Recorded) -> str:
    """Say how much is not in the file, as far as anybody knows."""
    end, recording = session.about.end, session.recording
    length = f"{session.last - session.about.start.lsl:.2f} s are there"
    if end is not None:
        lost = f"{length}; {max(end.at.lsl - session.last, 0.0):.2f} s of the session are lost"
        return ": ".join(filter(None, (lost, end.broken)))
    if recording.finished:
        return f"{length}; streamdec was killed, its recorder wrote all it had been given: nothing of it is lost"
    return (
        f"{length}; streamdec and its recorder were killed together: what came in the last moments is lost, at most "
        "1 s (the recorder writes 20 times a second)"
    )


def newest_counts(session: Recorded) -> schema.Counts | None:
    """Give the newest account of a session, None where it published none."""
    made = [m.counts for m in session.messages if isinstance(m, schema.Stats | schema.Session) and m.counts is not None]
    return made[-1] if made else None


def _utc(start: folder.Moment, lsl: float) -> str:
    at = datetime.datetime.fromisoformat(start.utc) + datetime.timedelta(seconds=lsl - start.lsl)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
