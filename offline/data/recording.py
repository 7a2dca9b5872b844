"""Any recording and a table, as a source: the recording is played through the live intake, which cuts the epochs.

The table is :mod:`streamdec.present.table`'s: with images the items are stimuli, with labels alone classes. Markers
that it lacks are left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from streamdec.acquire.query import StreamQuery
from streamdec.acquire.recording import read
from streamdec.acquire.replay import ReplayInlet, select
from streamdec.errors import ConfigError, DataError
from streamdec.intake import IntakeSettings, cutting
from streamdec.present.table import read_table as read_rows
from streamdec.types import Epoch, Float32, Float64

from ..checkpoint import writing
from .prepare import Recipe, Run
from .store import Int64, Item, PartName


class RecordingSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a recording is read.

    ``recipe`` how epochs are made; ``intake`` as in the config of ``serve``: markers, unit, quality; ``eeg`` and
    ``markers`` choose the streams where there are several; ``simulated`` the recording is not of a person; ``subject``
    who was recorded, "" for the file's name: by it, a new session of somebody who was trained on is told from a person
    who was not.
    """

    recipe: Recipe
    intake: IntakeSettings = IntakeSettings()
    eeg: StreamQuery | None = None
    markers: StreamQuery | None = None
    simulated: bool = False
    subject: str = ""


class Table(msgspec.Struct, frozen=True):
    """What the markers mean. ``items`` in the order of the table; ``index`` marker -> item."""

    kind: Literal["stimulus", "class"]
    items: tuple[Item, ...]
    index: dict[str, int]


def read_table(path: Path) -> Table:
    """Read a table.

    Raises
    ------
    DataError
        It cannot be read, lacks a column, names a marker twice or an image that is not there.
    """
    rows = read_rows(path)
    kind: Literal["stimulus", "class"] = "stimulus" if rows[0].image else "class"
    found: dict[str, Item] = {}
    index: dict[str, int] = {}
    for row in rows:
        if row.image:
            item = Item(row.marker, row.label or Path(row.image).stem, row.concept or row.label or row.image, row.image)
        else:
            item = Item(row.label, row.label, row.label)
        found.setdefault(item.id, item)
        index[row.marker] = list(found).index(item.id)
    return Table(kind, tuple(found.values()), index)


class RecordingSource:
    """A recording, as a source.

    Parameters
    ----------
    path : Path
        Anything :func:`streamdec.acquire.recording.read` reads.
    table : Path
    settings : RecordingSettings
    parts : dict of str to (float, float)
        Stretch of the recording that each part takes, as fractions of its duration: an epoch belongs where its onset
        lies.
    scratch : Path, optional
        Folder for the epochs, in a file without a name that is gone with the source: at the stream's rate an hour of
        RSVP has more than fits into memory. By default the system's for such files.

    Raises
    ------
    ConfigError
        A part is no stretch of the recording, two have something in common, or the settings do not fit the streams.
    DataError
        There is no epoch of a marker in the table, or no room for the epochs.
    """

    dataset, offline_only = "recording", ""

    def __init__(
        self,
        path: Path,
        table: Path,
        settings: RecordingSettings,
        parts: dict[PartName, tuple[float, float]],
        scratch: Path | None = None,
    ) -> None:
        for part, (start, stop) in parts.items():
            if not 0 <= start < stop <= 1:
                raise ConfigError(f"{part} part", got=f"{start}:{stop}", allowed="from:to, fractions between 0 and 1")
        if len(parts) == 2 and max(start for start, _ in parts.values()) < min(stop for _, stop in parts.values()):
            got = ", ".join(f"{part} {start}:{stop}" for part, (start, stop) in parts.items())
            raise ConfigError("parts of the recording", got=got, allowed="stretches that have nothing in common")
        self.subject, self._settings, self._parts = settings.subject or path.stem, settings, parts
        self._recording = read(path)
        self._table = read_table(table)
        self.images, self.kind, self.simulated = str(table.parent.resolve()), self._table.kind, settings.simulated
        trigger = settings.intake.trigger.channel if settings.intake.trigger else None
        stream, _ = select(self._recording, settings.eeg, settings.markers, trigger=trigger is not None)
        eeg = stream.info
        kinds = eeg.ch_types or ("",) * eeg.n_chans
        names = (
            name
            for name, kind in zip(eeg.ch_names, kinds, strict=True)
            if kind.lower() in ("", "eeg") and name != trigger
        )
        self.signal = settings.recipe.signal(tuple(names), eeg.sfreq)
        self._runs = self._play(stream.times, scratch or Path(tempfile.gettempdir()))
        self.items = {run.part: self._table.items for run in self._runs}

    @property
    def config(self) -> dict[str, Any]:
        """The settings."""
        return {"settings": msgspec.to_builtins(self._settings), "parts": {k: list(v) for k, v in self._parts.items()}}

    def runs(self) -> Iterator[Run]:
        """One run per part."""
        return iter(self._runs)

    def _play(self, times: Float64, scratch: Path) -> list[Run]:
        """Cut all epochs, and deal them out to the parts by their onsets; ``times`` (n,) LSL clock of the samples."""
        settings = self._settings
        trigger = settings.intake.trigger is not None
        inlet = ReplayInlet(self._recording, settings.eeg, settings.markers, trigger=trigger)
        onsets: list[tuple[int, int, float]] = []  # item, sample, time
        others: list[str] = []
        with writing(scratch), tempfile.TemporaryFile(dir=scratch) as file:
            for epoch in cutting(inlet, self.signal, settings.intake):
                if not isinstance(epoch, Epoch):
                    continue
                item = self._item(epoch)
                if item is None:
                    others.append(repr(epoch.onset.text))
                    continue
                file.write(np.ascontiguousarray(epoch.data).data)
                onsets.append((item, epoch.onset_sample, epoch.onset.time))
                shape = epoch.data.shape
            if not onsets:
                texts = ", ".join(sorted(set(others))[:5])
                raise DataError(
                    f"epochs of {self._recording.path}",
                    got=f"{len(others)}, none of a marker in the table" + (f" (markers {texts}, ...)" if texts else ""),
                    allowed=", ".join(list(self._table.index)[:5]) + ", ...",
                    do="check table, intake.markers and window",
                )
            file.flush()
            data = np.memmap(file, np.float32, "r", shape=(len(onsets), *shape))
        items, samples = (np.array(column, np.int64) for column in list(zip(*onsets, strict=True))[:2])
        at = (np.array([time for _, _, time in onsets]) - times[0]) / (times[-1] - times[0])
        found = []
        for part, (start, stop) in self._parts.items():
            inside = np.flatnonzero((start <= at) & (at < stop))

            def block_of(index: Int64, inside: Int64 = inside) -> Float32:
                return data[inside[index]]

            found.append(Run(part, 0, items[inside], samples[inside], block_of))
        return found

    def _item(self, epoch: Epoch) -> int | None:
        index = self._table.index
        return index.get(epoch.onset.key, index.get(epoch.onset.text))
