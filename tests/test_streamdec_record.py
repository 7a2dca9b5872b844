from __future__ import annotations

import json
import math
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Event as Flag
from types import SimpleNamespace

import msgspec
import numpy as np
import pytest
import pyxdf
from hypothesis import given
from hypothesis import strategies as st

from streamdec.acquire import record, record_worker
from streamdec.acquire.record import Recorder
from streamdec.acquire.recording import read
from streamdec.acquire.replay import ReplayInlet
from streamdec.acquire.spool import Spool
from streamdec.errors import RecordingError
from streamdec.types import Chunk, ClockOffset, Connection, Event, Marker, StreamInfo

EEG = StreamInfo("amp", "EEG", 3, 100.0, "double64", "id", ch_names=("Fz", "Cz", "Oz"), units=("microvolts",) * 3)
MARKERS = StreamInfo("stim", "Markers", 1, 0.0, "int32")


def chunk(n_times: int, arrival: float, seed: int = 0) -> Chunk:
    rng = np.random.default_rng(seed)
    samples = rng.standard_normal((n_times, 3)).astype(np.float32)
    return Chunk(samples.T, arrival - np.arange(n_times)[::-1] * 0.01, arrival)


def a_session(n_packets: int = 50) -> list[Event]:
    events: list[Event] = [Connection("eeg", "connected", 100.0, info=EEG), ClockOffset("eeg", 5.5, 1e-4, 100.0)]
    for k in range(n_packets):
        events.append(chunk(1 + k % 4, 100.0 + k * 0.02, k))
        if k % 10 == 3:
            events.append(Marker(f"bild_ü{k}", 100.0 + k * 0.02, 100.0 + k * 0.02))
    return [
        *events,
        Connection("eeg", "lost", 102.0, "gone"),
        Connection("eeg", "found", 103.0, info=EEG),
        chunk(2, 104.0),
    ]


def assert_equal(a: Event, b: Event | None) -> None:
    assert type(a) is type(b)
    if isinstance(a, Chunk):
        assert isinstance(b, Chunk)
        assert (a.data.dtype, b.data.dtype, a.arrival) == (np.float32, np.float32, b.arrival)
        np.testing.assert_array_equal(a.data, b.data)
        np.testing.assert_array_equal(a.stamps, b.stamps)
    elif isinstance(a, ClockOffset):
        assert isinstance(b, ClockOffset)
        assert (a.stream, a.value, a.arrival) == (b.stream, b.value, b.arrival)
        np.testing.assert_equal(a.uncertainty, b.uncertainty)
    else:
        assert a == b


def assert_replays(path: Path, events: list[Event]) -> None:
    inlet = ReplayInlet(read(path))
    inlet.open()
    for event in events:
        assert_equal(event, inlet.pull())
    last = inlet.pull()
    assert isinstance(last, Connection)
    assert last.state == "ended"
    assert inlet.pull() is None


def until(condition: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def finished(path: Path) -> bool:
    return path.read_bytes().count(b"<sample_count>") == 4


class Inline:
    """The recording process, run in this one when the recorder closes."""

    def __init__(
        self,
        handle: str,
        path: Path,
        n_chans: int,
        has_markers: bool,
        beside: Sequence[str],
        inherit: tuple[int, ...],
    ) -> None:
        size = handle.partition(":")[2]
        self._args = Spool.attach(f"{os.dup(inherit[0])}:{size}"), path, n_chans, has_markers, beside
        self.stdin = SimpleNamespace(close=lambda: None)

    def poll(self) -> int | None:
        return None

    def wait(self, timeout: float) -> int:
        ended = Flag()
        ended.set()
        return record_worker.run(*self._args, ended)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a.xdf"


@pytest.fixture
def recorder(path: Path) -> Iterator[Recorder]:
    with Recorder(path, EEG, MARKERS, session="s1", description='{"a": 1}') as recorder:
        yield recorder


seconds = st.floats(-1e9, 1e9)
roles = st.sampled_from(["eeg", "markers"])
texts = st.text(st.characters(exclude_categories=["Cs"]))
infos = st.none() | st.builds(
    StreamInfo,
    name=texts,
    type=texts,
    n_chans=st.integers(0, 9),
    sfreq=st.floats(0, 1e5),
    dtype=st.just("float32"),
    header=texts,
    ch_names=st.tuples(texts),
)
states = st.sampled_from(["connected", "stalled", "resumed", "lost", "found", "refused", "ended"])
any_events = st.lists(
    st.one_of(
        st.builds(chunk, st.integers(0, 20), seconds, st.integers(0, 9)),
        st.builds(Marker, texts, seconds, seconds),
        st.builds(ClockOffset, roles, seconds, seconds | st.just(math.nan), seconds),
        st.builds(Connection, roles, states, seconds, texts, infos),
    )
)


@given(any_events)
def test_any_events_replay_exactly(tmp_path_factory: pytest.TempPathFactory, events: list[Event]) -> None:
    path = tmp_path_factory.mktemp("record") / "a.xdf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(record, "_start", Inline)
        with Recorder(path, EEG, MARKERS, buffer_bytes=1 << 16) as recorder:
            for event in events:
                recorder.event(event)
    assert recorder.broken == ""
    assert read(path).problems == ()
    if not (events and isinstance(events[-1], Connection) and events[-1].state == "ended"):
        assert_replays(path, events)


def test_a_session_by_the_process(recorder: Recorder, path: Path) -> None:
    events = a_session()
    for event in events:
        recorder.event(event)
    recorder.message(b'{"topic":"onset"}')
    recorder.message(msgspec.msgpack.encode({"topic": "epoch"}))
    recorder.close()
    assert (recorder.dropped, recorder.broken) == (0, "")
    assert_replays(path, events)
    recording = read(path)
    assert [json.loads(text)["topic"] for text in recording.feed] == ["onset", "epoch"]
    assert (recording.session, recording.description) == ("s1", '{"a": 1}')
    assert [stream.info for stream in recording.streams] == [EEG, MARKERS]
    assert [(s.start, s.stop) for s in recording.streams[0].segments] == [(0, 123), (123, 125)]


def test_other_tools_open_it(recorder: Recorder, path: Path) -> None:
    events = a_session()
    for event in events:
        recorder.event(event)
    recorder.close()
    streams, header = pyxdf.load_xdf(path, dejitter_timestamps=False)
    eeg, markers, log, feed = streams
    assert header["info"]["version"] == ["1.0"]
    chunks = [event for event in events if isinstance(event, Chunk)]
    np.testing.assert_array_equal(eeg["time_series"], np.concatenate([chunk.data.T for chunk in chunks]))
    np.testing.assert_allclose(eeg["time_stamps"], np.concatenate([chunk.stamps for chunk in chunks]) + 5.5, atol=1e-9)
    assert markers["time_series"] == [[event.value] for event in events if isinstance(event, Marker)]
    assert log["info"]["name"] == ["streamdec-events"]
    assert feed["time_series"] == []
    assert eeg["footer"]["info"]["sample_count"] == ["125"]
    assert eeg["info"]["desc"][0]["channels"][0]["channel"][0]["label"] == ["Fz"]


def test_lines_go_into_the_files_beside_it(path: Path) -> None:
    """In order, whatever lies between them, and up to the last."""
    with Recorder(path, EEG, MARKERS, beside=("log", "table")) as recorder:
        for k, event in enumerate(a_session()):
            recorder.event(event)
            recorder.line(k % 2, f"{k}\n".encode())
        n = k + 1
    assert (path.parent / "log").read_text().split() == [str(k) for k in range(0, n, 2)]
    assert (path.parent / "table").read_text().split() == [str(k) for k in range(1, n, 2)]
    assert_replays(path, a_session())


def test_the_recording_is_locked_while_it_is_written(recorder: Recorder, path: Path) -> None:
    def free() -> bool:
        with path.open("rb") as file:
            return record_worker.lock(file.fileno())

    until(lambda: not free())
    recorder.close()
    assert free()


def test_it_says_when_it_writes(recorder: Recorder, path: Path) -> None:
    assert recorder.wait(20.0)
    recorder._process.kill()
    with Recorder(path.with_name("b.xdf"), EEG, None) as other:
        other._process.kill()
        other._process.wait()
        assert not other.wait(60.0) or other._spool.reading  # it may have been quicker than the signal


def test_reused_buffers_are_copied(recorder: Recorder, path: Path) -> None:
    buffer, stamps = np.zeros((5, 3), np.float32), np.zeros(5)
    for k in range(3):
        buffer[:], stamps[:] = k, k
        recorder.event(Chunk(buffer.T, stamps, float(k)))
    recorder.close()
    assert read(path).streams[0].data[0].tolist() == [0.0] * 5 + [1.0] * 5 + [2.0] * 5


def test_without_markers(path: Path) -> None:
    with Recorder(path, EEG, None) as recorder:
        recorder.event(chunk(3, 1.0))
        recorder.event(ClockOffset("markers", 1.0, 0.0, 1.0))
        recorder.event(Marker("a", 1.0, 1.0))
    assert recorder.dropped == 1
    recording = read(path)
    assert len(recording.streams) == 1
    assert "1 events or messages could not be recorded" in recording.problems[0]


def test_markers_of_several_channels_play_again_as_the_texts_they_were(path: Path) -> None:
    pairs = StreamInfo("pairs", "Markers", 2, 0.0, "int32", "stimulus")
    with Recorder(path, EEG, pairs) as recorder:
        recorder.event(chunk(3, 1.0))
        recorder.event(Marker("5,6", 1.0, 1.0))
    _, markers = read(path).streams
    assert markers.texts == ["5,6"]
    assert (markers.info.n_chans, markers.info.dtype, markers.info.name) == (1, "string", "pairs")


def test_what_does_not_fit_is_counted_and_said(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_start", Inline)
    recorder = Recorder(path, EEG, MARKERS, buffer_bytes=2000)
    for k in range(100):
        recorder.event(chunk(10, float(k), k))
    kept = 100 - recorder.dropped
    assert 0 < kept < 100
    recorder.close()
    recording = read(path)
    assert recording.streams[0].data.shape[1] == 10 * kept
    assert f"{100 - kept} events or messages could not be recorded" in recording.problems[0]


def test_a_recorder_that_hangs_never_holds_the_loop_up(path: Path) -> None:
    with Recorder(path, EEG, MARKERS, buffer_bytes=20_000) as recorder:
        os.kill(recorder._process.pid, signal.SIGSTOP)
        for k in range(200):
            recorder.event(chunk(10, float(k), k))
        assert recorder.dropped > 0

        def taken() -> bool:
            before = recorder.dropped
            recorder.event(Marker("after", 201.0, 201.0))
            return recorder.dropped == before

        os.kill(recorder._process.pid, signal.SIGCONT)
        until(taken)
    recording = read(path)
    assert f"{recorder.dropped} events or messages could not be recorded" in recording.problems[0]
    assert recording.streams[1].texts == ["after"]


def test_wrong_shape_is_dropped(recorder: Recorder) -> None:
    recorder.event(Chunk(np.zeros((2, 4), np.float32), np.zeros(4), 1.0))
    recorder.event(Connection("eeg", "found", 1.0, "\ud800"))
    assert recorder.dropped == 2


def test_an_existing_file_is_never_touched(path: Path) -> None:
    path.write_bytes(b"precious")
    with pytest.raises(RecordingError, match="there already"):
        Recorder(path, EEG, MARKERS)
    assert path.read_bytes() == b"precious"
    with pytest.raises(RecordingError, match="cannot write"):
        Recorder(path.parent / "none" / "a.xdf", EEG, MARKERS)


_LOOP = """
import os, signal, sys
sys.path.insert(0, {tests!r})
from test_streamdec_record import EEG, MARKERS, Recorder, a_session
recorder = Recorder({path!r}, EEG, MARKERS)
for event in a_session():
    recorder.event(event)
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_the_loop_is_killed(path: Path) -> None:
    script = _LOOP.format(tests=str(Path(__file__).parent), path=str(path))
    root = str(Path(record.__file__).parents[2])
    status = subprocess.run([sys.executable, "-c", script], cwd=root, timeout=60, check=False).returncode
    assert status == -signal.SIGKILL
    until(lambda: finished(path))
    assert read(path).problems == ()
    assert_replays(path, a_session())


def test_the_recorder_is_killed(recorder: Recorder, path: Path) -> None:
    events = a_session()
    empty = path.stat().st_size
    for event in events[:20]:
        recorder.event(event)
    until(lambda: path.stat().st_size > empty)
    recorder._process.kill()
    recorder._process.wait()
    assert "status -9" in recorder.broken
    for event in events[20:]:
        recorder.event(event)
    assert recorder.dropped == len(events) - 20
    recorder.close()
    assert "status -9" in recorder.broken
    assert_replays(path, events[:20])


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("mounting a small disk needs root")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def fill(recorder: Recorder) -> None:
    for k in range(2000):
        recorder.event(chunk(20, float(k), k % 7))


def assert_broken_but_whole(recorder: Recorder, path: Path, reason: str) -> None:
    until(lambda: bool(recorder.broken))
    assert reason in recorder.broken
    dropped = recorder.dropped
    recorder.event(chunk(20, 1.0))
    assert recorder.dropped == dropped + 1
    recorder.close()
    assert reason in recorder.broken
    recording = read(path)
    assert recording.problems == ()
    assert recording.streams[0].data.shape[1] % 20 == 0


def test_disk_full(tiny_disk: Path) -> None:
    path = tiny_disk / "a.xdf"
    recorder = Recorder(path, EEG, MARKERS)
    fill(recorder)
    assert_broken_but_whole(recorder, path, "No space left")


@pytest.mark.skipif(sys.platform != "linux", reason="prlimit")
def test_file_too_large(path: Path) -> None:
    recorder = Recorder(path, EEG, MARKERS)
    resource.prlimit(recorder._process.pid, resource.RLIMIT_FSIZE, (200_000, 200_000))
    fill(recorder)
    assert_broken_but_whole(recorder, path, "File too large")


def test_boundaries_are_written(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(record, "_start", Inline)
    monkeypatch.setattr(record_worker, "_BOUNDARY_EVERY", 0.0)
    with Recorder(path, EEG, MARKERS) as recorder:
        recorder.event(chunk(3, 1.0))
    assert record_worker.xdf.BOUNDARY_MARK in path.read_bytes()


def test_the_process_is_light_stands_back_and_is_out_of_reach_of_the_terminal(recorder: Recorder) -> None:
    pid = recorder._process.pid
    assert recorder.wait(20)
    assert (os.getpgid(pid), os.getsid(pid)) == (pid, os.getsid(0))  # of its own; the same, or priority means nothing
    assert os.getpriority(os.PRIO_PROCESS, pid) == min(19, os.getpriority(os.PRIO_PROCESS, 0) + 5)
    os.kill(pid, signal.SIGHUP)
    os.kill(pid, signal.SIGTERM)
    recorder.close()
    assert recorder._process.returncode == 0
    heavy = "{'torch', 'pylsl', 'zmq', 'scipy', 'onnxruntime', 'mne', 'pyxdf', 'faiss'}"
    code = f"import sys, streamdec.acquire.record_worker; assert not {heavy} & set(sys.modules)"
    root = str(Path(record.__file__).parents[2])
    subprocess.run([sys.executable, "-c", code], cwd=root, check=True)


@given(st.lists(st.integers(0, 200) | st.none()), st.integers(10, 300))
def test_spool_is_a_queue(sizes: list[int | None], capacity: int) -> None:
    """A size puts a record of that size, None reads everything."""
    spool, handle, inherit = Spool.create(capacity)
    reader = Spool.attach(f"{inherit[0]}:{handle.partition(':')[2]}")
    waiting: list[tuple[int, bytes]] = []
    for k, size in enumerate([*sizes, None]):
        if size is None:
            while records := reader.peek(reader.head, 64):
                assert [(kind, bytes(content)) for kind, content in records] == waiting[: len(records)]
                del waiting[: len(records)]
                reader.release()
            assert waiting == []
        else:
            content = bytes([k % 256]) * size
            if spool.put(k + 1, content):
                waiting.append((k + 1, content))
            else:
                assert waiting or size + 8 > capacity // 2


def test_spool_says_why_its_reader_failed() -> None:
    spool, handle, inherit = Spool.create(100)
    reader = Spool.attach(f"{inherit[0]}:{handle.partition(':')[2]}")
    assert (spool.failed, spool.reason) == (False, "")
    reader.fail("disk full: ü" + "x" * 5000)
    assert spool.failed
    assert spool.reason.startswith("disk full: ü")
