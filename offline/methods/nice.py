"""NICE (Song et al. 2024): TSConv aligned to image features by the symmetric contrastive loss."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from models.nice import Nice

from ..learner import Batch, Learner
from ..losses import symmetric_info_nce
from .network import NetworkSettings, Shapes, network


class NiceSettings(NetworkSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As published, but for the validation, which holds out concepts (published: image, share 0.0447).

    ``dropout`` in TSConv and head. ``logit_scale`` multiplies the cosines and is not trained: the reference leaves its
    1 / 0.07 out of the optimiser.
    """

    dropout: float = 0.5
    logit_scale: float = 1 / 0.07


class NiceLearner(Learner):
    """The encoder against the image features as they are."""

    def __init__(self, settings: NiceSettings, shapes: Shapes) -> None:
        super().__init__()
        (self.dim,) = shapes.targets["image"]
        self.network = Nice(*shapes.epochs, self.dim, settings.dropout)
        self.logit_scale = settings.logit_scale

    def encode(self, epochs: Tensor, subject: Tensor) -> Tensor:
        """(B, n_chans, n_times) -> (B, D); the same for every subject."""
        out: Tensor = self.network(epochs)
        return out

    def embed(self, targets: Mapping[str, Tensor]) -> Tensor:
        """(U, D), as they are."""
        return targets["image"]

    def loss(self, batch: Batch) -> Tensor:
        """Symmetric InfoNCE."""
        queries, targets = self.encode(batch.epochs, batch.subject), self.embed(batch.targets)[batch.place]
        return symmetric_info_nce(queries, targets, self.logit_scale, item=batch.item)

    def folded(self, subject: int) -> nn.Module:
        """Make the folded layers."""
        return self.network.folded()


NICE = network(
    "nice",
    "Song et al. (2024), Decoding Natural Images from EEG for Object Recognition, ICLR, arXiv 2308.13234",
    NiceSettings,
    NiceLearner,
)
