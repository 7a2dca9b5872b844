"""The prepared store: round trip, all or nothing, clear refusals."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys

import msgspec
import numpy as np
import pytest
import tiny_store

from offline import checkpoint
from offline.data import splits
from offline.data.joined import join
from offline.data.store import Meta, Prepared, Writer
from streamdec.errors import ConfigError, DataError


def test_round_trip(tmp_path) -> None:
    prepared = tiny_store.make(tmp_path / "store")
    part = prepared.part("train")
    assert part.epochs.shape == (240, tiny_store.N_CHANS, tiny_store.N_TIMES)
    assert part.epochs.dtype == np.float32
    assert prepared.meta.channel_sd == dict.fromkeys("ABCD", 1.0)
    for i, indices in enumerate(part.of_item()):
        assert len(indices) == 4
        assert np.all(part.rows.item[indices] == i)
        assert np.all(np.diff(indices) > 0)
    means = part.means(part.of_item())
    np.testing.assert_allclose(means[5], np.mean([part.epochs[i] for i in part.of_item()[5]], axis=0), atol=1e-6)
    assert tiny_store.make(tmp_path / "again").meta.fingerprint == prepared.meta.fingerprint
    other = tiny_store.make(tmp_path / "other", noise=1.1)
    assert other.meta.fingerprint != prepared.meta.fingerprint


def test_everybody_may_read_it_who_may_read_any_new_file(tmp_path) -> None:
    prepared = tiny_store.make(tmp_path / "store")
    checkpoint.save(tmp_path / "store" / "own.safetensors", {"a": np.zeros(3)})
    (tmp_path / "new").touch()
    modes = {path.stat().st_mode for path in prepared.path.iterdir()}
    assert modes == {(tmp_path / "new").stat().st_mode}


def test_unfinished_store_leaves_nothing(tmp_path) -> None:
    meta = tiny_store.make(tmp_path / "whole").meta
    with pytest.raises(RuntimeError), Writer(tmp_path / "half", meta, {}):
        raise RuntimeError
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole", "whole-targets"]
    with pytest.raises(ConfigError, match="exists"):
        Writer(tmp_path / "whole", meta, {})


def test_a_killed_run_leaves_no_half_store(tmp_path) -> None:
    meta = tiny_store.make(tmp_path / "whole").meta
    script = f"""
import msgspec, os, signal
from pathlib import Path
from offline.data.store import Meta, Writer
meta = msgspec.json.decode(Path({str(tmp_path / "whole" / "meta.json")!r}).read_bytes(), type=Meta)
with Writer(Path({str(tmp_path / "half")!r}), meta, {{}}):
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", script]).returncode == -signal.SIGKILL
    assert not (tmp_path / "half").exists()
    with Writer(tmp_path / "half", meta, {}) as writer:
        writer.close({})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["half", "whole", "whole-targets"]


@pytest.mark.parametrize("limit", [100, 20_000])
def test_full_disk(tmp_path, limit: int) -> None:
    """A limit on the size of files stands for the disk; it is met while opening, or while writing."""
    meta = tiny_store.make(tmp_path / "whole").meta
    epochs = np.zeros((50, *meta.shape), np.float32)
    rows = np.zeros(50, np.int64)

    def store() -> None:
        with Writer(tmp_path / "half", meta, {"whitener": np.eye(20)}) as writer:
            writer.append("train", epochs, rows, 0, rows)
            writer.close({})

    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        with pytest.raises(DataError, match=r"cannot write .*half; got .*File too large"):
            store()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["whole", "whole-targets"]


def test_refusals(tmp_path) -> None:
    with pytest.raises(DataError, match="no prepared store"):
        Prepared(tmp_path)
    prepared = tiny_store.make(tmp_path / "store")
    path = prepared.path / "meta.json"
    meta = msgspec.json.decode(path.read_bytes(), type=Meta)
    path.write_bytes(msgspec.json.encode({"schema": 99, "something": "new"}))
    with pytest.raises(DataError, match="schema 99"):
        Prepared(prepared.path)
    path.write_bytes(
        msgspec.json.encode(msgspec.structs.replace(meta, shape=(4, 7), items={"train": meta.items["train"]}))
    )
    with pytest.raises(DataError, match="train part"):
        Prepared(prepared.path).part("train")
    with pytest.raises(DataError, match="no test part"):
        Prepared(prepared.path).part("test")


def test_hold_out(tmp_path) -> None:
    store = tiny_store.make(tmp_path / "store")
    items, joined = store.meta.items["train"], join([store])
    concepts, images = np.array([item.concept for item in items]), np.array([item.id for item in items])
    by_concept = splits.choose(items, "concept", 0.1, 7)
    assert len(set(concepts[by_concept])) == 3
    assert not set(concepts[by_concept]) & set(concepts[~by_concept])
    assert np.array_equal(by_concept, splits.choose(items, "concept", 0.1, 7))
    assert not np.array_equal(by_concept, splits.choose(items, "concept", 0.1, 8))
    assert len(set(images[splits.choose(items, "image", 0.1, 7)])) == 6
    (held,) = joined.hold_out("concept", 0.1, 7)
    assert np.array_equal(held, by_concept[joined.parts[0].rows.item])
    with pytest.raises(ConfigError, match=r"validation.by; got time; allowed: concept or image"):
        joined.hold_out("time", 0.25, 7)
    classes = join([tiny_store.make(tmp_path / "class", kind="class")])
    for by in ("time", "concept"):
        assert np.array_equal(classes.hold_out(by, 0.2, 7)[0], np.arange(90) >= 72)
    for share in (0.0, 1.0, -1.0):
        with pytest.raises(ConfigError, match="held out"):
            splits.choose(items, "concept", share, 0)
    with pytest.raises(ConfigError, match="two or more"):
        splits.choose(items[:1], "image", 0.5, 0)
    assert np.array_equal(splits.stretches(240), np.arange(240) // 24)


def test_subjects_side_by_side(tmp_path) -> None:
    first = tiny_store.make(tmp_path / "a")
    second = tiny_store.make(tmp_path / "b", n_train=80, repetitions=2, subject="somebody")
    joined = join([second, first])
    assert joined.subjects == ("somebody", "nobody")
    assert len(joined.items) == 80
    for part, place in zip(joined.parts, joined.places, strict=True):
        assert [joined.items[i].id for i in place] == [item.id for item in part.items]
    held = joined.hold_out("concept", 0.1, 3)
    out = [
        {part.items[i].concept for i in part.rows.item[of_part]}
        for part, of_part in zip(joined.parts, held, strict=True)
    ]
    kept = [
        {part.items[i].concept for i in part.rows.item[~of_part]}
        for part, of_part in zip(joined.parts, held, strict=True)
    ]
    assert not (out[0] | out[1]) & (kept[0] | kept[1]), (
        "a concept is held out for one subject and trained on for another"
    )
    with pytest.raises(ConfigError, match="each once"):
        join([first, first])
    with pytest.raises(ConfigError, match="kind"):
        join([first, tiny_store.make(tmp_path / "c", kind="class", subject="third")])
