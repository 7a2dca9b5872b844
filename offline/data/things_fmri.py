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
_Rows = list[dict[str, str]]


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
        A region the voxels do not have, or no voxel is left.
    DataError
        A table is not there, or does not fit the others.
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
    trials: _Rows,
    images: Path,
    settings: FmriSettings,
) -> Stored:
    of_test = {trial["concept"] for trial in trials if trial["trial_type"] == "test"}
    left_out = of_test if name == "train" and not settings.test_concepts else set()
    rows = np.array(
        [i for i, t in enumerate(trials) if t["trial_type"] == name and t["concept"] not in left_out], np.int64
    )
    if not len(rows):
        raise DataError(f"{name} trials of {path}", got="none", do="check trial_type in StimulusMetadata.csv")
    items: dict[str, Item] = {}
    for row in rows:
        concept, file = trials[row]["concept"], trials[row]["stimulus"]
        items.setdefault(file, Item(f"{concept}/{file}", concept.replace("_", " "), concept, f"{concept}/{file}"))
    index = {file: i for i, file in enumerate(items)}

    def read(wanted: Int64) -> Float32:
        return responses[rows[wanted], :, None]

    return Stored(
        path,
        image_set.holding(images, next(iter(items.values())).image),
        ids,
        np.zeros(1),
        tuple(items.values()),
        np.array([index[trials[row]["stimulus"]] for row in rows], np.int64),
        np.array([int(float(trials[row]["session"])) for row in rows], np.int64),
        read,
    )


def _responses(path: Path, settings: FmriSettings) -> tuple[Float32, tuple[str, ...], _Rows]:
    """Chosen voxels' z-scores (n_trials, n_voxels) float32, their ids, and the trials."""
    voxels, trials = (_table(path.with_name(path.name.replace(_CONTENT[0], name))) for name in _CONTENT[1:])
    for rows, needed, name in (
        (voxels, ("voxel_id", "nc_singletrial"), _CONTENT[1]),
        (trials, ("trial_type", "session", "stimulus", "concept"), _CONTENT[2]),
    ):
        if not rows or any(key not in rows[0] for key in needed):
            got = ", ".join(rows[0]) if rows else "no row"
            raise DataError(f"{name} of {path}", got=got, allowed=f"columns {', '.join(needed)}")
    chosen = _choose(voxels, settings)
    values = _read(path, chosen, voxels, len(trials))
    _standardise(values, trials)
    return values, tuple(voxels[i]["voxel_id"] for i in chosen), trials


def _choose(voxels: _Rows, settings: FmriSettings) -> Int64:
    unknown = [roi for roi in settings.rois if roi not in voxels[0]]
    if unknown:
        raise ConfigError("rois", got=", ".join(unknown), allowed=", ".join(voxels[0]))
    inside: Bool = np.ones(len(voxels), bool)
    if settings.rois:
        inside = np.array([any(float(voxel[roi] or 0) > 0 for roi in settings.rois) for voxel in voxels])
    ceiling = np.array([float(voxel["nc_singletrial"] or "nan") for voxel in voxels])
    best = np.argsort(np.where(np.isnan(ceiling), -np.inf, ceiling), kind="stable")[::-1]
    best = best[inside[best]]
    if not len(best):
        raise ConfigError("rois", got="no voxel in them", allowed="regions with voxels")
    return np.sort(best[: settings.n_voxels or None])


def _read(path: Path, chosen: Int64, voxels: _Rows, n_trials: int) -> Float32:
    """Rows of the table, without loading it: (n_trials, len(chosen)) float32. A full subject has 8 GB in float32.

    pandas keeps the columns of each type in a block of their own; the ids may or may not share the responses' block.
    """
    n_voxels = len(voxels)
    try:
        import h5py
    except ImportError as error:
        raise DataError("reading .h5 needs h5py", do='pip install "streamdec[train]"') from error
    try:
        with h5py.File(path, "r") as file:
            blocks: list[Any] = []
            file.visititems(lambda name, found: blocks.append(found) if name.endswith("_values") else None)
            block: Any = max(blocks, key=lambda block: block.size, default=np.empty(0))
            shape = block.shape
            if shape not in ((n_voxels, n_trials), (n_voxels, n_trials + 1)):
                raise DataError(
                    f"responses in {path}", got=f"shape {shape}", allowed=f"({n_voxels} voxels, {n_trials} trials)"
                )
            with_ids = ((n_voxels, 1), (n_voxels, n_trials + 1))
            listed = [found[:, 0] for found in blocks if found.shape in with_ids]
            ids = np.array([float(voxel["voxel_id"]) for voxel in voxels])
            if listed and not np.array_equal(listed[0], ids):
                raise DataError(f"voxel_id in {path}", got="others", allowed=f"those of {_CONTENT[1]}, in its order")
            out = np.empty((n_trials, len(chosen)), np.float32)
            for start in range(0, n_voxels, _ROWS):
                inside = slice(*np.searchsorted(chosen, (start, start + _ROWS)))
                if inside.start < inside.stop:
                    out[:, inside] = block[start : start + _ROWS][chosen[inside] - start, -n_trials:].T
            return out
    except OSError as error:
        raise DataError(f"cannot read {path}", got=str(error)) from error


def _standardise(values: Float32, trials: Sequence[dict[str, str]]) -> None:
    """In place, by each session's training trials."""
    session = np.array([trial["session"] for trial in trials])
    train = np.array([trial["trial_type"] == "train" for trial in trials])
    for name in np.unique(session):
        fitted: npt.NDArray[Any] = values[(session == name) & train]
        if len(fitted) < 2:
            raise DataError(f"training trials of session {name}", got=len(fitted), allowed="two or more")
        deviation = fitted.std(axis=0, dtype=np.float64)
        deviation[deviation == 0] = 1
        of_session = session == name
        values[of_session] = (values[of_session] - fitted.mean(axis=0, dtype=np.float64)) / deviation


def _table(path: Path) -> _Rows:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"table {path}", got=str(error), allowed="a .csv file with a header") from error
