"""THINGS-MEG (Hebart et al. 2023, doi:10.7554/eLife.82580; ds004212): preprocessed epochs, .fif.

::

    .../derivatives/preprocessed/preprocessed_P1-epo.fif, preprocessed_P1-epo-1.fif, ...
    .../sourcedata/sample_attributes_P1.csv        where the epochs do not carry it
    .../aardvark/aardvark_01b.jpg                  the THINGS images, one folder per concept

271 channels at 200 Hz, -0.1 to 1.3 s, filtered both ways in time, baseline z-scored (ViCCo-Group/THINGS-data @5e0ecca).
An epoch's event is the number of its THINGS image, 999999 a catch trial. Images shown repeatedly are the test part,
those shown once the training part, but for the concepts of the test part, so that it stays zero-shot.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamdec.errors import DataError
from streamdec.types import Float32

from . import image_set
from .epoch_files import Stored
from .prepare import Recipe
from .store import Int64, Item, PartName

RECIPE = Recipe(0.0, 1.0)
"""Every channel, 201 samples, as UBP has it; NeuroBridge and ATM drop the last."""

_CATCH = 999999
_NAME = re.compile(r"preprocessed_P(\d+)-epo\.fif")


def subjects(root: Path) -> dict[str, list[Path]]:
    """Files of each subject; participant 1 is sub-01."""
    found: dict[str, list[Path]] = {}
    for path in image_set.below(root, "preprocessed_P*-epo.fif"):
        if match := _NAME.fullmatch(path.name):
            found.setdefault(f"sub-{int(match[1]):02d}", []).append(path)
    return dict(sorted(found.items()))


def part(path: Path, name: PartName, images: Path) -> Stored:
    """Open one part of a subject; ``images`` a root above the images and the table of attributes."""
    epochs = _open(path)
    attributes = _attributes(epochs, path, images)
    event = epochs.events[:, 2].astype(np.int64)
    image = [_item(str(row["image_path"])) for row in attributes]
    values, inverse, counts = np.unique(event, return_inverse=True, return_counts=True)
    shown = event != _CATCH
    again = (counts[inverse] > 1) & shown
    of_test = {image[i].concept for i in np.flatnonzero(again)}
    kept = again if name == "test" else shown & ~again & np.array([item.concept not in of_test for item in image])
    rows = np.flatnonzero(kept)
    numbers = np.unique(event[rows])
    first = {int(value): int(i) for i, value in reversed(list(zip(rows, event[rows], strict=True)))}
    items = tuple(image[first[int(value)]] for value in numbers)
    if not items:
        raise DataError(f"{name} part of {path}", got=f"no image of {len(values)} events", allowed="at least one")
    session = np.array([int(float(row.get("session_nr") or 0)) for row in attributes], np.int64)
    return Stored(
        path,
        image_set.holding(images, items[0].image),
        tuple(epochs.ch_names),
        np.asarray(epochs.times, np.float64),
        items,
        np.searchsorted(numbers, event[rows]),
        session[rows],
        _reader(epochs, rows),
    )


def _open(path: Path) -> Any:
    try:
        import mne
    except ImportError as error:
        raise DataError("reading .fif needs mne", do='pip install "streamdec[train]"') from error
    try:
        return mne.read_epochs(path, preload=False, verbose="error")
    except (OSError, ValueError, RuntimeError) as error:
        do = "all of its -1.fif, -2.fif, ... belong beside it"
        raise DataError(f"cannot read {path}", got=str(error), do=do) from error


def _reader(epochs: Any, rows: Int64) -> Callable[[Int64], Float32]:
    def read(index: Int64) -> Float32:
        try:
            return np.asarray(epochs[rows[index]].get_data(verbose="error"), np.float32)
        except (OSError, ValueError, RuntimeError) as error:
            raise DataError(f"cannot read {epochs.filename}", got=str(error)) from error

    return read


def _attributes(epochs: Any, path: Path, root: Path) -> Sequence[Mapping[str, Any]]:
    """One row per epoch: the epochs' own metadata, which mne gives as a list where pandas is not installed, or .csv."""
    metadata = epochs.metadata
    rows = metadata if isinstance(metadata, list) else [] if metadata is None else metadata.to_dict("records")
    source = path
    if not rows:
        name = path.name.replace("preprocessed", "sample_attributes").replace("-epo.fif", ".csv")
        found = next(image_set.below(root, name), None)
        if found is None:
            raise DataError(f"images of the epochs in {path}", got="no metadata in it", do=f"put {name} below {root}")
        source = found
        with source.open(newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    if len(rows) != len(epochs.events) or "image_path" not in rows[0]:
        got = f"{len(rows)} rows" + (f" of {', '.join(rows[0])}" if rows else "")
        raise DataError(f"attributes in {source}", got=got, allowed=f"{len(epochs.events)} rows with image_path")
    return rows


def _item(path: str) -> Item:
    """Make the item of ``images_meg/aardvark/aardvark_01b.jpg`` or ``images_test_meg/aardvark_01b.jpg``."""
    file = path.rsplit("/", 1)[-1]
    concept = file.rpartition("_")[0] or file
    return Item(f"{concept}/{file}", concept.replace("_", " "), concept, f"{concept}/{file}")
