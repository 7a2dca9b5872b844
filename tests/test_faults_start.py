"""What is wrong from the start, and what must be left at the end: one line, an exit code, a recording that plays."""

from __future__ import annotations

import signal
import socket
import subprocess
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest
from feeder import Feeder, Plan, write_script
from serving import COMMAND, Serving, streamdec
from small_bundle import NAMES, presentation, write_bundle

from streamdec.feed import schema
from streamdec.signal.spec import BandPass

pytestmark = pytest.mark.lsl


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def bundle(folder: Path) -> Path:
    filters = (BandPass(low=0.5, order=1),)
    return write_bundle(folder / "b.zip", filters=filters, channel_sd=dict.fromkeys(NAMES, 8.0))


@pytest.fixture(scope="module")
def script(folder: Path) -> str:
    return str(write_script(folder / "s.npz", *presentation(600)))


@pytest.fixture
def plan(script: str, stream_name: str) -> Plan:
    """An amplifier that fits."""
    return Plan(script, stream_name, NAMES, tuple(range(len(NAMES))), source_id=stream_name)


def streams(plan: Plan) -> tuple[str, ...]:
    return "--eeg", f"name={plan.name}", "--markers", f"name={plan.name}-markers"


def toml(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def refusal(code: int, *arguments: object) -> str:
    """What `serve` says, in one line and nothing else, when it exits with ``code``."""
    result = streamdec("serve", *arguments, "--endpoint", "tcp://127.0.0.1:0")
    assert (result.returncode, result.stdout) == (code, ""), result.stderr
    (line,) = result.stderr.splitlines()
    assert line.startswith("streamdec: ")
    return line


def test_unknown_key(tmp_path: Path, bundle: Path) -> None:
    line = refusal(2, bundle, "--config", toml(tmp_path / "live.toml", "[intake]\nring_secs = 3"))
    for word in ("live.toml", "unknown key intake.ring_secs", "ring_seconds"):
        assert word in line


def test_tampered_bundle(tmp_path: Path) -> None:
    path = write_bundle(tmp_path / "b")
    encoder = bytearray((path / "encoder-0.5.onnx").read_bytes())
    encoder[len(encoder) // 2] ^= 1
    (path / "encoder-0.5.onnx").write_bytes(encoder)
    assert "encoder-0.5.onnx" in refusal(1, path)


def test_offline_only_bundle(tmp_path: Path) -> None:
    line = refusal(1, write_bundle(tmp_path / "b.zip", offline_only="zero-phase filters"))
    assert "offline" in line
    assert "zero-phase filters" in line


def test_port_in_use(bundle: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        result = streamdec("serve", bundle, "--endpoint", f"tcp://127.0.0.1:{port}")
    assert result.returncode == 1
    (line,) = result.stderr.splitlines()
    assert str(port) in line
    assert "in use" in line


def test_no_stream_that_matches(tmp_path: Path, bundle: Path, plan: Plan) -> None:
    config = toml(tmp_path / "live.toml", "[inlet]\nwait = 0.5")
    with Feeder(plan):
        line = refusal(1, bundle, "--config", config, "--eeg", "name=nowhere")
    assert "name 'nowhere'" in line
    assert f"{plan.name!r} (EEG, 250 Hz, 8 channels" in line


def test_two_streams_that_match(bundle: Path, plan: Plan) -> None:
    with Feeder(plan), Feeder(replace(plan, source_id="another")):
        line = refusal(1, bundle, *streams(plan))
    assert "several" in line
    assert f"{plan.source_id!r}" in line
    assert "'another'" in line


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"sfreq": 512.0, "true": 512.0}, ["512 Hz", "250 Hz"]),
        ({"labels": ("",) * 8}, ["O1, Oz, O2, Pz, P7", "positional"]),
        ({"labels": ("E1", "E2", "E3", "E4", "E5", "P4", "PO7", "PO8")}, ["O1, Oz, O2, Pz, P7"]),
    ],
    ids=["rate", "labels", "missing"],
)
def test_a_stream_that_does_not_fit(bundle: Path, plan: Plan, changes: dict[str, object], says: list[str]) -> None:
    with Feeder(replace(plan, **changes)):  # type: ignore[arg-type]
        line = refusal(1, bundle, *streams(plan))
    for word in says:
        assert word in line


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"scale": 1e-6}, "factor of"), ({"true": 500.0}, "effective rate")],
    ids=["volts called microvolts", "another rate than the header's"],
)
def test_a_header_that_lies(bundle: Path, plan: Plan, changes: dict[str, object], says: str) -> None:
    """The session has begun by then: the feed says why it ends."""
    with Feeder(replace(plan, **changes)), Serving(bundle, *streams(plan)) as serving:  # type: ignore[arg-type]
        bye = serving.session("ended")
        code, errors = serving.last_words()
    assert says in bye.reason
    assert (code, errors) == (1, f"streamdec: {bye.reason}\n")


def test_gain_off_by_a_little(bundle: Path, plan: Plan) -> None:
    with Feeder(replace(plan, scale=10.0)), Serving(bundle, *streams(plan)) as serving:
        assert "gain" in serving.session("warning", "eeg").reason
        serving.fresh(1)


def test_a_signal_while_it_looks_for_streams(tmp_path: Path, bundle: Path) -> None:
    config = toml(tmp_path / "live.toml", "[inlet]\nwait = 0.0")
    endpoint = f"ipc://{tmp_path}/feed"
    command = [*COMMAND, "serve", bundle, "--config", config, "--eeg", "name=nowhere", "--endpoint", endpoint]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    with process:
        try:
            while not (tmp_path / "feed.images").exists():  # the last it does before it looks
                assert process.poll() is None
            process.send_signal(signal.SIGTERM)
            assert process.communicate(timeout=20) == ("", "")
        finally:
            process.kill()
    assert process.returncode == 0


@pytest.mark.slow
def test_a_session_with_faults_replays_to_the_same_results(tmp_path: Path, bundle: Path, plan: Plan) -> None:
    results = tmp_path / "results.jsonl"
    with ExitStack() as stack:
        feeder = stack.enter_context(Feeder(plan))
        serving = stack.enter_context(Serving(bundle, *streams(plan), "--record", tmp_path / "sessions"))
        serving.fresh(2)
        feeder.do("lose", 5)
        serving.session("gap", "eeg")
        feeder.do("spoil", "Oz", None, 0.5)
        serving.ends(feeder.do("twice", 2)["times"])
        serving.ends(feeder.do("hold", 2)["times"])
        feeder.close()
        serving.session("lost", "eeg")
        stack.enter_context(Feeder(plan))
        serving.session("found", "eeg")
        serving.fresh(2)
        bye, code, errors = serving.stop()
    assert (code, errors) == (0, "")
    assert bye.counts is not None
    assert bye.counts.unrecorded == 0
    assert min(bye.counts.decided, bye.counts.lost_data, bye.counts.duplicate, bye.counts.cancelled) > 0
    (path,) = (tmp_path / "sessions").iterdir()
    replayed = streamdec("replay", path, "--bundle", bundle, "--verify", "--output", results)
    assert replayed.returncode == 0, replayed.stdout + replayed.stderr
    assert "the same as recorded" in replayed.stdout
    ended = msgspec.json.decode(results.read_bytes().splitlines()[-1], type=schema.AnyMessage)
    assert isinstance(ended, schema.Session)
    assert ended.counts == bye.counts
