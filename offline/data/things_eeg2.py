"""THINGS-EEG2 (Gifford et al. 2022, doi:10.1016/j.neuroimage.2022.119754), raw, as OSF has it or as UBP renames it.

::

    .../raw_data/sub-01/ses-01/raw_eeg_training.npy   or raw_eeg_train.npy; raw_eeg_test.npy
    .../image_set/image_metadata.npy
    .../image_set/training_images/00001_aardvark/aardvark_01b.jpg   or train_images/; test_images/

Row i of the images (:mod:`.image_set`) is event code i + 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from streamdec.errors import DataError
from streamdec.signal.filters import StreamFilter
from streamdec.signal.rate import Rate
from streamdec.signal.spec import Baseline, Drop, Resample, Signal, Whiten
from streamdec.simulate.leadfield import CH_NAMES
from streamdec.types import Float32

from . import image_set
from .epoch_files import fresh
from .prepare import Recipe, Run
from .store import Int64, PartName

RECIPE = Recipe(-0.2, 1.0, CH_NAMES, steps=(Baseline(-0.2, 0.0), Resample(250.0), Drop(50), Whiten()))
"""The published one but for the whitener, which is pooled: 63 x 250 samples, 0 to 1 s."""

_SFREQ = 1000.0
_CATCH = 99999
_FILES: dict[PartName, tuple[str, ...]] = {
    "train": ("raw_eeg_training.npy", "raw_eeg_train.npy"),
    "test": ("raw_eeg_test.npy",),
}
_FILTER_CHUNK = 10_000  # samples


def subjects(root: Path) -> dict[str, list[Path]]:
    """Folders of each subject, which hold those of the sessions."""
    found: dict[str, list[Path]] = {}
    for names in _FILES.values():
        for path in (path for name in names for path in image_set.below(root, f"sub-*/ses-*/{name}")):
            folder = path.parent.parent
            if folder not in found.setdefault(folder.name, []):
                found[folder.name].append(folder)
    return dict(sorted(found.items()))


def sessions(folder: Path) -> list[Path]:
    """Folders of a subject's sessions, in order."""
    return sorted(path for path in folder.glob("ses-*") if path.is_dir())


def onsets(stim: npt.NDArray[np.float64], n_items: int) -> tuple[Int64, Int64]:
    """Rising edges of the trigger channel, catch trials left out.

    Parameters
    ----------
    stim : array of shape (n_times,)
    n_items : int
        Codes are 1..n_items.

    Returns
    -------
    position, item : arrays of shape (n,), int64
        Sample of the onset, and code - 1.

    Raises
    ------
    DataError
        A code of no image.
    """
    position = np.flatnonzero(stim[1:] > stim[:-1]).astype(np.int64) + 1
    code = stim[position].astype(np.int64)
    shown = code != _CATCH
    position, code = position[shown], code[shown]
    if len(code) and not 1 <= code.min() <= code.max() <= n_items:
        raise DataError("event codes", got=f"{code.min()} to {code.max()}", allowed=f"1 to {n_items}, {_CATCH}")
    return position, code - 1


class ThingsEeg2:
    """One subject, as a source.

    Parameters
    ----------
    folder : Path
        The subject's, which holds those of the sessions.
    images : Path
        A root above the images.
    recipe : Recipe

    Raises
    ------
    DataError
        There are no sessions, or no images.
    """

    dataset, offline_only = "things_eeg2", ""
    kind: Literal["stimulus", "class"] = "stimulus"

    def __init__(self, folder: Path, images: Path, recipe: Recipe = RECIPE) -> None:
        self.subject, self._recipe = folder.name, recipe
        where = image_set.only(images)
        self.items = image_set.items(where)
        self.images = str(where.resolve())
        self.signal: Signal = recipe.signal(CH_NAMES, _SFREQ)
        self.simulated = (where.parent / "SIMULATED.txt").exists()
        self._sessions = sessions(folder)
        if not self._sessions:
            raise DataError(f"sessions in {folder}", got="none", allowed="ses-01, ses-02, ...")

    @property
    def config(self) -> dict[str, Any]:
        """The settings."""
        return {"subject": self.subject, "recipe": msgspec.to_builtins(self._recipe)}

    def runs(self) -> Iterator[Run]:
        """Two runs per session: training, test."""
        return (self.run(session, part) for session in range(len(self._sessions)) for part in _FILES)

    def run(self, session: int, part: PartName) -> Run:
        """Open one recording.

        Raises
        ------
        DataError
            It is not there, or not what it should be.
        """
        folder, names = self._sessions[session], _FILES[part]
        path = next((folder / name for name in names if (folder / name).is_file()), None)
        if path is None:
            raise DataError(f"{part} recording in {folder}", got="none", allowed=" or ".join(names))
        content = image_set.dictionary(path, ("raw_eeg_data", "ch_names", "sfreq"))
        ch_names = [str(name) for name in content["ch_names"]]
        volts = content["raw_eeg_data"]
        if volts.shape[0] != len(ch_names) or float(content["sfreq"]) != self.signal.sfreq:
            raise DataError(
                f"{path}",
                got=f"{volts.shape[0]} rows, {content['sfreq']} Hz",
                allowed=f"{len(ch_names)} rows as named, {self.signal.sfreq:g} Hz",
            )
        missing = [name for name in (*self.signal.ch_names, "stim") if name not in ch_names]
        if missing:
            raise DataError(f"channels of {path}", got=f"no {', '.join(missing)}", allowed=", ".join(ch_names))
        position, item = onsets(volts[ch_names.index("stim")], len(self.items[part]))
        first, n_times = Rate(self.signal.sfreq).window(self.signal.tmin, self.signal.tmax)
        inside = (position + first >= 0) & (position + first + n_times <= volts.shape[1])
        position, item = position[inside], item[inside]
        picks = [ch_names.index(name) for name in self.signal.ch_names]
        samples = self._filtered(volts, picks) if self.signal.filters else None

        def cut(index: Int64) -> Float32:
            out = np.empty((len(index), len(picks), n_times), np.float32)
            recorded = fresh(volts)
            for epoch, start in zip(out, position[index] + first, strict=True):
                stretch = slice(start, start + n_times)
                epoch[:] = recorded[picks, stretch] * 1e6 if samples is None else samples[:, stretch]
            return out

        return Run(part, session, item, position, cut)

    def _filtered(self, volts: npt.NDArray[np.float64], picks: Sequence[int]) -> Float32:
        """(n_chans, n_times) float32, microvolt, through the causal filters."""
        stream = StreamFilter(self.signal.filters, self.signal.sfreq, len(picks))
        out = np.empty((len(picks), volts.shape[1]), np.float32)
        for start in range(0, volts.shape[1], _FILTER_CHUNK):
            chunk = slice(start, start + _FILTER_CHUNK)
            out[:, chunk] = stream((volts[picks, chunk] * 1e6).astype(np.float32))
        return out
