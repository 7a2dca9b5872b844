"""The evaluator: real decoder outputs, nested repetitions, classes."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import tiny_store

from offline import cli, evaluate, metrics
from offline.console import Console
from offline.data.store import Item, Part, PartName, Prepared, Rows
from offline.experiment import evaluate_run, fit, open_test
from offline.methods.registry import method
from offline.targets.store import Targets, compute
from streamdec.decode.gallery import Gallery
from streamdec.errors import ConfigError, DataError


@pytest.mark.data
def test_real_decoder(data: Path) -> None:
    """The 200 ATM-S embeddings of THINGS-EEG2 subject 08, as published."""
    folder = data / "things_eeg2"
    queries = np.load(folder / "atm_s_sub-08_test_query_embeddings.npy")
    features = np.load(folder / "vit_h14_test_image_features.npy")
    ids = (folder / "things_eeg2_test_image_ids.txt").read_text().split()
    found = evaluate.retrieval(queries, Gallery(features, ids, ids, "stimulus"), np.arange(200), 80)
    assert found.top1 * 200 == pytest.approx(72)
    assert found.top5 * 200 == pytest.approx(145)
    assert found.k_way["200"] == found.top1
    assert found.k_way["2"] > found.k_way["4"] > found.k_way["10"] > found.k_way["50"] > found.top1
    assert found.top1_interval[0] < 0.36 < found.top1_interval[1]
    assert (found.gallery, found.repetitions, found.chance) == ("stimulus", 80, 1 / 200)


def test_repetitions_are_nested_and_fixed() -> None:
    epochs_of = [np.arange(5) + 10, np.arange(7) + 30]
    chosen = evaluate.nested(epochs_of)
    assert list(chosen) == [1, 2, 4, 5]
    for smaller, larger in ((1, 2), (2, 4), (4, 5)):
        for few, more in zip(chosen[smaller], chosen[larger], strict=True):
            assert np.array_equal(more[:smaller], few)
            assert len(set(more)) == larger
    again = evaluate.nested(epochs_of)
    assert all(np.array_equal(a, b) for n in chosen for a, b in zip(chosen[n], again[n], strict=True))
    assert not evaluate.nested([])
    assert list(evaluate.nested([np.arange(80)])) == list(evaluate.CURVE)


def test_curve_averages_before_encoding_and_passes_over_what_was_not_shown(tmp_path) -> None:
    part = tiny_store.make(tmp_path / "store").part("test")
    unseen = part.rows.item != 5
    rows = Rows(part.rows.item[unseen], part.rows.session[unseen], part.rows.position[unseen])
    part = Part(part.items, part.epochs[unseen], rows)
    rng = np.random.default_rng(0)
    weights = rng.standard_normal((tiny_store.N_CHANS * tiny_store.N_TIMES, 3)).astype(np.float32)
    gallery = Gallery(
        rng.standard_normal((12, 3)).astype(np.float32), [i.id for i in part.items], [""] * 12, "stimulus"
    )

    def encode(epochs: np.ndarray) -> np.ndarray:
        return epochs.reshape(len(epochs), -1) @ weights

    found = evaluate.curve(encode, part, gallery, np.arange(12))
    assert [(row.repetitions, row.n_queries) for row in found] == [(1, 11), (2, 11), (4, 11)]
    means = np.stack([part.epochs[rows.item == i].mean(axis=0) for i in range(12) if i != 5])
    queries = encode(means)
    cosines = queries @ gallery.features.T / np.linalg.norm(queries, axis=1)[:, None]
    rank = metrics.ranks(cosines, np.array([i for i in range(12) if i != 5]))
    assert found[-1].mean_average_precision == pytest.approx(metrics.mean_average_precision(rank))


def test_class_auc_of_two_is_the_outputs_own() -> None:
    rng = np.random.default_rng(0)
    target = rng.integers(0, 2, 200)
    output = rng.standard_normal(200) + target  # beyond 0..1 as well
    queries = np.stack([1 - output, output], axis=1).astype(np.float32)
    gallery = Gallery(np.eye(2, dtype=np.float32), ["no", "yes"], ["no", "yes"], "class")
    found = evaluate.class_auc(evaluate.scores(queries, gallery), target, gallery.ids)
    assert found["yes"] == pytest.approx(metrics.auc(output, target == 1))
    assert found["no"] == pytest.approx(found["yes"])


class Uneven(Prepared):
    """Of the test part, one epoch of the first item and all of the others."""

    def part(self, name: PartName) -> Part:
        whole = super().part(name)
        if name != "test":
            return whole
        kept = np.ones(len(whole.epochs), bool)
        kept[whole.of_item()[0][1:]] = False
        rows = Rows(whole.rows.item[kept], whole.rows.session[kept], whole.rows.position[kept])
        return Part(whole.items, whole.epochs[kept], rows)


def test_every_repetition_counts_where_stimuli_have_different_numbers(tmp_path, capsys) -> None:
    """The rarest stimulus bounds the curve, and nothing else."""
    store = tiny_store.make(tmp_path / "store", noise=10.0)
    ridge, targets = method("ridge"), Targets(tmp_path / "store-targets")
    fit(ridge, ridge.settings(), [store], {"image": targets}, tmp_path / "run")
    found = evaluate_run(tmp_path / "run", Uneven(store.path))
    part = Uneven(store.path).part("test")
    assert [len(epochs) for epochs in part.of_item()] == [1] + 11 * [4]
    assert [row.repetitions for row in found.curve] == [1]
    means = np.stack([part.epochs[part.rows.item == i].mean(axis=0) for i in range(12)])
    test = open_test(tmp_path / "run", store)
    assert found.averaged == evaluate.retrieval(test.encode(means), test.gallery, np.arange(12))
    assert found.averaged.mean_average_precision > found.curve[0].mean_average_precision
    cli._show(Console(width=200), found)
    assert "all, uneven" in capsys.readouterr().out
    whole = evaluate_run(tmp_path / "run")
    assert whole.averaged == whole.curve[-1]


def test_left_out_is_who_was_never_fitted(tmp_path) -> None:
    """Not a store that was moved, a further session of a subject, or the same epochs under another name."""
    own = tiny_store.make(tmp_path / "own", subject="anna")
    ridge, targets = method("ridge"), {"image": Targets(tmp_path / "own-targets")}
    fit(ridge, ridge.settings(), [own], targets, tmp_path / "run")

    def tested(store: Prepared) -> str:
        return open_test(tmp_path / "run", store, targets).about.protocol

    other = tiny_store.make(tmp_path / "other", subject="bea")
    again = tiny_store.make(tmp_path / "again", subject="anna", noise=2.0)
    assert len({store.meta.fingerprint for store in (own, other, again)}) == 3
    moved = Prepared(own.path.rename(tmp_path / "moved"))
    assert [tested(store) for store in (moved, other, again)] == ["intra", "left_out", "intra"]
    renamed = msgspec.structs.replace(moved.meta, subject="carl")
    (moved.path / "meta.json").write_bytes(msgspec.json.encode(renamed))
    assert tested(Prepared(moved.path)) == "intra"


def test_class_centres_are_means_of_unit_features() -> None:
    rng = np.random.default_rng(0)
    features = rng.standard_normal((5, 3)).astype(np.float32) * np.array([[1], [9], [2], [1], [5]], np.float32)
    found = evaluate.class_centres(features, ["cat", "dog", "cat", "dog", "owl"])
    assert (found.kind, found.ids) == ("class_centre", ("cat", "dog", "owl"))
    rows = features / np.linalg.norm(features, axis=1)[:, None]
    for candidate, members in zip(found.features, ([0, 2], [1, 3], [4]), strict=True):
        mean = rows[members].mean(axis=0)
        assert candidate == pytest.approx(mean / np.linalg.norm(mean), abs=1e-6)


def test_class_centres_never_see_the_stimulus(tmp_path) -> None:
    """Each test item's centre is made of one other image; the stimulus, under its file name, is among the features."""
    store = tiny_store.make(tmp_path / "store")
    ridge, targets = method("ridge"), Targets(tmp_path / "store-targets")
    fit(ridge, ridge.settings(), [store], {"image": targets}, tmp_path / "run")
    items = store.meta.items["test"]
    own = dict(zip((item.id for item in items), targets.of(items), strict=True))
    concepts = {item.id: f"{i:05d}_{item.concept.rpartition('/')[2]}" for i, item in enumerate(items)}
    near = {f"{concepts[id_]}/another.jpg": row + 0.01 for id_, row in own.items()}
    itself = {f"{concepts[id_]}/{id_}": -row for id_, row in own.items()}
    images = [Item(id_, id_, id_) for id_ in (*near, *itself, "00099_elsewhere/x.jpg")]
    known = tiny_store.Known(near | itself | {"00099_elsewhere/x.jpg": np.ones(6, np.float32)})
    compute(known, images, Path(), tmp_path / "centres")
    found = evaluate_run(tmp_path / "run", centres={"image": Targets(tmp_path / "centres")})
    assert found.class_centre.gallery == "class_centre"
    assert found.class_centre.n_candidates == 12
    assert found.class_centre.top1 == pytest.approx(found.averaged.top1, abs=0.1)
    compute(tiny_store.Known(itself), images[12:24], Path(), tmp_path / "nothing-else")
    with pytest.raises(DataError, match="besides the stimuli"):
        evaluate_run(tmp_path / "run", centres={"image": Targets(tmp_path / "nothing-else")})
    with pytest.raises(ConfigError, match=r"roles of class centres.*other.*image among them"):
        evaluate_run(tmp_path / "run", centres={"other": Targets(tmp_path / "centres")})
