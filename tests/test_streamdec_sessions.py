"""Sessions as users have them: `serve --record`, then what `streamdec sessions` and `replay` make of the folder."""

from __future__ import annotations

import csv
import uuid
from pathlib import Path

import msgspec
import pytest
from feeder import Feeder, Plan, write_script
from serving import Serving
from small_bundle import NAMES, presentation, write_bundle

from streamdec.acquire.recording import read
from streamdec.config import Config
from streamdec.feed import schema
from streamdec.sessions import folder
from streamdec.sessions.log import Line

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
    assert f"recording to {recorded.path}" in recorded.said


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
