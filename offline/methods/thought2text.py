"""Thought2Text, stage 1 (Mishra et al. 2024): ChannelNet to CLIP's image embedding and to the object's class.

From abhijitmishra/Thought2Text @475eb89. The embedding and the class are what a language model is given afterwards. The
reference's targets are CLIP ViT-B/32 embeddings of line drawings (Canny edges) of the images; the role "image" takes
whichever features it is given.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.channelnet import ChannelNet

from ..fit import Schedule
from ..learner import Batch, Learner
from ..losses import thought2text
from .base import Training, Validation, concepts
from .network import NetworkSettings, Shapes, network

# The reference's rate falls along a line where ours follows a cosine.
_SCHEDULE = Schedule(
    n_epochs_train=100,
    batch_size=16,
    learning_rate=2e-5,
    betas=(0.9, 0.999),
    weight_decay=1e-3,
    warm_up=0.3,
    cosine=True,
    clip=0.3,
)


class Thought2TextSettings(NetworkSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As published, but for the pass that is kept: of the lowest loss, not of the highest accuracy of the classes.

    Validation holds out images, as published, so that the classes of all of them are trained. Samples of a concept that
    is held out as a whole have no class.
    """

    validation: Validation = Validation(by="image", share=0.1)
    schedule: Schedule = _SCHEDULE


class Thought2TextLearner(Learner):
    """The encoder against the image features as they are, and its classifier.

    Class k is the k-th of the training concepts in alphabetical order.
    """

    def __init__(self, settings: Thought2TextSettings, shapes: Shapes) -> None:
        super().__init__()
        (self.dim,) = shapes.targets["image"]
        self.network = ChannelNet(*shapes.epochs, self.dim, shapes.n_concepts)
        self.register_buffer("concept", torch.empty(0, dtype=torch.int64), persistent=False)

    def begin(self, training: Training) -> None:
        """Number the concepts."""
        _, of_item = concepts(training)
        self.concept = torch.from_numpy(of_item)

    def encode(self, epochs: Tensor, subject: Tensor) -> Tensor:
        """(B, n_chans, n_times) -> (B, D); the same for every subject."""
        out: Tensor = self.network(epochs)
        return out

    def embed(self, targets: Mapping[str, Tensor]) -> Tensor:
        """(U, D), as they are."""
        return targets["image"]

    def loss(self, batch: Batch) -> Tensor:
        """Mean squared error and cross-entropy, 1:1."""
        embeddings = self.encode(batch.epochs, batch.subject)
        targets = self.embed(batch.targets)[batch.place]
        return thought2text(embeddings, targets, self.network.classifier(embeddings), self.concept[batch.item])

    def folded(self, subject: int) -> nn.Module:
        """Make the layers that lead to the embedding."""
        return self.network.folded()


THOUGHT2TEXT = network(
    "thought2text",
    "Mishra et al. (2024), Thought2Text: Text Generation from EEG Signal using Large Language Models, "
    "arXiv 2410.07507, stage 1",
    Thought2TextSettings,
    Thought2TextLearner,
)
