"""THINGS-MEG as ATM packs it: .pkl (dongyangli-del/EEG_Image_decode).

::

    .../sub-01/preprocessed_meg_training.pkl, preprocessed_meg_zs_test.pkl
    .../training_images/aardvark/aardvark_01b.jpg, test_images/     of THINGS-MEG, not of THINGS-EEG2

A dictionary each: ``meg_data`` (1654, 12, 1, 271, 201) and (200, 1, 12, 271, 201): concepts, images, repetitions,
channels, samples; ``ch_names``; ``times``. The files do not name their images: rows are taken to be in the sorted
order of the images' names, which is that of THINGS' image numbers [inferred].
"""

from __future__ import annotations

from pathlib import Path

from streamdec.errors import DataError

from . import image_set
from .epoch_files import Stored, repeated
from .store import PartName

_FILES: dict[PartName, str] = {"train": "preprocessed_meg_training.pkl", "test": "preprocessed_meg_zs_test.pkl"}


def subjects(root: Path) -> dict[str, list[Path]]:
    """Folders of each subject."""
    return image_set.folders(root, *_FILES.values())


def part(folder: Path, name: PartName, images: Path) -> Stored:
    """Open one part of a subject; ``images`` a root above the images."""
    path = folder / _FILES[name]
    content = image_set.dictionary(path, ("meg_data", "ch_names", "times"))
    data = content["meg_data"]
    if data.ndim != 5:
        wanted = "(concepts, images, repetitions, channels, samples)"
        raise DataError(f"meg_data of {path}", got=f"shape {data.shape}", allowed=wanted)
    where, items = image_set.fitting(images, name, data.shape[0] * data.shape[1], path)
    return repeated(path, where, data, content["ch_names"], content["times"], items)
