"""The procedural world's own models as they ship: whole, read by the real libraries, as good as their card says."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import streamdec.simulate

pytest.importorskip("diffusers")
pytest.importorskip("open_clip")

MODELS = Path(streamdec.simulate.__file__).with_name("world_models")
CARD: dict[str, Any] = json.loads((MODELS / "card.json").read_text())
TOOL = Path(__file__).parents[1] / "tools" / "world"
FEW = 24


def tool(*arguments: str | Path) -> str:
    """Run tools/world in a process of its own, as a developer does."""
    done = subprocess.run(
        [sys.executable, TOOL, *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_card_knows_every_file() -> None:
    files = {
        str(file.relative_to(MODELS)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in MODELS.rglob("*")
        if file.is_file() and file.name != "card.json"
    }
    assert files == CARD["files"]
    assert CARD["simulated"] is True
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pth", ".pkl"))]
    assert sum(file.stat().st_size for file in MODELS.rglob("*") if file.is_file()) < 15e6


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Measure a copy anew, on few concepts, through the libraries' own loaders."""
    folder = tmp_path_factory.mktemp("measured")
    shutil.copytree(MODELS, folder / "models")
    tool("--measure", "--tested", str(FEW), "--images", "100", "--out", folder / "models", "--cache", folder)
    told: dict[str, Any] = json.loads((folder / "models" / "card.json").read_text())
    return told


def test_measuring_changes_no_file(measured: dict[str, Any]) -> None:
    assert measured["files"] == CARD["files"]


@pytest.mark.parametrize("name", list(CARD["models"]))
def test_figures_are_those_of_the_card(name: str, measured: dict[str, Any]) -> None:
    """On an eighth of the images: decibels within 1.5, shares within 0.3 (four deviations at a half are 0.4)."""
    few, all_ = measured["models"][name]["test"], CARD["models"][name]["test"]
    assert set(few) == set(all_)
    for figure, value in all_.items():
        margin = 1.5 if "db" in figure or "norm" in figure else 0.3
        assert few[figure] > value - margin, figure


@pytest.mark.slow
def test_every_stage_trains_stops_and_goes_on(tmp_path: Path) -> None:
    """Two steps of each, from nothing, then two more from where they were: the tool does not rot."""
    trial = [
        "--out",
        tmp_path / "models",
        "--cache",
        tmp_path / "cache",
        "--images",
        "64",
        "--tested",
        "2",
        "--batch",
        "8",
    ]
    first = tool(*trial, "--steps", "2")
    assert "unet 2/2: loss" in first
    again = tool("lm", *trial, "--steps", "4")
    assert "lm 4/4: loss" in again
    assert "lm 2/" not in again
    told = json.loads((tmp_path / "models" / "card.json").read_text())
    assert {name: model["steps"] for name, model in told["models"].items()} == {
        **dict.fromkeys(("judge", "clip", "vit", "vae", "decoder", "unet"), 2),
        "lm": 4,
    }
    assert set(told["files"]) >= set(CARD["files"]) - {"README.md"}


def test_a_stage_that_is_not_there() -> None:
    done = subprocess.run([sys.executable, TOOL, "gan"], capture_output=True, text=True)
    assert done.returncode == 2
    assert "judge, clip, vit, vae, decoder, unet, lm" in done.stderr
