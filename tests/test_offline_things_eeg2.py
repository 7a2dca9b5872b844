"""The THINGS-EEG2 loader on a hand-made data set in the official layout."""

from __future__ import annotations

import pickle
from pathlib import Path

import mne
import numpy as np
import pytest

from offline.data import layouts
from offline.data.prepare import Recipe, prepare
from offline.data.store import Prepared
from offline.data.things_eeg2 import RECIPE, ThingsEeg2, onsets
from streamdec.config import convert, read_toml
from streamdec.errors import DataError
from streamdec.signal.chain import Chain
from streamdec.signal.mvnn import noise_covariance
from streamdec.signal.spec import BandPass, Baseline, Resample, Standardise, Whiten
from streamdec.simulate.leadfield import CH_NAMES

CONFIGS = Path(__file__).parents[1] / "configs"
NAMES = ["Oz", "O1", "Pz"]
STEPS = (Baseline(-0.2, 0.0), Resample(250.0), Whiten())
N_TRAIN, N_TEST = 6, 3


def raw(session: int, n_items: int, repetitions: int) -> dict:
    rng = np.random.default_rng([session, n_items])
    codes = np.concatenate([rng.permutation(n_items) + 1 for _ in range(repetitions)] + [[99999]])
    samples = 900 + 200 * np.arange(len(codes))
    n_times = samples[-1] + 900  # the last epoch, the catch image's, is cut off
    eeg = np.cumsum(rng.standard_normal((3, n_times)), axis=1) * 1e-6 * np.array([[1.0], [2.0], [3.0]])
    stim = np.zeros(n_times)
    stim[samples] = codes
    return {
        "raw_eeg_data": np.vstack([eeg, stim]),
        "ch_names": [*NAMES, "stim"],
        "ch_types": ["eeg"] * 3 + ["stim"],
        "sfreq": 1000,
        "highpass": 0.01,
        "lowpass": 100.0,
    }


@pytest.fixture(params=["official", "renamed"])
def root(request, tmp_path) -> Path:
    official = request.param == "official"
    images = tmp_path / "data" / ("image_set" if official else "Image_set")
    images.mkdir(parents=True)
    (images / ("training_images" if official else "train_images")).mkdir()
    metadata = {
        "train_img_concepts": [f"{i // 2 + 1:05d}_thing_{i // 2}" for i in range(N_TRAIN)],
        "train_img_files": [f"thing_{i // 2}_{i:02d}s.jpg" for i in range(N_TRAIN)],
        "test_img_concepts": [f"{i + 1:05d}_other_{i}" for i in range(N_TEST)],
        "test_img_files": [f"other_{i}_01b.jpg" for i in range(N_TEST)],
    }
    np.save(images / "image_metadata.npy", metadata)
    for session in range(2):
        folder = (
            tmp_path / "data" / ("eeg_dataset/raw_data" if official else "Raw_data") / "sub-01" / f"ses-0{session + 1}"
        )
        folder.mkdir(parents=True)
        train, test = raw(session, N_TRAIN, 2), raw(session + 10, N_TEST, 3)
        if official:
            np.save(folder / "raw_eeg_training.npy", train)
        else:  # NICE writes a plain pickle under the .npy name
            (folder / "raw_eeg_train.npy").write_bytes(pickle.dumps(train, protocol=4))
        np.save(folder / "raw_eeg_test.npy", test)
    return tmp_path / "data"


def opened(root: Path, recipe: Recipe = RECIPE) -> ThingsEeg2:
    found = layouts.source(root, "sub-01", recipe=recipe)
    assert isinstance(found, ThingsEeg2)
    return found


def by_mne(content: dict, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Published recipe up to the whitening: (n, n_chans, 300) microvolt, and the codes."""
    info = mne.create_info(content["ch_names"], content["sfreq"], content["ch_types"])
    recording = mne.io.RawArray(content["raw_eeg_data"], info, verbose="error")
    events = mne.find_events(recording, "stim", verbose="error")
    events = events[events[:, 2] != 99999]
    epochs = mne.Epochs(recording, events, tmin=-0.2, tmax=1.0, baseline=(None, 0), preload=True, verbose="error")
    epochs = epochs.pick(names).reorder_channels(names).resample(250, verbose="error")
    return epochs.get_data(copy=False) * 1e6, epochs.events[:, 2]


@pytest.mark.parametrize("whitening", ["pooled", "session"])
def test_epochs_are_the_published_ones(root: Path, tmp_path, whitening: str) -> None:
    order = ["Pz", "O1", "Oz"]
    source = opened(root, Recipe(-0.2, 1.0, tuple(order), steps=STEPS))
    prepare(source, whitening, tmp_path / "store")
    prepared = Prepared(tmp_path / "store")
    assert prepared.meta.kind == "stimulus"
    assert not prepared.meta.simulated
    assert bool(prepared.meta.offline_only) == (whitening == "session")
    cut = {
        part: [by_mne(raw(session + (10 if part == "test" else 0), n, r), order) for session in range(2)]
        for part, n, r in (("train", N_TRAIN, 2), ("test", N_TEST, 3))
    }
    sigma = []
    for epochs, codes in cut["train"]:
        single = np.stack([noise_covariance(epoch[None].astype(np.float32), np.ones(1)) for epoch in epochs])
        sigma.append(np.mean([single[codes == code].mean(axis=0) for code in np.unique(codes)], axis=0))
    pooled = [np.mean(sigma, axis=0)] * 2
    for part, sessions in cut.items():
        stored = prepared.part(part)
        assert stored.rows.item.tolist() == [code - 1 for _, codes in sessions for code in codes]
        assert stored.rows.session.tolist() == [s for s, (_, codes) in enumerate(sessions) for _ in codes]
        expected = []
        for (epochs, _), covariance in zip(sessions, pooled if whitening == "pooled" else sigma, strict=True):
            values, vectors = np.linalg.eigh(covariance)
            expected.append(np.einsum("cd,ndt->nct", vectors @ np.diag(values**-0.5) @ vectors.T, epochs))
        scale = np.abs(stored.epochs).max()
        np.testing.assert_allclose(stored.epochs, np.concatenate(expected), atol=1e-5 * scale)
    assert prepared.meta.items["train"][3].id == "00002_thing_1/thing_1_03s.jpg"
    assert prepared.meta.items["train"][3].label == "thing 1"
    assert prepared.meta.items["test"][2].image == "test_images/00003_other_2/other_2_01b.jpg"
    folder = prepared.meta.items["train"][0].image.partition("/")[0]
    assert (root / ("image_set" if folder == "training_images" else "Image_set") / folder).is_dir()
    assert set(prepared.meta.channel_sd) == set(order)
    assert prepared.meta.channel_sd["Pz"] > prepared.meta.channel_sd["Oz"]


def test_official_whitener_is_over_repetitions_of_both_parts(root: Path, tmp_path) -> None:
    analysis = pytest.importorskip("sklearn.discriminant_analysis")
    source = opened(root, Recipe(-0.1, 0.1, tuple(NAMES), steps=(Resample(50.0), Whiten())))
    prepare(source, "official", tmp_path / "store")
    prepare(opened(root, Recipe(-0.1, 0.1, tuple(NAMES), steps=(Resample(50.0),))), "pooled", tmp_path / "plain")
    white, plain = Prepared(tmp_path / "store"), Prepared(tmp_path / "plain")
    assert "test part" in white.meta.offline_only
    for session in range(2):
        sigma = []
        for part in ("train", "test"):
            found = plain.part(part)
            of_session = found.rows.session == session
            by_item = [found.epochs[of_session & (found.rows.item == i)] for i in range(len(found.items))]
            assert all(len(epochs) > 1 for epochs in by_item)
            instants = [
                [analysis._cov(epochs[:, :, t].astype(np.float64), shrinkage="auto") for t in range(epochs.shape[2])]
                for epochs in by_item
            ]
            sigma.append(np.mean([np.mean(of_item, axis=0) for of_item in instants], axis=0))
        values, vectors = np.linalg.eigh(np.mean(sigma, axis=0))
        whitener = vectors @ np.diag(values**-0.5) @ vectors.T
        for part in ("train", "test"):
            of_session = plain.part(part).rows.session == session
            expected = np.einsum("cd,ndt->nct", whitener, plain.part(part).epochs[of_session])
            np.testing.assert_allclose(white.part(part).epochs[of_session], expected, rtol=1e-4, atol=1e-5)


def test_filters_run_over_the_whole_recording_and_standardise_is_fitted(root: Path, tmp_path) -> None:
    recipe = Recipe(0.0, 0.4, tuple(NAMES), (BandPass(0.5, 30.0, 2),), (Resample(250.0), Standardise()))
    source = opened(root, recipe)
    prepare(source, "pooled", tmp_path / "store")
    prepared = Prepared(tmp_path / "store")
    train = prepared.part("train").epochs
    np.testing.assert_allclose(train.mean(axis=(0, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(train.std(axis=(0, 2)), 1, rtol=1e-5)
    run = next(iter(source.runs()))
    chain = Chain(prepared.meta.signal, prepared.arrays)
    assert np.array_equal(chain(run.cut(np.arange(2, 5))), train[2:5])


def test_onsets_are_rising_edges() -> None:
    stim = np.array([5.0, 0, 0, 3, 3, 0, 99999, 0, 1, 2, 0])
    position, item = onsets(stim, 5)
    assert position.tolist() == [3, 8, 9]
    assert item.tolist() == [2, 0, 1]
    assert [a.tolist() for a in onsets(np.zeros(4), 5)] == [[], []]
    with pytest.raises(DataError, match="event codes"):
        onsets(stim, 2)


def test_what_is_missing_is_named(root: Path, tmp_path) -> None:
    with pytest.raises(DataError, match="sub-01"):
        layouts.source(root, "sub-07")
    with pytest.raises(DataError, match="no sub-01 of things_eeg2"):
        layouts.source(tmp_path / "nothing", "sub-01")
    with pytest.raises(DataError, match="no Fp1"):
        list(opened(root).runs())
    next(root.rglob("raw_eeg_test.npy")).unlink()
    with pytest.raises(DataError, match=r"raw_eeg_test\.npy"):
        list(opened(root, Recipe(-0.2, 1.0, tuple(NAMES))).runs())


def test_check_looks_at_every_session(root: Path) -> None:
    next((root).rglob("ses-02/raw_eeg_test.npy")).unlink()
    (finding,) = layouts.check(root)
    assert (finding.layout.name, finding.subject, finding.lines) == ("raw", "sub-01", ())
    pieces, said = zip(*(problem.split(": ", 1) for problem in finding.problems), strict=True)
    assert pieces == ("ses-01 train", "ses-01 test", "ses-02 train", "ses-02 test")
    assert all("no Fp1" in problem for problem in said[:3])
    assert "raw_eeg_test.npy" in said[3]


def test_config_is_the_default_recipe() -> None:
    written = convert(read_toml(CONFIGS / "data" / "things_eeg2.toml"), Recipe, "config")
    assert written.signal(CH_NAMES, 1000.0) == RECIPE.signal(CH_NAMES, 1000.0)
    assert written.whitener == RECIPE.whitener == "pooled"
