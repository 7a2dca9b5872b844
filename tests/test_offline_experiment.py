"""What a run is fitted to."""

from __future__ import annotations

import tracemalloc

import numpy as np
import tiny_store

from offline.data.joined import join
from offline.experiment import samples
from offline.targets.store import Targets


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
