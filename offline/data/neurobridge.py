"""THINGS-EEG2 as NeuroBridge and SAMGA pack it: plain .npy (feroooooo/NeuroBridge @6144203; Feronl/NeuroBridge).

::

    .../preprocessed_eeg/info.json
    .../preprocessed_eeg/sub-01/train.npy, test.npy

Arrays float32 (1654, 10, 4, 63, 250) and (200, 1, 80, 63, 250): concepts, images, repetitions, channels, samples, in
the sorted order of the images' names. ``info.json`` has ``sfreq``, ``ch_names``, ``after_duration`` (s, end of the
epoch).
"""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np

from streamdec.acquire.safe_npy import read_npy
from streamdec.errors import DataError

from . import image_set
from .epoch_files import Stored, repeated
from .store import PartName


class Info(msgspec.Struct, frozen=True):
    """What is needed of ``info.json``; it may say more."""

    sfreq: float
    ch_names: tuple[str, ...]
    after_duration: float = 1.0


def subjects(root: Path) -> dict[str, list[Path]]:
    """Folders of each subject."""
    found = image_set.folders(root, "train.npy", "test.npy")
    kept = {subject: [folder for folder in of if _about(folder).is_file()] for subject, of in found.items()}
    return {subject: of for subject, of in kept.items() if of}


def part(folder: Path, name: PartName, images: Path) -> Stored:
    """Open one part of a subject; ``images`` a root above the images."""
    path, about = folder / f"{name}.npy", _about(folder)
    try:
        info = msgspec.json.decode(about.read_bytes(), type=Info)
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(f"{about}", got=str(error), allowed="sfreq and ch_names") from error
    data = read_npy(path)
    if not isinstance(data, np.ndarray) or data.ndim != 5:
        got = f"shape {data.shape}" if isinstance(data, np.ndarray) else type(data).__name__
        raise DataError(f"{path}", got=got, allowed="an array (concepts, images, repetitions, channels, samples)")
    where, items = image_set.fitting(images, name, data.shape[0] * data.shape[1], path)
    times = info.after_duration + np.arange(-data.shape[4], 0) / info.sfreq
    return repeated(path, where, data, info.ch_names, times, items)


def _about(folder: Path) -> Path:
    return folder.parent / "info.json"
