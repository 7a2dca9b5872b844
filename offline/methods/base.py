"""What a method is, and what it is given.

Shapes: n samples, D width of the target features, G candidates.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import msgspec
import numpy as np
import numpy.typing as npt

from streamdec.config import convert
from streamdec.types import Bool, Float32, Float64

from ..checkpoint import RunFolder
from ..data.splits import HoldOut
from ..data.store import Int64, Item
from ..progress import Report

if TYPE_CHECKING:
    from torch import nn


class Validation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is held out of the training part: ``by`` concept or image (classes: always time), ``share`` of it."""

    by: HoldOut = "concept"
    share: float = 0.05


class MethodSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every method has. ``average``: one sample per stimulus, the mean of its repetitions; else one per epoch."""

    average: bool = True
    validation: Validation = Validation()


class Training(msgspec.Struct, frozen=True, eq=False):
    """Samples to fit.

    ``epochs`` (n, n_chans, n_times) float32; ``item`` (n,) index into ``items``; ``subject`` (n,) index into
    ``subjects``; ``targets`` per role the features of the items (n_items, ...), as the target encoder gave them;
    ``held`` (n,) True for validation; ``group`` (n,) what must be left out together when a setting is cross-validated;
    ``kind`` of the items.
    """

    epochs: Float32
    item: Int64
    subject: Int64
    targets: dict[str, npt.NDArray[Any]]
    held: Bool
    group: Int64
    items: tuple[Item, ...]
    subjects: tuple[str, ...]
    kind: Literal["stimulus", "class"]

    @property
    def shape(self) -> tuple[int, int]:
        """(n_chans, n_times)."""
        return self.epochs.shape[1], self.epochs.shape[2]


class Encoder(Protocol):
    """A trained decoder: epochs and target features into one space, compared by cosine there.

    ``subjects`` it was trained on, where it tells them apart, else empty. A subject it does not know is decoded as the
    method says for a new one.
    """

    shape: tuple[int, int]
    dim: int
    subjects: tuple[str, ...]

    def __call__(self, epochs: Float32, subject: str = "") -> Float32:
        """(n, n_chans, n_times) float32 -> query embeddings (n, dim) float32."""

    def candidates(self, targets: Mapping[str, npt.NDArray[Any]]) -> Float32:
        """Target features per role (G, ...) -> (G, dim) float32, what queries are compared with."""

    def folded(self, subject: str = "") -> nn.Module:
        """Make the network for one subject from plain layers: (B, n_chans, n_times) -> (B, dim)."""

    def to_onnx(self, subject: str = "") -> bytes:
        """Export: input "epochs" (B, n_chans, n_times) -> output "embeddings" (B, dim), float32."""

    def save(self, path: Path) -> None:
        """Write it to one safetensors file."""


@runtime_checkable
class Labelling(Protocol):
    """An encoder that may predict several labels of one epoch as well."""

    def labels(self, epochs: Float32, subject: str = "") -> Float32 | None:
        """(n, n_chans, n_times) -> probability of each label (n, L); None where it predicts none."""


class Fitted(msgspec.Struct, frozen=True, eq=False):
    """``encoder`` to keep; ``held_out`` one that never saw the validation samples; ``notes`` what fitting found."""

    encoder: Encoder
    held_out: Encoder
    notes: dict[str, Any]


@dataclass(frozen=True)
class Method:
    """A published method.

    Attributes
    ----------
    name, citation : str
    settings : type
        Its settings; every field has a default, the published one where there is one.
    roles : tuple of str
        What each of its target features is for; the first is what a gallery is made of.
    optional : tuple of str
        Further roles that it can do without.
    open_roles : bool
        Whether it takes further target features, under names of the user's.
    fit : callable
        ``(training, settings, seed, device, run, report) -> Fitted``; goes on where a killed run was.
    load : callable
        Reads what its encoder's ``save`` wrote.
    """

    name: str
    citation: str
    settings: type[MethodSettings]
    roles: tuple[str, ...]
    fit: Callable[[Training, Any, int, str, RunFolder, Report], Fitted]
    load: Callable[[Path], Encoder]
    optional: tuple[str, ...] = ()
    open_roles: bool = False

    def configured(self, given: Mapping[str, Any], where: str) -> MethodSettings:
        """Make the settings: the method's own, changed by what is given, however deep it lies.

        Raises
        ------
        ConfigError
            An unknown key, a wrong type or value; ``where`` says in which file.
        """
        return convert(merged(msgspec.to_builtins(self.settings()), given), self.settings, where)


def concepts(training: Training) -> tuple[tuple[str, ...], Int64]:
    """Number the concepts in alphabetical order: their names, and each item's number (n_items,).

    Items of which every sample is held out have -1: nothing is learned of their concept.
    """
    names, of_item = np.unique([item.concept for item in training.items], return_inverse=True)
    shown = np.isin(of_item, of_item[training.item[~training.held]])
    return tuple(str(name) for name in names), np.where(shown, of_item, -1).astype(np.int64)


def standard(targets: Float32) -> tuple[Float64, Float64]:
    """Mean and deviation of target features (n, D), (D,) each; the deviation of a constant feature is given as 1."""
    wide = targets.astype(np.float64)
    deviation = wide.std(axis=0)
    return wide.mean(axis=0), np.where(deviation > 0, deviation, 1.0)


def merged(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings, the second's where it has any."""
    nested = [key for key in first if isinstance(first[key], dict) and isinstance(second.get(key), dict)]
    return {**first, **second, **{key: merged(first[key], second[key]) for key in nested}}
