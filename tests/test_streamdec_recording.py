from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import mne
import numpy as np
import pytest
import pyxdf

from streamdec.acquire import xdf
from streamdec.acquire.header import write_header
from streamdec.acquire.recording import RecordedStream, Recording, Segment, read
from streamdec.errors import RecordingError
from streamdec.types import StreamInfo

XDF_FILES = (
    "bci_essentials_switch",
    "clock_resets",
    "empty_streams",
    "minimal",
    "photodiode_lsl_drift",
    "photodiode_unicorn",
)


@pytest.mark.data
@pytest.mark.parametrize("name", XDF_FILES)
def test_xdf_as_pyxdf_reads_it(data: Path, name: str) -> None:
    path = data / "xdf" / f"{name}.xdf"
    recording = read(path)
    raw, _ = pyxdf.load_xdf(path, synchronize_clocks=False, dejitter_timestamps=False)
    synchronised, _ = pyxdf.load_xdf(path, dejitter_timestamps=False)
    assert recording.problems == ()
    assert recording.events is None
    for stream, oracle, synced in zip(recording.streams, raw, synchronised, strict=True):
        np.testing.assert_array_equal(stream.stamps, oracle["time_stamps"])
        series = oracle["time_series"]
        assert stream.data.T.tolist() == (series if isinstance(series, list) else series.tolist())
        # pyxdf fits a line through the offsets, we interpolate them: they agree to the jitter of the offsets.
        np.testing.assert_allclose(stream.times, synced["time_stamps"], atol=5e-4, rtol=0)
        resets = synced["info"]["clock_segments"] or [(0, len(stream.stamps) - 1)] * bool(len(stream.stamps))
        assert [(segment.start, segment.stop - 1) for segment in stream.segments] == resets


@pytest.mark.data
def test_clock_resets_are_segments(data: Path) -> None:
    markers, eeg = read(data / "xdf" / "clock_resets.xdf").streams
    assert [(s.start, s.stop) for s in markers.segments] == [(0, 91), (91, 175)]
    assert [(s.start, s.stop) for s in eeg.segments] == [(0, 12876), (12876, 27815)]
    assert np.abs(np.diff(eeg.stamps)).max() > 1000  # the sender's clock jumps, ours does not
    assert 0 < np.diff(eeg.times).min() < np.diff(eeg.times).max() < 300


def test_texts_of_number_streams() -> None:
    for data, texts in (
        (np.array([[1, 300]], np.int16), ["1", "300"]),
        (np.array([[17.0, 2.5, np.nan]], np.float32), ["17", "2.5", "nan"]),
        (np.array([["a", ""], ["x", "y"]], object), ["a,x", ",y"]),  # as they come live
        (np.empty((0, 0)), []),
    ):
        info = StreamInfo("m", "Markers", len(data), 0.0, "int16")
        assert RecordedStream(info, np.zeros(data.shape[1]), data, ()).texts == texts


def stream(n_times: int = 100, shift: float = 0.0, name: str = "amp") -> RecordedStream:
    info = StreamInfo(name, "EEG", 2, 10.0, "float32")
    data = np.arange(2 * n_times, dtype=np.float32).reshape(2, n_times)
    offsets = np.array([[0.0, 50.0], [10.0, 50.1]])
    stamps = np.arange(n_times) / 10 + shift
    return RecordedStream(info, stamps, data, (Segment(0, n_times, offsets),) if n_times else ())


def test_between() -> None:
    whole = Recording(Path("a"), (stream(), stream(0, name="empty"), stream(20, shift=3.0)))
    part = whole.between(2.0, 4.0)
    assert whole.between(None, None) is whole
    times = whole.streams[0].times
    inside = (times >= whole.start + 2) & (times < whole.start + 4)
    np.testing.assert_array_equal(part.streams[0].times, times[inside])
    np.testing.assert_array_equal(part.streams[0].data, whole.streams[0].data[:, inside])
    assert [len(s.stamps) for s in part.streams] == [inside.sum(), 0, len(part.streams[2].times)]
    assert len(whole.between(5.0, None).streams[0].stamps) + len(whole.between(None, 5.0).streams[0].stamps) == 100
    assert len(whole.between(1e6, None).streams[0].stamps) == 0


def raw_things(n_times: int = 500) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    volts = rng.standard_normal((3, n_times)) * 1e-5
    volts[2] = 0
    volts[2, 100] = 42
    return {
        "raw_eeg_data": volts,
        "ch_names": ["O1", "Oz", "stim"],
        "ch_types": ["eeg", "eeg", "stim"],
        "sfreq": 1000,
        "highpass": 0.01,
        "lowpass": 100,
    }


def test_things_raw(tmp_path: Path) -> None:
    content = raw_things()
    np.save(tmp_path / "raw_eeg_test.npy", content)  # type: ignore[arg-type]
    (eeg,) = read(tmp_path / "raw_eeg_test.npy").streams
    assert eeg.info.ch_names == ("O1", "Oz", "stim")
    assert eeg.info.ch_types == ("eeg", "eeg", "stim")
    assert eeg.info.units == ("microvolts", "microvolts", "")
    assert (eeg.info.sfreq, eeg.data.dtype) == (1000.0, np.float32)
    np.testing.assert_array_equal(eeg.data[:2], (content["raw_eeg_data"][:2] * 1e6).astype(np.float32))
    assert eeg.data[2, 100] == 42
    np.testing.assert_array_equal(eeg.stamps, np.arange(500) / 1000)


@pytest.mark.parametrize("content", [{"preprocessed_eeg_data": np.zeros(3)}, [1], {**raw_things(), "ch_names": ["a"]}])
def test_other_dictionaries_are_no_recordings(tmp_path: Path, content: Any) -> None:
    np.save(tmp_path / "a.npy", np.array(content, object))
    with pytest.raises(RecordingError, match=r"a\.npy"):
        read(tmp_path / "a.npy")


@pytest.fixture
def fif(tmp_path: Path) -> Path:
    """A FIF whose first sample is not at zero, with annotations between samples."""
    rng = np.random.default_rng(2)
    info = mne.create_info(["Fz", "Oz", "STI"], 128.0, ["eeg", "eeg", "stim"])
    raw = mne.io.RawArray(rng.standard_normal((3, 128 * 20)) * 1e-5, info, first_samp=1000, verbose=False)
    raw.set_meas_date(1_600_000_000)
    raw.set_annotations(mne.Annotations([10.003, 11.2571], 0.0, ["a", "b"], orig_time=raw.info["meas_date"]))
    path = tmp_path / "session_raw.fif"
    raw.crop(1.0, 15.0).save(path, verbose=False)
    return path


def test_fif(fif: Path) -> None:
    raw = mne.io.read_raw(fif, verbose=False)
    eeg, annotations = read(fif).streams
    np.testing.assert_array_equal(eeg.data[:2], (raw.get_data()[:2] * 1e6).astype(np.float32))
    np.testing.assert_array_equal(eeg.data[2], raw.get_data()[2].astype(np.float32))
    assert annotations.texts == ["a", "b"]
    # Onsets count from the measurement's date; the first sample kept is (1000 + 128) / 128 s after it.
    np.testing.assert_allclose(annotations.stamps, np.array([10.003, 11.2571]) - 1128 / 128, atol=1e-9)
    events, _ = mne.events_from_annotations(raw, verbose=False)
    samples = annotations.stamps * 128
    assert np.abs(samples - (events[:, 0] - raw.first_samp)).max() <= 1


@pytest.mark.data
@pytest.mark.parametrize("name", ["eeglab_data.set", "testbva.vhdr"])
@pytest.mark.filterwarnings("ignore")
def test_mne_formats(data: Path, name: str) -> None:
    path = data / "eeg" / "eeglab" / name
    raw = mne.io.read_raw(path, verbose="error")
    eeg, annotations = read(path).streams
    np.testing.assert_allclose(eeg.data[:29], raw.get_data()[:29] * 1e6, rtol=1e-6)
    assert eeg.info.units[:29] == ("microvolts",) * 29
    assert eeg.info.ch_names == tuple(raw.ch_names)
    assert annotations.texts == list(raw.annotations.description)
    np.testing.assert_allclose(annotations.stamps, raw.annotations.onset, atol=1e-12)


@pytest.mark.data
def test_warnings_of_mne_are_kept_not_shown(data: Path, capsys: pytest.CaptureFixture[str]) -> None:
    problems = read(data / "eeg" / "eeglab" / "testbva.vhdr").problems
    assert any("Ekg1" in problem for problem in problems)
    assert capsys.readouterr() == ("", "")


def test_without_mne(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.edf").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "mne", None)
    with pytest.raises(RecordingError, match=r"pip install 'streamdec\[recordings\]'"):
        read(tmp_path / "a.edf")


@pytest.mark.parametrize("name", ["a.xdf", "a.npy", "a.fif", "a.edf", "a.vhdr", "a.set", "a.doc", "noend"])
@pytest.mark.filterwarnings("ignore")
def test_garbage_is_one_line(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"no recording\n" * 50)
    with pytest.raises(RecordingError) as caught:
        read(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert name in str(caught.value)


def test_absent(tmp_path: Path) -> None:
    with pytest.raises(RecordingError, match="no recording at"):
        read(tmp_path / "a.xdf")


def test_a_session_of_another_version_is_refused(tmp_path: Path) -> None:
    info = StreamInfo("streamdec-events", "Events", 1, 0.0, "string")
    (tmp_path / "a.xdf").write_bytes(xdf.file_header("now") + xdf.stream_header(1, write_header(info)))
    with pytest.raises(RecordingError, match="another version"):
        read(tmp_path / "a.xdf")
