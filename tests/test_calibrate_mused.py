"""Somebody new to a bundle of ``mused``: record, prepare, fit with ``base``, export, as the docs have it."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
import strangers
from feeder import Feeder, Plan, write_script
from PIL import Image
from serving import COMMAND, streamdec
from small_bundle import N_IMAGES, NAMES, PATTERNS, SFREQ, eeg_info, presentation

from offline import checkpoint, cli
from streamdec.calibrate.run import Settings, run
from streamdec.config import Config
from streamdec.decode import bundle as bundles
from streamdec.decode.engine import OnnxEngine
from streamdec.present.table import Row, write_table

pytestmark = [pytest.mark.lsl, pytest.mark.slow, pytest.mark.timeout(400)]

RECIPE = """simulated = true
[recipe]
tmin = 0.0
tmax = 0.5
steps = [{ kind = "baseline", tmin = 0.0, tmax = 0.5 }, { kind = "resample", sfreq = 50.0 }, { kind = "whiten" }]
"""
METHOD = """width = 32
n_layers = 1
n_hidden = 32
attention_rate = 1.0
standardise = true
base = "{base}"
[schedule]
n_epochs_train = 2
batch_size = 32
learning_rate = 3e-3
"""


def train(*arguments: object) -> None:
    assert cli.main([str(argument) for argument in arguments]) == 0


def test_a_new_subject_brings_tokens_and_nothing_else(tmp_path: Path, stream_name: str) -> None:
    """Two known people, a third who is recorded live; the bundle is the base's but for the tokens and the whitener."""
    colours = np.random.default_rng(0).integers(0, 255, (N_IMAGES, 3), np.uint8)
    for i, colour in enumerate(colours):
        Image.fromarray(np.full((8, 8, 3), colour)).save(tmp_path / f"img{i:02d}.png")
    rows = [Row(f"img{i:02d}", f"img{i:02d}.png", f"image {i}", f"image {i}") for i in range(N_IMAGES)]
    table = tmp_path / "table.tsv"
    write_table(table, rows, tmp_path)
    (tmp_path / "recording.toml").write_text(RECIPE)

    def prepare(recording: Path, name: str) -> Path:
        store = tmp_path / name
        parts = ("--config", tmp_path / "recording.toml", "--train", "0:0.7", "--test", "0.7:1")
        train("prepare", "recording", recording, table, store, *parts)
        return store

    def fit(stores: list[Path], name: str, base: Path | str = "") -> Path:
        config = tmp_path / f"{name}.toml"
        config.write_text(METHOD.format(base=base))
        targets = tmp_path / "targets"
        train("fit", "mused", ",".join(map(str, stores)), targets, tmp_path / name, "--config", config)
        train("export", "--prepared", stores[0], tmp_path / name, tmp_path / f"{name}.zip")
        return tmp_path / name

    known = []
    for seed, name in enumerate(("one", "two")):
        data, onsets, keys = presentation(120, seed=seed)
        lights = [(float(at) / SFREQ, key) for at, key in zip(onsets, keys, strict=True)]
        known.append(prepare(strangers.write(tmp_path / f"{name}.xdf", eeg_info(), data, lights, 0.0), name))
    train("features", known[0], "colour", tmp_path / "targets")
    base = fit(known, "base")

    onsets = np.arange(250, 20250, 50)
    data = np.random.default_rng(2).normal(0, 2, (len(NAMES), onsets[-1] + 250)).astype(np.float32)
    for i, onset in enumerate(onsets):  # each image in every round, whenever the recording begins
        data[:, onset : onset + 126] += PATTERNS[i % N_IMAGES]
    keys = [f"img{i % N_IMAGES:02d}" for i in range(len(onsets))]
    script = str(write_script(tmp_path / "s.npz", data, onsets, keys))
    streams = ("--eeg", f"name={stream_name}", "--markers", f"name={stream_name}-markers")
    command = [*COMMAND, "record", tmp_path / "blocks", *streams, "--seconds", "15"]
    with Feeder(Plan(script, stream_name, NAMES, tuple(range(len(NAMES))), source_id=stream_name)):
        subprocess.run(command, check=True, timeout=90)
    (session,) = (tmp_path / "blocks").iterdir()
    newcomer = fit([prepare(session, "newcomer")], "joined", base)

    before, after = (checkpoint.load(folder / "encoder.safetensors")[0] for folder in (base, newcomer))
    assert after.keys() - before.keys() == {"learner.network.tokens.2"}
    for name, array in before.items():
        np.testing.assert_array_equal(after[name], array, err_msg=name)
    known_mean = (before["learner.network.tokens.0"] + before["learner.network.tokens.1"]) / 2
    assert np.abs(after["learner.network.tokens.2"] - known_mean).max() > 1e-3
    found = bundles.read(tmp_path / "joined.zip")
    head = found.manifest.heads[-1]
    engines = [OnnxEngine(bundles.read(tmp_path / f"{name}.zip").encoder(head), head) for name in ("base", "joined")]
    epoch = np.random.default_rng(3).normal(size=head.shape).astype(np.float32)
    assert not np.allclose(*(engine(epoch) for engine in engines))
    replayed = streamdec("replay", session, "--bundle", tmp_path / "joined.zip")
    assert replayed.returncode == 0, replayed.stderr
    assert " 0 rejected" in replayed.stdout

    said: list[str] = []
    run(Config(bundle=str(tmp_path / "base.zip")), session, tmp_path / "calibrated.zip", Settings(), said.append)
    assert [line for line in said if "mused" in line and "base = the run behind this bundle" in line] == said[:1]
