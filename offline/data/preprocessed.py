"""THINGS-EEG2 as preprocessed .npy: the official release (OSF anp5v), and what NICE and ATM make in the same form.

::

    .../sub-01/preprocessed_eeg_training.npy, preprocessed_eeg_test.npy

A dictionary each: ``preprocessed_eeg_data`` (16540, 4, n_chans, n_times) and (200, 80, ...), ``ch_names``, ``times``.
Official: 17 channels of the cap's order at 100 Hz, -0.2 to 0.8 s (gifale95/eeg_encoding @f0c03bf). NICE
(eeyhsong/NICE-EEG @a7709d8) and ATM: 63 channels at 250 Hz, 0 to 1 s, a bare pickle, ``times`` of the 300 samples
before 50 were dropped.
"""

from __future__ import annotations

from pathlib import Path

from streamdec.errors import DataError

from . import image_set
from .epoch_files import Stored, repeated
from .store import PartName

_FILES: dict[PartName, str] = {"train": "preprocessed_eeg_training.npy", "test": "preprocessed_eeg_test.npy"}
_KEYS = ("preprocessed_eeg_data", "ch_names", "times")
_OFFICIAL_TIMES = 100


def official(root: Path) -> dict[str, list[Path]]:
    """Folders of each subject with data at 100 Hz."""
    return _subjects(root, at_100_hz=True)


def nice(root: Path) -> dict[str, list[Path]]:
    """Folders of each subject with data at any other rate, or that cannot be read."""
    return _subjects(root, at_100_hz=False)


def part(folder: Path, name: PartName, images: Path) -> Stored:
    """Open one part of a subject; ``images`` a root above the images."""
    path = folder / _FILES[name]
    content = image_set.dictionary(path, _KEYS)
    data = content["preprocessed_eeg_data"]
    where, items = image_set.fitting(images, name, data.shape[0], path)
    return repeated(path, where, data, content["ch_names"], content["times"], items)


def _subjects(root: Path, *, at_100_hz: bool) -> dict[str, list[Path]]:
    found = image_set.folders(root, *_FILES.values())
    kept = {subject: [folder for folder in of if _is_official(folder) == at_100_hz] for subject, of in found.items()}
    return {subject: of for subject, of in kept.items() if of}


def _is_official(folder: Path) -> bool:
    for file in _FILES.values():
        try:
            return bool(image_set.dictionary(folder / file, _KEYS)[_KEYS[0]].shape[-1] == _OFFICIAL_TIMES)
        except DataError:
            continue
    return False
