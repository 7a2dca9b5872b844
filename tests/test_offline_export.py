"""Export: several runs of one method in one bundle, each answering at the end of its own window."""

from __future__ import annotations

from pathlib import Path

import msgspec
import numpy as np
import pytest
import small_bundle
import tiny_store

from offline import cli
from offline.data.store import Prepared, Writer
from offline.experiment import open_run
from offline.targets.store import compute
from streamdec.config import Config
from streamdec.decode import bundle as bundles
from streamdec.feed.schema import Retrieval
from streamdec.serve import engines, replay
from streamdec.signal.spec import Whiten
from streamdec.types import Chunk, Connection, Event, Marker, StreamInfo

EARLY, LATE = 0.39, 0.79


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


def cut(whole: Prepared, path: Path, tmax: float, seed: int, **change: object) -> Path:
    """The store with its epochs ended at ``tmax``, and a whitener of its own; the epochs are what comes out of it."""
    signal = msgspec.structs.replace(whole.meta.signal.until(tmax), steps=(Whiten(),))
    n_times = signal.window[1]
    root = np.random.default_rng(seed).standard_normal((4, 4)) / 4
    whitener = np.eye(4) + root @ root.T
    fields = {"signal": signal, "shape": (4, n_times)} | change
    with Writer(path, msgspec.structs.replace(whole.meta, **fields), {"whitener": whitener}) as writer:
        for name in ("train", "test"):
            part = whole.part(name)
            epochs = (whitener @ part.epochs[:, :, :n_times]).astype(np.float32)
            writer.append(name, epochs, part.rows.item, 0, part.rows.position)
        writer.close(dict.fromkeys("ABCD", 1.0))
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("export")
    whole = tiny_store.make(path / "whole", noise=1.0)
    for name, tmax, seed in (("early", EARLY, 1), ("late", LATE, 2)):
        store = cut(whole, path / f"{name}-store", tmax, seed)
        assert run("fit", "ridge", store, path / "whole-targets", path / name) == 0
    assert run("export", path / "late", path / "early", path / "both.zip") == 0, "in any order"
    return path


def test_two_windows_in_one_bundle_answer_twice(folder: Path) -> None:
    both = bundles.read(folder / "both.zip")
    assert [head.horizon for head in both.manifest.heads] == [EARLY, LATE]
    assert [p.encoder for p in both.manifest.parity] == ["encoder-0.39.onnx", "encoder-0.79.onnx"]
    assert both.manifest.array_names == ("whitener",)
    whole = Prepared(folder / "whole").part("test")
    made = engines(both, Config())
    for head, name in zip(both.manifest.heads, ("early", "late"), strict=True):
        store, encoder = Prepared(folder / f"{name}-store"), open_run(folder / name)[3]
        raw = np.asarray(whole.epochs[:5, :, : head.shape[1]])
        epochs = both.chain(head)(raw)
        np.testing.assert_allclose(epochs, store.part("test").epochs[:5], atol=1e-5)
        got = np.stack([made[head.horizon](epoch).copy() for epoch in epochs])
        np.testing.assert_allclose(got, encoder(epochs), atol=1e-4)
        assert both.weights(head) == (folder / name / "encoder.safetensors").read_bytes()


def test_both_answers_are_published_live(folder: Path) -> None:
    both, whole = bundles.read(folder / "both.zip"), Prepared(folder / "whole").part("test")
    shown = [int(indices[0]) for indices in whole.of_item()]
    keys = [item.id for item in whole.items]
    onsets = 100 + 100 * np.arange(len(shown))
    data = np.random.default_rng(0).normal(0, 0.1, (4, 100 * len(shown) + 300)).astype(np.float32)
    for onset, index in zip(onsets, shown, strict=True):
        data[:, onset : onset + 80] = whole.epochs[index]
    stamps = 1000 + np.arange(data.shape[1]) / 100
    events: list[Event] = []
    for start in range(0, data.shape[1], 10):
        arrival = float(stamps[start + 9])
        events.append(Chunk(data[:, start : start + 10].copy(), stamps[start : start + 10], arrival))
        events += [Marker(keys[(start - 100) // 100], float(stamps[start]), arrival)] if start in onsets else []
    events.append(Connection("eeg", "ended", arrival))
    eeg = StreamInfo("eeg", "EEG", 4, 100.0, "float32", "amp", ch_names=tuple("ABCD"), units=("microvolts",) * 4)
    outlet, counts = replay(Config(), small_bundle.ScriptedInlet(events, eeg), both, engines(both, Config()))
    assert counts.decided == len(shown)
    answers = [message for message in outlet.messages if isinstance(message, Retrieval)]
    assert [(m.key, m.horizon, m.final) for m in answers] == [
        (key, horizon, horizon == LATE) for key in keys for horizon in (EARLY, LATE)
    ]
    for name, horizon in (("early", EARLY), ("late", LATE)):
        store, encoder = Prepared(folder / f"{name}-store"), open_run(folder / name)[3]
        offline = both.gallery.features @ encoder(store.part("test").epochs[shown]).T
        best = [both.gallery.ids[i] for i in offline.argmax(0)]  # cosines, but for the length of the query
        assert [m.candidates[0].id for m in answers if m.horizon == horizon] == best


@pytest.mark.parametrize(
    ("other", "says"),
    [
        ("late", "both end at 0.79 s; allowed: different windows"),
        ("somebody", "have another subject; got somebody; allowed: nobody"),
        ("nice", "have another method; got nice; allowed: ridge"),
        ("steps", "have another signal"),
        ("targets", "different galleries"),
    ],
)
def test_runs_that_do_not_go_together_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], other: str, says: str
) -> None:
    whole, store, targets = Prepared(folder / "whole"), tmp_path / "store", folder / "whole-targets"
    method = "nice" if other == "nice" else "ridge"
    (tmp_path / "nice.toml").write_text("[schedule]\nn_epochs_train = 1\n")
    config = ["--config", tmp_path / "nice.toml"] if other == "nice" else []
    cut(whole, store, LATE if other == "late" else 0.77, 3, **({"subject": other} if other == "somebody" else {}))
    if other == "steps":
        meta = msgspec.json.decode((store / "meta.json").read_bytes())
        meta["signal"]["steps"] = []
        (store / "meta.json").write_bytes(msgspec.json.encode(meta))
    if other == "targets":
        items = [item for part in whole.meta.items.values() for item in part]
        features = np.random.default_rng(7).standard_normal((len(items), 6)).astype(np.float32)
        targets = tmp_path / "targets"
        known = {item.id: row for item, row in zip(items, features, strict=True)}
        compute(tiny_store.Known(known), items, Path(), targets)
    path = tmp_path / "run"
    assert run("fit", method, store, targets, path, *config) == 0
    assert run("export", path, folder / "late", tmp_path / "out.zip") == 1
    captured = capsys.readouterr().err.replace("\n", " ")
    assert says in captured
    assert "Traceback" not in captured
    assert not (tmp_path / "out.zip").exists()


def test_a_store_is_named_for_one_run_alone(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ("export", folder / "early", folder / "late", tmp_path / "out.zip", "--prepared", folder / "whole")
    assert run(*arguments) == 2
    assert "a store for 2 runs" in capsys.readouterr().err.replace("\n", " ")


def test_a_store_of_another_signal_is_refused(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As many channels and samples do not make it the encoder's: the bundle would have that store's chain."""
    whole, wide = Prepared(folder / "whole"), tiny_store.make(tmp_path / "wide", n_chans=5, subject="wide")
    both = [cut(whole, tmp_path / name, LATE, 4, subject=name) for name in ("one", "two")]
    stores = ",".join(map(str, both))
    assert run("fit", "ridge", stores, folder / "whole-targets", tmp_path / "run") == 0
    swapped = msgspec.structs.replace(whole.meta.signal, ch_names=("B", "A", "C", "D"))
    others = (wide.path, cut(whole, tmp_path / "swapped", LATE, 4, signal=swapped))
    for other, what in zip(others, ("epochs", "ch_names"), strict=True):
        for command in (("export", tmp_path / "run", tmp_path / "out.zip"), ("evaluate", tmp_path / "run")):
            assert run(*command, "--prepared", other) == 2
            assert f"{what} of {other}" in capsys.readouterr().err.replace("\n", "")
    assert run("export", tmp_path / "run", tmp_path / "out.zip", "--prepared", both[1]) == 0
    assert run("export", tmp_path / "run", tmp_path / "out.zip" / "below", "--prepared", both[1]) == 1
    assert "below cannot be written" in capsys.readouterr().err.replace("\n", "")
