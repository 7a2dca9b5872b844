"""The relay: a feed's results as an LSL stream that is recorded beside the EEG, and as OSC."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

import msgspec
import numpy as np
import psutil
import pytest
import pyxdf
from feed_messages import caption, one_of_each, onset, reconstruction, retrieval, session, stats
from feeder import Feeder, Plan, write_script
from pythonosc.osc_message import OscMessage
from serving import COMMAND, Serving, streamdec
from small_bundle import NAMES, presentation, write_bundle

from streamdec.acquire.lsl.inlet import LslInlet
from streamdec.acquire.lsl.library import local_clock
from streamdec.acquire.lsl.markers import LslMarkers
from streamdec.acquire.lsl.outlet import LslOutlet
from streamdec.acquire.query import StreamQuery
from streamdec.acquire.record import Recorder
from streamdec.feed import schema
from streamdec.feed.publisher import FeedSettings, Publisher
from streamdec.relay.lsl import LslOutput
from streamdec.relay.osc import compose
from streamdec.types import Marker, StreamInfo

FREE = FeedSettings(endpoint="tcp://127.0.0.1:0")


class Relay:
    """`streamdec relay` in a process, and what it said."""

    def __init__(self, *arguments: object) -> None:
        command = [*COMMAND, "relay", *map(str, arguments)]
        self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.lines: SimpleQueue[str] = SimpleQueue()
        self._thread = Thread(target=self._listen, daemon=True)
        self._thread.start()

    def says(self, text: str, turn: Callable[[], object]) -> None:
        """Wait for a line that begins so, taking turns meanwhile."""
        end, said = time.monotonic() + 30, []
        while time.monotonic() < end:
            turn()
            try:
                said.append(self.lines.get(timeout=0.005))
            except Empty:
                continue
            if said[-1].startswith(text):
                return
        raise AssertionError(f"{text!r} not said, but {said}")

    def ends(self) -> tuple[int, str]:
        assert self.process.stderr is not None
        return self.process.wait(20), self.process.stderr.read()

    def stop(self) -> tuple[int, str]:
        self.process.send_signal(signal.SIGTERM)
        return self.ends()

    def close(self) -> None:
        self.process.kill()
        self._thread.join(10)
        with self.process:
            pass

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.put(line.rstrip())


@contextmanager
def relaying(*arguments: object) -> Iterator[Relay]:
    relay = Relay(*arguments)
    try:
        yield relay
    finally:
        relay.close()


def published(message: schema.AnyMessage) -> float:
    return message.time if isinstance(message, schema.Session) else message.timing.published  # type: ignore[union-attr]


@pytest.mark.lsl
def test_results_recorded_beside_the_eeg_are_those_of_the_feed(stream_name: str, tmp_path: Path) -> None:
    """Two sessions, one relay, one recording: headers and stamps come back as they were published."""
    info = StreamInfo(stream_name, "EEG", 1, 100.0, "float32", stream_name, ch_names=("Oz",), units=("microvolts",))
    eeg = LslOutlet(info)
    path = tmp_path / "beside.xdf"
    sent: list[bytes] = []
    results = f"{stream_name}-results"
    with Publisher(FREE, "s1") as first, relaying("--lsl", results, "--endpoint", first.endpoint) as relay:
        first.publish(session("started"))
        first.publish(retrieval("before the relay came"))
        relay.says("session s1", first.serve)
        inlet = LslInlet(StreamQuery(name=stream_name), StreamQuery(name=results, type="Events"))
        with inlet:
            inlet.open(20)
            assert inlet.markers is not None
            recorder = Recorder(path, inlet.eeg, inlet.markers)
            got: list[Marker] = []

            def turn(publisher: Publisher) -> None:
                eeg.push(np.zeros((1, 1), np.float32), local_clock())
                publisher.serve()
                event = inlet.pull(0.01)
                if event is not None:
                    recorder.event(event)
                    got.extend([event] if isinstance(event, Marker) else [])

            def through(publisher: Publisher) -> None:
                for message in (
                    *one_of_each(),
                    caption("ä\x00ö"),
                    reconstruction(),
                    session("ended", counts=schema.Counts(9)),
                ):
                    if not isinstance(message, schema.Stats):
                        payloads = [b"\x89PNG"] * len(getattr(message, "payloads", ()))
                        header = publisher.publish(message, payloads)
                        kept = schema.Retrieval | schema.Generated | schema.Session
                        sent.extend([header] if isinstance(message, kept) else [])
                end = time.monotonic() + 20
                while len(got) < len(sent) + (publisher is not first):  # the second session's start was seen as well
                    assert time.monotonic() < end, (len(got), len(sent))
                    turn(publisher)

            # The session's start came before the inlet did, and is not in its stream.
            through(first)
            first.close()
            with Publisher(FeedSettings(endpoint=first.endpoint), "s2") as second:
                second.publish(session("started"))
                relay.says("session s2", lambda: turn(second))
                through(second)
            recorder.close(5)
        assert relay.stop() == (0, "")
    assert (recorder.dropped, recorder.broken) == (0, "")

    streams, _ = pyxdf.load_xdf(path, synchronize_clocks=False, dejitter_timestamps=False)
    (stream,) = (one for one in streams if one["info"]["name"] == [results])
    assert stream["info"]["type"] == ["Events"]
    texts = [row[0] for row in stream["time_series"]]
    order = sorted(range(len(texts)), key=lambda i: _place(texts[i]))
    started = json.loads(first_of(texts, "s2"))
    assert (started["topic"], started["state"]) == ("session", "started")
    expected = sorted([*(header.decode() for header in sent), first_of(texts, "s2")], key=_place)
    assert [texts[i] for i in order] == expected
    decoder = msgspec.json.Decoder(schema.AnyMessage)
    stamps = stream["time_stamps"][order]
    np.testing.assert_array_equal(stamps, [published(decoder.decode(text)) for text in expected])


def _place(text: str) -> tuple[str, str, int]:
    """Pictures come by a socket of their own, so order holds within a topic."""
    fields = json.loads(text)
    return fields["session"], fields["topic"], fields["seq"]


def first_of(texts: list[str], session_id: str) -> str:
    return next(text for text in texts if json.loads(text)["session"] == session_id)


@pytest.mark.lsl
def test_serve_sends_its_results_as_an_lsl_stream_too(stream_name: str, tmp_path: Path) -> None:
    """They are the feed's, and the relay ends with the session."""
    script = write_script(tmp_path / "s.npz", *presentation(600))
    plan = Plan(str(script), stream_name, NAMES, tuple(range(len(NAMES))), source_id=stream_name)
    streams = ("--eeg", f"name={stream_name}", "--markers", f"name={stream_name}-markers")
    with (
        closing(Feeder(plan)),
        Serving(write_bundle(tmp_path / "b.zip"), *streams, "--lsl") as serving,
        closing(
            LslMarkers(StreamQuery(name="streamdec", type="Events", source_id=f"streamdec@{serving.endpoint}"))
        ) as results,
    ):
        got: list[Marker] = []

        def decided() -> bool:
            got.extend(results.pull())
            return sum(json.loads(marker.value)["topic"] == "retrieval" for marker in got) > 2

        serving.until(decided)
        (relay,) = psutil.Process(serving.process.pid).children()
        _, code, errors = serving.stop()
        psutil.wait_procs([relay], timeout=10)
    assert (code, errors) == (0, "")
    assert not relay.is_running()
    made = [msgspec.json.decode(marker.value, type=schema.AnyMessage) for marker in got]
    of_the_feed = serving.of(schema.Retrieval)
    assert all(each in of_the_feed for each in made if isinstance(each, schema.Retrieval))


@pytest.mark.lsl
def test_a_clock_of_another_machine_is_refused(stream_name: str) -> None:
    with Publisher(FREE, "s1") as publisher, relaying("--lsl", stream_name, "--endpoint", publisher.endpoint) as relay:
        publisher.publish(session("started"))
        relay.says("session s1", publisher.serve)
        for _ in range(2):
            publisher.publish(msgspec.structs.replace(stats(), time=local_clock() + 1000))
        code, errors = relay.ends()
    assert code == 1
    assert "LSL clock is +1000" in errors


@pytest.mark.lsl
def test_a_late_last_statistic_is_no_other_clock(stream_name: str) -> None:
    from streamdec.feed.wire import Received

    output = LslOutput(stream_name, "here")
    try:
        for time_ in (local_clock(), local_clock() - 60, local_clock()):
            assert not output.send(Received(msgspec.structs.replace(stats(), time=time_)))
        assert not output.send(Received(onset()))
        assert output.send(Received(retrieval()))
    finally:
        output.close()


def test_osc_datagrams() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as end,
        Publisher(FREE, "s1") as publisher,
    ):
        end.bind(("127.0.0.1", 0))
        end.settimeout(20)
        target = f"127.0.0.1:{end.getsockname()[1]}"
        with relaying("--osc", target, "--endpoint", publisher.endpoint) as relay:
            publisher.publish(session("started"))
            publisher.publish(retrieval("before the relay came"))
            relay.says("session s1", publisher.serve)
            for message in (retrieval("cat"), onset(), caption("cat"), session("ended", reason="stopped")):
                publisher.publish(message)
            got = [OscMessage(end.recv(65_536)) for _ in range(4)]
            assert relay.stop() == (0, "")
    near = pytest.approx
    assert [(one.address, one.params) for one in got] == [
        ("/streamdec/session", ["started", "", ""]),
        (
            "/streamdec/retrieval",
            ["cat", 1, 3, 1, 0, near(8.505), 1, "cat", "label cat", near(0.25), "other", "label other", near(0.125)],
        ),
        ("/streamdec/caption", ["cat", "a cat on grey", "llm", near(0.25), 3, 0, near(8.9), 1]),
        ("/streamdec/session", ["ended", "", "stopped"]),
    ]


def test_osc_says_what_is_not_known() -> None:
    unknown = msgspec.structs.replace(retrieval(), rank=None)
    assert compose(unknown)[1] == 0
    assert compose(caption(probability=None))[3] == -1.0
    assert not any(compose(message) for message in (onset(), stats(), reconstruction()))


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((), "nowhere to relay to"),
        (("--osc", "nonsense"), "HOST:PORT"),
        (("--osc", "127.0.0.1:70000"), "HOST:PORT"),
        (("--osc", "127.0.0.1:9000", "--endpoint", "nonsense"), "feed endpoint"),
    ],
)
def test_wrong_calls(arguments: tuple[str, ...], reason: str) -> None:
    done = streamdec("relay", *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("streamdec: ")
    assert reason in done.stderr
    assert done.stderr.count("\n") == 1
