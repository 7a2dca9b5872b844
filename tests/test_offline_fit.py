"""The training loop: best pass, resuming after a kill, patience, batches."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from offline import fit
from offline.checkpoint import RunFolder
from streamdec.errors import ConfigError, DataError


class Objective(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 2), nn.BatchNorm1d(2))

    def forward(self, epochs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return torch.mean((self.layer(epochs.flatten(1)) - targets) ** 2)


class KilledError(Exception):
    pass


@pytest.fixture
def samples() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    epochs = rng.standard_normal((41, 2, 3)).astype(np.float32)
    targets = (epochs.reshape(41, 6) @ rng.standard_normal((6, 2))).astype(np.float32)
    return {"epochs": epochs, "targets": targets, "held": np.arange(41) % 5 == 0}


def train(samples, path, passes: int, kill_at: int | None = None, **schedule) -> tuple[Objective, dict, list[str]]:
    lines: list[str] = []

    def report(line: str, done: int = 0, total: int = 0) -> None:
        lines.append(line)
        if kill_at is not None and done == kill_at:
            raise KilledError

    path.mkdir(exist_ok=True)
    objective = Objective()
    settings = fit.Schedule(n_epochs_train=passes, batch_size=8, **({"learning_rate": 0.02} | schedule))
    notes = fit.train(objective, **samples, schedule=settings, seed=4, device="cpu", run=RunFolder(path), report=report)
    return objective, notes, lines


def test_killed_run_goes_on_to_the_same_weights(samples, tmp_path) -> None:
    whole, notes, _ = train(samples, tmp_path / "whole", 6)
    for kill_at in (1, 4):
        with pytest.raises(KilledError):
            train(samples, tmp_path / f"killed{kill_at}", 6, kill_at=kill_at)
        resumed, again, lines = train(samples, tmp_path / f"killed{kill_at}", 6)
        assert lines[0] == f"going on after pass {kill_at}"
        assert len(lines) == 1 + 6 - kill_at
        assert again == notes
        for name, tensor in whole.state_dict().items():
            assert torch.equal(resumed.state_dict()[name], tensor), name


def test_best_pass_is_kept(samples, tmp_path) -> None:
    objective, notes, lines = train(samples, tmp_path, 12, learning_rate=0.5)
    losses = [float(line.rpartition(" ")[2]) for line in lines]
    assert notes["best_pass"] == int(np.argmin(losses)) + 1
    assert notes["best_loss"] == pytest.approx(min(losses), abs=1e-4)
    held = samples["held"]
    with torch.no_grad():
        got = objective(torch.from_numpy(samples["epochs"][held]), torch.from_numpy(samples["targets"][held]))
    assert float(got) == pytest.approx(notes["best_loss"], rel=1e-6)
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 12


def test_patience(samples, tmp_path) -> None:
    _, notes, lines = train(samples, tmp_path, 50, learning_rate=0.5, patience=2)
    assert len(lines) < 50
    assert notes["passes"] == notes["best_pass"] + 2


def test_held_out_samples_are_not_trained_on(samples, tmp_path) -> None:
    first, _, _ = train(samples, tmp_path / "a", 1)
    samples["epochs"][samples["held"]] += 1
    second, _, _ = train(samples, tmp_path / "b", 1)
    assert torch.equal(first.layer[1].weight, second.layer[1].weight)


def test_divergence_is_said(samples, tmp_path) -> None:
    samples["epochs"][0] = np.nan
    with pytest.raises(DataError, match="lower learning_rate"):
        train(samples, tmp_path, 2)


@pytest.mark.parametrize(("n", "sizes"), [(16, [8, 8]), (17, [8, 9]), (18, [8, 8, 2]), (5, [5]), (1, [1])])
def test_batches(n: int, sizes: list[int]) -> None:
    assert [len(batch) for batch in fit._batches(np.arange(n), 8)] == sizes


@pytest.mark.parametrize("wrong", [{"n_epochs_train": 0}, {"batch_size": 1}, {"learning_rate": 0.0}])
def test_wrong_schedule(wrong: dict) -> None:
    with pytest.raises(ConfigError, match="schedule"):
        fit.Schedule(**wrong)
