"""The training loop: best pass, resuming after a kill, patience, batches."""

from __future__ import annotations

import json
import resource
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from offline import fit
from offline.checkpoint import RunFolder
from offline.data.store import Item
from offline.learner import Batch, Learner
from offline.methods.base import Training
from offline.progress import silent
from offline.targets import frozen
from streamdec.errors import ConfigError, DataError


class Line(Learner):
    """Least squares; counts the samples it was shown, in a buffer."""

    dim = 2
    passing = ("seen",)

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layer = nn.Sequential(nn.Dropout(0.2), nn.Linear(6, 2), nn.BatchNorm1d(2))
        self.register_buffer("seen", torch.zeros(41))

    def encode(self, epochs: torch.Tensor, subject: torch.Tensor) -> torch.Tensor:
        return self.layer(epochs.flatten(1))

    def embed(self, targets: dict[str, torch.Tensor]) -> torch.Tensor:
        return targets["image"]

    def loss(self, batch: Batch) -> torch.Tensor:
        if self.training:
            self.seen[batch.sample] += 1
        return torch.mean((self.encode(batch.epochs, batch.subject) - self.embed(batch.targets)[batch.place]) ** 2)

    def folded(self, subject: int) -> nn.Module:
        return nn.Sequential(nn.Flatten(), self.layer)

    def notes(self) -> dict[str, float]:
        return {"seen": float(self.seen.sum())}


class KilledError(Exception):
    pass


@pytest.fixture
def samples() -> Training:
    """41 samples of 41 items; every fifth is held out."""
    rng = np.random.default_rng(0)
    epochs = rng.standard_normal((41, 2, 3)).astype(np.float32)
    targets = (epochs.reshape(41, 6) @ rng.standard_normal((6, 2))).astype(np.float32)
    return Training(
        epochs=epochs,
        item=np.arange(41),
        subject=np.zeros(41, np.int64),
        targets={"image": targets},
        held=np.arange(41) % 5 == 0,
        group=np.arange(41),
        items=tuple(Item(str(i), str(i), str(i)) for i in range(41)),
        subjects=("nobody",),
        kind="stimulus",
    )


def train(samples, path, passes: int, kill_at: int | None = None, **schedule) -> tuple[Line, dict, list[str]]:
    lines: list[str] = []

    def report(line: str, done: int = 0, total: int = 0) -> None:
        lines.append(line)
        if kill_at is not None and done == kill_at:
            raise KilledError

    path.mkdir(exist_ok=True)
    learner = Line()
    settings = fit.Schedule(n_epochs_train=passes, batch_size=8, **({"learning_rate": 0.02} | schedule))
    notes = fit.train(learner, samples, settings, seed=4, device="cpu", run=RunFolder(path), report=report)
    return learner, notes, lines


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


def test_adam_counts_its_steps_on_the_processor(samples, tmp_path) -> None:
    """On a GPU every step would wait for each parameter's count; the meta device stands for one."""
    train(samples, tmp_path, 1)
    learner = Line().to("meta")
    optimiser = fit._optimiser(learner, fit.Schedule())
    fit._restore(RunFolder(tmp_path), learner, optimiser)
    states = list(optimiser.state.values())
    assert len(states) == len(list(learner.parameters()))
    assert {key: tensor.device.type for state in states for key, tensor in state.items()} == {
        "step": "cpu",
        "exp_avg": "meta",
        "exp_avg_sq": "meta",
    }


def test_killed_run_goes_on_with_everything_switched_on(samples, tmp_path) -> None:
    options = {
        "weight_decay": 0.1,
        "warm_up": 0.2,
        "cosine": True,
        "clip": 0.5,
        "average": 0.9,
        "precision": "bfloat16",
    }
    whole, notes, _ = train(samples, tmp_path / "whole", 5, keep="last", **options)
    with pytest.raises(KilledError):
        train(samples, tmp_path / "killed", 5, kill_at=2, keep="last", **options)
    resumed, again, _ = train(samples, tmp_path / "killed", 5, keep="last", **options)
    assert again == notes
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor), name


def test_full_disk_is_an_error_and_then_goes_on(samples, tmp_path) -> None:
    """A limit on the size of files stands for the disk: the history fits, the state of training does not."""
    whole, notes, _ = train(samples, tmp_path / "whole", 3)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (600, limits[1]))
        with pytest.raises(DataError, match=r"cannot be written; got .* the same command goes on"):
            train(samples, tmp_path / "full", 3)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "full").glob("*.partial"))
    again, notes_again, _ = train(samples, tmp_path / "full", 3)
    assert notes_again == notes
    assert torch.equal(again.layer[1].weight, whole.layer[1].weight)


def test_moving_average_is_what_is_kept(samples, tmp_path) -> None:
    """Against the average of the weights after each step, taken along by hand."""
    decay, weights = 0.7, []
    learner = Line()
    hook = register_optimizer_step_post_hook(
        lambda optimiser, *_: weights.append(optimiser.param_groups[0]["params"][0].detach().clone())
    )
    initial = learner.layer[1].weight.detach().clone()
    learner, _, _ = train(samples, tmp_path, 3, average=decay, keep="last")
    hook.remove()
    expected = initial
    for weight in weights:
        expected = decay * expected + (1 - decay) * weight
    torch.testing.assert_close(learner.layer[1].weight, expected)


def test_rate_of_each_step() -> None:
    schedule = fit.Schedule(learning_rate=2.0, warm_up=0.1, cosine=True)
    assert [schedule.rate(step, 100) for step in (0, 4, 9)] == pytest.approx([0.2, 1.0, 2.0])
    assert schedule.rate(10, 100) == pytest.approx(2.0)
    assert schedule.rate(55, 100) == pytest.approx(1.0)
    assert schedule.rate(99, 100) < 0.01
    assert {fit.Schedule(learning_rate=2.0).rate(step, 100) for step in range(100)} == {2.0}


def test_clipping_bounds_the_gradient(samples, tmp_path) -> None:
    norms = []

    def measure(optimiser: torch.optim.Optimizer, *_: object) -> None:
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        norms.append(float(torch.cat([p.grad.flatten() for p in parameters]).norm()))

    hook = register_optimizer_step_pre_hook(measure)
    train(samples, tmp_path / "a", 1)
    assert max(norms) > 0.1
    norms.clear()
    train(samples, tmp_path / "b", 1, clip=0.1)
    hook.remove()
    assert max(norms) <= 0.1 + 1e-6


def test_batch_that_does_not_fit_names_one_that_does(samples, tmp_path) -> None:
    """Found with the memory free that the batches before it took, forward and backward."""
    taken: list[weakref.ref] = []
    still: list[int] = []

    class Large(Line):
        def loss(self, batch: Batch) -> torch.Tensor:
            still.append(sum(one() is not None for one in taken))
            n, loss = len(batch.epochs), super().loss(batch)
            held = torch.zeros(n)
            taken.append(weakref.ref(held))
            if n > 8:
                raise torch.OutOfMemoryError
            return loss if n == 4 else Refused.apply(loss, held)

    class Refused(torch.autograd.Function):
        @staticmethod
        def forward(ctx, loss, held):
            ctx.held = held
            return loss.clone()

        @staticmethod
        def backward(ctx, grad):
            raise torch.OutOfMemoryError

    settings = fit.Schedule(n_epochs_train=1, batch_size=16)
    with pytest.raises(DataError, match=r"batch of 16; allowed: about 4; set schedule.batch_size to 4"):
        fit.train(Large(), samples, settings, seed=0, device="cpu", run=RunFolder(tmp_path), report=lambda *_: None)
    assert still == [0, 0, 0]


def test_gpus_are_asked_for_the_same_convolutions_each_time(samples, tmp_path) -> None:
    """Of targets and of training; and what others have set is as before."""
    seen: list[tuple[bool, bool]] = []

    def look() -> tuple[bool, bool]:
        return torch.backends.cudnn.deterministic, torch.backends.cudnn.allow_tf32

    class Looking(Line):
        def loss(self, batch: Batch) -> torch.Tensor:
            seen.append(look())
            return super().loss(batch)

    before = look()
    fit.train(
        Looking(), samples, fit.Schedule(n_epochs_train=1), seed=0, device="cpu", run=RunFolder(tmp_path), report=silent
    )
    frozen.run(lambda n: seen.append(look()) or torch.zeros(n), 2, "cpu")
    assert set(seen) == {(True, False)}
    assert len(seen) == 3  # a step, a validation, a batch of targets
    assert look() == before


def test_curves(samples, tmp_path) -> None:
    train(samples, tmp_path, 2)
    first, second = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert second["seen"] == 2 * first["seen"] == 2 * 32
    assert 0 <= first["validation_top1"] <= 1
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert [event.value for event in events.Scalars("validation_loss")] == pytest.approx(
        [first["validation_loss"], second["validation_loss"]]
    )


def test_what_only_training_needs_is_not_kept(samples, tmp_path) -> None:
    learner, _, _ = train(samples, tmp_path, 1)
    assert "seen" in fit.weights(learner)
    trained = fit.weights(learner, trained=True)
    assert "seen" not in trained
    fit.load_weights(Line(), trained)
    with pytest.raises(DataError, match="do not fit"):
        fit.load_weights(Line(), trained | {"layer.9.weight": torch.zeros(1)})
    with pytest.raises(DataError, match="stored weights"):
        fit.load_weights(Line(), trained | {"layer.1.weight": torch.zeros(1)})


def test_best_pass_is_kept(samples, tmp_path) -> None:
    learner, notes, lines = train(samples, tmp_path, 12, learning_rate=0.5)
    losses = [float(line.split("validation ")[1].split(",")[0]) for line in lines]
    assert notes["best_pass"] == int(np.argmin(losses)) + 1
    assert notes["best_loss"] == pytest.approx(min(losses), abs=1e-4)
    epochs, targets = samples.epochs[samples.held], samples.targets["image"][samples.held]
    with torch.no_grad():
        got = torch.mean((learner.encode(torch.from_numpy(epochs), torch.zeros(9)) - torch.from_numpy(targets)) ** 2)
    assert float(got) == pytest.approx(notes["best_loss"], rel=1e-6)
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 12


def test_validation_is_not_in_the_order_of_the_store(samples, tmp_path, monkeypatch) -> None:
    """Neighbours there are of one concept, against which a contrastive loss would be another one than in training."""
    seen: list[np.ndarray] = []
    validate = fit._validate

    def watched(learner, data, validation, *rest):
        seen.append(validation)
        return validate(learner, data, validation, *rest)

    monkeypatch.setattr(fit, "_validate", watched)
    train(samples, tmp_path / "run", 2)
    held = np.flatnonzero(samples.held)
    assert all(np.array_equal(np.sort(rows), held) and not np.array_equal(rows, held) for rows in seen)
    assert len(seen) == 2
    assert np.array_equal(*seen)


def test_patience(samples, tmp_path) -> None:
    _, notes, lines = train(samples, tmp_path, 50, learning_rate=0.5, patience=2)
    assert len(lines) < 50
    assert notes["passes"] == notes["best_pass"] + 2


def test_held_out_samples_are_not_trained_on(samples, tmp_path) -> None:
    first, _, _ = train(samples, tmp_path / "a", 1)
    samples.epochs[samples.held] += 1
    second, _, _ = train(samples, tmp_path / "b", 1)
    assert torch.equal(first.layer[1].weight, second.layer[1].weight)


def test_divergence_is_said(samples, tmp_path) -> None:
    samples.epochs[0] = np.nan
    with pytest.raises(DataError, match="lower learning_rate"):
        train(samples, tmp_path, 2)


@pytest.mark.parametrize(("n", "sizes"), [(16, [8, 8]), (17, [8, 9]), (18, [8, 8, 2]), (5, [5]), (1, [1])])
def test_batches(n: int, sizes: list[int]) -> None:
    assert [len(batch) for batch in fit._batches(np.arange(n), 8)] == sizes


@pytest.mark.parametrize(
    "wrong",
    [
        {"n_epochs_train": 0},
        {"batch_size": 1},
        {"learning_rate": 0.0},
        {"betas": (0.9, 1.0)},
        {"weight_decay": -0.1},
        {"warm_up": 1.0},
        {"clip": 0.0},
        {"average": 1.0},
        {"patience": 0},
    ],
)
def test_wrong_schedule(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=f"schedule.{next(iter(wrong))}; got"):
        fit.Schedule(**wrong)
