"""What was shown when, as it happened: a row per image, catch image, key and break; and the account of it."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np

Kind = Literal["image", "catch", "key", "break"]


class Entry(msgspec.Struct, frozen=True):
    """Something that happened.

    Attributes
    ----------
    onset : LSL clock, s; of an image its first frame, as flipped; of a key the flip after it was pressed.
    duration : s, from its first frame to the first without it; 0 for a key.
    kind : what.
    marker : text of the stimulus key, or name of the key that was pressed.
    image : the file, as in the table.
    sequence : number of the sequence, from 1; of a key in the pause after one, too; 0 in a break.
    place : in the sequence, from 1; 0 for what is no image.
    missed : frames missed from its turn to the next image's; those before its onset included.
    """

    onset: float
    duration: float
    kind: Kind
    marker: str
    image: str = ""
    sequence: int = 0
    place: int = 0
    missed: int = 0


COLUMNS = Entry.__struct_fields__


class Log:
    """A TSV file, written at the end of each sequence: nothing waits for the disk between two flips.

    Parameters
    ----------
    path : Path
        New file.
    """

    def __init__(self, path: Path) -> None:
        self.entries: list[Entry] = []
        self._file = path.open("x", encoding="utf-8")
        self._written = 0
        self._line(COLUMNS)

    def add(self, entry: Entry) -> None:
        """Remember an entry."""
        self.entries.append(entry)

    def write(self) -> None:
        """Write what was added since, by its onset."""
        for entry in sorted(self.entries[self._written :], key=lambda entry: entry.onset):
            fields = msgspec.structs.asdict(entry)
            fields |= {key: f"{fields[key]:.6f}" for key in ("onset", "duration")}
            self._line(tuple(str(fields[key]) if fields[key] != "" else "n/a" for key in COLUMNS))
        self._written = len(self.entries)
        self._file.flush()

    def close(self) -> None:
        """Write the rest. Idempotent."""
        if not self._file.closed:
            self.write()
            self._file.close()

    def _line(self, fields: tuple[str, ...]) -> None:
        self._file.write("\t".join(fields) + "\n")


class Account(msgspec.Struct, frozen=True):
    """What came of a presentation.

    Attributes
    ----------
    images, planned : images shown, and how many were to be.
    catches, seen : catch images, and how many were answered by a key before the next sequence.
    false_alarms : sequences without one in which a key was pressed.
    missed, late : frames missed, and how many images they fell on.
    soa, soa_sd, soa_longest : from image to image within a sequence: median, deviation, longest, s; 0 without any.
    """

    images: int
    planned: int
    catches: int
    seen: int
    false_alarms: int
    missed: int
    late: int
    soa: float
    soa_sd: float
    soa_longest: float

    def lines(self) -> list[str]:
        """Say it."""
        answers = f"{self.catches} catch images, {self.seen} seen; {self.false_alarms} false alarms"
        steps = f"median {1e3 * self.soa:.2f} ms, SD {1e3 * self.soa_sd:.2f}, longest {1e3 * self.soa_longest:.2f}"
        return [
            f"{self.images} of {self.planned} images shown; {answers}",
            f"image to image {steps}; {self.missed} frames missed, at {self.late} images",
        ]


def account(entries: list[Entry], planned: int) -> Account:
    """Sum up. ``planned`` images that were to be shown."""
    shown = [entry for entry in entries if entry.kind in ("image", "catch")]
    catches = {entry.sequence: entry.onset for entry in shown if entry.kind == "catch"}
    keys = [entry for entry in entries if entry.kind == "key"]
    seen = {key.sequence for key in keys if key.onset >= catches.get(key.sequence, np.inf)}
    steps = np.array([b.onset - a.onset for a, b in itertools.pairwise(shown) if a.sequence == b.sequence] or [0.0])
    return Account(
        images=len(shown) - len(catches),
        planned=planned,
        catches=len(catches),
        seen=len(seen),
        false_alarms=len({key.sequence for key in keys if key.sequence} - set(catches)),
        missed=sum(entry.missed for entry in shown),
        late=sum(entry.missed > 0 for entry in shown),
        soa=float(np.median(steps)),
        soa_sd=float(steps.std()),
        soa_longest=float(steps.max()),
    )
