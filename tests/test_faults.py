"""What goes wrong in a running session, caused for real: an amplifier in a process, `streamdec serve`, a subscriber.

One session outlives all of these faults but the last few. Its amplifier has other names, another order and another case
than the bundle, a channel too many and one too few: that it decodes at all is the first test.
"""

from __future__ import annotations

import itertools
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import msgspec
import numpy as np
import pytest
import zmq
from feeder import Feeder, Plan, write_script
from serving import Serving
from small_bundle import NAMES, SFREQ, presentation, write_bundle

from streamdec.acquire.lsl.library import local_clock
from streamdec.feed import schema
from streamdec.signal.spec import BandPass

pytestmark = pytest.mark.lsl

LABELS = ("status", "po8", "EEG T5-REF", "PZ", "o1", "P4", "O2", "OZ")
SOURCES = (-1, *map(NAMES.index, ("PO8", "P7", "Pz", "O1", "P4", "O2", "Oz")))
MISSING = "PO7"
CONFIG = """
[intake.markers]
pattern = '(?P<key>img\\d\\d)'
ignore = 'catch|block .*'
[feed]
results_hwm = 50
"""
_numbers = itertools.count()


class Live:
    """A session, and the feeder it listens to now."""

    def __init__(self, serving: Serving, plan: Plan, feeder: Feeder) -> None:
        self.serving, self.plan, self.feeder = serving, plan, feeder

    def restart(self, **changes: object) -> None:
        """Put another feeder in the place of the one that is gone; its clock and its signal begin anew."""
        self.feeder.close()
        self.feeder = Feeder(replace(self.plan, **changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(
        tmp_path_factory.mktemp("faults") / "b.zip",
        filters=(BandPass(low=0.5, order=1),),
        channel_sd=dict.fromkeys(NAMES, 8.0),
    )


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(write_script(tmp_path_factory.mktemp("script") / "s.npz", *presentation(1500)))


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "live.toml"
    path.write_text(CONFIG, encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def start(bundle: Path, script: str, config: Path) -> Iterator[Callable[..., Live]]:
    """Starts sessions, each on streams of its own."""
    made: list[Live] = []

    def start(*options: object) -> Live:
        name = f"faults-{next(_numbers)}-{bundle.parent.name}"
        plan = Plan(script, name, LABELS, SOURCES, source_id=name)
        feeder = Feeder(plan)
        streams = ("--eeg", f"name={name}", "--markers", f"name={name}-markers")
        try:
            serving = Serving(bundle, *streams, "--config", config, *options)
        except BaseException:
            feeder.close()
            raise
        made.append(Live(serving, plan, feeder))
        return made[-1]

    yield start
    for live in made:
        live.serving.close()
        live.feeder.close()


@pytest.fixture(scope="module")
def shared(start: Callable[..., Live]) -> Live:
    return start()


@pytest.fixture
def live(shared: Live) -> Live:
    """The shared session, in good health."""
    if shared.feeder.plan != shared.plan or shared.feeder.process.poll() is not None:
        shared.restart()
    shared.serving.fresh(2)
    return shared


def right(decisions: Sequence[schema.Retrieval]) -> float:
    return float(np.mean([decision.rank == 1 for decision in decisions]))


def onset_errors(live: Live, decisions: Sequence[schema.Retrieval]) -> np.ndarray:
    """How many samples each onset lies off the feeder's truth."""
    cut = np.array([decision.onset_time - decision.residual for decision in decisions])
    position = (cut - live.feeder.start) * SFREQ
    return np.abs(position - np.array([round(p) for p in position]))


def adds_up(counts: schema.Counts) -> bool:
    ends = counts.decided + counts.rejected + counts.lost_data + counts.late + counts.cancelled
    markers = counts.onsets + counts.ignored + counts.duplicate + counts.garbage
    return (counts.onsets, counts.markers) == (ends + counts.open, markers)


def test_other_names_order_case_and_a_channel_missing(live: Live) -> None:
    decisions = live.serving.fresh(15)
    assert right(decisions) > 0.6
    assert all(decision.interpolated_channels == (MISSING,) for decision in decisions)
    assert onset_errors(live, decisions).max() < 0.5


def test_lost_chunks(live: Live) -> None:
    since = len(live.serving.messages)
    hole = live.feeder.do("lose", 5)
    gap = live.serving.session("gap", "eeg", since)
    assert gap.reason == "50 samples missing"
    live.serving.until(lambda: any(m.onset_time > hole["until"] + 0.2 for m in live.serving.of(schema.Retrieval)))
    for end in live.serving.of(schema.Epoch, since):
        touched = end.onset_time - 0.1 < hole["until"] - 1e-3 and end.onset_time + 0.5 > hole["since"] - 1e-3
        assert end.outcome == ("lost_data" if touched else "decided"), end
    after = [m for m in live.serving.of(schema.Retrieval, since) if m.onset_time > hole["until"]]
    assert all("settling" in decision.flags for decision in after)
    assert onset_errors(live, live.serving.fresh(8)).max() < 0.5


def test_late_and_out_of_order(live: Live) -> None:
    held = live.feeder.do("hold", 5)
    decisions = live.serving.decisions(held["times"])
    assert [decision.key for decision in decisions] == held["keys"]
    assert all("catch_up" in decision.flags for decision in decisions)
    assert right(decisions) > 0.3
    positions = [live.serving.messages.index(decision) for decision in decisions]
    assert positions == sorted(positions, reverse=True)


def test_before_their_samples(live: Live) -> None:
    early = live.feeder.do("early", 5)
    decisions = live.serving.decisions(early["times"])
    assert [decision.key for decision in decisions] == early["keys"]
    assert all(decision.flags == () for decision in decisions)


def test_twice(live: Live) -> None:
    since = len(live.serving.messages)
    doubled = live.feeder.do("twice", 4)
    live.serving.ends(doubled["times"])
    assert [m.text for m in live.serving.of(schema.Dropped, since) if m.reason == "duplicate"] == doubled["keys"]
    for onset in doubled["times"]:
        assert len([m for m in live.serving.of(schema.Onset, since) if abs(m.onset_time - onset) < 2e-3]) == 1


def test_garbage_is_named_and_catch_trials_are_not_shown(live: Live) -> None:
    since = len(live.serving.messages)
    garbage = ["", "image 7", '{"id":', '{"id": [1]}', "\x1b[31m\x07", "img00" * 2000]
    for text in [*garbage, "catch"]:
        live.feeder.do("say", text)
    dropped = live.serving.until(lambda: len(got := live.serving.of(schema.Dropped, since)) > len(garbage) and got)
    assert [(m.text, m.reason) for m in dropped] == [*((text, "garbage") for text in garbage), ("catch", "ignored")]


@pytest.mark.parametrize(
    ("fault", "value"), [("spoil", None), ("spoil", 1e-3), ("rail", 3.0)], ids=["nan", "flat", "railed"]
)
def test_a_channel_that_fails_is_filled_in(live: Live, fault: str, value: float | None) -> None:
    """Also behind a high-pass, where what is stuck goes on moving."""
    since = len(live.serving.messages)
    spoilt = live.feeder.do(fault, "P4", value, 1.5)
    live.serving.until(lambda: any(m.onset_time > spoilt["until"] + 0.2 for m in live.serving.of(schema.Epoch, since)))
    filled = [m for m in live.serving.of(schema.Retrieval, since) if "P4" in m.interpolated_channels]
    first, last = spoilt["since"] + 0.1, spoilt["until"] - 0.5
    within = [m for m in live.serving.of(schema.Retrieval, since) if first < m.onset_time < last]
    assert within
    assert all(m in filled for m in within)
    assert all(set(m.interpolated_channels) == {MISSING, "P4"} for m in filled)
    assert all(np.isfinite([candidate.score for candidate in m.candidates]).all() for m in filled)
    assert live.serving.fresh(1)[0].interpolated_channels == (MISSING,)


def test_stamps_that_jitter(live: Live) -> None:
    """By 1.5 ms, of samples 4 ms apart: no gap is seen, and every onset stays on its sample."""
    since, before = len(live.serving.messages), live.serving.stats().counts
    shaken = live.feeder.do("jitter", 1.5e-3, 3.0)
    live.serving.until(lambda: any(m.onset_time > shaken["until"] for m in live.serving.of(schema.Epoch, since)))
    assert {m.outcome for m in live.serving.of(schema.Epoch, since)} == {"decided"}
    within = [m for m in live.serving.of(schema.Retrieval, since) if m.onset_time > shaken["since"]]
    assert onset_errors(live, within).max() < 0.5
    after = live.serving.stats().counts
    assert (after.gaps, after.segments) == (before.gaps, before.segments)


def test_a_stall_and_its_burst(live: Live) -> None:
    """SIGSTOP, SIGCONT: said within half a second, worked off in order, nothing lost, nothing shown as fresh."""
    since = len(live.serving.messages)
    live.feeder.process.send_signal(signal.SIGSTOP)
    frozen = local_clock()
    stalled = live.serving.session("stalled", "eeg", since)
    assert stalled.time - frozen < 0.5
    live.feeder.process.send_signal(signal.SIGCONT)
    resumed = live.serving.session("resumed", "eeg", since)
    live.serving.fresh()
    states = [m.state for m in live.serving.of(schema.Session, since)]
    assert states == ["stalled", "resumed"]
    assert {m.outcome for m in live.serving.of(schema.Epoch, since)} == {"decided"}
    decisions = live.serving.of(schema.Retrieval, since)
    assert [m.onset_time for m in decisions] == sorted(m.onset_time for m in decisions)
    burst = [m for m in decisions if m.timing.due < resumed.time - 0.25 and m.timing.arrival >= resumed.time]
    assert all("catch_up" in m.flags for m in burst)


def test_killed_and_restarted(live: Live) -> None:
    """Lost and found are said; a segment begins; what follows is marked until the filters have settled."""
    since = len(live.serving.messages)
    before = live.serving.stats().counts
    live.feeder.process.kill()
    killed = local_clock()
    assert live.serving.session("lost", "eeg", since).time - killed < 0.5
    live.restart()
    found = live.serving.session("found", "eeg", since)
    live.serving.session("found", "markers", since)
    assert found.time - live.feeder.start < 5.0
    fresh = live.serving.fresh(8)
    again = [m for m in live.serving.of(schema.Retrieval, since) if m.onset_time > live.feeder.start]
    assert all(m.onset_time - 0.1 > live.feeder.start for m in again)
    assert "settling" in again[0].flags
    assert right(fresh) > 0.3
    assert onset_errors(live, fresh).max() < 0.5
    stats = live.serving.stats()
    assert stats.counts.segments == before.segments + 1
    assert adds_up(stats.counts)


def test_restarted_at_another_rate(live: Live) -> None:
    since = len(live.serving.messages)
    live.restart(sfreq=500.0, true=500.0)
    refused = live.serving.session("refused", "eeg", since)
    assert refused.reason == "rate 500.0, before 250.0"
    live.restart(unit="volts")
    live.serving.until(lambda: "units" in live.serving.of(schema.Session, since)[-1].reason)
    live.restart()
    live.serving.session("found", "eeg", since)
    assert live.serving.fresh(3)
    states = [m.state for m in live.serving.of(schema.Session, since) if m.stream == "eeg"]
    assert states == ["lost", "refused", "refused", "found", "gap"]


def test_a_subscriber_that_never_reads(live: Live) -> None:
    """40 MB are published past it: it loses its own messages, the loop goes on and keeps none for it."""
    size, times = 20_000, 1000

    def flood() -> schema.Stats:
        seen = live.serving.stats().counts.garbage
        live.feeder.do("say", "?" * size, times)
        return live.serving.until(
            lambda: [m for m in live.serving.of(schema.Stats) if m.counts.garbage == seen + times][-1:]
        )[0]

    with zmq.Context() as context, context.socket(zmq.SUB) as deaf:
        deaf.linger, deaf.rcvhwm, deaf.rcvbuf = 0, 1, 4096
        deaf.subscribe(b"")
        deaf.connect(live.serving.endpoint)
        live.serving.fresh(3)
        first = flood()
        second = flood()  # the first one's memory may have come from the flood, not from the subscriber
        live.serving.fresh(3)
        assert lost(deaf)
    assert second.counts.gaps == first.counts.gaps
    assert second.memory - first.memory < size * times / 2


PAUSING = """
import sys, time
from streamdec.feed.subscriber import Subscriber
with Subscriber(sys.argv[1]) as feed:
    while not feed.receive().fresh:
        pass
    print("joined", flush=True)
    sys.stdin.readline()
    end = time.monotonic() + 3
    while time.monotonic() < end:
        feed.receive(0.1)
    print(sum(feed.gaps.values()))
"""


@pytest.mark.slow
def test_a_subscriber_that_pauses(live: Live) -> None:
    """Ten seconds with a full queue, longer than any heartbeat: it has lost messages, and counts them."""
    command = [sys.executable, "-c", PAUSING, live.serving.endpoint]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as pausing:
        try:
            assert pausing.stdout is not None
            assert pausing.stdout.readline() == "joined\n"
            paused = live.serving.stats()
            live.feeder.do("say", "?" * 20_000, 3000)
            live.serving.until(lambda: live.serving.stats().time > paused.time + 10)
            missed, _ = pausing.communicate("go on\n", timeout=30)
        finally:
            pausing.kill()
    assert pausing.returncode == 0
    assert int(missed) > 0


def lost(deaf: zmq.Socket[bytes]) -> bool:
    """Whether there is a hole in what a subscriber gets to read at last."""
    newest: dict[bytes, int] = {}
    end = time.monotonic() + 20.0
    while time.monotonic() < end and deaf.poll(5_000):
        topic, *frames = deaf.recv_multipart()
        if not topic.startswith(b"hello"):
            seq = msgspec.msgpack.decode(frames[0])["seq"]
            if seq > newest.get(topic, seq) + 1:
                return True
            newest[topic] = seq
    return False


def test_ctrl_c_ends_the_session_with_its_account(start: Callable[..., Live]) -> None:
    live = start()
    live.serving.fresh(3)
    sent = local_clock()
    bye, code, errors = live.serving.stop(signal.SIGINT)
    took = local_clock() - sent
    assert (code, errors) == (0, "")
    assert bye.reason == "stopped"
    assert bye.counts is not None
    assert bye.counts.open == 0
    assert bye.counts.cancelled > 0
    assert adds_up(bye.counts)
    ends = live.serving.of(schema.Epoch)
    assert len([end for end in ends if end.outcome == "cancelled"]) == bye.counts.cancelled
    assert took < 2.0


def test_a_signal_while_the_amplifier_is_gone(start: Callable[..., Live]) -> None:
    live = start()
    live.feeder.close()
    live.serving.session("lost", "eeg")
    sent = local_clock()
    bye, code, errors = live.serving.stop()
    assert (code, errors, bye.reason) == (0, "", "stopped")
    assert local_clock() - sent < 2.0
