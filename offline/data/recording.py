"""Any recording and a table, as a source: the recording is played through the live intake, which cuts the epochs.

The table is :mod:`streamdec.present.table`'s: with images the items are stimuli, with labels alone classes. Markers
that it lacks are left out.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np

from streamdec.acquire.query import StreamQuery
from streamdec.acquire.recording import read
from streamdec.acquire.replay import ReplayInlet, select
from streamdec.errors import ConfigError, DataError
from streamdec.intake import IntakeSettings, cut
from streamdec.present.table import read_table as read_rows
from streamdec.types import Epoch, Float32, Float64

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
    """

    dataset, offline_only = "recording", ""

    def __init__(
        self, path: Path, table: Path, settings: RecordingSettings, parts: dict[PartName, tuple[float, float]]
    ) -> None:
        for part, (start, stop) in parts.items():
            if not 0 <= start < stop <= 1:
                raise ConfigError(f"{part} part", got=f"{start}:{stop}", allowed="from:to, fractions between 0 and 1")
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
        self._runs = self._play(stream.times)
        self.items = {run.part: self._table.items for run in self._runs}

    @property
    def config(self) -> dict[str, Any]:
        """The settings."""
        return {"settings": msgspec.to_builtins(self._settings), "parts": {k: list(v) for k, v in self._parts.items()}}

    def runs(self) -> Iterator[Run]:
        """One run per part."""
        return iter(self._runs)

    def _play(self, times: Float64) -> list[Run]:
        """Cut all epochs, and deal them out to the parts by their onsets; ``times`` (n,) LSL clock of the samples."""
        settings = self._settings
        trigger = settings.intake.trigger is not None
        inlet = ReplayInlet(self._recording, settings.eeg, settings.markers, trigger=trigger)
        epochs, _ = cut(inlet, self.signal, settings.intake)
        known = [(epoch, self._item(epoch)) for epoch in epochs]
        shown = [(epoch, item) for epoch, item in known if item is not None]
        if not shown:
            texts = ", ".join(sorted({repr(epoch.onset.text) for epoch in epochs})[:5])
            raise DataError(
                f"epochs of {self._recording.path}",
                got=f"{len(epochs)}, none of a marker in the table" + (f" (markers {texts}, ...)" if texts else ""),
                allowed=", ".join(list(self._table.index)[:5]) + ", ...",
                do="check table, intake.markers and window",
            )
        duration = times[-1] - times[0]
        found = []
        for part, (start, stop) in self._parts.items():
            inside = [(e, i) for e, i in shown if start <= (e.onset.time - times[0]) / duration < stop]
            data = [e.data for e, _ in inside]

            def block_of(index: Int64, data: list[Float32] = data) -> Float32:
                return np.stack([data[i] for i in index])

            item = np.array([i for _, i in inside], np.int64)
            position = np.array([e.onset_sample for e, _ in inside], np.int64)
            found.append(Run(part, 0, item, position, block_of))
        return found

    def _item(self, epoch: Epoch) -> int | None:
        index = self._table.index
        return index.get(epoch.onset.key, index.get(epoch.onset.text))
