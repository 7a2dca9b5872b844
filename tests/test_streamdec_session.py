"""The loop over scripted events: every marker one end, any packets the same bytes, decisions that are right."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import msgspec
import numpy as np
import pytest
from cut import cut
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from small_bundle import DIM, NAMES, SFREQ, TMAX, TMIN, ScriptedInlet, eeg_info, events, presentation, write_bundle

from streamdec.config import Config
from streamdec.decode import bundle as bundles
from streamdec.decode.bundle import Bundle
from streamdec.decode.engine import Engine
from streamdec.decode.evidence import EvidenceSettings
from streamdec.errors import StreamMismatch
from streamdec.feed import schema
from streamdec.feed.publisher import Buffer
from streamdec.feed.schema import Counts
from streamdec.intake import Intake, IntakeSettings
from streamdec.serve import engines, replay, session
from streamdec.session import MemoryOutlet, run
from streamdec.signal.quality import robust_sd
from streamdec.signal.spec import BandPass, Signal
from streamdec.types import Chunk, Connection, Event, Marker, StreamInfo


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return bundles.read(write_bundle(tmp_path_factory.mktemp("bundle") / "b.zip"))


def play(
    bundle: Bundle, script: list[Event], config: Config | None = None, eeg: StreamInfo | None = None
) -> tuple[MemoryOutlet, Counts]:
    config = config or Config()
    return replay(config, ScriptedInlet(script, eeg), bundle, engines(bundle, config))


def of(outlet: MemoryOutlet, kind: type) -> list:
    return [message for message in outlet.messages if isinstance(message, kind)]


def adds_up(counts: Counts) -> bool:
    ends = counts.decided + counts.rejected + counts.lost_data + counts.late + counts.cancelled
    return counts.onsets == ends + counts.open and counts.markers == (
        counts.onsets + counts.ignored + counts.duplicate + counts.garbage
    )


def test_every_image_is_found_and_every_marker_ends(bundle: Bundle) -> None:
    data, onsets, keys = presentation(30)
    outlet, counts = play(bundle, events(data, onsets, keys, itertools.repeat(10)))
    decisions = of(outlet, schema.Retrieval)
    assert [d.key for d in decisions] == keys
    assert np.mean([d.rank == 1 for d in decisions]) > 0.9
    assert [d.onset_time for d in decisions] == pytest.approx(1000 + onsets / SFREQ)
    assert all(abs(d.residual) < 1e-6 for d in decisions)
    assert [e.outcome for e in of(outlet, schema.Epoch)] == ["decided"] * 30
    assert counts.decided == counts.onsets == counts.markers == 30
    assert adds_up(counts)


def test_the_decision_is_the_oracles(bundle: Bundle) -> None:
    """Cut, baseline, template, cosine, softmax: written again, naively."""
    data, onsets, keys = presentation(5)
    outlet, _ = play(bundle, events(data, onsets, keys, itertools.repeat(7)))
    encoder = engines(bundle, Config())[TMAX]
    for onset, decision in zip(onsets, of(outlet, schema.Retrieval), strict=True):
        epoch = data[:, onset - 25 : onset + 126].astype(np.float64)
        epoch = (epoch - epoch[:, :26].mean(axis=1, keepdims=True)).astype(np.float32)
        z = encoder(epoch).astype(np.float64)
        cosines = bundle.gallery.features @ (z / np.linalg.norm(z))
        p = np.exp(30 * cosines) / np.exp(30 * cosines).sum()
        order = np.argsort(-cosines)
        assert [c.id for c in decision.candidates] == [bundle.gallery.ids[i] for i in order[:5]]
        assert [c.score for c in decision.candidates] == pytest.approx(cosines[order[:5]], abs=1e-4)
        assert [c.probability for c in decision.candidates] == pytest.approx(p[order[:5]], rel=5e-3)
        assert decision.rank == 1 + int(np.flatnonzero(order == bundle.gallery.index_of(decision.key))[0])


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.integers(1, 90), min_size=1, max_size=40))
def test_any_packets_give_the_same_results(bundle: Bundle, sizes: list[int]) -> None:
    data, onsets, keys = presentation(12)
    whole, _ = play(bundle, events(data, onsets, keys, itertools.repeat(1)))
    packed, _ = play(bundle, events(data, onsets, keys, itertools.cycle(sizes)))
    strip = [
        [schema.essence(m) for m in of(outlet, schema.Retrieval) if "catch_up" not in m.flags]
        for outlet in (whole, packed)
    ]
    late = len(of(packed, schema.Retrieval)) - len(strip[1])
    assert late or strip[0] == strip[1]


def test_the_same_events_give_the_same_bytes(tmp_path: Path) -> None:
    filtered = bundles.read(
        write_bundle(tmp_path / "f.zip", filters=(BandPass(0.5, 40.0),), evidence="mean", horizons=(0.3, TMAX))
    )
    data, onsets, keys = presentation(20)
    script = events(data, onsets, keys, itertools.cycle((3, 25, 10)))
    first, _ = play(filtered, script)
    second, _ = play(filtered, script)
    assert first.essence() == second.essence()
    assert len(first.essence()) > 1000


def test_late_markers_are_served_from_the_ring(bundle: Bundle) -> None:
    data, onsets, keys = presentation(60, soa=0.2)
    config = Config(intake=IntakeSettings(ring_seconds=8.0))
    prompt, _ = play(bundle, events(data, onsets, keys, itertools.repeat(10)), config)
    late, counts = play(bundle, events(data, onsets, keys, itertools.repeat(10), late=7.0), config)
    served = {d.onset_time: d for d in of(late, schema.Retrieval)}
    assert len(served) == counts.onsets == counts.decided > 20
    for decision in of(prompt, schema.Retrieval):
        if decision.onset_time in served:
            assert served[decision.onset_time].candidates == decision.candidates
            assert "catch_up" in served[decision.onset_time].flags


def test_too_late_is_said(bundle: Bundle) -> None:
    data, onsets, keys = presentation(60)
    config = Config(intake=IntakeSettings(ring_seconds=2.0))
    outlet, counts = play(bundle, events(data, onsets, keys, itertools.repeat(10), late=6.0), config)
    assert counts.late == counts.onsets > 0
    assert adds_up(counts)
    assert all(e.outcome == "late" and e.reason for e in of(outlet, schema.Epoch))


def test_garbage_twice_and_ignored(bundle: Bundle) -> None:
    data, onsets, keys = presentation(6)
    script = events(data, onsets, keys, itertools.repeat(10))
    at = next(i for i, e in enumerate(script) if isinstance(e, Marker))
    marker = script[at]
    assert isinstance(marker, Marker)
    script[at:at] = [
        marker,
        Marker("", marker.stamp, marker.arrival),
        Marker('{"ev": "pause"}', marker.stamp, marker.arrival),
    ]
    _, counts = play(bundle, script)
    assert (counts.decided, counts.duplicate, counts.garbage, counts.ignored) == (6, 1, 1, 1)
    assert adds_up(counts)


def test_lost_samples_end_their_epochs(bundle: Bundle) -> None:
    data, onsets, keys = presentation(30)
    script = events(data, onsets, keys, itertools.repeat(10))
    chunks = [i for i, e in enumerate(script) if isinstance(e, Chunk)]
    lost = chunks[60:64]  # samples 600 to 640
    outlet, counts = play(bundle, [e for i, e in enumerate(script) if i not in lost])
    first, last = 25, 126
    hit = [k for k, o in zip(keys, onsets, strict=True) if o - first < 640 and o + last > 600]
    ended = [e for e in of(outlet, schema.Epoch) if e.outcome == "lost_data"]
    assert [e.key for e in ended] == hit
    assert counts.missing_samples == 40
    assert counts.gaps == 1
    assert adds_up(counts)
    assert any(m.state == "gap" for m in of(outlet, schema.Session))
    clean, _ = play(bundle, script)
    survived = {d.onset_time: d.candidates for d in of(clean, schema.Retrieval)}
    for decision in of(outlet, schema.Retrieval):
        nearest = min(survived, key=lambda t: abs(t - decision.onset_time))
        assert decision.candidates == survived[nearest]


def test_flat_and_nan_channels_are_filled_in_and_said(bundle: Bundle) -> None:
    data, onsets, keys = presentation(30)
    data[NAMES.index("Oz")] = 3.0
    data[NAMES.index("P4"), 700] = np.nan
    outlet, counts = play(bundle, events(data, onsets, keys, itertools.repeat(10)))
    decisions = of(outlet, schema.Retrieval)
    assert counts.decided == 30
    assert all("Oz" in d.interpolated_channels for d in decisions)
    touched = [
        ("P4" in d.interpolated_channels) == (o - 25 <= 700 < o + 126) for d, o in zip(decisions, onsets, strict=True)
    ]
    assert all(touched)
    assert all(np.isfinite([c.score for c in d.candidates]).all() for d in decisions)


def test_too_many_bad_channels_reject(bundle: Bundle) -> None:
    data, onsets, keys = presentation(10)
    data[:5] = 0
    outlet, counts = play(bundle, events(data, onsets, keys, itertools.repeat(10)))
    assert counts.rejected == 10
    assert all("bad" in e.reason for e in of(outlet, schema.Epoch))


def test_shuffled_and_missing_channels(bundle: Bundle) -> None:
    data, onsets, keys = presentation(30)
    order = np.random.default_rng(0).permutation(len(NAMES))
    shuffled = eeg_info(ch_names=tuple(NAMES[i].upper() for i in order))
    straight, _ = play(bundle, events(data, onsets, keys, itertools.repeat(10)))
    mapped, _ = play(bundle, events(data[order], onsets, keys, itertools.repeat(10)), eeg=shuffled)
    assert straight.essence() == mapped.essence()
    n = len(NAMES) - 1
    fewer = eeg_info(n_chans=n, ch_names=NAMES[1:], units=("microvolts",) * n, ch_types=("EEG",) * n)
    outlet, counts = play(bundle, events(data[1:], onsets, keys, itertools.repeat(10)), eeg=fewer)
    assert counts.decided == 30
    assert all(d.interpolated_channels == (NAMES[0],) for d in of(outlet, schema.Retrieval))


def test_volts_are_read_from_the_header(bundle: Bundle) -> None:
    data, onsets, keys = presentation(10)
    in_microvolts, _ = play(bundle, events(data, onsets, keys, itertools.repeat(10)))
    volts = eeg_info(units=("volts",) * len(NAMES))
    in_volts, _ = play(bundle, events((data * 1e-6).astype(np.float32), onsets, keys, itertools.repeat(10)), eeg=volts)
    ranks = [[d.rank for d in of(o, schema.Retrieval)] for o in (in_microvolts, in_volts)]
    assert ranks[0] == ranks[1]


def test_a_factor_of_a_million_is_refused(tmp_path: Path) -> None:
    known = bundles.read(write_bundle(tmp_path / "sd.zip", channel_sd=dict.fromkeys(NAMES, 6.0)))
    data, onsets, keys = presentation(30)
    with pytest.raises(StreamMismatch, match="factor of"):
        play(known, events((data * 1e-6).astype(np.float32), onsets, keys, itertools.repeat(10)))
    _, counts = play(known, events(data, onsets, keys, itertools.repeat(10)))
    assert counts.decided == 30


def test_wrong_rates_are_refused(bundle: Bundle) -> None:
    data, onsets, keys = presentation(60)
    with pytest.raises(StreamMismatch, match="512"):
        play(bundle, [], eeg=eeg_info(sfreq=512.0))
    script = [
        Chunk(e.data, 1000 + (e.stamps - 1000) * 0.95, e.arrival) if isinstance(e, Chunk) else e
        for e in events(data, onsets, keys, itertools.repeat(10))
    ]
    with pytest.raises(StreamMismatch, match="effective rate"):
        play(bundle, script)


def test_a_backlog_at_the_start_is_no_wrong_rate(bundle: Bundle) -> None:
    """Twice as fast as due for the first seconds, with true stamps: an amplifier that was held up."""
    data, onsets, keys = presentation(60)
    script: list[Event] = []
    for event in events(data, onsets, keys, itertools.repeat(10)):
        late = max(event.arrival, 1008 + (event.arrival - 1000) / 2)
        script.append(msgspec.structs.replace(event, arrival=late))
    _, counts = play(bundle, script)
    assert counts.decided == 60


def test_reconnect_opens_a_segment_and_settles(tmp_path: Path) -> None:
    filtered = bundles.read(write_bundle(tmp_path / "f.zip", filters=(BandPass(1.0, 40.0),)))
    data, onsets, keys = presentation(80)
    script = events(data, onsets, keys, itertools.repeat(10))
    middle = len(script) // 2
    arrival = script[middle].arrival
    shift = 5000.0  # the device came back with another clock
    after: list[Event] = []
    for event in script[middle + 8 :]:
        if isinstance(event, Chunk):
            after.append(Chunk(event.data, event.stamps + shift, event.arrival))
        elif isinstance(event, Marker):
            after.append(Marker(event.value, event.stamp + shift, event.arrival))
        else:
            after.append(event)
    back = [Connection("eeg", "lost", arrival), Connection("eeg", "found", arrival + 0.3, info=eeg_info())]
    outlet, counts = play(filtered, script[:middle] + back + after)
    states = [m.state for m in of(outlet, schema.Session) if m.stream == "eeg"]
    assert states.index("lost") < states.index("found")
    assert counts.segments == 2
    assert counts.lost_data > 0
    assert counts.decided > 40
    assert adds_up(counts)
    assert any("settling" in d.flags for d in of(outlet, schema.Retrieval))


def test_horizons_and_evidence(tmp_path: Path) -> None:
    early = bundles.read(write_bundle(tmp_path / "h.zip", horizons=(0.3, TMAX), evidence="mean"))
    data, onsets, keys = presentation(40, noise=10.0)
    config = Config(evidence=EvidenceSettings(min_repetitions=2, stop_probability=0.5))
    outlet, counts = play(early, events(data, onsets, keys, itertools.repeat(10)), config)
    decisions = of(outlet, schema.Retrieval)
    assert counts.decided == 40
    assert len(decisions) == 80
    for key in set(keys):
        for final in (False, True):
            own = [d for d in decisions if d.key == key and d.final is final]
            assert [d.repetitions for d in own] == list(range(1, len(own) + 1))
    assert all(d.horizon == (TMAX if d.final else 0.3) for d in decisions)
    assert all(d.timing.due == pytest.approx(d.onset_time + d.horizon, abs=1 / SFREQ) for d in decisions)
    assert not any(d.stop for d in decisions if d.repetitions < 2)
    assert any(d.stop for d in decisions)


class Counted:
    """An engine that notes its runs."""

    def __init__(self, engine: Engine, horizon: float, runs: list[float]) -> None:
        self._engine, self._horizon, self._runs = engine, horizon, runs

    def __call__(self, epoch: np.ndarray) -> np.ndarray:
        self._runs.append(self._horizon)
        return self._engine(epoch)


def test_a_warm_session_decides_as_a_cold_one(bundle: Bundle) -> None:
    data, onsets, keys = presentation(12)
    said = []
    for warm in (False, True):
        inlet, outlet = ScriptedInlet(events(data, onsets, keys, itertools.repeat(10))), MemoryOutlet()
        runs: list[float] = []
        made = engines(bundle, Config())
        counted = {horizon: Counted(engine, horizon, runs) for horizon, engine in made.items()}
        live = session(bundle, inlet.eeg, outlet, Config(), cast(dict[float, Engine], counted))
        if warm:
            live.warm_up()
            assert set(runs) == set(made)  # each encoder, on what its chain gives
        assert not outlet.messages
        run(inlet, live, lambda: False)
        live.close("the end")
        said.append(outlet.essence())
    assert said[0] == said[1]
    assert of(outlet, schema.Retrieval)


def test_an_encoder_that_fails_rejects_the_epoch(tmp_path: Path) -> None:
    n_times = round((TMAX - TMIN) * SFREQ) + 1
    broken = write_bundle(tmp_path / "nan.zip", weights=np.zeros((len(NAMES) * n_times, DIM), np.float32))
    data, onsets, keys = presentation(5)
    outlet, counts = play(bundles.read(broken), events(data, onsets, keys, itertools.repeat(10)))
    assert counts.rejected == 5
    assert all("embedding" in e.reason for e in of(outlet, schema.Epoch))


def test_a_bad_channel_that_cannot_be_filled_in_rejects_its_epochs() -> None:
    """Of the channels left none has a known position; a live session goes on."""
    names = ("Cz", "a", "b", "c")
    data, onsets, keys = presentation(4)
    data = data[:4]
    data[0] = 0
    info = eeg_info(n_chans=4, ch_names=names, ch_types=("EEG",) * 4, units=("microvolts",) * 4)
    script = ScriptedInlet(events(data, onsets, keys, itertools.repeat(10)), info)
    epochs, ended = cut(script, Signal(names, SFREQ, TMIN, TMAX), IntakeSettings())
    assert not epochs
    assert [end.outcome for end in ended] == ["rejected"] * 4
    assert "no good channel with a known position" in ended[0].reason


def test_the_scale_is_judged_by_some_hundreds_of_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """All of them hold the loop up, 0.1 s for 256 channels at 4 kHz."""
    rng, looked_at = np.random.default_rng(0), []
    info = eeg_info(sfreq=4000.0)
    sd = dict.fromkeys(NAMES, 20.0)
    intake = Intake(Signal(NAMES, 4000.0, 0.0, 0.1), info, IntakeSettings(), channel_sd=sd)

    def seen(data: np.ndarray) -> np.ndarray:
        looked_at.append(data.shape[1])
        return robust_sd(data)

    monkeypatch.setattr("streamdec.intake.robust_sd", seen)
    data = rng.normal(0, 200, (len(NAMES), 13_000)).astype(np.float32)
    script = [
        (Chunk(data[:, i : i + 1000], i / 4000 + np.arange(1000) / 4000, i / 4000)) for i in range(0, 13_000, 1000)
    ]
    (warning,) = [output for event in script for output in intake(event)]
    assert "check gain" in warning.reason
    assert 200 <= looked_at[0] <= 600


def test_markers_that_never_came_are_on_the_feed(bundle: Bundle) -> None:
    data, onsets, keys = presentation(8)
    numbered = [f'{{"id": "{key}", "seq": {i}}}' for i, key in enumerate(keys)]
    script = [
        event
        for event in events(data, onsets, numbered, itertools.repeat(10))
        if not (isinstance(event, Marker) and event.value in (numbered[2], numbered[3], numbered[6]))
    ]
    outlet, counts = play(bundle, script)
    assert (counts.onsets, counts.lost_markers) == (5, 3)
    assert of(outlet, schema.Session)[-1].counts == counts
    assert max(stats.counts.lost_markers for stats in of(outlet, schema.Stats)) >= 2


def test_open_onsets_are_cancelled_at_the_end(bundle: Bundle) -> None:
    data, onsets, keys = presentation(10)
    script = events(data, onsets, keys, itertools.repeat(10))
    last = next(i for i, e in reversed(list(enumerate(script))) if isinstance(e, Marker))
    outlet, counts = play(bundle, [*script[: last + 1], Connection("eeg", "ended", script[last].arrival)])
    assert counts.cancelled > 0
    assert adds_up(counts)
    assert of(outlet, schema.Session)[-1].state == "ended"


class Wanting(MemoryOutlet):
    """An outlet with somebody who looks at the signal, and a tape that keeps what it is given."""

    dropped, broken = 0, ""

    def __init__(self) -> None:
        super().__init__()
        self.shown: list[np.ndarray] = []
        self.taped: list[bytes] = []

    def wanted(self, topic: str) -> bool:
        return topic == "signal"

    def publish(self, message: schema.AnyMessage, payloads: Sequence[Buffer] = ()) -> bytes:
        super().publish(message)
        if isinstance(message, schema.Signal):
            self.shown.append(np.array(payloads[0]))
        return message.topic.encode()

    def event(self, event: Event) -> None:
        pass

    def message(self, header: bytes) -> None:
        self.taped.append(header)


@pytest.mark.parametrize("sizes", [[1], [7, 30], [100]])
def test_the_signal_is_shown_to_who_wants_it_and_not_kept(bundle: Bundle, sizes: list[int]) -> None:
    data, onsets, keys = presentation(10)
    script = events(data, onsets, keys, itertools.cycle(sizes))
    config, outlet = Config(), Wanting()
    inlet = ScriptedInlet(script)
    inlet.open(0.0)
    played = session(bundle, inlet.eeg, outlet, config, engines(bundle, config), tape=outlet)
    played.start(inlet.eeg, None)
    run(inlet, played, lambda: False)
    shown = of(outlet, schema.Signal)
    assert {m.ch_names for m in shown} == {NAMES}
    block = round(SFREQ / shown[0].sfreq)
    whole = np.concatenate(outlet.shown, axis=1)
    n = whole.shape[1] * block
    assert data.shape[1] - n < SFREQ / 5
    np.testing.assert_allclose(whole, data[:, :n].reshape(len(NAMES), -1, block).mean(axis=2), atol=1e-3)
    assert b"retrieval" in outlet.taped
    assert b"signal" not in outlet.taped
    assert outlet.essence() == play(bundle, script)[0].essence()
