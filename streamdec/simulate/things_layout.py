"""Writes simulated subjects as THINGS-EEG2 lies on disk (Gifford et al. 2022), so that the real loader can read them.

::

    image_set/
      training_images/00001_blue_dotted_ring/blue_dotted_ring_01b.jpg ...
      test_images/00001_blue_checked_star/blue_checked_star_01b.jpg ...
      image_metadata.npy
      image_attributes.tsv      not in the original: the true content of every image
    eeg_dataset/raw_data/sub-01/ses-01/raw_eeg_training.npy, raw_eeg_test.npy ...
    SIMULATED.txt               not in the original: says that nobody was recorded

The .npy files hold pickled dictionaries, as the originals do. Raw data are volts in float64, 63 channels in the
amplifier's order and the trigger channel ``stim``, whose impulses are 1 for the first image of the split, 2 for the
second, ..., 99999 for a catch image.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import ConfigError
from ..types import Float64
from .leadfield import CH_NAMES
from .noise import Noise
from .schedule import Int64, Schedule, Timing, rsvp
from .subject import Subject
from .world import SPLITS, World

# fmt: off
RAW_ORDER: tuple[str, ...] = (
    "Fp1", "F3", "F7", "FT9", "FC5", "FC1", "C3", "T7", "TP9", "CP5", "CP1", "Pz", "P3", "P7", "O1", "Oz", "O2",
    "P4", "P8", "TP10", "CP6", "CP2", "Cz", "C4", "T8", "FT10", "FC6", "FC2", "F4", "F8", "Fp2", "AF7", "AF3",
    "AFz", "F1", "F5", "FT7", "FC3", "FCz", "C1", "C5", "TP7", "CP3", "P1", "P5", "PO7", "PO3", "POz", "PO4",
    "PO8", "P6", "P2", "CPz", "CP4", "TP8", "C6", "C2", "FC4", "FT8", "F6", "F2", "AF4", "AF8",
)
# fmt: on
"""The 63 channels in the order of the raw files."""

_FOLDERS = {"train": "training_images", "test": "test_images"}
_ABOUT = """Simulated by streamdec. Nobody was recorded and nothing was photographed: images, responses and noise
are made by a program. A figure obtained on these files is a simulated figure.
"""


def write(
    root: Path | str,
    subjects: Sequence[Subject],
    *,
    n_sessions: int = 4,
    train_repetitions: int = 2,
    test_repetitions: int = 20,
    timing: Timing | None = None,
) -> None:
    """Write a whole data set; existing files are replaced.

    A session shows half of the training concepts and all test images. Defaults are THINGS-EEG2's: four sessions make 4
    repetitions of each training image and 80 of each test image.

    Parameters
    ----------
    root : Path
        Folder that gets ``image_set`` and ``eeg_dataset``. A session of the default world takes 1.5 GB.
    subjects : sequence of Subject
        They become sub-01, sub-02, ...; all of one world.
    n_sessions : int
        An even number, so that every concept is shown.
    train_repetitions, test_repetitions : int
        Presentations of an image in a session that shows it.
    timing : Timing, optional
        THINGS-EEG2's when omitted.

    Raises
    ------
    ConfigError
        Subjects of different worlds, an odd number of sessions, or no Pillow to write images with.
    """
    if not subjects or any(subject.world is not subjects[0].world for subject in subjects):
        raise ConfigError("subjects", got=f"{len(subjects)}", allowed="one or more, all of the same world")
    if n_sessions < 2 or n_sessions % 2:
        raise ConfigError("n_sessions", got=n_sessions, allowed="2, 4, ...: a session shows half of the concepts")
    root, world = Path(root), subjects[0].world
    write_images(root, world)
    for number, subject in enumerate(subjects, 1):
        for session in range(n_sessions):
            folder = root / "eeg_dataset" / "raw_data" / f"sub-{number:02d}" / f"ses-{session + 1:02d}"
            folder.mkdir(parents=True, exist_ok=True)
            noise = subject.noise(session)
            for name, split, images, repetitions in (
                ("training", SPLITS[0], training_images(world, session), train_repetitions),
                ("test", SPLITS[1], np.arange(world.n_images("test")), test_repetitions),
            ):
                seed = (subject.seed, session, SPLITS.index(split))
                schedule = rsvp(split, images, repetitions=repetitions, seed=seed, sfreq=subject.sfreq, timing=timing)
                _save(folder / f"raw_eeg_{name}.npy", _raw(subject, schedule, noise))


def training_images(world: World, session: int) -> Int64:
    """Choose what a session (0-based) shows: images of half of the concepts, drawn anew for every pair of sessions."""
    pair, half = divmod(session, 2)
    concepts = np.random.default_rng([world.seed, 5, pair]).permutation(len(world.concepts("train")))
    chosen = np.sort(concepts[half::2])
    n = world.images_per_concept
    return np.asarray((chosen[:, None] * n + np.arange(n)).ravel(), np.int64)


def write_images(root: Path | str, world: World) -> None:
    """Write ``image_set``: JPEG files, ``image_metadata.npy``, ``image_attributes.tsv``; and ``SIMULATED.txt``."""
    try:
        from PIL import Image
    except ImportError as error:
        raise ConfigError("writing JPEG files needs Pillow", do='pip install "streamdec[train]"') from error
    folder = Path(root) / "image_set"
    folder.mkdir(parents=True, exist_ok=True)
    (folder.parent / "SIMULATED.txt").write_text(_ABOUT, encoding="utf-8")
    everything = sorted(concept.name for split in SPLITS for concept in world.concepts(split))
    number = {name: i for i, name in enumerate(everything, 1)}
    metadata: dict[str, list[str]] = {}
    rows = []
    for split in SPLITS:
        attributes = world.attributes(split)
        ids = world.ids(split)
        for i, file in enumerate(ids):
            path = folder / _FOLDERS[split] / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(world.image(split, i)).save(path, quality=95)
            rows.append((f"{_FOLDERS[split]}/{file}", *(f"{value:.6g}" for value in attributes[i])))
        concepts, files = zip(*(file.split("/") for file in ids), strict=True)
        names = [concept.split("_", 1)[1] for concept in concepts]
        metadata[f"{split}_img_concepts"] = list(concepts)
        metadata[f"{split}_img_concepts_THINGS"] = [f"{number[name]:05d}_{name}" for name in names]
        metadata[f"{split}_img_files"] = list(files)
    _save(folder / "image_metadata.npy", metadata)
    with (folder / "image_attributes.tsv").open("w", newline="", encoding="utf-8") as out:
        table = csv.writer(out, delimiter="\t", lineterminator="\n")
        table.writerow(("file", *world.attribute_names))
        table.writerows(rows)


def _raw(subject: Subject, schedule: Schedule, noise: Noise) -> dict[str, Any]:
    data: Float64 = np.zeros((len(RAW_ORDER) + 1, schedule.n_times))
    order = [CH_NAMES.index(name) for name in RAW_ORDER]
    done = 0
    for chunk in subject.record(schedule, noise):
        np.multiply(chunk[order], 1e-6, out=data[:-1, done : done + chunk.shape[1]])
        done += chunk.shape[1]
    data[-1, schedule.samples] = schedule.codes
    return {
        "raw_eeg_data": data,
        "ch_names": [*RAW_ORDER, "stim"],
        "ch_types": ["eeg"] * len(RAW_ORDER) + ["stim"],
        "sfreq": int(subject.sfreq) if subject.sfreq.is_integer() else subject.sfreq,
        "highpass": 0.01,
        "lowpass": 100.0,
    }


def _save(path: Path, content: dict[str, Any]) -> None:
    box = np.empty((), object)
    box[()] = content
    np.save(path, box, allow_pickle=True)  # as the originals are; it is written here and never read with pickle
