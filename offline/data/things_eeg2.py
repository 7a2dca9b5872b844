"""THINGS-EEG2 (Gifford et al. 2022, doi:10.1016/j.neuroimage.2022.119754), raw, as OSF has it or as UBP renames it.

::

    .../raw_data/sub-01/ses-01/raw_eeg_training.npy   or raw_eeg_train.npy; raw_eeg_test.npy
    .../image_set/image_metadata.npy
    .../image_set/training_images/00001_aardvark/aardvark_01b.jpg   or train_images/; test_images/

Row i of the image metadata is event code i + 1. Folders are found by looking below the root.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec
import numpy as np
import numpy.typing as npt

from streamdec.acquire.safe_npy import read_npy
from streamdec.errors import ConfigError, DataError
from streamdec.signal.filters import StreamFilter
from streamdec.signal.rate import Rate
from streamdec.signal.spec import Baseline, Drop, Resample, Signal, Whiten
from streamdec.simulate.leadfield import CH_NAMES
from streamdec.types import Float32

from .prepare import Recipe, Run
from .store import Int64, Item, PartName

RECIPE = Recipe(-0.2, 1.0, CH_NAMES, steps=(Baseline(-0.2, 0.0), Resample(250.0), Drop(50), Whiten()))
"""The published one but for the whitener, which is pooled: 63 x 250 samples, 0 to 1 s."""

_SFREQ = 1000.0
_CATCH = 99999
_FILES: dict[PartName, tuple[str, ...]] = {
    "train": ("raw_eeg_training.npy", "raw_eeg_train.npy"),
    "test": ("raw_eeg_test.npy",),
}
_IMAGES: dict[PartName, tuple[str, ...]] = {"train": ("training_images", "train_images"), "test": ("test_images",)}
_FILTER_CHUNK = 10_000  # samples


class Layout(msgspec.Struct, frozen=True):
    """Where things are below a root. ``images`` holds the metadata and the two image folders."""

    raw: Path
    images: Path


def find(root: Path) -> Layout:
    """Look for the raw recordings and the images below ``root``.

    Raises
    ------
    DataError
        Either is not there.
    """
    folders = [root, *(path for depth in ("*", "*/*", "*/*/*") for path in sorted(root.glob(depth)) if path.is_dir())]
    raw = [path for path in folders if path.name.lower() == "raw_data"]
    images = [path for path in folders if (path / "image_metadata.npy").is_file()]
    for what, found in (("raw_data/sub-XX/ses-YY/", raw), ("image_metadata.npy", images)):
        if not found:
            raise DataError(f"no {what} below {root}", do="get it from OSF (3jk45, y63gw), or name another root")
    return Layout(raw[0], images[0])


def items(images: Path) -> dict[PartName, tuple[Item, ...]]:
    """Images in the order of their event codes, from the metadata. Ids are ``folder/file``.

    Raises
    ------
    DataError
        The metadata are not what they should be.
    """
    metadata = _dictionary(
        images / "image_metadata.npy", ("train_img_concepts", "train_img_files", "test_img_concepts")
    )
    found: dict[PartName, tuple[Item, ...]] = {}
    for part, names in _IMAGES.items():
        folder = next((name for name in names if (images / name).is_dir()), names[0])
        concepts, files = (metadata[f"{part}_img_{key}"] for key in ("concepts", "files"))
        found[part] = tuple(
            Item(
                id=f"{concept}/{file}",
                label=str(concept).partition("_")[2].replace("_", " "),
                concept=f"{part}/{concept}",
                image=f"{folder}/{concept}/{file}",
            )
            for concept, file in zip(concepts, files, strict=True)
        )
    return found


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
    root : Path
        Folder above the recordings and the images.
    subject : str
        Such as "sub-01".
    recipe : Recipe
    """

    dataset = "things_eeg2"
    kind: Literal["stimulus", "class"] = "stimulus"

    def __init__(self, root: Path, subject: str, recipe: Recipe = RECIPE) -> None:
        self.layout = find(root)
        self.subject, self._recipe = subject, recipe
        self.items = items(self.layout.images)
        self.images = str(self.layout.images.resolve())
        self.signal: Signal = recipe.signal(CH_NAMES, _SFREQ)
        self.simulated = (self.layout.images.parent / "SIMULATED.txt").exists()
        folder = self.layout.raw / subject
        self._sessions = sorted(path for path in folder.glob("ses-*") if path.is_dir())
        if not self._sessions:
            have = ", ".join(sorted(path.name for path in self.layout.raw.glob("sub-*")))
            raise ConfigError(f"sessions of {subject} in {self.layout.raw}", got="none", allowed=have or None)

    @property
    def config(self) -> dict[str, Any]:
        """The settings."""
        return {"subject": self.subject, "recipe": msgspec.to_builtins(self._recipe)}

    def runs(self) -> Iterator[Run]:
        """Two runs per session: training, test."""
        for session, folder in enumerate(self._sessions):
            for part, names in _FILES.items():
                path = next((folder / name for name in names if (folder / name).is_file()), None)
                if path is None:
                    raise DataError(f"{part} recording in {folder}", got="none", allowed=" or ".join(names))
                yield self._run(part, session, path)

    def _run(self, part: PartName, session: int, path: Path) -> Run:
        content = _dictionary(path, ("raw_eeg_data", "ch_names", "sfreq"))
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

        def cut(block: slice) -> Float32:
            out = np.empty((len(position[block]), len(picks), n_times), np.float32)
            for epoch, start in zip(out, position[block] + first, strict=True):
                stretch = slice(start, start + n_times)
                epoch[:] = volts[picks, stretch] * 1e6 if samples is None else samples[:, stretch]
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


def _dictionary(path: Path, keys: Sequence[str]) -> dict[str, Any]:
    content = read_npy(path)
    if not isinstance(content, dict) or any(key not in content for key in keys):
        got = ", ".join(map(str, content)) if isinstance(content, dict) else type(content).__name__
        raise DataError(f"{path}", got=got, allowed=f"a dictionary with {', '.join(keys)}")
    return content
