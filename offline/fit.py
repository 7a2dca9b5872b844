"""The training loop of every network: it knows samples, an objective and a schedule, no method."""

from __future__ import annotations

import math
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from streamdec.errors import ConfigError, DataError
from streamdec.types import Bool, Float32

from . import checkpoint
from .checkpoint import RunFolder
from .progress import Report


class Schedule(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to train: Adam, the encoder of the pass with the lowest validation loss is kept.

    ``n_epochs_train`` passes over the data at most; ``batch_size`` samples, the last batch may be smaller;
    ``learning_rate`` and ``betas`` of Adam; ``patience`` passes without a lower validation loss after which training
    stops, None never.
    """

    n_epochs_train: int = 200
    batch_size: int = 1000
    learning_rate: float = 2e-4
    betas: tuple[float, float] = (0.5, 0.999)
    patience: int | None = None

    def __post_init__(self) -> None:
        if self.n_epochs_train < 1 or self.batch_size < 2 or not self.learning_rate > 0:
            raise ConfigError(
                "schedule",
                got=f"n_epochs_train {self.n_epochs_train}, batch_size {self.batch_size}, lr {self.learning_rate}",
                allowed="n_epochs_train 1 or more, batch_size 2 or more, learning_rate above 0",
            )


def train(
    objective: nn.Module,
    epochs: Float32,
    targets: Float32,
    held: Bool,
    schedule: Schedule,
    *,
    seed: int,
    device: str,
    run: RunFolder,
    report: Report,
) -> dict[str, Any]:
    """Train in place; the objective ends with the weights of the best pass.

    The state after each finished pass is in the run folder: a run that was killed goes on there and ends with the same
    weights on the same machine.

    Parameters
    ----------
    objective : nn.Module
        ``objective(epochs, targets) -> loss``; every parameter that requires a gradient is trained.
    epochs : array of shape (n, n_chans, n_times), float32
    targets : array of shape (n, D), float32
    held : array of shape (n,), bool
        Samples to validate on.
    schedule : Schedule
    seed : int
        Of the order of the samples and the dropout; the caller has seeded the initial weights.
    device : str
        As torch names it.
    run : RunFolder
    report : callable
        Told after each pass.

    Returns
    -------
    dict
        ``best_pass`` (1-based), ``best_loss``, ``passes``.
    """
    objective.to(device)
    x, y = torch.from_numpy(np.ascontiguousarray(epochs)), torch.from_numpy(np.ascontiguousarray(targets))
    kept, validation = np.flatnonzero(~held), np.flatnonzero(held)
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimiser = torch.optim.Adam(trained, lr=schedule.learning_rate, betas=schedule.betas)
    best = _copy(objective)
    state = _State()
    if run.resume.exists():
        state, best = _restore(run, objective, optimiser)
        report(f"going on after pass {state.passes}")
    while state.passes < schedule.n_epochs_train and not _exhausted(state, schedule):
        # One seed per pass: the state of no random generator has to be kept.
        order = np.random.default_rng([seed, state.passes]).permutation(kept)
        torch.manual_seed(int(np.random.SeedSequence([seed, state.passes]).generate_state(1)[0]))
        objective.train()
        losses = []
        for batch in _batches(order, schedule.batch_size):
            loss = objective(x[batch].to(device), y[batch].to(device))
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            losses.append(loss.detach())
        validated = _validate(objective, x, y, validation, schedule.batch_size, device)
        if not math.isfinite(validated):
            raise DataError(f"pass {state.passes + 1}: validation loss", got=validated, do="lower learning_rate")
        passes = state.passes + 1
        improved = validated < state.best_loss
        if improved:
            best = _copy(objective)
        state = _State(passes, validated if improved else state.best_loss, passes if improved else state.best_pass)
        mean_loss = float(torch.stack(losses).mean())
        run.log({"pass": passes, "train_loss": mean_loss, "validation_loss": validated})
        _store(run, objective, optimiser, best, state)
        line = f"pass {passes}: loss {mean_loss:.4f}, validation {validated:.4f}"
        report(line, passes, schedule.n_epochs_train)
    objective.load_state_dict(best)
    objective.eval()
    return {"best_pass": state.best_pass, "best_loss": state.best_loss, "passes": state.passes}


class _State(msgspec.Struct, frozen=True):
    passes: int = 0
    best_loss: float = 1e30  # JSON has no infinity
    best_pass: int = 0


def _exhausted(state: _State, schedule: Schedule) -> bool:
    return schedule.patience is not None and state.passes - state.best_pass >= schedule.patience


def _batches(order: npt.NDArray[np.intp], size: int) -> list[npt.NDArray[np.intp]]:
    """Cut into batches; a last one of a single sample, which no batch norm can take, joins the one before."""
    cuts = list(range(size, len(order), size))
    if cuts and len(order) - cuts[-1] < 2:
        cuts.pop()
    return np.split(order, cuts)


@torch.no_grad()
def _validate(objective: nn.Module, x: Tensor, y: Tensor, rows: npt.NDArray[np.intp], size: int, device: str) -> float:
    """Mean loss of the validation samples."""
    objective.eval()
    batches = _batches(rows, size)
    losses = [len(batch) * float(objective(x[batch].to(device), y[batch].to(device))) for batch in batches]
    return sum(losses) / len(rows)


def _copy(objective: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in objective.state_dict().items()}


def _store(
    run: RunFolder, objective: nn.Module, optimiser: torch.optim.Adam, best: dict[str, Tensor], state: _State
) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in objective.state_dict().items()}
    tensors |= {f"best.{name}": tensor for name, tensor in best.items()}
    for i, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"adam.{i}.{name}": tensor for name, tensor in moments.items()}
    checkpoint.save(run.resume, {name: tensor.cpu().numpy() for name, tensor in tensors.items()}, state)


def _restore(run: RunFolder, objective: nn.Module, optimiser: torch.optim.Adam) -> tuple[_State, dict[str, Tensor]]:
    arrays, state = checkpoint.load(run.resume)
    tensors = {name: torch.from_numpy(array) for name, array in arrays.items()}
    device = next(objective.parameters()).device

    def of(prefix: str) -> dict[str, Tensor]:
        return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}

    objective.load_state_dict(of("model."))
    moments: dict[int, dict[str, Tensor]] = {}
    for name, tensor in of("adam.").items():
        i, _, key = name.partition(".")
        moments.setdefault(int(i), {})[key] = tensor
    optimiser.load_state_dict(optimiser.state_dict() | {"state": moments})
    return msgspec.convert(state, _State), {name: tensor.to(device) for name, tensor in of("best.").items()}
