"""Accuracy over time windows: cuts, masks, and responses that are known to lie in one part of the epoch."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import tiny_store

from offline import windows
from offline.checkpoint import RunFolder
from offline.data.store import Prepared
from offline.experiment import evaluate_run, fit
from offline.methods.registry import method
from offline.targets.store import Targets


@pytest.fixture(scope="module")
def late(tmp_path_factory) -> Path:
    """A ridge run on a store whose epochs tell nothing before 0.4 s."""
    folder = tmp_path_factory.mktemp("late")
    store = tiny_store.make(folder / "store")
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        epochs = np.load(folder / "store" / f"{part}.npy", mmap_mode="r+")
        epochs[..., :40] = 0.01 * rng.standard_normal(epochs[..., :40].shape)
    ridge = method("ridge")
    fit(ridge, ridge.settings(), [store], {"image": Targets(folder / "store-targets")}, folder / "run")
    return folder / "run"


def test_cuts_and_masks(late) -> None:
    store = Prepared(late.parent / "store")
    assert windows.times(store) == pytest.approx(np.arange(80) / 100)
    growing, shrinking = windows.edges(store)
    assert [stop for _, stop in growing] == pytest.approx(np.arange(1, 9) / 10)
    assert [start for start, _ in shrinking] == pytest.approx(np.arange(8) / 10)
    assert {start for start, _ in growing} == {0.0}
    assert shrinking[0] == growing[-1]
    counts = [windows.inside(store, start, stop).sum() for start, stop in (*growing, *shrinking)]
    assert counts == [10, 20, 30, 40, 50, 60, 70, 80, 80, 70, 60, 50, 40, 30, 20, 10]
    uneven, _ = windows.edges(store, 0.3)
    assert [stop for _, stop in uneven] == pytest.approx([0.3, 0.6, 0.8])
    epochs = np.ones((2, 3, 80), np.float32)
    masked = windows.masked(epochs, windows.inside(store, 0.2, 0.3))
    assert (masked.sum(), masked[..., 20:30].sum()) == (60, 60)
    assert epochs.sum() == epochs.size, "the epochs are left as they are"


@pytest.mark.parametrize("mode", ["masked", "retrained"])
def test_response_is_found_where_it_is(late, mode: str) -> None:
    found = windows.time_windows(late, mode=mode)
    assert (found.mode, found.simulated) == (mode, True)
    early = [row.averaged.top1 for row in found.growing if row.stop < 0.41]
    assert max(early) < 0.4
    assert all(row.averaged.top1 > 0.8 for row in found.shrinking if row.start < 0.41)
    whole = evaluate_run(late).averaged
    assert found.growing[-1].averaged == found.shrinking[0].averaged == whole
    again = msgspec.json.decode(msgspec.json.encode(found), type=windows.TimeWindows)
    assert again == found


def test_a_windowed_store_is_another_one(late) -> None:
    windowed = windows.Windowed(late.parent / "store", 0.0, 0.1)
    assert windowed.meta.fingerprint != Prepared(late.parent / "store").meta.fingerprint
    run = RunFolder(late / "retrained" / "0-100")
    windows.time_windows(late, mode="retrained")
    before = run.encoder.stat().st_mtime_ns
    windows.time_windows(late, mode="retrained")
    assert run.encoder.stat().st_mtime_ns == before, "what is fitted is not fitted again"
