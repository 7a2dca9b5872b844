"""The table that says what a marker means: what is shown from it, and what a recording is prepared by.

A .tsv or .csv file with a header: ``marker``, the stimulus key as the marker pattern yields it or the marker's whole
text; ``image``, a file relative to the table; ``label`` what it shows, in words; ``concept`` what it is an example of.
A table of classes has ``marker`` and ``label`` alone.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Sequence
from pathlib import Path

import msgspec

from ..errors import DataError

COLUMNS = ("marker", "image", "label", "concept")
IMAGE_FILES = (".bmp", ".jpeg", ".jpg", ".png", ".webp")


class Row(msgspec.Struct, frozen=True):
    """One marker. ``image`` as the table says it, "" in a table of classes."""

    marker: str
    image: str = ""
    label: str = ""
    concept: str = ""


def read_table(path: Path) -> tuple[Row, ...]:
    """Read a table.

    Raises
    ------
    DataError
        It cannot be read, lacks a column, names a marker twice or an image that is not there.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            lines = list(csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ","))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"table {path}", got=str(error), do="give a .tsv or .csv file with a header") from error
    columns = set(lines[0]) if lines else set()
    if "marker" not in columns or not columns & {"image", "label"} or columns - set(COLUMNS):
        raise DataError(
            f"columns of table {path}",
            got=", ".join(map(str, columns)) or "none",
            allowed="marker, and image or label; with image also label and concept",
        )
    rows: dict[str, Row] = {}
    for number, line in enumerate(lines, 2):
        row = Row(**{column: line.get(column) or "" for column in COLUMNS})
        where = f"table {path}, line {number}"
        if not row.marker or row.marker in rows or not (row.image or row.label):
            raise DataError(where, got=repr(row.marker), allowed="each marker once, each with a value")
        if "image" in columns and not (path.parent / row.image).is_file():
            raise DataError(where, got=f"no image {row.image}", allowed="a file beside the table")
        rows[row.marker] = row
    return tuple(rows.values())


def table_of(folder: Path) -> tuple[Row, ...]:
    """Make the table of all images below a folder: markers are their paths in it, sub-folders their concepts.

    Raises
    ------
    DataError
        There is none.
    """
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_FILES and path.is_file())
    if not files:
        raise DataError(f"no image below {folder}", allowed=", ".join(IMAGE_FILES))
    rows = []
    for path in files:
        inside = path.relative_to(folder)
        concept = inside.parts[-2] if len(inside.parts) > 1 else path.stem
        # THINGS numbers its folders: 00001_aardvark.
        label = re.sub(r"^\d+_", "", concept).replace("_", " ")
        rows.append(Row(inside.as_posix(), inside.as_posix(), label, concept))
    return tuple(rows)


def write_table(path: Path, rows: Sequence[Row], folder: Path) -> None:
    """Write a table of images.

    Parameters
    ----------
    path : Path
    rows : sequence of Row
    folder : Path
        What their ``image`` is relative to; the file has it relative to itself.
    """
    there = os.path.relpath(folder.resolve(), path.parent.resolve())
    with path.open("w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n")
        table.writerow(COLUMNS)
        for row in rows:
            image = Path(there, row.image).as_posix()
            table.writerow((row.marker, image, row.label, row.concept))
