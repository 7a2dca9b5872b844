"""NeuroAlign: EEG aligned to saliency-weighted images, images to captions, and EEG to what captions say of images.

No code is public; read from the paper's equations and Algorithm 1. Where those disagree the docstrings say what is
done. The visual saliency encoding (VSE) learns nothing: it is in the role "image" as features of weighted images,
``streamdec-train features STORE open_clip:MODEL/WEIGHTS@vse FOLDER``; without VSE, give features of the plain ones.
Captions are needed in training alone; without features in the role "text" EEG to image is the one loss, which is the
paper's row without a text prior.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.blocks import ResProj, TSConv
from streamdec.errors import ConfigError

from ..fit import Schedule
from ..learner import Batch, Group, Learner
from ..losses import DynamicLossAdjustment, LogitScale, semantic_guidance, symmetric_info_nce
from ..losses.adaptive import Adjustment
from ..losses.contrastive import Diagonal
from .network import NetworkSettings, Shapes, network

# Table 3, which has batches of 256 where the text says 1000; momentum and decay are the table's too.
_SCHEDULE = Schedule(n_epochs_train=200, batch_size=256, learning_rate=2e-4, betas=(0.5, 0.999), weight_decay=0.001)
_IMAGE_DECAY = 5.0  # the table's 0.005 for images, over 0.001 for EEG


class NeuroAlignSettings(NetworkSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As published; ``validation`` holds out concepts where the paper holds out 740 random images.

    ``n_dims`` of the shared space; ``dropout`` in the heads. Where there are texts: ``guidance`` the semantic guidance
    loss (SGA), and ``diagonal`` how it treats matching pairs; ``adjustment`` weights of the losses, "paper" (DLA as
    written), "normalised" (its gradient norms divided by their sum first: as written, most steps train one loss alone),
    "fixed" (without DLA); ``adjustment_temperature`` its T. The logit scale starts at 1 / 0.07 and is learned; the
    paper gives no value.
    """

    n_dims: int = 256
    dropout: float = 0.2
    guidance: bool = True
    diagonal: Diagonal = "softmax"
    adjustment: Adjustment = "paper"
    adjustment_temperature: float = 0.07
    schedule: Schedule = _SCHEDULE

    def __post_init__(self) -> None:
        if self.n_dims < 1 or not self.adjustment_temperature > 0:
            raise ConfigError(
                "neuroalign",
                got=f"n_dims {self.n_dims}, adjustment_temperature {self.adjustment_temperature}",
                allowed="n_dims 1 or more, adjustment_temperature above 0",
            )


class NeuroAlignLearner(Learner):
    """Three heads into one space, three losses, weights by their gradients."""

    passing = ("text_head.", "adjustment.")

    def __init__(self, settings: NeuroAlignSettings, shapes: Shapes) -> None:
        super().__init__()
        self.settings, self.dim = settings, settings.n_dims
        self.encoder = TSConv(*shapes.epochs)
        self.head = ResProj(self.encoder.n_features, self.dim, settings.dropout)
        self.image_head = ResProj(shapes.targets["image"][0], self.dim, settings.dropout)
        text = shapes.targets.get("text")
        self.text_head = ResProj(text[0], self.dim, settings.dropout) if text else None
        self.logit_scale = LogitScale()
        n_losses = 1 if self.text_head is None else 3 if settings.guidance else 2
        self.adjustment = DynamicLossAdjustment(n_losses, settings.adjustment, settings.adjustment_temperature)

    def encode(self, epochs: Tensor, subject: Tensor) -> Tensor:
        """(B, n_chans, n_times) -> (B, n_dims); the same for every subject."""
        out: Tensor = self.head(self.encoder(epochs))
        return out

    def embed(self, targets: Mapping[str, Tensor]) -> Tensor:
        """Image features through their head: (U, n_dims)."""
        out: Tensor = self.image_head(targets["image"])
        return out

    def loss(self, batch: Batch) -> Tensor:
        """Algorithm 1: EEG to image, image to text, guidance; weighted. In evaluation mode EEG to image alone.

        Passes are compared by it, for which a sum with the weights of the moment is no measure. Finding images by EEG
        is what the encoder is for, and this is the one loss that every ablation has.
        """
        scale = self.logit_scale()
        eeg, image = self.encode(batch.epochs, batch.subject), self.embed(batch.targets)
        shown = image[batch.place]
        to_image = symmetric_info_nce(eeg, shown, scale, item=batch.item)
        if self.text_head is None or not self.training:
            return to_image
        text = self.text_head(batch.targets["text"])
        losses = [to_image, symmetric_info_nce(image, text, scale)]
        heads = [[*self.head.parameters()], [*self.image_head.parameters()], [*self.text_head.parameters()]]
        shared = [heads[0] + heads[1], heads[1] + heads[2]]
        if self.settings.guidance:
            losses.append(semantic_guidance(eeg, shown, text[batch.place], scale, diagonal=self.settings.diagonal))
            shared.append(heads[0] + heads[1])
        weighted: Tensor = self.adjustment(losses, shared)
        return weighted

    def groups(self) -> list[Group]:
        """EEG side, and image and text side with five times the decay."""
        sides = (
            ([self.encoder, self.head], 1.0),
            ([head for head in (self.image_head, self.text_head) if head is not None], _IMAGE_DECAY),
        )
        found = [Group([parameter], weight_decay=0.0) for parameter in self.logit_scale.parameters()]
        for modules, decay in sides:
            parameters = [parameter for module in modules for parameter in module.parameters()]
            found.append(Group([p for p in parameters if p.ndim > 1], weight_decay=decay))
            found.append(Group([p for p in parameters if p.ndim < 2], weight_decay=0.0))
        return found

    def folded(self, subject: int) -> nn.Module:
        """Make TSConv's folded layers and the EEG head."""
        return nn.Sequential(self.encoder.folded(), self.head)

    def notes(self) -> dict[str, float]:
        """Mean weight of each loss over the pass."""
        weights = self.adjustment.history or [self.adjustment.weights]
        mean = torch.stack(weights).mean(0).tolist()
        self.adjustment.history.clear()
        return dict(zip(("weight_image", "weight_text", "weight_guidance"), mean, strict=False))


NEUROALIGN = network(
    "neuroalign",
    "NeuroAlign (2025), A neuroscience-inspired framework for tri-modality alignment of brain signals, vision, and "
    "language, under double-blind review",
    NeuroAlignSettings,
    NeuroAlignLearner,
    roles=("image",),
    optional=("text",),
)
