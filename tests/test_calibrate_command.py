"""``streamdec calibrate`` on simulated people whom the bundle has never seen, and on blocks that are no good.

All accuracies here are of simulated people.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec
import numpy as np
import pytest
import strangers
from cut import cut
from serving import playing, streamdec
from small_bundle import N_IMAGES, SFREQ, TMAX, eeg_info, presentation, write_bundle

from streamdec import serve
from streamdec.acquire.markers import MarkerSettings
from streamdec.acquire.recording import RecordedStream, Recording, Segment, read
from streamdec.acquire.replay import ReplayInlet
from streamdec.calibrate import measure
from streamdec.calibrate.run import Settings, run
from streamdec.cli import main
from streamdec.config import Config
from streamdec.decode import bundle
from streamdec.decode.bundle import Bundle
from streamdec.decode.engine import OnnxEngine
from streamdec.decode.manifest import Calibrated, EvidenceMode
from streamdec.errors import BundleError, CalibrationError, ConfigError
from streamdec.feed import schema
from streamdec.intake import Intake, IntakeSettings
from streamdec.types import StreamInfo


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return strangers.train(tmp_path_factory.mktemp("trained"), range(3))


@pytest.fixture(scope="module")
def block(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return strangers.record(tmp_path_factory.mktemp("block") / "block.xdf", 50, images=range(40), repetitions=6)


@pytest.fixture(scope="module")
def calibrated(trained: Path, block: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, list[str]]:
    said: list[str] = []
    out = tmp_path_factory.mktemp("calibrated") / "calibrated.zip"
    run(Config(bundle=str(trained)), block, out, Settings(), said.append)
    return bundle.read(out), said


def ranks(decoder: Bundle, recording: Path, unit: str = "") -> list[schema.Retrieval]:
    """What the live loop decides on a recording."""
    intake = IntakeSettings(unit=unit, markers=MarkerSettings(ignore=strangers.CATCH))
    config = Config(intake=intake)
    outlet, _ = serve.replay(config, ReplayInlet(read(recording)), decoder, serve.engines(decoder, config))
    return [each for each in outlet.messages if isinstance(each, schema.Retrieval)]


def of(calibrated: tuple[Bundle, list[str]]) -> Calibrated:
    found = calibrated[0].manifest.calibrated
    assert found is not None
    return found


def test_rig_is_found_out(calibrated: tuple[Bundle, list[str]], trained: Path, block: Path) -> None:
    found, said = of(calibrated), "\n".join(calibrated[1])
    assert found.unit == "volts"
    assert set(found.missing) == set(strangers.MISSING)
    assert "T3 is T7" in said
    assert "missing, will be interpolated" in said
    assert found.latency is not None
    # Markers and this person's brain together: simulated people answer up to 10 ms sooner or later.
    assert found.latency.seconds == pytest.approx(0.06, abs=0.02)
    assert found.base == bundle.read(trained).hash
    assert found.recording_sha256 == hashlib.sha256(block.read_bytes()).hexdigest()
    assert found.recording == block.name


def test_a_stranger_is_decoded_better(calibrated: tuple[Bundle, list[str]]) -> None:
    """Of a simulated person never seen in training, by cross-validation that holds whole images out."""
    before, after = of(calibrated).before, of(calibrated).after
    assert [each.repetitions for each in after] == [1, 2, 4]
    for old, new in zip(before, after, strict=True):
        assert new.n == old.n
        assert new.median_rank < 0.75 * old.median_rank
        assert new.top5_interval[0] > 5 / 60  # chance
        assert new.log_probability > max(old.log_probability, -np.log(60))
    assert after[2].median_rank_interval[1] < before[2].median_rank_interval[0]
    assert after[2].top5 > before[2].top5 + 0.15


def test_it_holds_in_another_session_live(calibrated: tuple[Bundle, list[str]], trained: Path, tmp_path: Path) -> None:
    """The written bundle in the real loop: another session, and images that the block did not show."""
    recording = strangers.record(tmp_path / "later.xdf", 50, images=range(60), repetitions=4, session=2)
    old = ranks(bundle.read(trained), recording, "volts")
    new = ranks(calibrated[0], recording)
    assert len(new) == len(old) == 240
    for unseen in (False, True):
        some = set(strangers.WORLD.ids("test")[40:] if unseen else strangers.WORLD.ids("test")[:40])
        of_old, of_new = (
            np.array([m.rank for m in each if m.key in some and m.repetitions == 4]) for each in (old, new)
        )
        assert np.median(of_new) < 0.75 * np.median(of_old)
        assert np.mean(of_new <= 5) > np.mean(of_old <= 5)


def test_the_loop_decides_as_the_fit_did(calibrated: tuple[Bundle, list[str]], block: Path) -> None:
    """No fold: the same epochs through chain, encoder and adaptation of the bundle, by hand."""
    decoder, _ = calibrated
    live = ranks(decoder, block)
    config = Config(intake=IntakeSettings(markers=MarkerSettings(ignore=strangers.CATCH)))
    cuts, _ = cut(ReplayInlet(read(block)), decoder.manifest.signal, serve.intake_settings(decoder, config))
    head = decoder.manifest.heads[-1]
    chain, adaptation = decoder.chain(head), decoder.adaptation(head)
    engine = OnnxEngine(decoder.encoder(head), head)
    first = next(index for index, each in enumerate(live) if each.repetitions == 1)
    raw = engine(chain(cuts[first].data)).copy()
    turned = raw if adaptation is None else adaptation(raw)
    turned /= np.linalg.norm(turned)
    best = live[first].candidates[0]
    index = decoder.gallery.index_of(best.id)
    assert index is not None
    assert float(decoder.gallery.features[index] @ turned) == pytest.approx(best.score, abs=1e-5)


@pytest.mark.slow
def test_a_photodiode_comes_before_the_brain(trained: Path, tmp_path: Path) -> None:
    recording = strangers.record(
        tmp_path / "light.xdf", 51, images=range(12), repetitions=3, volts=False, photodiode=True
    )
    said: list[str] = []
    found = run(Config(bundle=str(trained)), recording, tmp_path / "out", Settings(), said.append)
    assert found.latency is not None
    assert "Photodiode" in found.latency.source
    assert found.latency.seconds == pytest.approx(0.06, abs=0.004)
    assert found.unit == ""
    with pytest.raises(CalibrationError, match="no flash"):
        run(Config(bundle=str(trained)), recording, tmp_path / "no", Settings(photodiode="OZ"), said.append)
    with pytest.raises(ConfigError, match="--photodiode"):
        run(Config(bundle=str(trained)), recording, tmp_path / "no", Settings(photodiode="nose"), said.append)
    # A calibrated bundle is calibrated anew from there.
    again = run(Config(bundle=str(tmp_path / "out")), recording, tmp_path / "again", Settings(), said.append)
    assert again.base == bundle.read(tmp_path / "out").hash
    assert again.latency is not None
    assert again.latency.seconds == pytest.approx(found.latency.seconds, abs=1e-9)
    assert any("calibrated anew" in line for line in said)
    steps = bundle.read(tmp_path / "again").manifest.signal.steps
    assert len(steps) == len(set(steps))


# Bad input and other bundles, on a small bundle of templates.


def small_block(path: Path, keys: Sequence[str], onsets: np.ndarray, data: np.ndarray, late: float = 0.0) -> Path:
    lights = [(float(at) / SFREQ, key) for at, key in zip(onsets, keys, strict=True)]
    return strangers.write(path, eeg_info(), data, lights, late)


@pytest.mark.parametrize(
    ("keep", "rename", "message"),
    [
        (10, {}, "too short; got 10 epochs"),
        (60, {f"img{i:02d}": "img03" for i in range(N_IMAGES)}, "of 1 image;"),
        (60, {f"img{i:02d}": f"face{i}" for i in range(N_IMAGES)}, "no epoch of an image in the gallery"),
        (0, {}, "no epoch of an image in the gallery"),
    ],
    ids=["short", "one image", "strange markers", "no marker"],
)
def test_blocks_that_are_no_good(
    keep: int, rename: dict[str, str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data, onsets, keys = presentation(60)
    path = small_block(tmp_path / "block.xdf", [rename.get(k, k) for k in keys][:keep], onsets[:keep], data)
    write_bundle(tmp_path / "bundle")
    code = main(["calibrate", str(tmp_path / "bundle"), str(path), "--out", str(tmp_path / "new")])
    assert code == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "new").exists()


def test_wrong_calls(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data, onsets, keys = presentation(60)
    path = small_block(tmp_path / "block.xdf", keys, onsets, data)
    write_bundle(tmp_path / "bundle")
    with pytest.raises(BundleError, match="exists"):
        run(Config(bundle=str(tmp_path / "bundle")), path, tmp_path / "bundle", Settings(), print)
    assert main(["calibrate", str(tmp_path / "bundle"), "--out", str(tmp_path / "new")]) == 2
    assert "--seconds N or --onsets N" in capsys.readouterr().err
    assert main(["calibrate", str(tmp_path / "bundle"), "--out", str(tmp_path / "bundle"), "--seconds", "300"]) == 1
    assert "it exists" in capsys.readouterr().err  # before anybody sits through the block
    assert (
        main(["calibrate", str(tmp_path / "bundle"), str(path), "--out", str(tmp_path / "new"), "--onsets", "9"]) == 2
    )


def test_a_bundle_that_says_nothing_of_its_training(tmp_path: Path) -> None:
    """Neither evoked response nor covariance: what cannot be measured is said, the rest is done; early heads too."""
    data, onsets, keys = presentation(200, noise=20.0)
    path = small_block(tmp_path / "block.xdf", keys, onsets, data)
    write_bundle(tmp_path / "bundle", horizons=(0.3, TMAX), evidence="log_probability")
    said: list[str] = []
    found = run(Config(bundle=str(tmp_path / "bundle")), path, tmp_path / "new", Settings(), said.append)
    assert found.latency is None
    assert any("export the bundle again" in line for line in said)
    assert found.alignment == "kept"
    new = bundle.read(tmp_path / "new")
    assert [head.calibration.repetitions for head in new.manifest.heads] == [(1, 2, 4, 8)] * 2
    assert all(
        new.arrays[head.array("evoked") if head.horizon < TMAX else "evoked"].shape == head.shape
        for head in new.manifest.heads
    )
    # What was chosen is what was gained: templates of these very images are hard to better.
    for old, now in zip(found.before, found.after, strict=True):
        assert now.top1 >= old.top1 - 0.05
        assert now.log_probability >= old.log_probability - 0.05
    live = ranks(new, path)
    assert {each.horizon for each in live} == {0.3, TMAX}
    # A latency from the command line is taken as it is, and lasts where a later block cannot tell.
    given = run(Config(bundle=str(tmp_path / "bundle")), path, tmp_path / "given", Settings(latency=0.02), said.append)
    assert given.latency is not None
    assert given.latency.source == "the command line"
    assert given.latency.seconds == 0.02
    content = bundle.read(tmp_path / "given")
    arrays = {name: array for name, array in content.arrays.items() if not name.endswith("evoked")}
    encoders = {head.encoder: content.encoder(head) for head in content.manifest.heads}
    bundle.write(tmp_path / "silent", content.manifest, arrays, content.gallery, encoders)
    later = run(Config(bundle=str(tmp_path / "silent")), path, tmp_path / "later", Settings(), said.append)
    assert later.latency == given.latency


@pytest.mark.parametrize("evidence", ["none", "mean", "log_probability"])
def test_few_images_are_judged_by_stretches_of_time(tmp_path: Path, evidence: EvidenceMode) -> None:
    data, onsets, keys = presentation(200, noise=30.0)
    path = small_block(tmp_path / "block.xdf", [key if key < "img05" else "other" for key in keys], onsets, data)
    write_bundle(tmp_path / "bundle", evidence=evidence)
    said: list[str] = []
    found = run(Config(bundle=str(tmp_path / "bundle")), path, tmp_path / "new", Settings(), said.append)
    # As many repetitions as half of the images have within a stretch, not in the whole block.
    assert [each.repetitions for each in found.after] == ([1] if evidence == "none" else [1, 2])
    assert all(np.isfinite(each.log_probability) for each in found.after)
    assert any("stretches of time" in line for line in said)
    assert found.after[0].n_stimuli == 5
    assert any("'other'" in line for line in said)


def test_trigger_lines_are_no_light_sensor_unless_they_are_named(tmp_path: Path) -> None:
    data, onsets, _ = presentation(60)
    lines = np.zeros((1, data.shape[1]), np.float32)
    for onset in onsets:
        lines[0, onset : onset + 10] = 7.0
    times = np.arange(data.shape[1]) / SFREQ
    decoder = bundle.read(write_bundle(tmp_path / "bundle"))
    for name, kind, asked, there in (
        ("Status", "", "", False),
        ("X1", "stim", "", False),
        ("Status", "", "Status", True),
        ("AUX", "", "", True),
    ):
        info = eeg_info(n_chans=9, ch_names=(*eeg_info().ch_names, name), ch_types=(*["EEG"] * 8, kind), units=())
        stream = RecordedStream(info, times, np.concatenate([data, lines]), (Segment(0, len(times), np.empty((0, 2))),))
        marks = StreamInfo("screen", "Markers", 1, 0.0, "string")
        shown = Segment(0, len(onsets), np.empty((0, 2)))
        markers = RecordedStream(marks, onsets / SFREQ - 0.02, np.array([["a"] * len(onsets)], object), (shown,))
        recording = Recording(tmp_path, (stream, markers))
        found = measure.by_photodiode(
            partial(ReplayInlet, recording), stream, decoder, IntakeSettings(), asked, lambda line: None
        )
        assert (found is not None) == there
        assert found is None or found.seconds == pytest.approx(0.02, abs=1 / SFREQ)


@pytest.mark.lsl
def test_a_live_block_is_recorded_and_used(tmp_path: Path, stream_name: str) -> None:
    data, onsets, keys = presentation(40)
    info = eeg_info(name=stream_name, source_id=stream_name)
    lights = [(float(at) / SFREQ, key) for at, key in zip(onsets, keys, strict=True)]
    played = strangers.write(tmp_path / "played.xdf", info, data, lights, 0.0)
    write_bundle(tmp_path / "bundle")
    out = tmp_path / "new.zip"
    with playing(played):
        done = streamdec(
            *("calibrate", tmp_path / "bundle", "--out", out, "--eeg", stream_name, "--markers", "screen"),
            *("--onsets", 30, "--latency", 0.0),
        )
    assert done.returncode == 0, done.stderr
    found = bundle.read(out).manifest.calibrated
    assert found is not None
    (session,) = (tmp_path / "new-block").iterdir()
    assert found.recording == session.name
    assert found.recording_sha256 == hashlib.sha256((session / "streams.xdf").read_bytes()).hexdigest()
    assert 30 <= found.after[0].n < 40
    assert f"wrote {out}" in done.stdout


def test_a_session_keeps_the_unit_its_bundle_was_calibrated_to(calibrated: tuple[Bundle, list[str]]) -> None:
    """Its report and its export read the samples by the recorded config alone."""
    kept = serve.resolved(calibrated[0], Config())
    assert (kept.intake.unit, kept.intake.markers.latency) == ("volts", None)
    stated = Config(intake=IntakeSettings(unit="nanovolts"))
    assert serve.resolved(calibrated[0], stated) == stated


def test_serve_and_doctor_say_what_a_bundle_is_calibrated_to(tmp_path: Path) -> None:
    latency = bundle.MarkerLatency(0.06, (0.055, 0.065), "photodiode 'AUX'", 200, 5e-4, (4e-4, 6e-4), 0.001)
    made = bundle.Calibrated(
        base="0" * 64,
        recording="block.xdf",
        recording_sha256="0" * 64,
        created="2026-01-01",
        latency=latency,
        missing=("Oz",),
    )
    fitted = bundle.read(write_bundle(tmp_path / "fitted", calibrated=made))
    told = list(serve.misfits(fitted, Intake(fitted.manifest.signal, eeg_info())))
    assert len(told) == 2
    assert "missing: none; the bundle was calibrated with Oz missing" in told[0]
    assert "+30.0 ms/min" in told[1]
    assert "after 0.3 min" in told[1]
    again = msgspec.json.decode(msgspec.json.encode(fitted.manifest), type=bundle.Manifest)
    assert again.calibrated == made
