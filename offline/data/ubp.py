"""THINGS-EEG2 and THINGS-MEG as UBP packs them: .pt (HaitaoWuTJU/Uncertainty-aware-Blur-Prior @89d8b83).

::

    .../Preprocessed_data_250Hz_whiten/sub-01/train.pt, test.pt
    .../Image_set_Resize/train_images/00001_aardvark/aardvark_01b.jpg, test_images/

A dictionary each: ``eeg`` (of MEG ``meg`` or ``eeg``) float16 (16540, 4, 63, 250) or (200, 80, ...); ``img`` names of
the images, one per item or per repetition; ``session`` per repetition; ``ch_names``; ``times``, of which the last
belong to the data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from streamdec.acquire.safe_npy import read_pt
from streamdec.errors import DataError

from . import image_set
from .epoch_files import Stored, repeated
from .store import PartName

_MEG_CHANNELS = 100


def eeg(root: Path) -> dict[str, list[Path]]:
    """Folders of each subject of THINGS-EEG2, or that cannot be read."""
    return _subjects(root, meg=False)


def meg(root: Path) -> dict[str, list[Path]]:
    """Folders of each subject of THINGS-MEG: with 100 channels or more."""
    return _subjects(root, meg=True)


def part(folder: Path, name: PartName, images: Path) -> Stored:
    """Open one part of a subject; ``images`` a root above the images."""
    path = folder / f"{name}.pt"
    content = image_set.checked(read_pt(path), path, ("img", "ch_names", "times"))
    data = _data(content, path)
    names = np.asarray(content["img"])
    names = names.reshape(len(names), -1)
    if (names != names[:, :1]).any():
        raise DataError(f"img of {path}", got="several images in a row", allowed="one")
    items = [image_set.item(name, str(image).replace("\\", "/")) for image in names[:, 0]]
    where = next(image_set.below(images, "train_images"), None)
    if where is None:
        raise DataError(f"no train_images/ below {images}", do="get Image_set_Resize, or name the folder it is in")
    session = np.asarray(content["session"]) if "session" in content else None
    return repeated(path, where.parent, data, content["ch_names"], content["times"], items, session)


def _data(content: dict[str, Any], path: Path) -> npt.NDArray[Any]:
    data = content.get("eeg", content.get("meg"))
    if not isinstance(data, np.ndarray):
        raise DataError(f"{path}", got=", ".join(map(str, content)), allowed="a dictionary with an array eeg or meg")
    return data


def _subjects(root: Path, *, meg: bool) -> dict[str, list[Path]]:
    found = image_set.folders(root, "train.pt", "test.pt")
    kept = {subject: [folder for folder in of if _is_meg(folder) == meg] for subject, of in found.items()}
    return {subject: of for subject, of in kept.items() if of}


def _is_meg(folder: Path) -> bool:
    for path in (folder / "train.pt", folder / "test.pt"):
        try:
            return bool(_data(image_set.checked(read_pt(path), path, ()), path).shape[-2] >= _MEG_CHANNELS)
        except DataError:
            continue
    return False
