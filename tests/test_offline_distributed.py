"""Several processes with a share of a batch each give what one gives with the whole of it."""

from __future__ import annotations

import json
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shares
import tiny_store
import torch

from offline import experiment, processes
from offline.checkpoint import RunFolder, RunMeta
from offline.fit import Schedule
from offline.methods.nice import NiceSettings
from offline.methods.registry import method
from offline.methods.ridge import RidgeSettings
from offline.targets.store import Targets
from streamdec.errors import ConfigError, DataError


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("shares")
    heard = []
    processes.launch(2, "cpu", shares.Steps(folder), lambda line, done=0, total=0: heard.append(line))
    assert heard == list(shares.CASES)  # those of the first process
    return folder


@pytest.mark.parametrize("name", shares.CASES)
def test_loss_gradients_and_state_are_those_of_one_process(name: str, shared: Path) -> None:
    expected = shares.step(name)
    largest = max(float(tensor.abs().max()) for key, tensor in expected.items() if key.startswith("gradient"))
    for rank in range(2):
        found = torch.load(shared / f"{name}-{rank}.pt", weights_only=True)
        assert found.keys() == expected.keys()
        for key, tensor in expected.items():
            slack = 1e-5 * largest if key.startswith("gradient") else 1e-5
            torch.testing.assert_close(
                found[key], tensor, rtol=1e-4, atol=slack, msg=lambda text, key=key: f"{key}: {text}"
            )


def test_a_run_of_two_processes_is_the_run_of_one(tmp_path) -> None:
    """Batches of odd size; without dropout, which each process draws by itself."""
    store = tiny_store.make(tmp_path / "store", noise=2.0)
    settings = NiceSettings(dropout=0.0, schedule=Schedule(n_epochs_train=2, batch_size=31, learning_rate=1e-3))
    targets = {"image": tmp_path / "store-targets"}
    experiment.fit(method("nice"), settings, [store], {"image": Targets(targets["image"])}, tmp_path / "alone", seed=2)
    job, heard = shares.AloneAfterTraining("nice", settings, (store.path,), targets, tmp_path / "two", 2), []
    processes.fit(job, 2, "cpu", lambda line, done=0, total=0: heard.append(line))
    assert heard[-1] == "calibrates alone"
    started = [RunFolder(tmp_path / run).read("run.json", RunMeta) for run in ("alone", "two")]
    assert [(meta.device, meta.processes) for meta in started] == [("cpu", 1), ("cpu", 2)]
    histories = [
        [json.loads(line) for line in (tmp_path / run / "history.jsonl").read_text().splitlines()]
        for run in ("alone", "two")
    ]
    assert len(histories[1]) == 2
    for one, two in zip(*histories, strict=True):
        assert two["train_loss"] == pytest.approx(one["train_loss"], rel=1e-4)
        assert two["validation_loss"] == pytest.approx(one["validation_loss"], rel=1e-3)
    # Not the weights: a bias in front of a batch norm has no gradient but rounding, which Adam makes steps of.
    epochs = np.asarray(store.part("test").epochs)
    expected, found = (experiment.open_run(tmp_path / run)[3](epochs) for run in ("alone", "two"))
    np.testing.assert_allclose(found, expected, atol=1e-3 * np.abs(expected).max())
    assert experiment.evaluate_run(tmp_path / "two").averaged == experiment.evaluate_run(tmp_path / "alone").averaged


def test_an_error_of_a_process_is_the_users(tmp_path) -> None:
    with pytest.raises(DataError, match=r"^this work; got no data$"):
        processes.launch(2, "cpu", shares.refuse)


def test_an_error_that_is_heard_first_ends_every_process(tmp_path, monkeypatch) -> None:
    """And is told as it is: none is left that waits for the one that died."""
    hear, heard = processes._hear, tmp_path / "heard"

    def told(said: Any, *rest: Any) -> None:
        news = not said.empty()
        try:
            hear(said, *rest)
        finally:
            if news:
                heard.touch()

    monkeypatch.setattr(processes, "_hear", told)
    with pytest.raises(DataError, match=r"^this work; got no data$"):
        processes.launch(2, "cpu", shares.Slow(heard))
    assert heard.exists()
    assert not multiprocessing.active_children()


def test_what_cannot_be_shared_out(tmp_path) -> None:
    with pytest.raises(ConfigError, match="it trains no network"):
        processes.fit(processes.Job("ridge", RidgeSettings(), (), {}, tmp_path), 2, "cpu")
    n = torch.cuda.device_count() + 1
    with pytest.raises(ConfigError, match="are there"):
        processes.launch(n, "cuda", shares.refuse)
