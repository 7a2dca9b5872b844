"""What a method is, and what it is given.

Shapes: n samples, D width of the target features, G candidates.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import msgspec
import numpy as np

from streamdec.types import Bool, Float32, Float64

from ..checkpoint import RunFolder
from ..data.splits import HoldOut
from ..data.store import Int64
from ..progress import Report


class Validation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What is held out of the training part: ``by`` concept, image or time (classes: always time), ``share`` of it."""

    by: HoldOut = "concept"
    share: float = 0.05


class MethodSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What every method has. ``average``: one sample per stimulus, the mean of its repetitions; else one per epoch."""

    average: bool = True
    validation: Validation = Validation()


class Training(msgspec.Struct, frozen=True, eq=False):
    """Samples to fit.

    ``epochs`` (n, n_chans, n_times) float32; ``targets`` (n, D) float32, as the target encoder gave them; ``held``
    (n,) True for validation; ``group`` (n,) what must be left out together when a setting is cross-validated; ``kind``
    of the items.
    """

    epochs: Float32
    targets: Float32
    held: Bool
    group: Int64
    kind: Literal["stimulus", "class"]


class Encoder(Protocol):
    """A trained decoder: epochs and target features into one space, compared by cosine there."""

    shape: tuple[int, int]
    dim: int

    def __call__(self, epochs: Float32) -> Float32:
        """(n, n_chans, n_times) float32 -> query embeddings (n, dim) float32."""

    def candidates(self, features: Float32) -> Float32:
        """Target features (G, D) -> (G, dim) float32, what queries are compared with."""

    def to_onnx(self) -> bytes:
        """Export: input "epochs" (B, n_chans, n_times) -> output "embeddings" (B, dim), float32."""

    def save(self, path: Path) -> None:
        """Write it to one safetensors file."""


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
    fit : callable
        ``(training, settings, seed, device, run, report) -> Fitted``; goes on where a killed run was.
    load : callable
        Reads what its encoder's ``save`` wrote.
    """

    name: str
    citation: str
    settings: type[MethodSettings]
    fit: Callable[[Training, Any, int, str, RunFolder, Report], Fitted]
    load: Callable[[Path], Encoder]


def standard(targets: Float32) -> tuple[Float64, Float64]:
    """Mean and deviation of target features (n, D), (D,) each; the deviation of a constant feature is given as 1."""
    wide = targets.astype(np.float64)
    deviation = wide.std(axis=0)
    return wide.mean(axis=0), np.where(deviation > 0, deviation, 1.0)
