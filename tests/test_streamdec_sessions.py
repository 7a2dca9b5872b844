"""Sessions as users have them: `serve --record`, then what `streamdec sessions` and `replay` make of the folder."""

from __future__ import annotations

import csv
import re
import resource
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import msgspec
import numpy as np
import psutil
import pytest
import pyxdf
from feeder import Feeder, Plan, write_script
from serving import Serving, streamdec
from small_bundle import DIM, NAMES, presentation, write_bundle

from streamdec.acquire.lsl.library import local_clock
from streamdec.acquire.recording import read
from streamdec.config import Config
from streamdec.errors import RecordingError
from streamdec.feed import schema
from streamdec.sessions import folder, listing
from streamdec.sessions.log import Line
from streamdec.sessions.repair import repair
from streamdec.sessions.verify import verify

pytestmark = pytest.mark.lsl


class Recorded(msgspec.Struct, frozen=True, eq=False):
    """A session that ended as it should; ``messages`` what a subscriber saw of it."""

    path: Path
    bundle: Path
    bye: schema.Session
    messages: list[object]
    said: str


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sessions")


@pytest.fixture(scope="module")
def bundle(room: Path) -> Path:
    return write_bundle(room / "b.zip")


@pytest.fixture(scope="module")
def plan(room: Path) -> Plan:
    name = f"sessions-{uuid.uuid4().hex[:8]}"
    script = str(write_script(room / "s.npz", *presentation(600)))
    return Plan(script, name, NAMES, tuple(range(len(NAMES))), source_id=name)


def streams(plan: Plan) -> tuple[str, ...]:
    return "--eeg", f"name={plan.name}", "--markers", f"name={plan.name}-markers"


@pytest.fixture(scope="module")
def recorded(room: Path, bundle: Path, plan: Plan) -> Recorded:
    config = room / "live.toml"
    config.write_text("[session]\ntop_k = 3\n[intake.markers]\npattern = '(?P<key>img\\d\\d)'\n", encoding="utf-8")
    options = ("--config", config, "--record", room / "kept")
    with Feeder(plan) as feeder, Serving(bundle, *streams(plan), *options) as serving:
        serving.fresh(4)
        feeder.do("lose", 5)
        serving.session("gap", "eeg")
        serving.ends(feeder.do("twice", 2)["times"])
        feeder.do("say", "image 7")
        serving.fresh(8)
        serving.process.send_signal(15)
        bye = serving.session("ended")
        said, errors = serving.process.communicate(timeout=30)
    assert (serving.process.returncode, errors) == (0, "")
    (path,) = (room / "kept").iterdir()
    return Recorded(path, bundle, bye, serving.messages, said)


def test_the_folder_says_what_the_session_was(recorded: Recorded, plan: Plan) -> None:
    assert {file.name for file in recorded.path.iterdir()} == {
        "streams.xdf",
        "session.json",
        "config.json",
        "log.jsonl",
        "events.tsv",
    }
    about = folder.read_about(recorded.path)
    assert recorded.path.name.endswith(about.id[:8])
    assert about.id == recorded.bye.session
    assert (about.eeg.name, about.bundle.name, about.simulated) == (plan.name, "b.zip", True)
    assert about.end is not None
    assert (about.end.reason, about.end.broken, about.end.counts) == ("stopped", "", recorded.bye.counts)
    assert folder.state(recorded.path, about) == "complete"
    config = msgspec.json.decode((recorded.path / "config.json").read_bytes(), type=Config)
    assert (config.session.top_k, config.bundle) == (3, str(recorded.bundle))
    said = [
        msgspec.json.decode(line, type=Line).text for line in (recorded.path / "log.jsonl").read_bytes().splitlines()
    ]
    assert f"recording to {recorded.path}" in said


def test_the_log_has_what_was_said_and_what_changed(recorded: Recorded) -> None:
    lines = [msgspec.json.decode(line, type=Line) for line in (recorded.path / "log.jsonl").read_bytes().splitlines()]
    states = [(line.state, line.level) for line in lines if line.state]
    assert states[0] == ("started", "info")
    assert states[-1] == ("ended", "info")
    assert ("gap", "warning") in states
    assert any(line.text.startswith("feed at tcp://127.0.0.1:") for line in lines)
    assert {line.session for line in lines} == {recorded.bye.session}
    assert "eeg gap: 50 samples missing" in recorded.said


def test_every_onset_has_its_row(recorded: Recorded) -> None:
    with (recorded.path / "events.tsv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    feed = [msgspec.json.decode(text, type=schema.AnyMessage) for text in read(recorded.path).feed]
    ends = [message for message in feed if isinstance(message, schema.Epoch)]
    decisions = {m.onset_time: m for m in feed if isinstance(m, schema.Retrieval)}
    start = folder.read_about(recorded.path).start.lsl
    assert len(rows) == len(ends) == recorded.bye.counts.onsets > 10  # type: ignore[union-attr]
    for row, end in zip(rows, ends, strict=True):
        assert (row["stimulus"], row["outcome"], row["duration"]) == (end.key, end.outcome, "n/a")
        assert float(row["onset"]) == pytest.approx(end.onset_time - start, abs=1e-4)
        decision = decisions.get(end.onset_time)
        if decision is None:
            assert (row["rank"], row["candidate"], row["reason"]) == ("n/a", "n/a", end.reason)
        else:
            assert (row["rank"], row["candidate"]) == (str(decision.rank), decision.candidates[0].id)
            assert float(row["probability"]) == pytest.approx(decision.candidates[0].probability, rel=1e-3)
            assert float(row["latency"]) == pytest.approx(decision.timing.latency, abs=1e-4)
    assert {"decided", "lost_data", "cancelled"} <= {row["outcome"] for row in rows}


@pytest.fixture
def copy(recorded: Recorded, tmp_path: Path) -> Path:
    return Path(shutil.copytree(recorded.path, tmp_path / "kept" / recorded.path.name))


def test_list_and_verify(recorded: Recorded) -> None:
    counts = recorded.bye.counts
    assert counts is not None
    listed = streamdec("sessions", "list", recorded.path.parent)
    assert (listed.returncode, listed.stderr) == (0, "")
    (line,) = listed.stdout.splitlines()[1:]
    assert line.startswith(recorded.path.name)
    assert re.search(rf"0:\d\d +8 ch 250 Hz, \S+-markers  {counts.decided} of {counts.onsets}  b.zip", line)
    assert line.rstrip().endswith("complete")
    verified = streamdec("sessions", "verify", recorded.path)
    assert verified.returncode == 0, verified.stdout
    found = verified.stdout.splitlines()[1:]
    assert all(line.startswith("  ok") for line in found)
    assert f"{counts.samples} samples, {counts.onsets} onsets, {counts.decided} decided" in verified.stdout
    assert "bundle b.zip is what it ran with" in verified.stdout
    other = write_bundle(recorded.path.parent.parent / "verify.zip", evidence="mean")
    wrong = streamdec("sessions", "verify", recorded.path, "--bundle", other)
    assert wrong.returncode == 1
    assert "FAIL  bundle verify.zip is" in wrong.stdout


def spoil(path: Path, old: bytes, new: bytes) -> None:
    content = path.read_bytes()
    assert content.count(old) >= 1
    path.write_bytes(content.replace(old, new, 1))


def test_verify_finds_what_was_tampered_with(copy: Path) -> None:
    """A message with another number, a row of the table."""
    content = (copy / "streams.xdf").read_bytes()
    at = content.index(b'"seq":7', content.index(b'{"topic":"onset"'))
    (copy / "streams.xdf").write_bytes(content[:at] + b'"seq":9' + content[at + 7 :])
    spoil(copy / "events.tsv", b"\tdecided\t", b"\tlate\t")
    wrong = [finding.text for finding in verify(copy) if finding.good is False]
    assert len(wrong) == 2
    assert re.match(r"messages are missing, twice or out of order: \d+ of \w+", wrong[0])
    assert wrong[1].startswith("events.tsv is not what the messages say")
    assert repair(copy) == "events.tsv was made again"
    assert [finding.text for finding in verify(copy) if finding.good is False] == wrong[:1]


def test_a_session_that_is_whole_is_left_alone(copy: Path) -> None:
    before = {file.name: file.read_bytes() for file in copy.iterdir()}
    repaired = streamdec("sessions", "repair", copy.parent)
    assert (repaired.returncode, repaired.stdout) == (0, f"{copy}: whole, nothing to repair\n")
    assert {file.name: file.read_bytes() for file in copy.iterdir()} == before


def test_a_session_that_was_repaired_and_then_damaged_is_repaired_again(copy: Path) -> None:
    about = folder.read_about(copy)
    assert about.end is not None
    folder.write_about(copy, msgspec.structs.replace(about, end=msgspec.structs.replace(about.end, repaired="once")))
    content = (copy / "streams.xdf").read_bytes()
    (copy / "streams.xdf").write_bytes(content[: len(content) // 2])
    assert re.search(r"s of the session are lost(;|$)", repair(copy))
    assert (read(copy).finished, read(copy).problems) == (True, ())
    assert repair(copy) == ""


def test_a_repair_that_was_killed_half_way_says_no_less_when_made_again(copy: Path) -> None:
    """It tells what is lost before it puts the whole file in place of the damaged one."""
    folder.write_about(copy, msgspec.structs.replace(folder.read_about(copy), end=None))
    content = (copy / "streams.xdf").read_bytes()
    (copy / "streams.xdf").write_bytes(content[: len(content) // 2])
    said = repair(copy)
    assert "killed together" in said
    (copy / "streams.xdf").write_bytes(content[: len(content) // 2])
    assert repair(copy) == said
    assert (read(copy).finished, listing.row(copy).state) == (True, "repaired")
    end = folder.read_about(copy).end
    assert end is not None
    assert end.repaired == said


def recorder_of(serving: Serving) -> psutil.Process:
    (recorder,) = psutil.Process(serving.process.pid).children()
    return recorder


def newest(path: Path) -> float:
    """LSL clock of the last sample, read by another program."""
    streams, _ = pyxdf.load_xdf(str(path / "streams.xdf"), verbose=False)
    return float(next(s for s in streams if s["info"]["type"] == ["EEG"])["time_stamps"][-1])


@pytest.mark.slow
@pytest.mark.parametrize("both", [False, True], ids=["serve", "serve and recorder"])
def test_kill_9_costs_a_second_at_most(tmp_path: Path, bundle: Path, plan: Plan, both: bool) -> None:
    """Killed while it records: it opens, at most a second is lost, repair says so and makes it whole."""
    with Feeder(plan), Serving(bundle, *streams(plan), "--record", tmp_path) as serving:
        serving.fresh(4)
        (path,) = tmp_path.iterdir()
        recorder = recorder_of(serving)
        assert listing.row(path).state == "recording"
        with pytest.raises(RecordingError, match="is being recorded"):
            repair(path)
        before = path.joinpath("streams.xdf").stat().st_size
        serving.until(lambda: path.joinpath("streams.xdf").stat().st_size > before)
        killed = local_clock()
        if both:
            recorder.kill()
        serving.process.kill()
        recorder.wait(20)
    assert newest(path) > killed - 1.0
    assert read(path).finished != both
    assert listing.row(path).state == "cut off"
    assert any(finding.good is False for finding in verify(path))
    with path.joinpath("streams.xdf").open("ab") as file:
        file.write(b"\x04\xff\xff\x00\x00\x03\x00half a chunk" if both else b"")  # a write that was torn
    repaired = streamdec("sessions", "repair", path)
    assert repaired.returncode == 0, repaired.stderr
    assert ("at most 1 s" if both else "nothing of it is lost") in repaired.stdout
    assert ("19 bytes at byte" in repaired.stdout) == both
    recording = read(path)
    assert (recording.finished, recording.problems) == (True, ())
    assert newest(path) > killed - 1.0
    about = folder.read_about(path)
    assert about.end is not None
    assert (about.end.reason, about.end.broken) == ("cut off", "")
    assert killed - 1.0 < about.end.at.lsl < killed + 0.1
    assert listing.row(path).state == "repaired"
    assert not [finding for finding in verify(path) if finding.good is False]
    assert repair(path) == ""
    replayed = streamdec("replay", path, "--bundle", bundle)
    assert replayed.returncode == 0, replayed.stderr


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path | None]:
    """A disk with room for a second or two; None where none may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=128k", "tmpfs", str(disk)]
    mounted = sys.platform == "linux" and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    yield disk if mounted else None
    if mounted:
        subprocess.run(["umount", str(disk)], check=True)


@pytest.mark.skipif(sys.platform != "linux", reason="needs tmpfs or prlimit")
def test_full_disk(tmp_path: Path, small_disk: Path | None, bundle: Path, plan: Plan) -> None:
    """The session goes on, says so, and what is on the disk is whole."""
    sessions = (small_disk or tmp_path) / "sessions"
    with Feeder(plan), Serving(bundle, *streams(plan), "--record", sessions) as serving:
        if small_disk is None:
            resource.prlimit(recorder_of(serving).pid, resource.RLIMIT_FSIZE, (64 << 10, 64 << 10))
        broken = serving.session("unrecorded")
        assert "streams.xdf" in broken.reason
        serving.fresh(5)
        serving.process.send_signal(15)
        bye = serving.session("ended")
        said, _ = serving.process.communicate(timeout=30)
    assert serving.process.returncode == 0
    assert "unrecorded: " in said
    assert "the recording is broken: " in said
    assert bye.counts is not None
    assert bye.counts.unrecorded > 0
    (path,) = sessions.iterdir()
    recording = read(path)
    assert recording.problems == ()
    assert np.isfinite(recording.streams[0].data).all()
    assert 250 < recording.streams[0].data.shape[1] < bye.counts.samples
    listed = streamdec("sessions", "list", sessions).stdout
    assert " broken" in listed
    assert broken.reason in listed
    assert "FAIL  broken: " in [finding.line()[: len("FAIL  broken: ")] for finding in verify(path)]


def test_a_replay_with_the_same_bundle_is_the_same(recorded: Recorded) -> None:
    """Without being told the config: it is the recorded one."""
    replayed = streamdec("replay", recorded.path, "--bundle", recorded.bundle, "--verify")
    assert replayed.returncode == 0, replayed.stderr
    assert re.fullmatch(r"the same as recorded: \d+ messages", replayed.stdout.splitlines()[-1])


def test_a_replay_with_another_bundle_says_what_differs(recorded: Recorded, room: Path) -> None:
    """The other bundle guesses; what is said of both is counted again here."""
    weights = np.random.default_rng(5).normal(size=(len(NAMES) * 151, DIM))
    other = write_bundle(room / "other.zip", weights=weights)
    output = room / "other.jsonl"
    replayed = streamdec("replay", recorded.path, "--bundle", other, "--output", output, "--verify")
    assert (replayed.returncode, replayed.stderr) == (1, "")
    old = [msgspec.json.decode(text, type=schema.AnyMessage) for text in read(recorded.path).feed]
    new = [msgspec.json.decode(line, type=schema.AnyMessage) for line in output.read_bytes().splitlines()]
    ours, theirs = ({m.onset_time: m for m in side if isinstance(m, schema.Retrieval)} for side in (old, new))
    assert ours.keys() == theirs.keys()
    agree = sum(ours[t].candidates[0].id == theirs[t].candidates[0].id for t in ours)
    assert f"of {len(ours)} decided in both, {agree} have the same best candidate" in replayed.stdout
    better = sum(theirs[t].rank < ours[t].rank for t in ours)
    worse = sum(theirs[t].rank > ours[t].rank for t in ours)
    assert worse > better
    assert f"ranks: {better} better when replayed" in replayed.stdout
    assert f"{worse} worse" in replayed.stdout
    for side in (ours, theirs):
        share = np.mean([m.rank == 1 for m in side.values()])
        assert re.search(rf"first .*{100 * share:.1f} % \[", replayed.stdout)
    assert "simulated EEG" in replayed.stdout
    assert "first difference, message" in replayed.stdout
