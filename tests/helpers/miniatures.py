"""The published layouts of THINGS-EEG2, THINGS-MEG and THINGS-fMRI in miniature, as their authors write them."""

from __future__ import annotations

import csv
import json
import pickle
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import h5py
import mne
import numpy as np
import torch

from streamdec.simulate.leadfield import CH_NAMES
from streamdec.simulate.things_layout import RAW_ORDER

CONCEPTS = {"train": ("aardvark", "abacus", "bath_towel"), "test": ("aircraft_carrier", "zebra")}
OFFICIAL_17 = tuple(name for name in RAW_ORDER if name[0] in "OP")
N_IMAGES = {"train": 2, "test": 1}
MEG = tuple(f"MLC{i:02d}-1609" for i in range(4))


@dataclass
class Truth:
    """What a loader must give: (n, n_chans, n_times), and per epoch the id of its image and its session."""

    epochs: np.ndarray
    ids: list[str]
    session: list[int]
    ch_names: Sequence[str]


def ids(part: str, *, numbered: bool = True, n_images: dict[str, int] = N_IMAGES) -> list[str]:
    """``folder/file`` of each image, in order."""
    return [
        f"{f'{number:05d}_' if numbered else ''}{concept}/{concept}_{i + 1:02d}b.jpg"
        for number, concept in enumerate(CONCEPTS[part], 1)
        for i in range(n_images[part])
    ]


def images(root: Path, train: str = "training_images", *, metadata: bool = True) -> Path:
    """Write the images of THINGS-EEG2 (empty files)."""
    root.mkdir(parents=True, exist_ok=True)
    for part, folder in (("train", train), ("test", "test_images")):
        for image in ids(part):
            path = root / folder / image
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch()
    if metadata:
        content = {}
        for part in CONCEPTS:
            concepts, files = zip(*(image.split("/") for image in ids(part)), strict=True)
            content |= {f"{part}_img_concepts": list(concepts), f"{part}_img_files": list(files)}
        np.save(root / "image_metadata.npy", content)
    return root


def values(part: str, n_items: int, n_repetitions: int, n_chans: int, n_times: int) -> np.ndarray:
    """(n_items, n_repetitions, n_chans, n_times) float64, of the order of whitened epochs."""
    return np.random.default_rng([len(part), n_chans]).standard_normal((n_items, n_repetitions, n_chans, n_times))


def truth(part: str, data: np.ndarray, names: Sequence[str], ch_names: Sequence[str], sessions=None) -> Truth:
    """Describe (n_items, n_repetitions, n_chans, n_times)."""
    n_items, n_repetitions = data.shape[:2]
    session = np.zeros((n_items, n_repetitions), int) if sessions is None else sessions
    each = [name for name in names for _ in range(n_repetitions)]
    flat = data.reshape(-1, *data.shape[2:]).astype(np.float32)
    return Truth(flat, each, session.ravel().astype(int).tolist(), ch_names)


def _repetitions(part: str) -> int:
    return 2 if part == "train" else 5


def official(root: Path) -> dict[str, Truth]:
    """OSF's release: 17 channels in the cap's order, 100 Hz, np.save of a dictionary."""
    images(root / "image_set")
    return _preprocessed(root / "preprocessed_data", OFFICIAL_17, 100, 100, 100, dumped=False)


def nice(root: Path) -> dict[str, Truth]:
    """NICE: 63 channels, 250 Hz, times of the 300 samples before 50 were dropped, a pickle under the .npy name."""
    images(root / "image_set")
    return _preprocessed(root / "Preprocessed_data_250Hz", CH_NAMES, 250, 250, 300, dumped=True)


def _preprocessed(
    root: Path, ch_names: Sequence[str], sfreq: int, n_times: int, n_listed: int, *, dumped: bool
) -> dict[str, Truth]:
    found = {}
    folder = root / "sub-01"
    folder.mkdir(parents=True)
    for part, file in (("train", "training"), ("test", "test")):
        data = values(part, len(ids(part)), _repetitions(part), len(ch_names), n_times)
        times = -0.2 + np.arange(n_listed) / sfreq
        content = {"preprocessed_eeg_data": data, "ch_names": list(ch_names), "times": times}
        path = folder / f"preprocessed_eeg_{file}.npy"
        if dumped:
            path.write_bytes(pickle.dumps(content, protocol=4))
        else:
            np.save(path, content)
        found[part] = truth(part, data, ids(part), ch_names)
    return found


def ubp(root: Path, *, meg: bool = False) -> dict[str, Truth]:
    """UBP: float16 in .pt, sessions per repetition, train_images/; of MEG another key, and each image named once."""
    ch_names = [f"M{i:03d}" for i in range(120)] if meg else list(CH_NAMES)
    images(root / "Image_set_Resize", "train_images", metadata=False)
    folder = root / "Preprocessed_data_250Hz_whiten" / "sub-01"
    folder.mkdir(parents=True)
    found = {}
    for part in CONCEPTS:
        data = values(part, len(ids(part)), 4, len(ch_names), 250).astype(np.float16)
        shape = data.shape[:2]
        names = np.array([[f"{part}_images/{image}"] * 4 for image in ids(part)])
        session = np.array([[0, 0, 1, 1]] * 2 if part == "test" else [[0, 0, 2, 2], [1, 1, 3, 3]] * 3)
        content = {
            "meg" if meg else "eeg": data,
            "label": np.zeros(shape, int),
            "img": names[:, 0] if meg else names,
            "text": np.full(shape, "thing"),
            "session": session.astype(float),
            "ch_names": ch_names,
            "times": -0.2 + np.arange(300) / 250,
        }
        torch.save(content, folder / f"{part}.pt", pickle_protocol=5)
        found[part] = truth(part, data, ids(part), ch_names, session)
    return found


def neurobridge(root: Path) -> dict[str, Truth]:
    """NeuroBridge: plain arrays (concepts, images, repetitions, channels, samples) and info.json."""
    images(root / "image_set", metadata=False)
    folder = root / "preprocessed_eeg" / "sub-01"
    folder.mkdir(parents=True)
    info = {"sfreq": 250, "baseline_duration": 0.2, "after_duration": 1.0, "ch_names": CH_NAMES}
    (folder.parent / "info.json").write_text(json.dumps(info))
    found = {}
    for part, concepts in CONCEPTS.items():
        data = values(part, len(ids(part)), _repetitions(part), len(CH_NAMES), 250).astype(np.float32)
        np.save(folder / f"{part}.npy", data.reshape(len(concepts), -1, *data.shape[1:]))
        found[part] = truth(part, data, ids(part), CH_NAMES)
    return found


def atm_meg(root: Path) -> dict[str, Truth]:
    """ATM's THINGS-MEG: pickles of (concepts, images, repetitions, channels, samples)."""
    images(root / "images_meg", metadata=False)
    folder = root / "preprocessed_npy" / "sub-01"
    folder.mkdir(parents=True)
    found = {}
    for part, file in (("train", "training"), ("test", "zs_test")):
        data = values(part, len(ids(part)), 1 if part == "train" else 12, len(MEG), 201)
        shaped = data.reshape(len(CONCEPTS[part]), -1, *data.shape[1:])
        content = {"meg_data": shaped, "ch_names": list(MEG), "times": np.arange(201) / 200}
        (folder / f"preprocessed_meg_{file}.pkl").write_bytes(pickle.dumps(content, protocol=4))
        found[part] = truth(part, data, ids(part), MEG)
    return found


def fif(root: Path, *, table: bool, ch_names: Sequence[str] = MEG, split_size: str = "2GB") -> dict[str, Truth]:
    """THINGS-MEG: epochs in the order of their presentation, catch trials, a test concept among the others."""
    everything = sorted(ids("train", numbered=False) + ids("test", numbered=False) + ["zebra/zebra_02b.jpg"])
    of_test = ids("test", numbered=False)
    for image in everything:
        path = root / "images" / image
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    numbers = {image: 10 * i + 7 for i, image in enumerate(everything)}
    rng = np.random.default_rng(4)
    shown = [*everything, *of_test, *of_test, None, None]
    shown = [shown[i] for i in rng.permutation(len(shown))]
    data = rng.standard_normal((len(shown), len(ch_names), 281))
    events = np.array([[1000 * i, 0, numbers.get(image, 999999)] for i, image in enumerate(shown)])
    rows = []
    for i, image in enumerate(shown):
        path = f"images_meg/{image}"
        if image is None or image in of_test:
            path = "images_catch_meg/catch_01.jpg" if image is None else f"images_test_meg/{image.split('/')[1]}"
        rows.append({"image_path": path, "session_nr": 1 + i // 6})
    info = mne.create_info(list(ch_names), 200.0, "mag")
    epochs = mne.EpochsArray(data, info, events, -0.1, verbose="error")
    if table:
        path = root / "sourcedata" / "sample_attributes_P2.csv"
        path.parent.mkdir(parents=True)
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        try:
            import pandas as pd
        except ImportError:
            epochs.metadata = rows
        else:
            epochs.metadata = pd.DataFrame(rows)
    path = root / "derivatives" / "preprocessed" / "preprocessed_P2-epo.fif"
    path.parent.mkdir(parents=True)
    epochs.save(path, split_size=split_size, fmt="double", verbose="error")
    found = {}
    for part in CONCEPTS:
        wanted = set(ids(part, numbered=False))
        kept = [i for i, image in enumerate(shown) if image in wanted]
        session = [1 + i // 6 for i in kept]
        found[part] = Truth(data[kept].astype(np.float32), [shown[i] for i in kept], session, ch_names)
    return found


def tables(root: Path) -> dict[str, Truth]:
    """THINGS-fMRI: responses as pandas writes them, 2 sessions; the last training concept is the first test image's."""
    rng = np.random.default_rng(5)
    trials = []
    for session in (1, 2):
        for image in ids("train", numbered=False):
            trials.append(("train", session, image))
        for image in ids("test", numbered=False):
            trials += [("test", session, image)] * 2
        trials.append(("train", session, "zebra/zebra_02b.jpg"))
    for _, _, image in trials:
        path = root / "images" / image
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    betas = root / "betas_csv"
    betas.mkdir()
    n_voxels = 9
    responses = (3 * rng.standard_normal((n_voxels, len(trials))) + 1).astype(np.float32)
    voxel_ids = np.arange(100, 100 + n_voxels)
    with h5py.File(betas / "sub-01_ResponseData.h5", "w") as file:
        group = file.create_group("ResponseData")
        group["axis1"] = np.arange(n_voxels)
        group["block0_values"] = responses
        group["block1_items"] = np.array([b"voxel_id"])
        group["block1_values"] = voxel_ids[:, None]
    with (betas / "sub-01_VoxelMetadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("voxel_id", "subject_id", "nc_singletrial", "V1", "lLOC"))
        writer.writerows((voxel, "01", 0.1 * (i % 5), int(i < 4), int(i > 6)) for i, voxel in enumerate(voxel_ids))
    with (betas / "sub-01_StimulusMetadata.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("trial_type", "session", "run", "subject_id", "trial_id", "stimulus", "concept"))
        for i, (kind, session, image) in enumerate(trials):
            concept, name = image.split("/")
            writer.writerow((kind, session, 1, "01", i, name, concept))
    scaled = responses.T.copy()
    for session in (1, 2):
        inside = [i for i, trial in enumerate(trials) if trial[1] == session]
        fitted = responses.T[[i for i in inside if trials[i][0] == "train"]]
        scaled[inside] = (scaled[inside] - fitted.mean(axis=0)) / fitted.std(axis=0)
    found = {}
    for part in CONCEPTS:
        kept = [i for i, t in enumerate(trials) if t[0] == part and (part == "test" or not t[2].startswith("zebra"))]
        names, session = [trials[i][2] for i in kept], [trials[i][1] for i in kept]
        found[part] = Truth(scaled[kept][:, :, None], names, session, [str(voxel) for voxel in voxel_ids])
    return found
