"""What a run is fitted to."""

from __future__ import annotations

import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
import tiny_store

from offline.checkpoint import FittedMeta
from offline.data.joined import join
from offline.data.store import Item, Prepared
from offline.experiment import evaluate_run, fit, samples
from offline.export import export
from offline.generation.source import Source
from offline.methods.registry import method
from offline.targets.store import Targets, compute
from streamdec.errors import DataError


def test_samples_of_several_subjects_are_in_memory_once(tmp_path) -> None:
    stores = [tiny_store.make(tmp_path / who, subject=who, n_chans=16, repetitions=8) for who in ("a", "b", "c", "d")]
    joined = join(stores)
    features = {"image": Targets(tmp_path / "a-targets").of(joined.items)}
    held = joined.hold_out("concept", 0.1, 0)
    tracemalloc.start()
    try:
        found = samples(joined, features, held, average=False)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 1.5 * found.epochs.nbytes
    assert np.array_equal(found.epochs, np.concatenate([part.epochs for part in joined.parts]))
    assert np.array_equal(found.subject, np.repeat(np.arange(4), 480))


@pytest.fixture
def run(tmp_path) -> Path:
    store = tiny_store.make(tmp_path / "store")
    ridge = method("ridge")
    fit(ridge, ridge.settings(), [store], {"image": Targets(tmp_path / "store-targets")}, tmp_path / "run")
    return tmp_path / "run"


def test_a_store_that_was_prepared_anew_is_not_the_runs(run: Path) -> None:
    first = evaluate_run(run)
    shutil.rmtree(run.parent / "store")
    tiny_store.make(run.parent / "other", noise=0.5)
    (run.parent / "other").rename(run.parent / "store")
    for opening in (evaluate_run, Source, lambda path: export([path], run.parent / "bundle.zip")):
        with pytest.raises(DataError, match="another one than the run was fitted on"):
            opening(run)
    named = evaluate_run(run, Prepared(run.parent / "store"))  # as another session it may be judged
    assert named.test_data != first.test_data


def test_target_features_that_were_computed_anew_are_not_the_runs(run: Path) -> None:
    targets = run.parent / "store-targets"
    known = Targets(targets).meta
    shutil.rmtree(targets)
    others = np.random.default_rng(9).standard_normal((len(known.ids), 6)).astype(np.float32)
    items = [Item(id_, id_, id_) for id_ in known.ids]
    compute(tiny_store.Known(dict(zip(known.ids, others, strict=True))), items, Path(), targets)
    with pytest.raises(DataError, match=r"target features .*another one"):
        evaluate_run(run)


def test_people_who_saw_different_numbers_of_concepts(tmp_path) -> None:
    stores = [tiny_store.make(tmp_path / who, subject=who, n_train=n) for who, n in (("a", 60), ("b", 80))]
    ridge = method("ridge")
    fitted = fit(ridge, ridge.settings(), stores, {"image": Targets(tmp_path / "b-targets")}, tmp_path / "run")
    assert fitted.read("fitted.json", FittedMeta).calibration.repetitions == (1, 2, 4)


def test_samples_are_means_of_what_was_shown(tmp_path) -> None:
    joined = join([tiny_store.make(tmp_path / who, subject=who) for who in ("a", "b")])
    features = {"image": Targets(tmp_path / "a-targets").of(joined.items)}
    held = joined.hold_out("concept", 0.1, 0)
    found = samples(joined, features, held, average=True)
    assert np.array_equal(found.subject, np.repeat([0, 1], 60))
    for number, part in enumerate(joined.parts):
        own = found.subject == number
        assert [joined.items[i].id for i in found.item[own]] == [item.id for item in part.items]
        for i, (mean, is_held) in enumerate(zip(found.epochs[own], found.held[own], strict=True)):
            np.testing.assert_allclose(mean, part.epochs[part.rows.item == i].mean(axis=0), atol=1e-6)
            assert (held[number][part.rows.item == i] == is_held).all()
