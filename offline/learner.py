"""What the training loop trains: the samples of a step, and what a method's network must do with them.

Shapes: B samples of a batch, U different items among them, D embedding.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor, nn

from .methods.base import Training


@dataclass(frozen=True)
class Batch:
    """Samples for one step.

    ``epochs`` (B, n_chans, n_times) float32; ``targets`` per role (U, ...), each item once; ``place`` (B,) row of
    ``targets`` of each sample; ``items`` (U,) index of each row among all items; ``subject`` (B,); ``sample`` (B,)
    index among all samples.
    """

    epochs: Tensor
    targets: dict[str, Tensor]
    place: Tensor
    items: Tensor
    subject: Tensor
    sample: Tensor

    @property
    def item(self) -> Tensor:
        """(B,) index of each sample's item among all items."""
        return self.items[self.place]


class Group(NamedTuple):
    """Parameters that are trained alike: factors on the schedule's learning rate and weight decay."""

    parameters: list[nn.Parameter]
    learning_rate: float = 1.0
    weight_decay: float = 1.0


class Learner(nn.Module, ABC):
    """What the loop trains. Whatever it keeps from batch to batch is a buffer, so that a killed run goes on the same.

    Attributes
    ----------
    dim : int
        D.
    frozen : tuple of str
        Prefixes of names in the state that are never stored: pretrained weights that are found again by their name.
    passing : tuple of str
        Prefixes of names that are stored while training goes on, and not with the trained encoder.
    plain : tuple of str
        Roles whose features are never standardised.
    standards : mapping of str to (Tensor, Tensor)
        Centre and scale (D,) per role where they are known before; :meth:`begin` may say so.
    """

    dim: int
    frozen: tuple[str, ...] = ()
    passing: tuple[str, ...] = ()
    plain: tuple[str, ...] = ()
    standards: Mapping[str, tuple[Tensor, Tensor]] = {}

    def begin(self, training: Training) -> None:
        """See the samples before training: make what depends on their number or their concepts."""

    @abstractmethod
    def encode(self, epochs: Tensor, subject: Tensor) -> Tensor:
        """(B, n_chans, n_times), (B,) -> query embeddings (B, D). Subject -1 is one it does not know."""

    @abstractmethod
    def embed(self, targets: Mapping[str, Tensor]) -> Tensor:
        """Target features per role (U, ...) -> (U, D), what queries are compared with."""

    def classify(self, epochs: Tensor, subject: Tensor) -> Tensor | None:
        """As :meth:`encode`, to logits of labels (B, L); None of a learner that predicts none."""
        return None

    @abstractmethod
    def loss(self, batch: Batch) -> Tensor:
        """Loss of a batch, (). In evaluation mode it changes nothing."""

    def groups(self) -> list[Group]:
        """Parameters by how they are trained; those of one dimension do not decay."""
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        return [
            Group([parameter for parameter in trained if parameter.ndim > 1]),
            Group([parameter for parameter in trained if parameter.ndim < 2], weight_decay=0.0),
        ]

    @abstractmethod
    def folded(self, subject: int) -> nn.Module:
        """Make one subject's encoder for inference: (B, n_chans, n_times) -> (B, D), of plain layers, evaluating."""

    def notes(self) -> dict[str, float]:
        """Tell what else is worth a curve, once per pass."""
        return {}

    def forward(self, batch: Batch) -> Tensor:
        """Compute the loss."""
        return self.loss(batch)
