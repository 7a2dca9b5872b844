"""A learner as a method: fit it, keep it, encode with it, export it. :func:`network` makes every network method."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from streamdec.errors import ConfigError
from streamdec.types import Float32

from .. import checkpoint, distributed
from ..checkpoint import RunFolder
from ..fit import Schedule, load_weights, train, weights
from ..generation import onnx_file
from ..learner import Batch, Group, Learner
from ..progress import Report
from .base import Fitted, Method, MethodSettings, Training, standard

_BATCH = 256  # epochs or candidates encoded at once


class NetworkSettings(MethodSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every network has.

    ``standardise`` target features by their mean and deviation over the training items: for features whose cosines
    hardly differ, such as Gabor energy; published methods go without. One-hot classes and features that are no vectors
    stay as they are.
    """

    standardise: bool = False
    schedule: Schedule = Schedule()


class Shapes(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a learner is built for.

    ``epochs`` (n_chans, n_times); ``targets`` per role the shape of one item's features; ``subjects`` it is trained on;
    ``n_concepts`` different concepts among the training items; ``kind`` of the items.
    """

    epochs: tuple[int, int]
    targets: dict[str, tuple[int, ...]]
    subjects: tuple[str, ...]
    n_concepts: int
    kind: Literal["stimulus", "class"]


_Settings = TypeVar("_Settings", bound=NetworkSettings)


class _Standardised(Learner):
    """A learner whose vector targets are standardised first."""

    def __init__(self, learner: Learner, shapes: Shapes) -> None:
        super().__init__()
        self.learner, self.dim = learner, learner.dim
        self.frozen = tuple(f"learner.{prefix}" for prefix in learner.frozen)
        self.passing = tuple(f"learner.{prefix}" for prefix in learner.passing)
        self._roles = [role for role, shape in shapes.targets.items() if len(shape) == 1 and role not in learner.plain]
        for role in self._roles:
            self.register_buffer(f"centre_{role}", torch.zeros(shapes.targets[role]))
            self.register_buffer(f"scale_{role}", torch.ones(shapes.targets[role]))

    def standardise(self, training: Training) -> None:
        shown = np.unique(training.item[~training.held])
        for role in self._roles:
            known = self.learner.standards.get(role)
            centre, scale = known or map(torch.from_numpy, standard(np.asarray(training.targets[role][shown])))
            getattr(self, f"centre_{role}").copy_(centre)
            getattr(self, f"scale_{role}").copy_(scale)

    def _scaled(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        scaled = dict(targets)
        for role in self._roles:
            if role in targets:
                scaled[role] = (targets[role] - getattr(self, f"centre_{role}")) / getattr(self, f"scale_{role}")
        return scaled

    def begin(self, training: Training) -> None:
        self.learner.begin(training)

    def encode(self, epochs: Tensor, subject: Tensor) -> Tensor:
        return self.learner.encode(epochs, subject)

    def embed(self, targets: Mapping[str, Tensor]) -> Tensor:
        return self.learner.embed(self._scaled(targets))

    def loss(self, batch: Batch) -> Tensor:
        return self.learner.loss(dataclasses.replace(batch, targets=self._scaled(batch.targets)))

    def groups(self) -> list[Group]:
        return self.learner.groups()

    def folded(self, subject: int) -> nn.Module:
        return self.learner.folded(subject)

    def notes(self) -> dict[str, float]:
        return self.learner.notes()


class _State(msgspec.Struct, frozen=True):
    settings: dict[str, Any]
    shapes: Shapes


class NetworkEncoder:
    """A trained learner, on the CPU.

    Parameters
    ----------
    learner : Learner
    settings : NetworkSettings
    shapes : Shapes
    """

    def __init__(self, learner: _Standardised, settings: NetworkSettings, shapes: Shapes) -> None:
        self._learner, self._settings, self._shapes = learner.cpu().eval(), settings, shapes
        self.shape, self.dim, self.subjects = shapes.epochs, learner.dim, shapes.subjects

    @property
    def learner(self) -> Learner:
        """What was trained, for those who look inside."""
        return self._learner.learner

    @torch.no_grad()
    def __call__(self, epochs: Float32, subject: str = "") -> Float32:
        """(n, n_chans, n_times) -> (n, dim)."""
        out = np.empty((len(epochs), self.dim), np.float32)
        for start in range(0, len(epochs), _BATCH):
            block = torch.from_numpy(np.array(epochs[start : start + _BATCH]))
            number = torch.full((len(block),), self._number(subject))
            out[start : start + _BATCH] = self._learner.encode(block, number).numpy()
        return out

    @torch.no_grad()
    def labels(self, epochs: Float32, subject: str = "") -> Float32 | None:
        """(n, n_chans, n_times) -> probability of each label (n, L); None of a method that predicts none."""
        found = []
        for start in range(0, len(epochs), _BATCH):
            block = torch.from_numpy(np.array(epochs[start : start + _BATCH]))
            logits = self.learner.classify(block, torch.full((len(block),), self._number(subject)))
            if logits is None:
                return None
            found.append(logits.sigmoid().numpy())
        return np.concatenate(found)

    @torch.no_grad()
    def candidates(self, targets: Mapping[str, npt.NDArray[Any]]) -> Float32:
        """(G, ...) per role -> (G, dim)."""
        n = len(next(iter(targets.values())))
        out = np.empty((n, self.dim), np.float32)
        for start in range(0, n, _BATCH):
            block = {role: _tensor(array[start : start + _BATCH]) for role, array in targets.items()}
            out[start : start + _BATCH] = self._learner.embed(block).numpy()
        return out

    def folded(self, subject: str = "") -> nn.Module:
        """Make the encoder of one subject from plain layers, evaluating."""
        return self._learner.folded(self._number(subject)).eval()

    def to_onnx(self, subject: str = "") -> bytes:
        """Export the folded layers."""
        return to_onnx(self.folded(subject), self.shape)

    def save(self, path: Path) -> None:
        """Write."""
        arrays = {name: tensor.numpy() for name, tensor in weights(self._learner, trained=True).items()}
        settings = msgspec.json.decode(msgspec.json.encode(self._settings))
        checkpoint.save(path, arrays, _State(settings, self._shapes))

    def _number(self, subject: str) -> int:
        return self.subjects.index(subject) if subject in self.subjects else -1


def network(
    name: str,
    citation: str,
    settings: type[_Settings],
    build: Callable[[_Settings, Shapes], Learner],
    roles: tuple[str, ...] = ("image",),
    optional: tuple[str, ...] = (),
    open_roles: bool = False,
) -> Method:
    """Make a method of a learner.

    Parameters
    ----------
    name, citation, settings, roles, optional, open_roles
        As in :class:`.base.Method`.
    build : callable
        ``(settings, shapes) -> Learner``, untrained; called again to read a trained one.
    """

    def fit(training: Training, chosen: _Settings, seed: int, device: str, run: RunFolder, report: Report) -> Fitted:
        torch.manual_seed(seed)
        shapes = Shapes(
            epochs=training.shape,
            targets={role: array.shape[1:] for role, array in training.targets.items()},
            subjects=training.subjects,
            n_concepts=len({item.concept for item in training.items}),
            kind=training.kind,
        )
        try:
            built = build(chosen, shapes)
        except ValueError as error:  # a network that cannot be made for epochs of this size
            raise ConfigError(f"{name} for epochs of {shapes.epochs}", got=error) from error
        learner = _Standardised(built, shapes)
        learner.begin(training)
        if chosen.standardise and training.kind == "stimulus":
            learner.standardise(training)
        notes = train(learner, training, chosen.schedule, seed=seed, device=device, run=run, report=report)
        distributed.leave()  # what follows is for one process, and may take longer than NCCL lets the others wait
        encoder = NetworkEncoder(learner, chosen, shapes)
        return Fitted(encoder, encoder, notes)

    def load(path: Path) -> NetworkEncoder:
        arrays, found = checkpoint.load(path)
        state = msgspec.convert(found, _State)
        chosen = msgspec.convert(state.settings, settings)
        learner = _Standardised(build(chosen, state.shapes), state.shapes)
        load_weights(learner, {name: torch.from_numpy(array) for name, array in arrays.items()})
        return NetworkEncoder(learner, chosen, state.shapes)

    return Method(name, citation, settings, roles, fit, load, optional, open_roles)


def to_onnx(encoder: nn.Module, shape: tuple[int, int]) -> bytes:
    """Export an encoder of plain layers: "epochs" (B, *shape) -> "embeddings" (B, dim)."""
    return onnx_file.to_onnx(encoder.eval(), [torch.zeros(2, *shape)], ["epochs"], "embeddings", batched=True)


def _tensor(array: npt.NDArray[Any]) -> Tensor:
    taken = torch.from_numpy(np.array(array))
    return taken.float() if taken.is_floating_point() else taken
