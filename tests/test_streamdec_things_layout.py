"""Simulated subjects on disk, read back as somebody who knows the official layout would."""

from __future__ import annotations

import csv

import numpy as np
import pytest

from streamdec.acquire.safe_npy import read_npy
from streamdec.errors import ConfigError
from streamdec.simulate import things_layout
from streamdec.simulate.leadfield import CH_NAMES
from streamdec.simulate.schedule import TARGET, Timing
from streamdec.simulate.subject import Subject
from streamdec.simulate.things_layout import RAW_ORDER, training_images
from streamdec.simulate.world import World

WORLD = World(0, n_train=6, images_per_concept=3, n_test=4, size=32)
QUICK = Timing(before=0.1, after=0.9, targets=0.5)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("things")
    subjects = [Subject(WORLD, 1), Subject(WORLD, 2)]
    things_layout.write(root, subjects, n_sessions=2, train_repetitions=2, test_repetitions=3, timing=QUICK)
    return root


def raw(root, subject, session, part):
    return read_npy(root / f"eeg_dataset/raw_data/sub-{subject:02d}/ses-{session:02d}/raw_eeg_{part}.npy")


def codes(content):
    stim = content["raw_eeg_data"][content["ch_names"].index("stim")]
    return stim[stim != 0].astype(int)


def test_tree(root):
    files = sorted(str(path.relative_to(root)) for path in root.rglob("*.npy"))
    assert len(files) == 2 * 2 * 2 + 1
    folders = sorted(path.name for path in (root / "image_set/training_images").iterdir())
    assert [folder.split("_", 1)[0] for folder in folders] == [f"{i:05d}" for i in range(1, 7)]
    assert all(len(list(path.iterdir())) == 3 for path in (root / "image_set/training_images").iterdir())
    assert len(list((root / "image_set/test_images").rglob("*.jpg"))) == 4
    assert "imulated" in (root / "SIMULATED.txt").read_text()


def test_raw_dictionary(root):
    content = raw(root, 1, 1, "training")
    assert content["ch_names"] == [*RAW_ORDER, "stim"]
    assert set(RAW_ORDER) == set(CH_NAMES)
    assert content["ch_types"] == ["eeg"] * 63 + ["stim"]
    assert content["sfreq"] == 1000
    data = content["raw_eeg_data"]
    assert data.dtype == np.float64
    assert 1e-6 < data[:63].std() < 1e-4  # volts


def test_codes_of_two_sessions_complete_the_set(root):
    shown = np.concatenate([codes(raw(root, 1, session, "training")) for session in (1, 2)])
    np.testing.assert_array_equal(np.bincount(shown[shown != TARGET]), [0, *[2] * 18])
    test = codes(raw(root, 1, 2, "test"))
    np.testing.assert_array_equal(np.bincount(test[test != TARGET]), [0, *[3] * 4])


def test_signal_is_the_subjects_in_another_order_and_unit(root):
    content = raw(root, 2, 1, "test")
    data, names = content["raw_eeg_data"], content["ch_names"]
    subject = Subject(WORLD, 2)
    noise = subject.noise(0)
    noise.chunk(raw(root, 2, 1, "training")["raw_eeg_data"].shape[1])
    noise = noise.chunk(data.shape[1])
    expected = np.zeros((63, data.shape[1] + 1000))
    mean = subject._forward.evoked(subject._forward.mean_moments)
    for sample in np.flatnonzero(data[63]):
        code = int(data[63, sample])
        expected[:, sample : sample + 800] += mean if code == TARGET else subject.evoked("test", [code - 1])[0]
    for name in ("Oz", "Fp1", "TP10"):
        row = CH_NAMES.index(name)
        np.testing.assert_allclose(
            1e6 * data[names.index(name)], expected[row, : data.shape[1]] + noise[row], atol=1e-3
        )


def test_subjects_and_sessions_differ(root):
    first = raw(root, 1, 1, "test")["raw_eeg_data"][:, :500]
    for subject, session in ((1, 2), (2, 1)):
        assert not np.array_equal(raw(root, subject, session, "test")["raw_eeg_data"][:, :500], first)


def test_metadata_row_is_code_minus_one(root):
    metadata = read_npy(root / "image_set/image_metadata.npy")
    assert len(metadata["train_img_files"]) == 18
    for split, folder in (("train", "training_images"), ("test", "test_images")):
        concepts, files = metadata[f"{split}_img_concepts"], metadata[f"{split}_img_files"]
        assert [f"{c}/{f}" for c, f in zip(concepts, files, strict=True)] == WORLD.ids(split)
        listed = sorted(
            path.relative_to(root / "image_set" / folder) for path in (root / "image_set" / folder).rglob("*.jpg")
        )
        assert [f"{path.parent.name}/{path.name}" for path in listed] == WORLD.ids(split)
    numbers = {c.split("_", 1)[0] for split in ("train", "test") for c in metadata[f"{split}_img_concepts_THINGS"]}
    assert numbers == {f"{i:05d}" for i in range(1, 11)}


def test_attributes_table(root):
    with (root / "image_set/image_attributes.tsv").open(newline="") as file:
        rows = list(csv.reader(file, delimiter="\t"))
    assert rows[0] == ["file", *WORLD.attribute_names]
    assert rows[1][0] == f"training_images/{WORLD.ids('train')[0]}"
    values = np.array([row[1:] for row in rows[1:]], np.float32)
    np.testing.assert_allclose(values, np.concatenate([WORLD.attributes("train"), WORLD.attributes("test")]), rtol=1e-5)


def test_images_survive_jpeg(root):
    from PIL import Image

    file = root / "image_set/test_images" / WORLD.ids("test")[2]
    with Image.open(file) as image:
        assert np.abs(np.asarray(image).astype(int) - WORLD.image("test", 2)).mean() < 8


def test_mne_finds_the_events(root):
    mne = pytest.importorskip("mne", reason="mne comes with the recordings extra")
    content = raw(root, 1, 1, "training")
    info = mne.create_info(content["ch_names"], content["sfreq"], content["ch_types"])
    recording = mne.io.RawArray(content["raw_eeg_data"], info, verbose=False)
    events = mne.find_events(recording, stim_channel="stim", verbose=False)
    np.testing.assert_array_equal(events[:, 2], codes(content))


def test_sessions_pair_up_to_all_concepts():
    a, b, c = (training_images(WORLD, session) for session in (0, 1, 2))
    assert sorted([*a, *b]) == list(range(18))
    assert not set(a) & set(b)
    assert len(c) == 9


@pytest.mark.parametrize("n_sessions", [0, 1, 3])
def test_odd_sessions_are_refused(tmp_path, n_sessions):
    with pytest.raises(ConfigError, match="n_sessions"):
        things_layout.write(tmp_path, [Subject(WORLD)], n_sessions=n_sessions)


def test_subjects_of_two_worlds_are_refused(tmp_path):
    with pytest.raises(ConfigError, match="same world"):
        things_layout.write(tmp_path, [Subject(WORLD), Subject(World(1))])
