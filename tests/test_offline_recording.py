"""Recordings and tables: the live intake cuts; classes and images; and what real EEG gives."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import msgspec
import numpy as np
import pytest

from offline.data.prepare import Recipe, prepare
from offline.data.recording import RecordingSettings, RecordingSource, read_table
from offline.data.store import Prepared
from offline.experiment import evaluate_run, fit
from offline.methods.registry import method
from offline.targets.classes import OneHot
from offline.targets.store import Targets, compute
from streamdec.acquire import xdf
from streamdec.acquire.header import write_header
from streamdec.config import convert, read_toml
from streamdec.errors import ConfigError, DataError
from streamdec.signal.chain import Chain
from streamdec.signal.filters import StreamFilter
from streamdec.signal.spec import BandPass, Baseline
from streamdec.types import StreamInfo

CONFIGS = Path(__file__).parents[1] / "configs"


def write_xdf(
    path: Path, data: np.ndarray, sfreq: float, ch_names: list[str], onsets: np.ndarray, texts: list[str]
) -> Path:
    """One EEG stream (n_chans, n_times), microvolt, from 1000 s on, and one marker stream with onsets at samples."""
    n_chans, n_times = data.shape
    eeg = StreamInfo(
        name="amplifier",
        type="EEG",
        n_chans=n_chans,
        sfreq=sfreq,
        dtype="float32",
        ch_names=tuple(ch_names),
        ch_types=("EEG",) * n_chans,
        units=("microvolts",) * n_chans,
    )
    markers = StreamInfo(name="stimuli", type="Markers", n_chans=1, sfreq=0.0, dtype="string")
    stamps = 1000 + np.arange(n_times) / sfreq
    times = 1000 + onsets / sfreq
    content = xdf.file_header("2026-01-01T00:00:00")
    content += xdf.stream_header(1, write_header(eeg)) + xdf.stream_header(2, write_header(markers))
    for start in range(0, n_times, 1000):
        part = slice(start, start + 1000)
        content += xdf.samples(1, stamps[part], np.ascontiguousarray(data[:, part].T, np.float32))
    content += xdf.texts(2, list(times), [text.encode() for text in texts])
    content += xdf.stream_footer(1, stamps[0], stamps[-1], n_times, []) + xdf.stream_footer(
        2, times[0], times[-1], len(times), []
    )
    path.write_bytes(content)
    return path


@pytest.fixture
def recorded(tmp_path) -> tuple[Path, np.ndarray, np.ndarray, list[str]]:
    rng = np.random.default_rng(0)
    data = (20 * rng.standard_normal((3, 6000))).astype(np.float32)
    onsets = np.arange(300, 5700, 60)
    texts = [["cat", "dog", "start"][i % 3] for i in range(len(onsets))]
    return write_xdf(tmp_path / "run.xdf", data, 100.0, ["O1", "Oz", "O2"], onsets, texts), data, onsets, texts


def table(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_epochs_are_the_chains_of_the_filtered_samples(tmp_path, recorded) -> None:
    path, data, onsets, texts = recorded
    recipe = Recipe(-0.1, 0.4, filters=(BandPass(1.0, 30.0, 2),), steps=(Baseline(-0.1, 0.0),))
    labels = table(tmp_path / "table.tsv", "marker\tlabel\ncat\tanimal\ndog\tbeast\n")
    source = RecordingSource(path, labels, RecordingSettings(recipe), {"train": (0.0, 0.5), "test": (0.5, 1.0)})
    prepare(source, "pooled", tmp_path / "store")
    prepared = Prepared(tmp_path / "store")
    assert prepared.meta.kind == "class"
    assert [item.id for item in prepared.meta.items["train"]] == ["animal", "beast"]
    assert prepared.meta.signal.ch_names == ("O1", "Oz", "O2")
    filtered = StreamFilter(recipe.filters, 100.0, 3)(data)
    chain = Chain(prepared.meta.signal, {})
    for part, inside in (("train", onsets / 5999 < 0.5), ("test", onsets / 5999 >= 0.5)):
        shown = [(o, t) for o, t in zip(onsets[inside], np.array(texts)[inside], strict=True) if t != "start"]
        stored = prepared.part(part)
        assert stored.rows.position.tolist() == [o for o, _ in shown]
        assert stored.rows.item.tolist() == [["cat", "dog"].index(t) for _, t in shown]
        expected = np.stack([chain(filtered[:, o - 10 : o + 41]) for o, _ in shown])
        assert np.array_equal(stored.epochs, expected)


def test_epochs_are_not_in_memory(tmp_path) -> None:
    """At RSVP's rate they overlap, and all together are many times the recording."""
    rng = np.random.default_rng(0)
    onsets = np.arange(100, 5400, 10)
    data = rng.standard_normal((8, 6000)).astype(np.float32)
    path = write_xdf(tmp_path / "run.xdf", data, 100.0, list("ABCDEFGH"), onsets, ["cat"] * len(onsets))
    labels = table(tmp_path / "table.tsv", "marker\tlabel\ncat\tanimal\n")
    tracemalloc.start()
    try:
        source = RecordingSource(path, labels, RecordingSettings(Recipe(0.0, 5.0)), {"train": (0.0, 1.0)}, tmp_path)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    (run,) = source.runs()
    assert len(run.item) == len(onsets)
    assert peak < 0.5 * run.cut(np.arange(len(onsets))).nbytes
    assert np.array_equal(run.cut(np.array([7, 3]))[1], data[:, onsets[3] : onsets[3] + 501])
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run.xdf", "table.tsv"]


def test_no_room_for_the_epochs_is_said(tmp_path, recorded) -> None:
    labels = table(tmp_path / "t.tsv", "marker\tlabel\ncat\tx\n")
    settings = RecordingSettings(Recipe(0.0, 0.4))
    with pytest.raises(DataError, match=r"nowhere cannot be written"):
        RecordingSource(recorded[0], labels, settings, {"train": (0.0, 1.0)}, tmp_path / "nowhere")


def test_table_of_images(tmp_path) -> None:
    for name in ("a.png", "b.png"):
        (tmp_path / name).write_bytes(b"")
    read = read_table(table(tmp_path / "t.csv", "marker,image,label,concept\n7,a.png,an a,letters\n8,b.png,,\n"))
    assert read.kind == "stimulus"
    assert [(i.id, i.label, i.concept, i.image) for i in read.items] == [
        ("7", "an a", "letters", "a.png"),
        ("8", "b", "b.png", "b.png"),
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "columns"),
        ("marker\tcolour\na\tred\n", "columns"),
        ("marker\tlabel\na\tx\na\ty\n", "line 3"),
        ("marker\tlabel\na\t\n", "line 2"),
        ("marker\timage\na\tnone.png\n", "no image none.png"),
    ],
)
def test_wrong_tables(tmp_path, text: str, says: str) -> None:
    with pytest.raises(DataError, match=says):
        read_table(table(tmp_path / "t.tsv", text))


def test_subject_is_who_the_settings_say(tmp_path, recorded) -> None:
    labels = table(tmp_path / "t.tsv", "marker\tlabel\ncat\tx\ndog\ty\n")
    for given, expected in (("", "run"), ("anna", "anna")):
        settings = RecordingSettings(Recipe(0.0, 0.4), subject=given)
        assert RecordingSource(recorded[0], labels, settings, {"train": (0.0, 1.0)}).subject == expected


def test_wrong_calls(tmp_path, recorded) -> None:
    labels = table(tmp_path / "t.tsv", "marker\tlabel\nbird\tx\n")
    settings = RecordingSettings(Recipe(0.0, 0.4))
    with pytest.raises(DataError, match="'cat'"):
        RecordingSource(recorded[0], labels, settings, {"train": (0.0, 1.0)})
    with pytest.raises(ConfigError, match="train part"):
        RecordingSource(recorded[0], labels, settings, {"train": (0.7, 0.5)})
    with pytest.raises(ConfigError, match=r"train 0\.0:0\.6, test 0\.5:1\.0.*nothing in common"):
        RecordingSource(recorded[0], labels, settings, {"train": (0.0, 0.6), "test": (0.5, 1.0)})
    with pytest.raises(DataError, match=r"t2\.tsv"):
        read_table(tmp_path / "t2.tsv")


@pytest.mark.data
def test_p300_of_the_second_half(data: Path, tmp_path) -> None:
    """Settings were chosen by cross-validation within the first half."""
    from scipy.io import loadmat

    file = loadmat(data / "eeg" / "gtec_p300" / "S1.mat")
    trigger = file["trig"].ravel()
    onsets = np.flatnonzero((trigger[1:] != 0) & (trigger[:-1] == 0)) + 1
    texts = ["target" if trigger[o] == 1 else "other" for o in onsets]
    names = ["Fz", "Cz", "P3", "Pz", "P4", "PO7", "POz", "PO8"]
    path = write_xdf(tmp_path / "p300.xdf", file["y"].T, 250.0, names, onsets, texts)
    settings = convert(read_toml(CONFIGS / "data" / "recording.toml"), RecordingSettings, "config")
    labels = table(tmp_path / "t.tsv", "marker\tlabel\ntarget\ttarget\nother\tother\n")
    source = RecordingSource(path, labels, settings, {"train": (0.0, 0.5), "test": (0.5, 1.0)})
    prepare(source, "pooled", tmp_path / "store")
    prepared = Prepared(tmp_path / "store")
    items = prepared.meta.items["train"]
    compute(OneHot(items), items, Path(), tmp_path / "targets")
    ridge = method("ridge")
    fit(ridge, ridge.settings(), [prepared], {"image": Targets(tmp_path / "targets")}, tmp_path / "run")
    evaluation = evaluate_run(tmp_path / "run")
    assert sum(len(prepared.part(part).epochs) for part in ("train", "test")) == 1200
    assert evaluation.auc["target"] >= 0.94
    assert evaluation.auc["target"] == pytest.approx(evaluation.auc["other"])
    assert msgspec.json.encode(evaluation)
