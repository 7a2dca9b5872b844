"""What was generated, by whom, for which stimulus: a folder with a table, or the feed of a recorded session."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import msgspec

from streamdec.acquire.recording import read as read_recording
from streamdec.errors import DataError

TABLE = "results.tsv"
_COLUMNS = ("by", "key", "label", "caption", "picture")


class Made(msgspec.Struct, frozen=True):
    """One caption or picture.

    ``by`` whoever made it: a tier, or any name; ``key`` of the stimulus; ``label`` what the decoder took it for, in
    words, "" where it does not say; ``caption`` a text, or None; ``picture`` its file, or None; ``source`` the stimulus
    whose own picture was shown instead.
    """

    by: str
    key: str
    label: str = ""
    caption: str | None = None
    picture: Path | None = None
    source: str = ""


def write(folder: Path, made: Iterable[Made]) -> None:
    """Write the table of a folder; pictures lie in it already. No text may hold a tab or a line break.

    Raises
    ------
    DataError
        It cannot be written.
    """
    lines = ["\t".join(_COLUMNS)]
    for one in made:
        picture = "" if one.picture is None else one.picture.relative_to(folder).as_posix()
        lines.append("\t".join((one.by, one.key, one.label, one.caption or "", picture)))
    try:
        (folder / TABLE).write_text("\n".join(lines) + "\n", encoding="utf-8")
    except OSError as error:
        raise DataError(f"results {folder}", got=error.strerror) from error


def read(path: Path) -> list[Made]:
    """Read results.

    Parameters
    ----------
    path : Path
        A folder with results.tsv: columns by, key, label, caption and picture (a file below the folder), one of the
        last two filled in, several rows of one ``by`` and ``key`` being repeats. Or a session that
        ``streamdec serve`` recorded (.xdf): the newest final answer of each tier for each stimulus. Recordings keep
        what the feed said, not its pictures: of reconstructions, those of ``nearest`` are there, by their gallery id.

    Raises
    ------
    DataError
        It is neither, or a row cannot be used.
    RecordingError
        The recording cannot be read.
    """
    return _of_folder(path) if path.is_dir() else _of_recording(path)


def _of_folder(folder: Path) -> list[Made]:
    table = folder / TABLE
    try:
        text = table.read_text(encoding="utf-8")
        header, *lines = csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE)
    except (OSError, ValueError) as error:
        raise DataError(f"results {folder}", got=str(error), allowed=f"a folder with {TABLE}") from error
    if tuple(header) != _COLUMNS:
        raise DataError(f"{table}", got=f"columns {', '.join(header)}", allowed=", ".join(_COLUMNS))
    made: list[Made] = []
    for number, line in enumerate(lines, 2):
        if len(line) != len(_COLUMNS):
            raise DataError(f"{table} line {number}", got=f"{len(line)} columns", allowed=len(_COLUMNS))
        by, key, label, caption, name = line
        picture = (folder / name).resolve() if name else None
        if not by or not key or (picture is not None and not picture.is_relative_to(folder.resolve())):
            raise DataError(
                f"{table} line {number}", got=repr("\t".join(line)), allowed="by, key, and a picture inside the folder"
            )
        # An empty caption is one that says nothing, unless the row is a picture's.
        made.append(Made(by, key, label, None if picture is not None and not caption else caption, picture))
    return made


class _Header(msgspec.Struct):
    """What is needed of a message of the feed, of whatever topic."""

    topic: str
    key: str = ""
    tier: str = ""
    partial: bool = False
    final: bool = True
    text: str = ""
    source: str = ""
    candidates: Sequence[dict[str, Any]] = ()


def _of_recording(path: Path) -> list[Made]:
    recording = read_recording(path)
    try:
        headers = [msgspec.json.decode(line, type=_Header) for line in recording.feed]
    except msgspec.DecodeError as error:
        raise DataError(f"feed of {path}", got=str(error), do="judge it with the streamdec that recorded it") from error
    labels: dict[str, str] = {}
    newest: dict[tuple[str, str], Made] = {}
    for header in headers:
        if header.topic == "retrieval" and header.final and header.candidates:
            labels[header.key] = str(header.candidates[0]["label"])
        elif header.topic == "caption" and not header.partial:
            newest[header.tier, header.key] = Made(header.tier, header.key, labels.get(header.key, ""), header.text)
        elif header.topic == "reconstruction" and header.source:
            newest[header.tier, header.key] = Made(
                header.tier, header.key, labels.get(header.key, ""), source=header.source
            )
    if not newest:
        raise DataError(f"feed of {path}", got="no captions and no reconstructions", do="record one with a generator")
    return list(newest.values())
