"""THINGS-fMRI (Hebart et al. 2023, doi:10.7554/eLife.82580; figshare 20492835): single-trial responses as tables.

::

    .../betas_csv/sub-01_ResponseData.h5          pandas table: a row per voxel, a column per trial, and voxel_id
    .../betas_csv/sub-01_VoxelMetadata.csv        voxel_id, nc_singletrial, ..., regions of interest as 0 and 1
    .../betas_csv/sub-01_StimulusMetadata.csv     a row per trial: trial_type, session, run, stimulus, concept
    .../aardvark/aardvark_01b.jpg                 the THINGS images, one folder per concept

A response is an epoch of one instant: (n_voxels, 1), each voxel a channel named by its id, z-scored by mean and
deviation of its session's training trials. Training trials of the test images' concepts are left out unless asked for,
so that the test part is zero-shot.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamdec.errors import ConfigError, DataError
from streamdec.types import Bool, Float32

from . import image_set
from .epoch_files import EpochFiles, Stored
from .store import Int64, Item, PartName

_CONTENT = ("ResponseData.h5", "VoxelMetadata.csv", "StimulusMetadata.csv")
_ROWS = 4096  # voxels read at once: 160 MB of 9841 trials
_Columns = dict[str, list[str]]


class FmriSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Which voxels and trials.

    ``rois`` columns of VoxelMetadata whose voxels are taken, such as V1 or lLOC; empty: all voxels. ``n_voxels`` so
    many of them with the highest ``nc_singletrial``, the noise ceiling of single trials, which the release estimates
    from the repetitions of the test images; 0: all. ``test_concepts`` keep training trials of the test images'
    concepts.
    """

    rois: tuple[str, ...] = ()
    n_voxels: int = 4000
    test_concepts: bool = False


def subjects(root: Path) -> dict[str, list[Path]]:
    """Response files of each subject."""
    found: dict[str, list[Path]] = {}
    for path in image_set.below(root, f"sub-*_{_CONTENT[0]}"):
        found.setdefault(path.name.partition("_")[0], []).append(path)
    return dict(sorted(found.items()))


def source(path: Path, images: Path, settings: FmriSettings) -> EpochFiles:
    """Open a subject; ``images`` a root above the images.

    Raises
    ------
    ConfigError
        No voxel is left.
    DataError
        A table is not there, lacks a column, or does not fit the others.
    """
    responses, ids, trials = _responses(path, settings)
    return EpochFiles(
        "things_fmri",
        path.name.partition("_")[0],
        {name: _part(path, name, responses, ids, trials, images, settings) for name in ("train", "test")},
        settings=settings,
    )


def _part(
    path: Path,
    name: PartName,
    responses: Float32,
    ids: tuple[str, ...],
    trials: _Columns,
    images: Path,
    settings: FmriSettings,
) -> Stored:
    kind, concepts, files = (trials[key] for key in ("trial_type", "concept", "stimulus"))
    of_test = {concept for concept, trial in zip(concepts, kind, strict=True) if trial == "test"}
    left_out = of_test if name == "train" and not settings.test_concepts else set()
    rows = np.array([i for i in range(len(kind)) if kind[i] == name and concepts[i] not in left_out], np.int64)
    if not len(rows):
        raise DataError(f"{name} trials of {path}", got="none", do=f"check trial_type in {_CONTENT[2]}")
    items: dict[str, Item] = {}
    for row in rows:
        image = f"{concepts[row]}/{files[row]}"
        items.setdefault(image, Item(image, concepts[row].replace("_", " "), concepts[row], image))
    index = {image: i for i, image in enumerate(items)}

    def read(wanted: Int64) -> Float32:
        return responses[rows[wanted], :, None]

    return Stored(
        path,
        image_set.holding(images, next(iter(items))),
        ids,
        np.zeros(1),
        tuple(items.values()),
        np.array([index[f"{concepts[row]}/{files[row]}"] for row in rows], np.int64),
        np.array([int(float(trials["session"][row])) for row in rows], np.int64),
        read,
    )


def _responses(path: Path, settings: FmriSettings) -> tuple[Float32, tuple[str, ...], _Columns]:
    """Chosen voxels' z-scores (n_trials, n_voxels) float32, their ids, and the trials."""
    places = [path.with_name(path.name.replace(_CONTENT[0], name)) for name in _CONTENT[1:]]
    voxels = _columns(places[0], ("voxel_id", "nc_singletrial", *settings.rois))
    trials = _columns(places[1], ("trial_type", "session", "stimulus", "concept"))
    chosen = _choose(voxels, settings)
    values = _read(path, chosen, voxels["voxel_id"], len(trials["session"]))
    _standardise(values, trials)
    return values, tuple(voxels["voxel_id"][i] for i in chosen), trials


def _choose(voxels: _Columns, settings: FmriSettings) -> Int64:
    ceiling = np.array([float(value or "nan") for value in voxels["nc_singletrial"]])
    inside: Bool = np.full(len(ceiling), not settings.rois)
    for roi in settings.rois:
        inside |= np.array([float(value or 0) > 0 for value in voxels[roi]])
    best = np.argsort(np.where(np.isnan(ceiling), -np.inf, ceiling), kind="stable")[::-1]
    best = best[inside[best]]
    if not len(best):
        raise ConfigError("rois", got="no voxel in them", allowed="regions with voxels")
    return np.sort(best[: settings.n_voxels or None])


def _read(path: Path, chosen: Int64, ids: Sequence[str], n_trials: int) -> Float32:
    """Rows of the table, without loading it: (n_trials, len(chosen)) float32. A full subject has 8 GB in float32.

    pandas keeps the columns of each type in a block of their own; the ids may or may not share the responses' block.
    """
    try:
        import h5py
    except ImportError as error:
        raise DataError("reading .h5 needs h5py", do='pip install "streamdec[train]"') from error
    n_voxels = len(ids)
    try:
        with h5py.File(path, "r") as file:
            blocks: list[Any] = []
            file.visititems(lambda name, found: blocks.append(found) if name.endswith("_values") else None)
            block: Any = max(blocks, key=lambda block: block.size, default=np.empty(0))
            if block.shape not in ((n_voxels, n_trials), (n_voxels, n_trials + 1)):
                allowed = f"({n_voxels} voxels, {n_trials} trials)"
                raise DataError(f"responses in {path}", got=f"shape {block.shape}", allowed=allowed)
            with_ids = ((n_voxels, 1), (n_voxels, n_trials + 1))
            listed = [found[:, 0] for found in blocks if found.shape in with_ids]
            if listed and not np.array_equal(listed[0], np.array([float(voxel) for voxel in ids])):
                raise DataError(f"voxel_id in {path}", got="others", allowed=f"those of {_CONTENT[1]}, in its order")
            out = np.empty((n_trials, len(chosen)), np.float32)
            for start in range(0, n_voxels, _ROWS):
                inside = slice(*np.searchsorted(chosen, (start, start + _ROWS)))
                rows = chosen[inside]
                if len(rows):
                    out[:, inside] = block[rows[0] : rows[-1] + 1][rows - rows[0], -n_trials:].T
            return out
    except OSError as error:
        raise DataError(f"cannot read {path}", got=str(error)) from error


def _standardise(values: Float32, trials: _Columns) -> None:
    """In place, by each session's training trials."""
    session = np.array(trials["session"])
    train = np.array([kind == "train" for kind in trials["trial_type"]])
    for name in np.unique(session):
        fitted: npt.NDArray[Any] = values[(session == name) & train]
        if len(fitted) < 2:
            raise DataError(f"training trials of session {name}", got=len(fitted), allowed="two or more")
        deviation = fitted.std(axis=0, dtype=np.float64)
        deviation[deviation == 0] = 1
        of_session = session == name
        values[of_session] = (values[of_session] - fitted.mean(axis=0, dtype=np.float64)) / deviation


def _columns(path: Path, names: Sequence[str]) -> _Columns:
    """Some columns of a .csv file; a subject's voxels have sixty."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            missing = [name for name in names if name not in header]
            if missing:
                raise DataError(f"columns of {path}", got=f"no {', '.join(missing)}", allowed=", ".join(header) or None)
            places = [header.index(name) for name in names]
            rows = [[line[place] for place in places] for line in reader if line]
    except (OSError, UnicodeDecodeError, csv.Error, IndexError) as error:
        raise DataError(f"table {path}", got=str(error), allowed="a .csv file with a header") from error
    if not rows:
        raise DataError(f"table {path}", got="no row")
    return dict(zip(names, map(list, zip(*rows, strict=True)), strict=True))
