"""``streamdec record``: what an amplifier and a stimulus program send is a session, without a bundle."""

from __future__ import annotations

import csv
import json
import resource
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import mne
import mne_bids
import msgspec
import numpy as np
import psutil
import pytest
from amplifier import Amplifier
from feeder import Feeder, Plan, write_script
from serving import COMMAND, streamdec
from small_bundle import NAMES, SFREQ, eeg_info, events, presentation, write_bundle

from streamdec.acquire.lsl.library import local_clock
from streamdec.acquire.markers import MarkerSettings, TriggerSettings
from streamdec.acquire.recording import read
from streamdec.intake import IntakeSettings
from streamdec.record import _odd
from streamdec.sessions import folder, listing
from streamdec.sessions.recorded import Recorded
from streamdec.sessions.repair import repair
from streamdec.sessions.undecoded import played
from streamdec.sessions.verify import verify
from streamdec.types import Chunk, Connection, StreamInfo

UNNAMED = ("Oz", "Pz", "Cz", "Photodiode")


def stream(unit: str) -> StreamInfo:
    return StreamInfo("cap", "EEG", 4, 250.0, "float32", ch_names=UNNAMED, units=(unit,) * 4)


def rows(session: Path) -> list[dict[str, str]]:
    with (session / "events.tsv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.mark.lsl
def test_what_comes_is_a_session(tmp_path, stream_name):
    """Ended by Ctrl-C; streams, log, events and how it ended are in its folder."""
    command = [*COMMAND, "record", tmp_path, "--eeg", stream_name, "--markers", f"{stream_name}-m"]
    with Amplifier(stream_name, markers="string") as amplifier:
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        lines = [process.stdout.readline()]
        assert lines[0].startswith(f"recording {stream_name!r}, 4 channels at 500 Hz, to {tmp_path}")
        while not lines[-1].startswith("no channel has the name of an electrode"):  # E0, E1, ...; recorded all the same
            lines.append(process.stdout.readline())
        process.send_signal(signal.SIGINT)
        rest, _ = process.communicate(timeout=20)
    assert process.returncode == 0
    (path,) = tmp_path.iterdir()
    assert {file.name for file in path.iterdir()} == {
        *("streams.xdf", "session.json", "config.json", "log.jsonl", "events.tsv")
    }
    recording = read(path)
    assert recording.problems == ()
    assert recording.feed == ()
    eeg, markers = recording.streams[:2]
    count, true = eeg.data[0], eeg.data[1].astype(float)
    shown = markers.data.shape[1]
    assert rest == f"{path}: {len(count)} samples, {shown} markers, {shown} onsets, 0 breaks\n"
    assert len(count) >= 3 * 500
    np.testing.assert_array_equal(np.diff(count), 1)
    np.testing.assert_allclose(eeg.stamps - amplifier.start, true, atol=1e-3)
    for text, stamp in zip(markers.data[0], markers.stamps, strict=True):
        assert stamp - amplifier.start == pytest.approx(int(text.removeprefix("stim-")) * 0.1, abs=1e-6)
    assert json.loads(recording.description)["config"]["inlet"]["eeg"]["name"] == stream_name

    about = json.loads((path / "session.json").read_text())
    assert (about["bundle"], about["simulated"], about["eeg"]["name"]) == (None, None, stream_name)
    assert (about["end"]["reason"], about["end"]["counts"], about["end"]["broken"]) == ("stopped", None, "")
    assert about["end"]["arrived"] == {"samples": len(count), "markers": shown, "onsets": shown, "breaks": 0}
    table = rows(path)
    assert [(row["stimulus"], row["duration"]) for row in table] == [(text, "n/a") for text in markers.data[0]]
    onset = np.array([float(row["onset"]) for row in table])
    np.testing.assert_allclose(onset + about["start"]["lsl"], markers.times, atol=1e-3)
    log = [json.loads(line) for line in (path / "log.jsonl").read_text().splitlines()]
    assert [line["text"] + "\n" for line in log if line["text"].startswith("recording ")] == lines[:1]
    assert {line["session"] for line in log} == {about["id"]}
    verified = streamdec("sessions", "verify", path)
    assert verified.returncode == 0, verified.stdout
    assert f"the account agrees: {len(count)} samples, {shown} markers" in verified.stdout
    assert "skip  no bundle: nothing was decoded" in verified.stdout


@pytest.mark.parametrize(("name", "said"), [("there", "File exists"), ("new.xdf", "a folder per session")])
@pytest.mark.lsl
def test_where_it_cannot_write_is_refused(tmp_path, stream_name, name, said):
    (tmp_path / "there").write_bytes(b"a file")
    with Amplifier(stream_name, markers="string"):
        done = streamdec("record", tmp_path / name, "--eeg", stream_name, "--markers", f"{stream_name}-m")
    assert done.returncode in (1, 2)
    assert said in done.stderr or "Not a directory" in done.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"there"}


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    name = f"record-{uuid.uuid4().hex[:8]}"
    script = str(write_script(tmp_path_factory.mktemp("script") / "s.npz", *presentation(600)))
    return Plan(script, name, NAMES, tuple(range(len(NAMES))), source_id=name)


def command(plan: Plan, parent: Path, *options: str) -> list[object]:
    query = ("--eeg", f"name={plan.name}", "--markers", f"name={plan.name}-markers")
    return [*COMMAND, "record", parent, *query, *options]


@pytest.fixture(scope="module")
def block(plan: Plan, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A session of some seconds, with a gap."""
    parent = tmp_path_factory.mktemp("block")
    with Feeder(plan) as feeder:
        process = subprocess.Popen(command(plan, parent, "--seconds", "8"), stdout=subprocess.PIPE, text=True)
        while not process.stdout.readline().startswith("recording "):
            assert process.poll() is None
        feeder.do("say", "not an image")
        feeder.do("lose", 5)
        said, _ = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "eeg gap: 50 samples missing" in said
    (path,) = parent.iterdir()
    return path


@pytest.mark.lsl
def test_a_session_is_what_everything_takes(block: Path, tmp_path: Path) -> None:
    """List, replay with a bundle, report, FIF and BIDS."""
    session = Recorded.open(block)
    arrived = session.about.end.arrived
    assert session.about.end.reason == "8 s are over"
    log = [json.loads(line) for line in (block / "log.jsonl").read_text(encoding="utf-8").splitlines()]
    told = [line["text"] for line in log if line.get("state") in ("gap", "stalled", "lost")]
    assert told.count("50 samples missing") == 1
    assert arrived.breaks == len(told)  # a busy machine may add breaks of its own
    assert arrived.onsets == arrived.markers == len(session.onsets) > 20
    listed = streamdec("sessions", "list", block.parent)
    assert f"none of {arrived.onsets}  none" in listed.stdout
    assert "complete" in listed.stdout

    bundle = write_bundle(tmp_path / "b.zip")
    replayed = streamdec("replay", block, "--bundle", bundle)
    assert replayed.returncode == 0, replayed.stderr
    assert f"{arrived.markers} markers: {arrived.onsets} onsets" in replayed.stdout
    refused = streamdec("replay", block, "--bundle", bundle, "--verify")
    assert (refused.returncode, "no results in" in refused.stderr) == (2, True)

    out = tmp_path / "report.html"
    made = streamdec("report", block, "--out", out)
    assert made.returncode == 0, made.stderr
    page = out.read_text(encoding="utf-8")
    assert "nothing was decoded: it was recorded without a bundle" in page
    assert "Evoked response and channels" in page
    assert ">Accuracy<" not in page

    fif = tmp_path / "a_raw.fif"
    exported = streamdec("sessions", "export", block, "--fif", fif)
    assert exported.returncode == 0
    marks = mne.io.read_raw_fif(fif, verbose="error").annotations
    shown = [mark["description"] for mark in marks if not mark["description"].startswith("BAD")]
    eeg = read(block).streams[0]  # the markers' inlet may have been there first
    inside = sorted(row.cells["stimulus"] for row in session.rows if row.time >= eeg.times[0] - 0.002)
    assert sorted(shown) == inside
    left_out = len(session.onsets) - len(inside)
    assert left_out <= 1
    assert ("left out" in exported.stdout) == bool(left_out)
    done = streamdec("sessions", "export", block, "--bids", tmp_path / "bids", "--subject", "01")
    assert done.returncode == 0, done.stderr
    (found,) = mne_bids.find_matching_paths(tmp_path / "bids", extensions=".vhdr")
    with found.copy().update(suffix="events", extension=".tsv").fpath.open(newline="", encoding="utf-8-sig") as file:
        table = list(csv.DictReader(file, delimiter="\t"))
    assert {row["stimulus"] for row in table} == {*(row["stimulus"] for row in rows(block)), "n/a"}
    assert {row["outcome"] for row in table} == {"n/a", "BAD_lost"}
    assert "rank" not in table[0]


def test_verify_finds_what_was_tampered_with(block: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(block, tmp_path / block.name))
    about = folder.read_about(copy)
    arrived = msgspec.structs.replace(about.end.arrived, markers=0)
    folder.write_about(copy, msgspec.structs.replace(about, end=msgspec.structs.replace(about.end, arrived=arrived)))
    table = copy / "events.tsv"
    table.write_bytes(table.read_bytes().replace(b"img", b"gmi", 1))
    wrong = [finding.text for finding in verify(copy) if finding.good is False]
    assert len(wrong) == 2
    assert " 0 markers" in wrong[0]
    assert wrong[1].startswith("events.tsv is not what the markers say")
    assert repair(copy) == "events.tsv was made again"
    assert table.read_bytes() == (block / "events.tsv").read_bytes()


@pytest.mark.lsl
@pytest.mark.parametrize("both", [False, True], ids=["record", "record and recorder"])
def test_kill_9_costs_a_second_at_most(tmp_path: Path, plan: Plan, both: bool) -> None:
    with Feeder(plan):
        process = subprocess.Popen(command(plan, tmp_path), stdout=subprocess.PIPE, text=True)
        while not process.stdout.readline().startswith("recording "):
            assert process.poll() is None
        (path,) = tmp_path.iterdir()
        (recorder,) = psutil.Process(process.pid).children()
        end = time.monotonic() + 30
        while path.joinpath("events.tsv").read_bytes().count(b"\n") < 5:
            assert time.monotonic() < end
            time.sleep(0.02)
        assert listing.row(path).state == "recording"
        killed = local_clock()
        if both:
            recorder.kill()
        process.kill()
        process.communicate()
        recorder.wait(20)
    assert listing.row(path).state == "cut off"
    repaired = streamdec("sessions", "repair", path)
    assert repaired.returncode == 0, repaired.stderr
    assert ("at most 1 s" if both else "nothing of it is lost") in repaired.stdout
    session = Recorded.open(path)
    assert session.recording.finished
    assert killed - 1.0 < session.last < killed + 0.1
    assert session.about.end.reason == "cut off"
    assert session.about.end.arrived == session.arrived
    assert len(rows(path)) == session.arrived.onsets >= 4
    assert listing.row(path).state == "repaired"
    assert not [finding for finding in verify(path) if finding.good is False]


@pytest.mark.lsl
@pytest.mark.skipif(sys.platform != "linux", reason="needs prlimit")
def test_full_disk(tmp_path: Path, plan: Plan) -> None:
    """It ends, says so, and what is on the disk is whole."""
    with Feeder(plan):
        process = subprocess.Popen(command(plan, tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while not process.stdout.readline().startswith("recording "):
            assert process.poll() is None
        (recorder,) = psutil.Process(process.pid).children()
        resource.prlimit(recorder.pid, resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))
        said, errors = process.communicate(timeout=60)
    (path,) = tmp_path.iterdir()
    assert process.returncode == 1
    assert f"{path} is not whole; got" in errors
    assert "the recording is broken: " in said
    recording = read(path)
    assert recording.problems == ()
    assert recording.streams[0].data.shape[1] > 250
    assert listing.row(path).state == "broken"
    assert folder.read_about(path).end.reason == "the recording broke off"


def test_what_was_shown_is_told_of_any_stream() -> None:
    """Markers, by the config's names and latency; or a trigger channel. No unit, another rate, a break."""
    data, onsets, keys = presentation(20)
    status = np.zeros((1, data.shape[1]), np.float32)
    for onset, key in zip(onsets, keys, strict=True):
        status[0, onset : onset + 5] = 1 + int(key[3:])
    info = eeg_info(
        n_chans=9, sfreq=SFREQ * 1.5, ch_names=(*NAMES, "Status"), ch_types=("",) * 9, units=("parsec",) * 9
    )
    script = events(np.concatenate([data, status]), onsets, keys, iter(lambda: 10, 0))
    script.insert(len(script) // 2, Connection("markers", "stalled", 1002.0, "silence"))
    names = MarkerSettings(pattern="img0(?P<key>.)", latency=0.5)
    found, arrived = played(script, info, IntakeSettings(markers=names))
    assert [onset.key for onset in found] == [key[-1] for key in keys if key < "img10"]
    expected = [1000 + onset / SFREQ + 0.5 for onset, key in zip(onsets, keys, strict=True) if key < "img10"]
    np.testing.assert_allclose([onset.onset_time for onset in found], expected, atol=1e-6)
    assert (arrived.samples, arrived.markers, arrived.onsets) == (data.shape[1], 20, len(found))
    assert arrived.breaks >= 1

    lines = [event for event in script if isinstance(event, Chunk)]
    info = msgspec.structs.replace(info, sfreq=SFREQ)
    found, arrived = played(lines, info, IntakeSettings(trigger=TriggerSettings("Status")))
    assert [onset.key for onset in found] == [str(1 + int(key[3:])) for key in keys]
    np.testing.assert_allclose([onset.onset_time for onset in found], 1000 + onsets / SFREQ, atol=1e-3)
    assert (arrived.markers, arrived.onsets, arrived.breaks) == (20, 20, 0)


@pytest.mark.parametrize(
    ("unit", "stated", "scale", "said"),
    [
        ("microvolts", "", 1.0, ""),
        ("volts", "", 1e-6, ""),
        ("volts", "", 1.0, "the stream's unit is not what its header says"),
        ("microvolts", "", 1e-6, "the stream's unit is not what its header says"),
        ("volts", "microvolts", 1.0, ""),
        ("a.u.", "", 1.0, "unit of a channel; got 'a.u.'"),
        ("counts", "microvolts", 1.0, ""),
    ],
)
def test_a_unit_that_cannot_be_is_said(unit, stated, scale, said):
    data = (scale * np.random.default_rng(0).normal(0, 25, (4, 750))).astype(np.float32)
    (line,) = _odd(data, stream(unit), stated) or [""]
    assert said in line
    assert bool(said) == bool(line)
    data[1] = 3 * scale
    assert any("flat channels: Pz" in each for each in _odd(data, stream(unit), stated))
