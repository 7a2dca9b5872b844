"""Each published layout, written in miniature, is read back to the same arrays; what is wrong with one is named."""

from __future__ import annotations

import os
import pickle
import shutil
from pathlib import Path

import miniatures
import numpy as np
import pytest
import tiny_store
import torch
from miniatures import CONCEPTS, Truth
from PIL import Image

from offline import cli
from offline.data import image_set, layouts, things_fmri, things_meg
from offline.data.epoch_files import EpochFiles
from offline.data.prepare import Recipe, prepare
from offline.data.store import Prepared
from offline.targets.store import compute
from streamdec.config import convert, read_toml
from streamdec.decode import bundle as bundles
from streamdec.errors import BundleError, ConfigError, DataError
from streamdec.signal.chain import Chain
from streamdec.signal.spec import BandPass, Standardise, Whiten
from streamdec.simulate.leadfield import CH_NAMES

LAYOUTS = {
    "official": (miniatures.official, "things_eeg2", "sub-01", None),
    "nice": (miniatures.nice, "things_eeg2", "sub-01", None),
    "ubp": (miniatures.ubp, "things_eeg2", "sub-01", None),
    "neurobridge": (miniatures.neurobridge, "things_eeg2", "sub-01", None),
    "ubp, MEG": (lambda root: miniatures.ubp(root, meg=True), "things_meg", "sub-01", None),
    "atm": (miniatures.atm_meg, "things_meg", "sub-01", None),
    "fif": (lambda root: miniatures.fif(root, table=False), "things_meg", "sub-02", Recipe(-0.1, 1.3)),
    "fif and table": (lambda root: miniatures.fif(root, table=True), "things_meg", "sub-02", Recipe(-0.1, 1.3)),
}


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def same(store: Path, truth: dict[str, Truth], times: slice = slice(None)) -> Prepared:
    prepared = Prepared(store)
    for part, wanted in truth.items():
        found = prepared.part(part)
        order = np.argsort(wanted.session, kind="stable")
        np.testing.assert_array_equal(np.asarray(found.epochs), wanted.epochs[order][..., times])
        assert [found.items[i].id for i in found.rows.item] == [wanted.ids[i] for i in order]
        assert found.rows.session.tolist() == [wanted.session[i] for i in order]
        for item in found.items:
            assert (Path(prepared.meta.images) / item.image).is_file()
            assert item.label in [concept.replace("_", " ") for concept in CONCEPTS[part]]
    assert prepared.meta.signal.ch_names == tuple(next(iter(truth.values())).ch_names)
    assert "preprocessed" in prepared.meta.offline_only
    return prepared


@pytest.mark.parametrize("name", LAYOUTS)
def test_read_back(tmp_path: Path, name: str) -> None:
    write, dataset, subject, recipe = LAYOUTS[name]
    truth = write(tmp_path / "data")
    source = layouts.source(tmp_path / "data", subject, dataset=dataset, recipe=recipe)
    prepare(source, "pooled", tmp_path / "store")
    prepared = same(tmp_path / "store", truth)
    n_times = prepared.meta.shape[1]
    assert prepared.meta.signal.sfreq == {100: 100.0, 250: 250.0, 201: 200.0, 281: 200.0}[n_times]
    assert prepared.meta.signal.tmin == {100: -0.2, 250: 0.0, 201: 0.0, 281: -0.1}[n_times]
    assert not prepared.meta.channel_sd
    findings = list(layouts.check(tmp_path / "data"))
    assert [(f.subject, f.problems) for f in findings] == [(subject, ())]
    assert findings[0].layout.dataset == dataset
    assert len(findings[0].lines) == 2


def test_defaults_of_meg_are_a_second(tmp_path: Path) -> None:
    truth = miniatures.fif(tmp_path / "data", table=False)
    prepare(layouts.source(tmp_path / "data", "sub-02", dataset="things_meg"), "pooled", tmp_path / "store")
    assert same(tmp_path / "store", truth, slice(20, 221)).meta.shape == (4, 201)


def test_split_files_and_one_that_is_missing(tmp_path: Path) -> None:
    names = [f"M{i:03d}" for i in range(90)]
    truth = miniatures.fif(tmp_path / "data", table=False, ch_names=names, split_size="2MB")
    parts = sorted((tmp_path / "data").rglob("*.fif"))
    assert len(parts) > 1
    source = layouts.source(tmp_path / "data", "sub-02", dataset="things_meg", recipe=Recipe(-0.1, 1.3))
    prepare(source, "pooled", tmp_path / "store")
    same(tmp_path / "store", truth)
    parts[0].unlink()
    with pytest.raises(DataError, match=r"-1\.fif"):
        layouts.source(tmp_path / "data", "sub-02", dataset="things_meg")


@pytest.mark.parametrize(
    ("settings", "kept"),
    [
        (things_fmri.FmriSettings(), range(9)),
        (things_fmri.FmriSettings(("V1", "lLOC"), 4), (2, 3, 7, 8)),  # ceilings 0 .1 .2 .3 in V1, .2 .3 in lLOC
        (things_fmri.FmriSettings(n_voxels=1), (4,)),
    ],
)
def test_fmri(tmp_path: Path, settings: things_fmri.FmriSettings, kept) -> None:
    truth = miniatures.tables(tmp_path / "data")
    _, place = layouts.locate(tmp_path / "data", "things_fmri", "sub-01")
    prepare(things_fmri.source(place, tmp_path / "data", settings), "pooled", tmp_path / "store")
    prepared = Prepared(tmp_path / "store")
    for part, wanted in truth.items():
        found = prepared.part(part)
        np.testing.assert_allclose(found.epochs, wanted.epochs[:, list(kept)], atol=2e-6)
        assert [found.items[i].id for i in found.rows.item] == wanted.ids
        assert found.rows.session.tolist() == wanted.session
    assert prepared.meta.signal.ch_names == tuple(str(100 + i) for i in kept)
    findings = list(layouts.check(tmp_path / "data"))
    assert [f.problems for f in findings] == [()]
    with_all = things_fmri.FmriSettings(test_concepts=True)
    source = things_fmri.source(place, tmp_path / "data", with_all)
    assert any(item.label == "zebra" for item in source.items["train"])
    with pytest.raises(DataError, match="no V9"):
        things_fmri.source(place, tmp_path / "data", things_fmri.FmriSettings(("V9",)))


def test_fmri_tables_that_do_not_fit(tmp_path: Path) -> None:
    import h5py

    miniatures.tables(tmp_path)
    path = tmp_path / "betas_csv" / "sub-01_ResponseData.h5"
    with h5py.File(path, "a") as file:
        file["ResponseData/block1_values"][2] = 7
    with pytest.raises(DataError, match="voxel_id"):
        things_fmri.source(path, tmp_path, things_fmri.FmriSettings())
    with h5py.File(path, "a") as file:
        del file["ResponseData/block0_values"]
        file["ResponseData/block0_values"] = np.zeros((9, 3))
    with pytest.raises(DataError, match=r"9 voxels, \d+ trials"):
        things_fmri.source(path, tmp_path, things_fmri.FmriSettings())
    path.with_name("sub-01_VoxelMetadata.csv").write_text("voxel\n1\n")
    with pytest.raises(DataError, match="nc_singletrial"):
        things_fmri.source(path, tmp_path, things_fmri.FmriSettings())


def test_channels_are_picked_by_name_and_steps_are_fitted(tmp_path: Path) -> None:
    """17 channels in UBP's order out of the official order; z-scored as NeuroBridge does it."""
    truth = miniatures.official(tmp_path / "data")
    order = tuple(name for name in CH_NAMES if name in miniatures.OFFICIAL_17)
    assert order != miniatures.OFFICIAL_17
    recipe = Recipe(0.0, 0.5, order, steps=(Standardise(),))
    prepare(layouts.source(tmp_path / "data", "sub-01", recipe=recipe), "pooled", tmp_path / "store")
    prepared = Prepared(tmp_path / "store")
    rows = [miniatures.OFFICIAL_17.index(name) for name in order]
    raw = {part: wanted.epochs[:, rows, 20:71] for part, wanted in truth.items()}
    mean, std = raw["train"].mean(axis=(0, 2)), raw["train"].std(axis=(0, 2))
    for part, wanted in raw.items():
        expected = (wanted - mean[:, None]) / std[:, None]
        np.testing.assert_allclose(prepared.part(part).epochs, expected, atol=1e-5)


def test_half_precision(tmp_path: Path) -> None:
    truth = miniatures.nice(tmp_path / "data")
    source = layouts.source(tmp_path / "data", "sub-01")
    prepare(source, "pooled", tmp_path / "half", precision="float16")
    epochs = Prepared(tmp_path / "half").part("train").epochs
    expected = truth["train"].epochs.astype(np.float16).astype(np.float32)
    assert epochs.dtype == np.float32
    assert len(epochs) == len(expected)
    for index in (slice(2, 5), np.array([7, 1]), expected[:, 0, 0] > 0, 3):
        assert epochs[index].dtype == np.float32
        np.testing.assert_array_equal(epochs[index], expected[index])
    np.testing.assert_array_equal(np.array(epochs), expected)
    assert np.load(tmp_path / "half" / "train.npy", mmap_mode="r").dtype == np.float16
    data = truth["train"].epochs.reshape(6, 2, 63, 250).copy()
    data[0, 0, 0, 0] = 1e5
    rewritten(place(tmp_path, "training"), preprocessed_eeg_data=data)
    with pytest.raises(DataError, match="too large for float16"):
        prepare(layouts.source(tmp_path / "data", "sub-01"), "pooled", tmp_path / "other", precision="float16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["data", "half"]


def place(tmp_path: Path, part: str) -> Path:
    return tmp_path / "data" / "Preprocessed_data_250Hz" / "sub-01" / f"preprocessed_eeg_{part}.npy"


def rewritten(path: Path, **changes: object) -> None:
    content = image_set.dictionary(path, ()) | changes
    content = {key: np.array(value) if isinstance(value, np.memmap) else value for key, value in content.items()}
    path.write_bytes(pickle.dumps(content))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"preprocessed_eeg_data": np.zeros((6, 2, 63, 301))}, "shape"),
        ({"preprocessed_eeg_data": np.zeros((5, 2, 63, 250))}, "5 items"),
        ({"preprocessed_eeg_data": np.zeros((6, 2, 62, 250))}, "62"),
        ({"preprocessed_eeg_data": np.full((6, 2, 63, 250), np.nan)}, "NaN"),
        ({"preprocessed_eeg_data": np.zeros((6, 2, 63, 250))}, "flat channel"),
        ({"times": np.arange(300) ** 2}, "evenly spaced"),
        ({"ch_names": ["Cz"] * 3}, "shape"),
    ],
)
def test_check_says_what_is_wrong(tmp_path: Path, capsys, change: dict, says: str) -> None:
    miniatures.nice(tmp_path / "data")
    rewritten(place(tmp_path, "training"), **change)
    assert run("prepare", "--check", tmp_path / "data") == 1
    captured = capsys.readouterr()
    wrong = [line for line in captured.out.splitlines() if "WRONG" in line]
    assert len(wrong) == 1
    assert "WRONG train" in wrong[0]
    assert says in wrong[0]
    assert "1 of 1 have problems" in captured.err


def test_check_of_what_is_missing(tmp_path: Path, capsys) -> None:
    miniatures.nice(tmp_path / "data")
    miniatures.ubp(tmp_path / "data")
    assert run("prepare", "--check", tmp_path / "data") == 0
    assert capsys.readouterr().out.count("things_eeg2 sub-01") == 2
    place(tmp_path, "test").unlink()
    next((tmp_path / "data" / "Image_set_Resize").rglob("*zebra*.jpg")).unlink()
    assert run("prepare", "--check", tmp_path / "data") == 1
    out = capsys.readouterr().out
    assert "cannot read" in out
    assert "1 of 2 images are not in" in out
    assert "train: 12 epochs of 6 images, 3 concepts, 63 channels x 250 samples at 250 Hz" in out
    assert run("prepare", "--check", tmp_path / "elsewhere") == 1
    (tmp_path / "elsewhere").mkdir()
    assert run("prepare", "--check", tmp_path / "elsewhere") == 1
    assert run("prepare") == 2
    assert "--check ROOT" in capsys.readouterr().err


def test_nan_is_not_prepared(tmp_path: Path) -> None:
    truth = miniatures.nice(tmp_path / "data")
    data = truth["train"].epochs.reshape(6, 2, 63, 250).astype(np.float64)
    data[4, 1, 5, 100] = np.nan
    rewritten(place(tmp_path, "training"), preprocessed_eeg_data=data)
    with pytest.raises(DataError, match="train epoch 9, channel 5; got NaN"):
        prepare(layouts.source(tmp_path / "data", "sub-01"), "pooled", tmp_path / "store")
    assert [path.name for path in tmp_path.iterdir()] == ["data"]


def test_several_layouts_must_be_told_apart(tmp_path: Path) -> None:
    miniatures.nice(tmp_path / "data")
    truth = miniatures.ubp(tmp_path / "data")
    with pytest.raises(ConfigError, match="--layout"):
        layouts.source(tmp_path / "data", "sub-01")
    assert isinstance(layouts.source(tmp_path / "data", "sub-01", layout="nice"), EpochFiles)
    half = tmp_path / "data" / "Preprocessed_data_250Hz_whiten"
    shutil.copytree(half, tmp_path / "data" / "Preprocessed_data_250Hz_no_whiten")
    with pytest.raises(ConfigError, match="no_whiten"):
        layouts.source(tmp_path / "data", "sub-01", layout="ubp")
    source = layouts.source(half, "sub-01", images=tmp_path / "data" / "Image_set_Resize")
    prepare(source, "pooled", tmp_path / "store")
    same(tmp_path / "store", truth)
    with pytest.raises(ConfigError, match="allowed: raw, official, nice, ubp, neurobridge"):
        layouts.source(tmp_path / "data", "sub-01", layout="mat")
    with pytest.raises(DataError, match="nice: sub-01"):
        layouts.source(tmp_path / "data", "sub-02")


def test_what_epochs_cannot_do(tmp_path: Path) -> None:
    miniatures.nice(tmp_path)
    for recipe, says in (
        (Recipe(0.0, 0.996, filters=(BandPass(1.0, 40.0),)), "filters"),
        (Recipe(0.0, 0.996, ("Fz",)), "Fz"),
        (Recipe(-0.2, 0.996), "window"),
    ):
        with pytest.raises(ConfigError, match=says):
            layouts.source(tmp_path, "sub-01", recipe=recipe)


def test_concepts_in_both_parts_are_refused(tmp_path: Path) -> None:
    miniatures.nice(tmp_path)
    metadata = image_set.dictionary(tmp_path / "image_set" / "image_metadata.npy", ())
    metadata["train_img_concepts"][:2] = ["00001_zebra"] * 2
    np.save(tmp_path / "image_set" / "image_metadata.npy", metadata)
    with pytest.raises(DataError, match="zebra in both"):
        layouts.source(tmp_path, "sub-01")
    metadata["train_img_concepts"].pop()
    np.save(tmp_path / "image_set" / "image_metadata.npy", metadata)
    with pytest.raises(DataError, match="5 concepts, 6 files"):
        layouts.source(tmp_path, "sub-01")


class Calls:
    def __init__(self, proof: Path) -> None:
        self._proof = proof

    def __reduce__(self):
        return os.system, (f"touch {self._proof}",)


@pytest.mark.parametrize("name", ["nice", "official", "ubp", "atm"])
def test_files_that_carry_code_are_refused(tmp_path: Path, name: str) -> None:
    write, dataset, subject, _ = LAYOUTS[name]
    write(tmp_path / "data")
    proof = tmp_path / "proof"
    for path in [path for path in (tmp_path / "data").rglob("sub-01/*") if "trai" in path.name]:
        if path.suffix == ".pt":
            torch.save({"eeg": Calls(proof), "img": 0, "ch_names": 0, "times": 0}, path)
        elif name == "official":
            np.save(path, {"preprocessed_eeg_data": Calls(proof)})
        else:
            path.write_bytes(pickle.dumps({"meg_data": Calls(proof)}))
    with pytest.raises(DataError, match=r"posix\.system.*nothing was called"):
        layouts.source(tmp_path / "data", subject, dataset=dataset)
    assert run("prepare", "--check", tmp_path / "data") == 1
    assert not proof.exists()


def test_prepare_from_the_command_line(tmp_path: Path, capsys) -> None:
    miniatures.official(tmp_path / "data")
    config = tmp_path / "recipe.toml"
    config.write_text('tmin = 0.0\ntmax = 0.79\nch_names = ["Oz", "O1"]\n[[steps]]\nkind = "whiten"\n')
    assert run("prepare", "things_eeg2", tmp_path / "data", tmp_path / "store", "--config", config, "--half") == 0
    assert "2 channels x 80 samples" in capsys.readouterr().out
    miniatures.tables(tmp_path / "fmri")
    config.write_text("n_voxels = 3\n")
    assert run("prepare", "things_fmri", tmp_path / "fmri", tmp_path / "voxels", "--config", config) == 0
    assert "3 channels x 1 samples" in capsys.readouterr().out
    assert run("prepare", "things_meg", tmp_path / "data", tmp_path / "none") == 1
    assert "no sub-01 of things_meg" in capsys.readouterr().err
    for early in ("--check", "--images"):  # they would do nothing
        assert run("prepare", early, tmp_path, "things_meg", tmp_path / "data", tmp_path / "none") == 2
        assert "options before DATASET" in capsys.readouterr().err


def test_official_whitener_is_refused_where_nothing_is_repeated(tmp_path: Path) -> None:
    miniatures.atm_meg(tmp_path / "data")
    recipe = Recipe(0.0, 1.0, steps=(Whiten(),))
    source = layouts.source(tmp_path / "data", "sub-01", dataset="things_meg", recipe=recipe)
    with pytest.raises(DataError, match="no stimulus twice"):
        prepare(source, "official", tmp_path / "store")


def test_configs_are_what_they_say() -> None:
    folder = Path(__file__).parents[1] / "configs" / "data"
    official = convert(read_toml(folder / "things_eeg2_official.toml"), Recipe, "config")
    assert official.ch_names == miniatures.OFFICIAL_17
    assert Chain(official.signal((), 1000.0), {"whitener": np.eye(17)}).shape == (17, 100)
    assert official.whitener == "official"
    meg = convert(read_toml(folder / "things_meg.toml"), Recipe, "config")
    assert (meg.tmin, meg.tmax) == (things_meg.RECIPE.tmin, things_meg.RECIPE.tmax)
    fmri = convert(read_toml(folder / "things_fmri.toml"), things_fmri.FmriSettings, "config")
    assert fmri == things_fmri.FmriSettings()
    readme = (folder.parent / "README.md").read_text()
    assert all(f"`{name}`" in readme for name in fmri.__struct_fields__)


@pytest.mark.parametrize("name", ["ubp", "tables"])
def test_what_is_trained_on_it_does_not_run_live(tmp_path: Path, name: str) -> None:
    """A float16 store of epochs that others cut, or of fMRI responses, through ridge to a bundle that serve refuses."""
    if name == "tables":
        miniatures.tables(tmp_path / "data")
        _, place = layouts.locate(tmp_path / "data", "things_fmri", "sub-01")
        source = things_fmri.source(place, tmp_path / "data", things_fmri.FmriSettings())
    else:
        miniatures.ubp(tmp_path / "data")
        source = layouts.source(tmp_path / "data", "sub-01", recipe=Recipe(0.0, 0.1, ("Oz", "Pz")))
    for path in (tmp_path / "data").rglob("*.jpg"):
        Image.new("RGB", (8, 8)).save(path)
    prepare(source, "pooled", tmp_path / "store", precision="float16")
    items = [item for part in Prepared(tmp_path / "store").meta.items.values() for item in part]
    known = {item.id: np.random.default_rng(i).standard_normal(4).astype(np.float32) for i, item in enumerate(items)}
    compute(tiny_store.Known(known), items, Path(), tmp_path / "targets")
    assert run("fit", "ridge", tmp_path / "store", tmp_path / "targets", tmp_path / "run") == 0
    assert run("evaluate", tmp_path / "run") == 0
    assert run("export", tmp_path / "run", tmp_path / "bundle.zip") == 0
    assert bundles.read(tmp_path / "bundle.zip", live=False).manifest.offline_only
    with pytest.raises(BundleError, match="preprocessed before"):
        bundles.read(tmp_path / "bundle.zip")
