"""Real recordings through the whole loop, held to figures that were found without it.

``STREAMDEC_TEST_SPEED=1`` plays the EEGLAB recording through LSL in real time, which takes its four minutes.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import mne
import msgspec
import numpy as np
import pylsl
import pytest
import pyxdf
from cut import cut
from linear_bundle import write_linear
from pylsl.util import LostError
from serving import Serving, playing, streamdec

from streamdec import serve
from streamdec.acquire.clock import Run, SampleClock
from streamdec.acquire.lsl.inlet import LslInlet
from streamdec.acquire.markers import MarkerSettings
from streamdec.acquire.query import StreamQuery
from streamdec.acquire.recording import RecordedStream, Recording, Segment, read
from streamdec.acquire.replay import ReplayInlet
from streamdec.config import Config
from streamdec.decode import bundle
from streamdec.decode.gallery import Gallery, unit
from streamdec.errors import StreamMismatch
from streamdec.feed import schema
from streamdec.feed.publisher import FeedSettings, Publisher
from streamdec.feed.subscriber import Subscriber
from streamdec.intake import Intake, IntakeSettings, Notice
from streamdec.session import run
from streamdec.signal.chain import Chain
from streamdec.signal.quality import QualitySettings
from streamdec.signal.spec import BandPass, Baseline, Signal
from streamdec.types import Connection, Ended, Epoch, Float32, Float64, Onset, StreamInfo

pytestmark = pytest.mark.data

SPEED = float(os.environ.get("STREAMDEC_TEST_SPEED", "32"))
TMIN, TMAX = -0.2, 0.8
SQUARES = IntakeSettings(quality=QualitySettings.off(), markers=MarkerSettings(ignore="rt"))
XDF_FILES = (  # in two parts: the photodiode recordings have streams of the same names
    ("bci_essentials_switch", "clock_resets", "photodiode_unicorn"),
    ("empty_streams", "minimal", "photodiode_lsl_drift"),
)


@pytest.fixture(scope="module")
def eeglab(data: Path) -> Path:
    return data / "eeg" / "eeglab" / "eeglab_data.set"


@pytest.fixture(scope="module")
def of_mne(eeglab: Path) -> Float32:
    """(80, 32, 129) float32 microvolt: what mne.Epochs cuts around the squares."""
    raw = mne.io.read_raw_eeglab(eeglab, preload=True, verbose="error")
    events, codes = mne.events_from_annotations(raw, verbose="error")
    options = {"baseline": None, "picks": "all", "preload": True, "verbose": "error"}
    volts = mne.Epochs(raw, events, codes["square"], TMIN, TMAX, **options).get_data()
    return (volts * 1e6).astype(np.float32)


def signal_of(info: StreamInfo, speed: float = 1.0) -> Signal:
    """The same samples at any speed."""
    return Signal(info.ch_names, 128 * speed, TMIN / speed, TMAX / speed, steps=(Baseline(TMIN / speed, 0.0),))


def assert_square_erp(epochs: list[Epoch], signal: Signal, of_mne: Float32, speed: float = 1.0) -> None:
    np.testing.assert_array_equal([epoch.data for epoch in epochs], of_mne)
    chain = Chain(signal, {})
    evoked = np.mean([chain(epoch.data) for epoch in epochs], axis=0, dtype=np.float64)
    first, n_times = signal.window
    times = (first + np.arange(n_times)) / 128
    for name, microvolt, ms in (("Oz", -12.1, 289), ("POz", -14.0, 289), ("POz", 24.1, 430)):
        wave = np.where(np.abs(times - ms / 1000) < 0.1, evoked[signal.ch_names.index(name)], 0)
        peak = int(np.argmax(wave * np.sign(microvolt)))
        assert round(float(wave[peak]), 1) == microvolt
        assert round(1000 * float(times[peak])) == ms


def test_epochs_and_evoked_are_those_of_mne(eeglab: Path, of_mne: Float32) -> None:
    recording = read(eeglab)
    signal = signal_of(recording.streams[0].info)
    epochs, ended = cut(ReplayInlet(recording), signal, SQUARES)
    assert ended == []
    assert_square_erp(epochs, signal, of_mne)


@pytest.mark.lsl
@pytest.mark.slow
def test_epochs_and_evoked_are_those_of_mne_through_lsl(eeglab: Path, of_mne: Float32) -> None:
    with (
        playing(eeglab, "--speed", SPEED),
        LslInlet(StreamQuery(name="eeglab_data"), StreamQuery(name="eeglab_data-annotations")) as inlet,
    ):
        inlet.open(30.0)
        signal = signal_of(inlet.eeg, SPEED)
        intake = Intake(signal, inlet.eeg, SQUARES)
        epochs: list[Epoch] = []
        event = None
        while not (isinstance(event, Connection) and event.state == "lost"):
            event = inlet.pull(10.0)
            assert event is not None
            epochs += (output for output in intake(event) if isinstance(output, Epoch))
        assert intake.close(event.arrival) == []
        assert (intake.clock.gaps, intake.clock.segments) == (0, 1)
    assert_square_erp(epochs, signal, of_mne, SPEED)


def test_a_real_decoder_through_gallery_and_feed(data: Path, tmp_path: Path) -> None:
    """Its 200 query embeddings are played as EEG to an encoder that returns the epoch as it is."""
    folder = data / "things_eeg2"
    queries = np.load(folder / "atm_s_sub-08_test_query_embeddings.npy", allow_pickle=False)
    images = np.load(folder / "vit_h14_test_image_features.npy", allow_pickle=False)
    ids = (folder / "things_eeg2_test_image_ids.txt").read_text(encoding="utf-8").split()
    n, dim = queries.shape
    info = StreamInfo("amp", "EEG", 1, 1000.0, "float32", ch_names=("Oz",), units=("microvolts",))
    eeg = RecordedStream(info, np.arange(n * dim) / 1000, queries.reshape(1, -1), (whole(n * dim),))
    shown = StreamInfo("images", "Markers", 1, 0.0, "string")
    markers = RecordedStream(shown, np.arange(n) * dim / 1000, np.array([ids], object), (whole(n),))
    signal = Signal(("Oz",), 1000.0, 0.0, (dim - 1) / 1000)
    path = write_linear(tmp_path / "bundle", signal, Gallery(images, ids, ids), np.eye(dim, dtype=np.float32))
    config = Config(intake=IntakeSettings(quality=QualitySettings.off()))
    decoder = bundle.read(path)
    with (
        ReplayInlet(Recording(Path("images"), (eeg, markers))) as inlet,
        Publisher(FeedSettings(endpoint="tcp://127.0.0.1:0"), "decoder") as outlet,
        Subscriber(outlet.endpoint, ("session", "retrieval")) as feed,
    ):
        inlet.open()
        live = serve.session(decoder, inlet.eeg, outlet, config, serve.engines(decoder, config))
        live.start(inlet.eeg, inlet.markers)
        while feed.receive(0.01) is None:
            live.idle()
        live.close(run(inlet, live, lambda: False))
        received = [each for each in feed if isinstance(each.message, schema.Retrieval)]
        assert feed.gaps == {}
    decisions = [each.message for each in received]
    assert [decision.key for decision in decisions] == ids
    found = [[candidate.id for candidate in decision.candidates] for decision in decisions]
    assert sum(key == best[0] for key, best in zip(ids, found, strict=True)) == 72
    assert sum(key in best for key, best in zip(ids, found, strict=True)) == 145
    assert [sum(decision.rank <= k for decision in decisions) for k in (1, 5)] == [72, 145]
    np.testing.assert_array_equal([each.payloads[0] for each in received], [unit(query) for query in queries])


def whole(n_times: int) -> Segment:
    return Segment(0, n_times, np.empty((0, 2)))


@pytest.mark.lsl
@pytest.mark.parametrize("names", XDF_FILES)
def test_every_xdf_plays(data: Path, names: Sequence[str]) -> None:
    """Any LSL program receives the recorded values, and the recorded relation of a file's streams in time."""
    paths = [data / "xdf" / f"{name}.xdf" for name in names]
    stored = [pyxdf.load_xdf(path, synchronize_clocks=False, dejitter_timestamps=False)[0] for path in paths]
    synced = [pyxdf.load_xdf(path, dejitter_timestamps=False)[0] for path in paths]
    speed, seconds = 8.0, 11.0
    with ExitStack() as stack:
        players = [stack.enter_context(playing(path, "--speed", speed, "--to", seconds)) for path in paths]
        inlets = connect([stream["info"] for streams in stored for stream in streams], speed)
        received = iter(everything(inlets))
        assert [player.wait(10) for player in players] == [0] * len(players)
    for raw, streams in zip(stored, synced, strict=True):
        start = min(stream["time_stamps"][0] for stream in streams if len(stream["time_stamps"]))
        shifts: list[float] = []
        for stream, times in zip(raw, (stream["time_stamps"] for stream in streams), strict=True):
            values, stamps = next(received)
            n = len(values)
            assert abs(n - np.sum(times < start + seconds)) <= 1
            np.testing.assert_array_equal(values, np.asarray(stream["time_series"][:n]).reshape(np.shape(values)))
            shifts += (np.array(stamps) - (times[:n] - start) / speed).tolist()
        assert np.ptp(shifts) < 5e-4  # pyxdf fits a line through the clock offsets, we interpolate them


def everything(inlets: list[pylsl.StreamInlet]) -> list[tuple[list[Any], list[float]]]:
    """Values and stamps of each stream, until all outlets are gone."""
    received: list[tuple[list[Any], list[float]]] = [([], []) for _ in inlets]
    alive = dict(enumerate(inlets))
    while alive:
        for k, inlet in list(alive.items()):
            try:
                values, stamps = inlet.pull_chunk(0.02, 4096)
            except LostError:
                del alive[k]
                continue
            received[k][0].extend(values)
            received[k][1].extend(stamps)
    return received


def connect(infos: list[dict[str, Any]], speed: float) -> list[pylsl.StreamInlet]:
    """Open an inlet per stream, as soon as all are there."""
    resolver = pylsl.ContinuousResolver()
    names = [info["name"][0] for info in infos]
    until = time.monotonic() + 30
    while not set(names) <= (found := {info.name(): info for info in resolver.results()}).keys():
        assert time.monotonic() < until, f"{sorted(found)} of {names}"
        time.sleep(0.02)
    inlets = [pylsl.StreamInlet(found[name], recover=False) for name in names]
    for inlet, stored in zip(inlets, infos, strict=True):
        inlet.open_stream(5.0)
        assert inlet.info(5.0).nominal_srate() == speed * float(stored["nominal_srate"][0])
    return inlets


NOTHING_LOST = (  # counter: the Unicorn's sixteenth channel counts its samples, so its recordings say so themselves
    ("bci_essentials_switch", None),
    ("photodiode_lsl_drift", 15),
    ("photodiode_unicorn", 15),
)


def amplifier(path: Path) -> RecordedStream:
    (stream,) = (each for each in read(path).streams if each.info.sfreq > 0)
    return stream


def placed(stamps: Float64, sfreq: float) -> tuple[SampleClock, list[Run]]:
    clock = SampleClock(sfreq)
    chunks = np.array_split(stamps, len(stamps) // 10)
    return clock, [run for chunk in chunks for run in clock.place(chunk)]


@pytest.mark.parametrize(("name", "counter"), NOTHING_LOST)
def test_where_nothing_was_lost_there_is_no_gap(data: Path, name: str, counter: int | None) -> None:
    """Two came over Bluetooth, in bursts; in one of them the radio was congested for half a minute."""
    eeg = amplifier(data / "xdf" / f"{name}.xdf")
    if counter is not None:
        assert (np.diff(eeg.data[counter]) == 1).all()
    first, _ = placed(eeg.stamps[: 10 * int(eeg.info.sfreq)], eeg.info.sfreq)
    assert first.sfreq_effective == pytest.approx(eeg.info.sfreq, rel=0.015)  # beyond 2 % a session refuses it
    clock, _ = placed(eeg.stamps, eeg.info.sfreq)
    assert (clock.gaps, clock.missing, clock.segments) == (0, 0, 1)
    assert clock.sfreq_effective == pytest.approx(eeg.info.sfreq, rel=2e-3)


@pytest.mark.parametrize("at", range(5000, 35_000, 3000))
def test_samples_lost_over_bluetooth_are_found(data: Path, at: int) -> None:
    lost = 8
    eeg = amplifier(data / "xdf" / "photodiode_unicorn.xdf")
    kept = np.r_[:at, at + lost : len(eeg.stamps)]
    clock, runs = placed(eeg.stamps[kept], eeg.info.sfreq)
    assert (clock.gaps, clock.segments) == (1, 1)
    (gap,) = (run for run in runs if run.missing)
    assert abs(gap.missing - lost) <= 1
    assert at <= gap.position - gap.missing < at + 75  # 0.3 s: noticed by its lasting
    last = runs[-1]
    assert abs(last.position + last.stop - last.start - len(eeg.stamps)) <= 1  # and counted on rightly


def test_a_clock_reset_is_a_segment(data: Path) -> None:
    recording = read(data / "xdf" / "clock_resets.xdf")
    info = msgspec.structs.replace(recording.streams[1].info, ch_names=tuple("abcdefgh"))
    eeg = msgspec.structs.replace(recording.streams[1], info=info)
    signal = Signal(info.ch_names, 100.0, -0.1, 0.5)
    replayed = msgspec.structs.replace(recording, streams=(recording.streams[0], eeg))
    with pytest.raises(StreamMismatch, match="effective rate"):  # it ran at 93 Hz
        cut(ReplayInlet(replayed), signal, IntakeSettings())
    intake = Intake(signal, info, IntakeSettings(rate_tolerance=0.1))
    inlet = ReplayInlet(replayed)
    inlet.open()
    events = list(iter(inlet.pull, None))
    outputs = [output for event in events for output in intake(event)]
    ends = intake.close(events[-1].arrival)
    notices = [output for output in outputs if isinstance(output, Notice)]
    resets = [(each.state, each.stream) for each in notices if each.reason == "the sender's clock was reset"]
    assert sorted(resets) == [("found", "eeg"), ("found", "markers"), ("gap", "eeg")]
    counts = {kind: sum(isinstance(output, kind) for output in (*outputs, *ends)) for kind in (Onset, Epoch, Ended)}
    assert counts[Onset] == counts[Epoch] + counts[Ended] == 175


def decoder(path: Path, info: StreamInfo, tmin: float, tmax: float, ids: tuple[str, ...]) -> Path:
    """A bundle for a stream: fixed random weights, as good as any to see whether results are the same."""
    rng = np.random.default_rng(5)
    signal = Signal(info.ch_names, info.sfreq, tmin, tmax, (BandPass(0.5, 20.0, 2),), (Baseline(tmin, 0.0),))
    weights = rng.standard_normal((info.n_chans * signal.window[1], 16)).astype(np.float32)
    return write_linear(path, signal, Gallery(rng.standard_normal((len(ids), 16)), ids, ids, "class"), weights)


class Replayed(NamedTuple):
    line: str  # with the hash of the results
    decisions: list[schema.Retrieval]
    counts: schema.Counts


def replayed(recording: Path, made: Path, output: Path, *more: object) -> Replayed:
    """`streamdec replay` through the loop."""
    done = streamdec("replay", recording, "--bundle", made, "--output", output, *more)
    assert (done.returncode, done.stderr) == (0, "")
    (line,) = (line for line in done.stdout.splitlines() if line.startswith("results sha256 "))
    messages = [msgspec.json.decode(text, type=schema.AnyMessage) for text in output.read_bytes().splitlines()]
    return Replayed(line, [each for each in messages if isinstance(each, schema.Retrieval)], messages[-1].counts)


def without_timing(output: Path) -> list[dict[str, Any]]:
    """The messages, less what depends on the time of day."""
    messages = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    return [
        {key: value for key, value in message.items() if key not in ("timing", "latency", "memory")}
        | ({"time": None} if message["topic"] == "session" else {})
        for message in messages
    ]


def test_a_recording_played_twice_gives_the_same_bytes(data: Path, tmp_path: Path) -> None:
    """A closed-loop session of motor imagery: offsets of millivolts, and the markers of Unity."""
    path = data / "xdf" / "bci_essentials_switch.xdf"
    info = read(path).streams[1].info
    made = decoder(tmp_path / "bundle", info, -0.5, 1.5, ("0", "1", "2"))
    config = tmp_path / "live.toml"
    config.write_text(
        """inlet.markers.name = "UnityMarkerStream"
[intake.markers]
pattern = 'switch,3,(?P<key>\\d+),.*'
ignore = 'Trial .*'
""",
        encoding="utf-8",
    )
    once, again = (replayed(path, made, tmp_path / name, "--config", config) for name in ("once", "again"))
    assert once.line == again.line
    assert once.counts == again.counts
    assert (once.counts.onsets, once.counts.decided, once.counts.ignored, once.counts.garbage) == (50, 50, 20, 1)
    assert without_timing(tmp_path / "once") == without_timing(tmp_path / "again")


@pytest.mark.lsl
@pytest.mark.slow
def test_a_session_replays_to_what_it_published(eeglab: Path, tmp_path: Path) -> None:
    """Served live and recorded, then replayed; and the recording it was played from gives the same decisions."""
    seconds = 9.0
    made = decoder(tmp_path / "bundle", read(eeglab).streams[0].info, TMIN, TMAX, ("square", "rt"))
    config = tmp_path / "live.toml"
    config.write_text(
        'inlet.eeg.name = "eeglab_data"\ninlet.markers.name = "eeglab_data-annotations"\n', encoding="utf-8"
    )
    sessions = tmp_path / "sessions"
    with playing(eeglab, "--to", seconds), Serving(made, "--config", config, "--record", sessions) as serving:
        serving.session("lost", "eeg")
        bye, status, errors = serving.stop()
    assert (status, errors) == (0, "")
    (session,) = sessions.iterdir()
    again = replayed(session, made, tmp_path / "again", "--config", config, "--verify")
    source = replayed(eeglab, made, tmp_path / "source", "--config", config, "--to", seconds)
    assert bye.counts == again.counts
    assert again.counts.decided == len(again.decisions) > 4
    live = {schema.essence(decision) for decision in serving.of(schema.Retrieval)}
    assert live
    assert live <= {schema.essence(decision) for decision in again.decisions}
    for ours, theirs in zip(again.decisions, source.decisions, strict=True):
        assert (ours.key, ours.candidates, ours.rank) == (theirs.key, theirs.candidates, theirs.rank)
