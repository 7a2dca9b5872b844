"""UBP (Wu et al. 2025): aligned to blurred images, each epoch to a blur that suits how sure it is of its image.

Roles are blur levels of one image encoder: ``streamdec-train features STORE open_clip:RN50/openai@blur=medium``. An
epoch that is much more alike its image than its batch is aligned with less blur next, one much less alike with more.
Ablations are in the features: "medium" alone is a fixed prior, and of the sharp images no prior at all. Reference:
HaitaoWuTJU/Uncertainty-aware-Blur-Prior@89d8b83.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

import torch
from torch import Tensor, nn

from models.registry import NETWORKS
from streamdec.errors import ConfigError

from ..fit import Schedule
from ..learner import Batch, Learner
from ..losses import BLUR_LEVELS, BlurChoice, LogitScale, ScaleKind, paired_logits, symmetric_info_nce
from .base import Training
from .network import NetworkSettings, Shapes, network

_SCHEDULE = Schedule(
    n_epochs_train=50, batch_size=1024, learning_rate=1e-4, betas=(0.9, 0.999), weight_decay=1e-4, keep="last"
)


class UbpSettings(NetworkSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As published within a subject, where the last pass is kept; the reference ends when the training loss stalls.

    ``encoder`` "eegproject" on 17 channels; across subjects the paper has "tsconv" on 63 and a learning rate of 1e-5.
    ``scale`` and ``normalise_queries``: the reference's softplus on queries that are not normalised; "exp" and true is
    what most others have. ``rate`` of the running mean of a sample's logit; ``interval`` in SD around the batch's mean,
    outside of which a sample has low or high blur.
    """

    encoder: Literal["eegproject", "tsconv"] = "eegproject"
    scale: ScaleKind = "softplus"
    normalise_queries: bool = False
    rate: float = 0.3
    interval: float = 1.96
    schedule: Schedule = _SCHEDULE

    def __post_init__(self) -> None:
        if not (0 < self.rate <= 1 and self.interval > 0):
            raise ConfigError(
                "blur of ubp",
                got=f"rate {self.rate}, interval {self.interval}",
                allowed="a rate above 0 and up to 1, an interval above 0",
            )


class UbpLearner(Learner):
    """An encoder, and of each training sample the blur it is aligned with."""

    passing = ("choice.",)

    def __init__(self, settings: UbpSettings, shapes: Shapes) -> None:
        super().__init__()
        if shapes.targets.keys() not in ({"medium"}, set(BLUR_LEVELS)) or len(set(shapes.targets.values())) > 1:
            raise ConfigError(
                "target features of ubp",
                got=", ".join(f"{role} {shape}" for role, shape in shapes.targets.items()),
                allowed="medium, or low, medium and high, of the same width",
            )
        (self.dim,) = shapes.targets["medium"]
        self.settings, self.chooses = settings, len(shapes.targets) > 1
        self.network = NETWORKS[settings.encoder](*shapes.epochs, self.dim)
        self.logit_scale = LogitScale(settings.scale)
        self.choice: BlurChoice | None = None

    def begin(self, training: Training) -> None:
        """Medium blur for each sample."""
        if self.chooses:
            self.choice = BlurChoice(len(training.epochs), self.settings.rate, self.settings.interval)

    def encode(self, epochs: Tensor, subject: Tensor) -> Tensor:
        """(B, n_chans, n_times) -> (B, D); the same for every subject."""
        out: Tensor = self.network(epochs)
        return out

    def embed(self, targets: Mapping[str, Tensor]) -> Tensor:
        """Features of medium blur (U, D), as they are: candidates are blurred too."""
        return targets["medium"]

    def loss(self, batch: Batch) -> Tensor:
        """Symmetric InfoNCE to each sample's own blur, which training then chooses anew; validation has medium."""
        queries, scale = self.encode(batch.epochs, batch.subject), self.logit_scale()
        norm = self.settings.normalise_queries
        if self.choice is None:
            images = batch.targets["medium"][batch.place]
        else:
            levels = torch.stack([batch.targets[level] for level in BLUR_LEVELS])
            images = levels[self.choice.level[batch.sample], batch.place]
            if self.training:
                self.choice.update(batch.sample, paired_logits(queries, images, scale, normalise_queries=norm))
        return symmetric_info_nce(queries, images, scale, item=batch.item, normalise_queries=norm)

    def folded(self, subject: int) -> nn.Module:
        """Make the folded layers."""
        plain: nn.Module = cast(Any, self.network).folded()
        return plain

    def notes(self) -> dict[str, float]:
        """Shares of samples with low and with high blur; those held out have medium."""
        if self.choice is None:
            return {}
        shares = [float((self.choice.level == number).float().mean()) for number in range(len(BLUR_LEVELS))]
        return {f"{level}_blur": share for level, share in zip(BLUR_LEVELS, shares, strict=True) if level != "medium"}


UBP = network(
    "ubp",
    "Wu et al. (2025), Bridging the Vision-Brain Gap with an Uncertainty-Aware Blur Prior, CVPR, arXiv 2503.04207",
    UbpSettings,
    UbpLearner,
    roles=("medium",),
    optional=("low", "high"),
)
