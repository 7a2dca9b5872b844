"""The simulated viewer: what its cap sends is the response to what was shown, from the light on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from streamdec.acquire.lsl.inlet import LslInlet
from streamdec.acquire.lsl.library import local_clock
from streamdec.acquire.lsl.outlet import LslOutlet
from streamdec.acquire.query import StreamQuery
from streamdec.calibrate.latency import photodiode
from streamdec.errors import ConfigError
from streamdec.signal.montage import map_channels
from streamdec.simulate.leadfield import CH_NAMES
from streamdec.simulate.schedule import TARGET
from streamdec.simulate.subject import Electrodes, Subject
from streamdec.simulate.viewer import PHOTODIODE, Rig, Viewer
from streamdec.simulate.world import World
from streamdec.types import Chunk, ClockOffset, Onset, StreamInfo

SFREQ = 250.0
NASTY = Rig(latency=0.06, missing=("O1", "Fp2"), old_names=True, unit="volts", photodiode=True)


@pytest.fixture(scope="module")
def subject() -> Subject:
    return Subject(World(0, n_train=3, images_per_concept=2, n_test=4, size=32), 2, sfreq=SFREQ, distinctness=4.0)


def test_responses_that_overlap_add_up(subject):
    """Whatever is read at a time, and whatever of a response is past already."""
    a, b = subject.response("test", 1), subject.response("test", 2)
    expected = np.zeros((63, 400), np.float32)
    expected[:, 30:230] += a
    expected[:, 60:260] += b
    for steps in ([1] * 400, [7] * 57 + [1], [50] * 8):
        electrodes, parts = Electrodes(subject, ahead=100), []
        for n in steps:
            for response, at in ((a, 30), (b, 60)):
                if electrodes.position <= at - 20 < electrodes.position + n:
                    electrodes.respond(response, at)
            parts.append(electrodes.read(n))
        np.testing.assert_array_equal(np.concatenate(parts, axis=1), expected)
    late = Electrodes(subject, ahead=100)
    late.read(40)
    late.respond(a, 30)
    np.testing.assert_array_equal(late.read(100), a[:, 10:110])


def test_the_cap_is_as_awkward_as_it_is_told_to_be(subject):
    stream = NASTY.stream(subject, "cap")
    assert (stream.n_chans, len(stream.ch_names), set(stream.units[:-1])) == (62, 62, {"volts"})
    assert {"T3", "T6", "FP1", "OZ", PHOTODIODE} <= set(stream.ch_names)
    assert not {"T7", "P8", "Fp1", "O1", "Oz"} & set(stream.ch_names)
    found = map_channels(stream.ch_names, CH_NAMES, 4)
    assert set(found.missing) == {"O1", "Fp2"}
    plain = Rig().stream(subject, "cap")
    assert (plain.ch_names, set(plain.units)) == (CH_NAMES, {"microvolts"})


@pytest.mark.parametrize("wrong", [{"missing": ("Oz", "Q9")}, {"latency": -0.1}, {"latency": 2.0}])
def test_a_rig_that_cannot_be_is_refused(wrong):
    with pytest.raises(ConfigError, match="allowed"):
        Rig(**wrong)


def test_the_response_begins_with_the_light(subject):
    """Against the subject's noise-free response, 60 ms behind the marker; the photodiode says the same."""
    noisy, quiet = (Viewer(subject, NASTY, start=1000.0, session=3) for _ in range(2))
    ids = subject.world.ids("test")
    noisy.see(Onset(f"test_images/{ids[2]}", 1000.2, "", 1000.2))
    chunks = [(noisy.read(5), quiet.read(5)) for _ in range(60)]
    noisy.see(Onset("something else", 1001.4004, "", 1001.4))
    noisy.see(Onset(ids[3], 1003.0, "", 1001.4))  # a second from now: no marker comes so early
    chunks += [(noisy.read(5), quiet.read(5)) for _ in range(60)]
    noisy.see(Onset(ids[0], 1002.5, "", 1002.5))
    chunks += [(noisy.read(5), quiet.read(5)) for _ in range(160)]
    heard, silence = (np.concatenate(parts, axis=1) for parts in zip(*chunks, strict=True))
    rows = [row for row, name in enumerate(CH_NAMES) if name not in NASTY.missing]
    expected = np.zeros((61, heard.shape[1]), np.float32)
    for split, code, first in (("test", 3, 65), ("train", TARGET, 366), ("test", 1, 640)):  # 1001.4604 s is sample 366
        expected[:, first : first + 200] += subject.response(split, code)[rows]
    np.testing.assert_allclose(heard[:-1] - silence[:-1], expected, atol=1e-3)
    light = np.flatnonzero(np.diff((heard[-1] > 0.5).astype(int)))
    np.testing.assert_array_equal(light + 1, [65, 90, 366, 391, 640, 665])


@pytest.mark.lsl
def test_it_answers_to_markers_in_real_time(stream_name):
    """A program of its own; its photodiode tells when the light came, on the LSL clock."""
    command = [
        sys.executable,
        "-m",
        "streamdec.simulate.viewer",
        "--name",
        stream_name,
        "--markers",
        f"{stream_name}-m",
    ]
    command += ["--sfreq", f"{SFREQ:g}", "--concepts", "3", "--per-concept", "2", "--tests", "4", "--photodiode"]
    command += ["--latency", "0.085", "--unit", "volts", "--missing", "Cz,Oz"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    outlet = LslOutlet(StreamInfo(f"{stream_name}-m", "Markers", 1, 0.0, "string", source_id=stream_name))
    chunks, offset = [], 0.0
    try:
        with LslInlet(StreamQuery(name=stream_name), None) as inlet:
            inlet.open(60.0)
            end = time.monotonic() + 30
            while not outlet.have_consumers():
                assert time.monotonic() < end
                inlet.pull(0.05)
            # It takes markers once it has measured the marker stream's clock.
            sent, due, until = [], local_clock() + 2.0, local_clock() + 8.5
            while local_clock() < until:
                event = inlet.pull(0.02)
                if isinstance(event, ClockOffset):
                    offset = event.value
                if isinstance(event, Chunk):
                    chunks.append((event.data.copy(), event.stamps.copy()))
                if local_clock() >= due and len(sent) < 20:
                    due += 0.3
                    sent.append(local_clock())
                    outlet.push([json.dumps({"id": "x", "seq": len(sent)})], sent[-1])
    finally:
        outlet.close()
        process.send_signal(signal.SIGTERM)
        _, complaint = process.communicate(timeout=20)
    assert (process.returncode, complaint) == (0, "")
    data, stamps = np.concatenate([d for d, _ in chunks], axis=1), np.concatenate([t for _, t in chunks]) + offset
    np.testing.assert_allclose(np.diff(stamps), 1 / SFREQ, atol=1e-6)  # not a sample is missing
    assert data.shape[0] == 62
    found = photodiode(data[-1], stamps, np.array(sent), PHOTODIODE)
    assert found.n == 20
    assert found.seconds == pytest.approx(0.085 + 0.5 / SFREQ, abs=2.5e-3)
