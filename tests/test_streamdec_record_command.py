"""``streamdec record``: what an amplifier and a stimulus program send is in the file, without a bundle."""

from __future__ import annotations

import json
import signal
import subprocess

import numpy as np
import pytest
from amplifier import Amplifier
from serving import COMMAND, streamdec

from streamdec.acquire.recording import read
from streamdec.record import _scale
from streamdec.types import StreamInfo

NAMES = ("Oz", "Pz", "Cz", "Photodiode")


def stream(unit: str) -> StreamInfo:
    return StreamInfo("cap", "EEG", 4, 250.0, "float32", ch_names=NAMES, units=(unit,) * 4)


@pytest.mark.lsl
def test_samples_and_markers_are_in_the_file(tmp_path, stream_name):
    path = tmp_path / "first.xdf"
    command = [*COMMAND, "record", path, "--eeg", stream_name, "--markers", f"{stream_name}-m"]
    with Amplifier(stream_name, markers="string") as amplifier:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        lines = [process.stdout.readline()]
        assert lines[0].startswith(f"recording {stream_name!r}, 4 channels at 500 Hz")
        lines.append(process.stdout.readline())
        # Its channels are named E0, E1, ...: said at once, and recorded all the same.
        assert lines[1].startswith("no channel has the name of an electrode")
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    recording = read(path)
    assert recording.problems == ()
    eeg, markers = recording.streams[:2]
    count, true = eeg.data[0], eeg.data[1].astype(float)
    assert rest == f"{path}: {len(count)} samples, {markers.data.shape[1]} markers, 0 breaks\n"
    assert len(count) >= 3 * 500
    np.testing.assert_array_equal(np.diff(count), 1)
    np.testing.assert_allclose(eeg.stamps - amplifier.start, true, atol=1e-3)
    for text, stamp in zip(markers.data[0], markers.stamps, strict=True):
        assert stamp - amplifier.start == pytest.approx(int(text.removeprefix("stim-")) * 0.1, abs=1e-6)
    assert json.loads(recording.description)["config"]["inlet"]["eeg"]["name"] == stream_name


@pytest.mark.parametrize(("name", "said"), [("there.xdf", "is there already"), ("new.edf", "a new .xdf file")])
@pytest.mark.lsl
def test_files_it_cannot_write_are_refused(tmp_path, stream_name, name, said):
    (tmp_path / "there.xdf").write_bytes(b"a recording")
    with Amplifier(stream_name, markers="string"):
        done = streamdec("record", tmp_path / name, "--eeg", stream_name, "--markers", f"{stream_name}-m")
    assert done.returncode in (1, 2)
    assert said in done.stderr
    assert (tmp_path / "there.xdf").read_bytes() == b"a recording"


@pytest.mark.parametrize(
    ("unit", "stated", "scale", "said"),
    [
        ("microvolts", "", 1.0, ""),
        ("volts", "", 1e-6, ""),
        ("volts", "", 1.0, "the stream's unit is not what its header says"),
        ("microvolts", "", 1e-6, "the stream's unit is not what its header says"),
        ("volts", "microvolts", 1.0, ""),
    ],
)
def test_a_unit_that_cannot_be_is_said(unit, stated, scale, said):
    data = (scale * np.random.default_rng(0).normal(0, 25, (4, 750))).astype(np.float32)
    (line,) = _scale(data, stream(unit), stated) or [""]
    assert said in line
    assert bool(said) == bool(line)
    data[1] = 3 * scale
    assert any("flat channels: Pz" in each for each in _scale(data, stream(unit), stated))
