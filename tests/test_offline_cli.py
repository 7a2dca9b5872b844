"""streamdec-train from a prepared store to a bundle that serves: the same decisions live and offline."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tiny_store

from offline import cli, evaluate
from offline.checkpoint import FittedMeta, RunFolder
from offline.data.prepare import Recipe
from offline.data.recording import RecordingSettings
from offline.evaluate import Evaluation
from offline.experiment import evaluate_run, open_run, own_store
from offline.export import check_parity
from offline.methods.registry import NAMES, method
from streamdec.config import convert, read_toml
from streamdec.decode import bundle as bundles
from streamdec.decode.engine import OnnxEngine
from streamdec.decode.evidence import Evidence
from streamdec.errors import EngineError
from streamdec.signal.chain import Chain

CONFIGS = Path(__file__).parents[1] / "configs"
SHORT = "[schedule]\nn_epochs_train = 25\nbatch_size = 32\nlearning_rate = 2e-3\n"


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("stores")
    tiny_store.make(folder / "stimulus", noise=2.0)
    tiny_store.make(folder / "class", kind="class", noise=6.0)
    (folder / "short.toml").write_text(SHORT)
    return folder


def run(*arguments: object) -> int:
    return cli.main([str(argument) for argument in arguments])


@pytest.fixture(scope="module", params=["ridge", "nice", "class"])
def fitted(request, stores: Path) -> Path:
    name, kind = ("ridge", "class") if request.param == "class" else (request.param, "stimulus")
    out = stores / f"run-{request.param}"
    config = ["--config", stores / "short.toml"] if name == "nice" else []
    assert run("fit", name, stores / kind, stores / f"{kind}-targets", out, "--seed", 3, *config) == 0
    return out


def test_evaluation(fitted: Path, capsys) -> None:
    assert run("evaluate", fitted) == 0
    shown = capsys.readouterr().out
    assert "simulated data tiny nobody" in shown
    found = msgspec.json.decode((fitted / "evaluations" / "nobody.json").read_bytes(), type=Evaluation)
    assert found.simulated
    if "class" in fitted.name:
        assert found.auc["target"] == pytest.approx(found.auc["other"])
        assert found.auc["target"] > 0.9
        assert not found.curve
        return
    assert [row.repetitions for row in found.curve] == [1, 2, 4]
    assert found.averaged == found.curve[-1]
    assert found.averaged.n_queries == found.averaged.n_candidates == 12
    assert found.averaged.top1 > 0.6
    assert found.averaged.mean_average_precision >= found.curve[0].mean_average_precision
    assert found.single.n_queries == 48
    assert found.averaged.k_way["10"] >= found.averaged.top1
    calibration = RunFolder(fitted).read("fitted.json", FittedMeta).calibration
    assert calibration.repetitions == (1, 2, 4)
    assert all(scale > 0 for scale in calibration.scale)


def test_another_session_takes_no_place_of_the_first(tmp_path) -> None:
    """Not even where the folder of its store is named like the person."""
    for day, noise in (("day-1", 2.0), ("day-2", 0.5)):
        (tmp_path / day).mkdir()
        tiny_store.make(tmp_path / day / "nobody", noise=noise)
    store = tmp_path / "day-1" / "nobody"
    assert run("fit", "ridge", store, tmp_path / "day-1" / "nobody-targets", tmp_path / "run") == 0
    for prepared in (store, tmp_path / "day-2" / "nobody"):
        assert run("evaluate", tmp_path / "run", "--prepared", prepared) == 0
    kept = sorted(file.name for file in (tmp_path / "run" / "evaluations").iterdir())
    assert kept == ["nobody.day-2.json", "nobody.json"]


def test_bundle_decides_live_as_offline(fitted: Path, tmp_path, capsys) -> None:
    assert run("export", fitted, tmp_path / "bundle.zip") == 0
    assert "agrees with the trained encoder" in capsys.readouterr().out
    bundle = bundles.read(tmp_path / "bundle.zip")
    manifest = bundle.manifest
    _, meta, _, encoder = open_run(fitted)
    prepared = own_store(meta)
    assert (manifest.data,) == (prepared.meta.fingerprint,) == meta.data
    assert manifest.seeds == (3,)
    assert manifest.simulated
    assert manifest.evidence == ("none" if prepared.meta.kind == "class" else "mean")
    assert bundle.gallery.ids == tuple(item.id for item in prepared.meta.items["test"])
    part = prepared.part("test")
    head = manifest.heads[-1]
    engine, evidence = OnnxEngine(bundle.encoder(head), head), Evidence(manifest.evidence, manifest.heads)
    chain = Chain(manifest.signal, bundle.arrays)
    live, seen = [], {}
    for epoch, item in zip(part.epochs, part.rows.item, strict=True):
        key = part.items[item].id
        query = evidence.query(key, head.horizon, chain(epoch), engine)
        live.append(int(np.argmax(bundle.gallery.scores(query.embedding))))
        seen.setdefault(int(item), []).append(epoch)
        heap = seen[int(item)] if manifest.evidence == "mean" else [epoch]
        offline = encoder(np.mean(heap, axis=0, dtype=np.float64, keepdims=True).astype(np.float32))
        assert int(np.argmax(evaluate.scores(offline, bundle.gallery)[0])) == live[-1]
    final = [live[indices[-1]] for indices in part.of_item()]
    if manifest.evidence == "mean":
        assert np.mean(np.array(final) == np.arange(12)) == evaluate_run(fitted).averaged.top1


def test_encoder_that_disagrees_is_not_exported(fitted: Path) -> None:
    _, meta, _, encoder = open_run(fitted)
    model = encoder.to_onnx()
    part = own_store(meta).part("train")
    assert check_parity(encoder, model, part).min_cosine > 1 - 1e-6

    class Other:
        def __call__(self, epochs: np.ndarray, subject: str = "") -> np.ndarray:
            return encoder(epochs) * np.float32(1.001) + np.float32(0.01)

    with pytest.raises(EngineError, match="nothing was written"):
        check_parity(Other(), model, part)


def test_the_same_seed_gives_the_same_run(stores: Path) -> None:
    arguments = ("fit", "nice", stores / "stimulus", stores / "stimulus-targets")
    config = ("--config", stores / "short.toml")
    for name in ("a", "b"):
        assert run(*arguments, stores / name, *config) == 0
    assert (stores / "a" / "encoder.safetensors").read_bytes() == (stores / "b" / "encoder.safetensors").read_bytes()
    assert run(*arguments, stores / "a", *config) == 0, "a finished run is left as it is"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("fit", "ridge", "nothing", "nothing", "out"), 1, "streamdec-train prepare"),
        (("evaluate", "nothing"), 1, "streamdec-train fit"),
        (("fit", "nice", "S", "S-targets", "out", "--config", "wrong.toml"), 2, "unknown key shedule"),
        (("fit", "ridge", "S", "S-targets", "run-other"), 2, "another run"),
        (("prepare", "recording", "none.xdf", "t.tsv", "out", "--config", "no.toml"), 2, "no.toml"),
        (("features", "S", "resnet", "out"), 2, "allowed: colour, gabor, pixels"),
        (("features", "S", "classes", "wrong.toml"), 1, "wrong.toml cannot be written; got File exists"),
        (("fit", "ridge", "S", "S-targets", "wrong.toml/out"), 1, "wrong.toml/out cannot be written"),
        (("fit", "ridge", "S", "S-targets", "out", "--seed", -1), 2, "seed; got -1; allowed: 0 or more"),
        (("fit", "ridge", "S", "S-targets", "out", "--device", "gpu"), 2, "device gpu"),
        (("evaluate", "run-of-classes", "--centres", "S-targets"), 1, "got classes; allowed: stimuli"),
    ],
)
def test_errors_are_one_line(stores: Path, monkeypatch, capsys, arguments, code: int, says: str) -> None:
    monkeypatch.chdir(stores)
    (stores / "wrong.toml").write_text("shedule = 1\n")
    if "run-other" in arguments and not (stores / "run-other").exists():
        assert run("fit", "ridge", stores / "stimulus", stores / "stimulus-targets", "run-other", "--seed", 9) == 0
        capsys.readouterr()
    if "run-of-classes" in arguments and not (stores / "run-of-classes").exists():
        assert run("fit", "ridge", stores / "class", stores / "class-targets", "run-of-classes") == 0
        capsys.readouterr()
    named = [{"S": "stimulus", "S-targets": "stimulus-targets"}.get(a, a) for a in arguments]
    assert run(*named) == code
    captured = capsys.readouterr().err.strip()
    assert says in captured
    assert len(captured.splitlines()) == 1


def test_a_refused_call_leaves_its_folder_to_the_next(stores: Path, capsys) -> None:
    arguments = (stores / "stimulus", stores / "stimulus-targets", stores / "run-refused")
    assert run("fit", "neuroclip", *arguments) == 2
    assert "cached = true" in capsys.readouterr().err
    assert run("fit", "ridge", *arguments) == 0
    assert run("fit", "ridge", *arguments, "--seed", 5) == 2


def test_wrong_call_exits_2() -> None:
    for arguments in (
        (),
        ("fit", "perceptron", "a", "b", "c"),
        ("prepare", "recording", "a", "b", "c", "--train", "x"),
    ):
        with pytest.raises(SystemExit) as exit_:
            run(*arguments)
        assert exit_.value.code == 2


def test_folders_of_features_by_role() -> None:
    assert cli._roles("a/b") == {"image": Path("a/b")}
    assert cli._roles("low=f/gabor@blur=low,medium=m") == {"low": Path("f/gabor@blur=low"), "medium": Path("m")}
    assert cli._roles("f/gabor@blur=low") == {"image": Path("f/gabor@blur=low")}
    with pytest.raises(argparse.ArgumentTypeError, match="each role once"):
        cli._roles("a,image=b")


@pytest.mark.parametrize("name", NAMES)
def test_every_method_has_config_citation_and_documented_keys(name: str) -> None:
    found = method(name)
    assert found.name == name
    assert re.search(r"\(\d{4}\)", found.citation)
    written = convert(read_toml(CONFIGS / "methods" / f"{name}.toml"), found.settings, "config")
    assert written == found.settings()
    readme = (CONFIGS / "README.md").read_text()
    for kind in (found.settings, Recipe, RecordingSettings):
        for field in msgspec.structs.fields(kind):
            assert f"`{field.name}" in readme, f"{field.name} of {kind.__name__}"
