"""The whole way, from a recording to decisions on the feed: what is trained offline decides live as it does offline.

``streamdec-train`` prepares, fits, evaluates and exports; the bundle is served by a process, and another one plays the
recording to it as LSL streams in real time.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from serving import Serving, playing

from offline import cli, evaluate, metrics
from offline.data.store import Prepared
from offline.evaluate import Evaluation
from offline.experiment import gallery, open_run
from offline.targets.store import Targets
from streamdec.acquire.record import Recorder
from streamdec.acquire.recording import RecordedStream, Recording, Segment
from streamdec.acquire.replay import ReplayInlet
from streamdec.feed import schema
from streamdec.simulate import things_layout
from streamdec.simulate.schedule import TARGET, Timing
from streamdec.simulate.subject import Subject
from streamdec.simulate.world import World
from streamdec.types import StreamInfo

pytestmark = [pytest.mark.lsl, pytest.mark.slow]

CONFIGS = Path(__file__).parents[1] / "configs"
N_TEST, REPETITIONS = 10, 3


def train(*arguments: object) -> None:
    assert cli.main([str(argument) for argument in arguments]) == 0


def served(bundle: Path, options: tuple[object, ...], played: tuple[object, ...], seconds: float) -> list[Any]:
    """Decisions of a session that lasts as long as what is played to it; each onset has one."""
    with playing(*played), Serving(bundle, *options) as serving:
        serving.until(lambda: any(each.state == "lost" for each in serving.of(schema.Session)), seconds)
        bye, status, errors = serving.stop()
        assert (status, errors) == (0, "")
        assert serving.subscriber.gaps == {}
        decisions = serving.of(schema.Retrieval)
    assert bye.counts is not None
    assert (bye.counts.garbage, bye.counts.gaps) == (0, 0)
    assert len(decisions) == bye.counts.onsets == bye.counts.decided
    return decisions


def write_p300(path: Path, recorded: dict[str, Any]) -> float:
    """Have our recorder write a g.tec P300 run, 250 Hz, a marker per flash; return its duration, seconds."""
    trigger = recorded["trig"].ravel()
    onsets = np.flatnonzero((trigger[1:] != 0) & (trigger[:-1] == 0)) + 1
    texts = np.where(trigger[onsets] == 1, "target", "other").astype(object)
    data = np.ascontiguousarray(recorded["y"].T, np.float32)
    stamps = 1000 + np.arange(len(trigger)) / 250
    names = ("Fz", "Cz", "P3", "Pz", "P4", "PO7", "POz", "PO8")
    eeg = StreamInfo("gtec", "EEG", 8, 250.0, "float32", ch_names=names, units=("microvolts",) * 8)
    flashes = StreamInfo("gtec-flashes", "Markers", 1, 0.0, "string")
    streams = (
        RecordedStream(eeg, stamps, data, (Segment(0, len(stamps), np.empty((0, 2))),)),
        RecordedStream(flashes, stamps[onsets], texts[None], (Segment(0, len(onsets), np.empty((0, 2))),)),
    )
    with Recorder(path, eeg, flashes) as recorder, ReplayInlet(Recording(path, streams)) as inlet:
        inlet.open()
        for event in iter(inlet.pull, None):
            recorder.event(event)
    assert (recorder.broken, recorder.dropped) == ("", 0)
    return float(stamps[-1] - stamps[0])


@pytest.mark.data
def test_p300_live_is_as_good_as_offline(data: Path, tmp_path: Path) -> None:
    """Trained on the first half; live, the filters start with the second."""
    from scipy.io import loadmat

    path, table, run = tmp_path / "p300.xdf", tmp_path / "classes.tsv", tmp_path / "run"
    duration = write_p300(path, loadmat(data / "eeg" / "gtec_p300" / "S1.mat"))
    table.write_text("marker\tlabel\ntarget\ttarget\nother\tother\n", encoding="utf-8")
    store, targets, bundle = tmp_path / "store", tmp_path / "targets", tmp_path / "bundle.zip"
    config = CONFIGS / "data" / "recording.toml"
    train("prepare", "recording", path, table, store, "--config", config, "--train", "0:0.5", "--test", "0.5:1")
    train("features", store, "classes", targets)
    train("fit", "ridge", store, targets, run)
    train("evaluate", run)
    train("export", run, bundle)
    offline = msgspec.json.decode((run / "evaluations" / "p300.json").read_bytes(), type=Evaluation)

    streams = ("--eeg", "name=gtec", "--markers", "name=gtec-flashes")
    decisions = served(bundle, streams, (path, "--from", duration / 2), duration)
    part = Prepared(store).part("test")
    assert [each.key for each in decisions] == [part.items[item].id for item in part.rows.item]
    scores = [{candidate.id: candidate.score for candidate in each.candidates} for each in decisions]
    values = np.array([score["target"] - score["other"] for score in scores])
    live = metrics.auc(values, np.array([each.key == "target" for each in decisions]))
    print(f"\nsingle-flash AUC of {len(decisions)} flashes: live {live:.4f}, offline {offline.auc['target']:.4f}")  # noqa: T201 - shown with -s
    assert live >= 0.90
    assert live == pytest.approx(offline.auc["target"], abs=0.002)


@pytest.fixture(scope="module")
def things(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small simulated data set in THINGS-EEG2's layout, prepared, with features."""
    root = tmp_path_factory.mktemp("things")
    subject = Subject(World(0, n_train=40, images_per_concept=4, n_test=N_TEST, size=32))
    timing = Timing(before=0.5, after=1.2, targets=0.5)
    things_layout.write(root, [subject], n_sessions=2, test_repetitions=REPETITIONS, timing=timing)
    train("prepare", "things_eeg2", root, root / "store")
    train("features", root / "store", "attributes", root / "targets")
    (root / "ridge.toml").write_text("")
    (root / "nice.toml").write_text("[schedule]\nn_epochs_train = 4\nbatch_size = 32\nlearning_rate = 2e-3\n")
    return root


@pytest.mark.parametrize("method", ["ridge", "nice"])
def test_things_live_decides_as_offline(things: Path, tmp_path: Path, method: str) -> None:
    """Every epoch alone: a test session's trigger codes and samples, as they lie on disk."""
    run, bundle, config = tmp_path / "run", tmp_path / "bundle.zip", tmp_path / "live.toml"
    train("fit", method, things / "store", things / "targets", run, "--config", things / f"{method}.toml")
    train("evaluate", run)
    train("export", run, bundle)
    encoder, prepared = open_run(run)[-1], Prepared(things / "store")
    part, shelf = prepared.part("test"), gallery(encoder, prepared, {"image": Targets(things / "targets")})
    session = part.rows.session == 1
    scores = evaluate.scores(encoder(np.asarray(part.epochs[session])), shelf)
    best = scores.argmax(axis=1)
    shown, found = [part.items[i].id for i in part.rows.item[session]], [shelf.ids[i] for i in best]

    keys = "\n".join(f"{code} = {json.dumps(item.id)}" for code, item in enumerate(part.items, 1))
    config.write_text(
        f"""inlet.eeg.name = "raw_eeg_test"
evidence.max_repetitions = 1
intake.trigger = {{ channel = "stim", mask = 0x1FFFF }}
intake.markers.ignore = "{TARGET}"
[intake.markers.keys]
{keys}
""",
        encoding="utf-8",
    )
    raw = next(things.glob("**/ses-02/raw_eeg_test.npy"))
    decisions = served(bundle, ("--config", config), (raw,), 60.0)
    assert [each.key for each in decisions] == shown
    assert [each.candidates[0].id for each in decisions] == found
    np.testing.assert_allclose([each.candidates[0].score for each in decisions], scores.max(axis=1), atol=1e-5)
    assert {each.repetitions for each in decisions} == {1}
    right = [key == id_ for key, id_ in zip(shown, found, strict=True)]
    print(f"\n{method}, simulated: {sum(right)} of {len(right)} right, live and offline; {len(set(found))} found")  # noqa: T201 - shown with -s
    assert len(set(found)) > 3, "an encoder that always says the same shows nothing"
