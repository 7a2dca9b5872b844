"""HVF (Brain-HIVE, 2026), retrieval: an MLP on the epoch aligned to features of several image encoders, fused.

Any target features are fused, under any names; published: CLIP RN50, CLIP ViT-B/32 and the SDXL VAE of a 128-pixel
image. Fewer of them are the paper's ablation. Reference: ssshamiii/Brain-HIVE@f06db69, train_clip.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal, cast

from torch import Tensor, nn

from models.fusion import FusionEncoder
from models.registry import NETWORKS
from streamdec.errors import ConfigError

from ..fit import Batch, Learner, Schedule
from ..losses import LogitScale, symmetric_info_nce
from .network import NetworkSettings, Shapes, network

_SCHEDULE = Schedule(
    n_epochs_train=25,
    batch_size=1024,
    learning_rate=5e-4,
    betas=(0.9, 0.995),
    weight_decay=0.05,
    cosine=True,
    clip=1.0,
    keep="last",
)


class HvfSettings(NetworkSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As published within a subject, where the last pass is kept; across subjects the reference chooses on the test.

    But for ``precision``: the reference has bfloat16, which costs processors without it more than it saves (a step of
    the MLP's first layer with 512 epochs of 17 × 250, one thread of an EPYC with AVX2: 8 s instead of 0.3 s).

    ``backbone`` of the paper's table of encoders: its MLP ("brainmlp"), UBP's ("eegproject"), and convolutional ones,
    each with its published dropout. ``n_dims`` of the shared space; ``n_inner`` of the fusion encoder, 4096 for the
    prior of a generator; ``dropout`` in the fusion encoder [inf]. The logit scale starts at 1 / 0.07 and is learned.
    """

    backbone: Literal["brainmlp", "eegproject", "tsconv", "shallownet", "deepnet", "eegnet"] = "brainmlp"
    n_dims: int = 1024
    n_inner: int = 1024
    dropout: float = 0.1
    schedule: Schedule = _SCHEDULE

    def __post_init__(self) -> None:
        if self.n_dims < 1 or self.n_inner < 1:
            raise ConfigError("hvf", got=f"n_dims {self.n_dims}, n_inner {self.n_inner}", allowed="1 or more")


class HvfLearner(Learner):
    """Encoder and fusion encoder, into one space."""

    def __init__(self, settings: HvfSettings, shapes: Shapes) -> None:
        super().__init__()
        if not shapes.targets or not all(role.isidentifier() for role in shapes.targets):
            raise ConfigError(
                "target features of hvf",
                got=", ".join(shapes.targets) or "none",
                allowed="one or more, named by letters, digits and _",
            )
        self.dim = settings.n_dims
        self.network = NETWORKS[settings.backbone](*shapes.epochs, self.dim)
        widths = {role: math.prod(shape) for role, shape in shapes.targets.items()}
        self.fusion = FusionEncoder(widths, self.dim, settings.n_inner, settings.dropout)
        self.logit_scale = LogitScale()

    def encode(self, epochs: Tensor, subject: Tensor) -> Tensor:
        """(B, n_chans, n_times) -> (B, n_dims); the same for every subject."""
        out: Tensor = self.network(epochs)
        return out

    def embed(self, targets: Mapping[str, Tensor]) -> Tensor:
        """Features of all roles, fused: (U, n_dims)."""
        out: Tensor = self.fusion(targets)
        return out

    def loss(self, batch: Batch) -> Tensor:
        """Symmetric InfoNCE; an image is fused once for all its epochs."""
        queries, images = self.encode(batch.epochs, batch.subject), self.embed(batch.targets)[batch.place]
        return symmetric_info_nce(queries, images, self.logit_scale(), item=batch.item)

    def folded(self, subject: int) -> nn.Module:
        """Make the folded layers."""
        plain: nn.Module = cast(Any, self.network).folded()
        return plain


HVF = network(
    "hvf",
    "HVF (2026), Learning Brain Representation with Hierarchical Visual Embeddings, ICLR",
    HvfSettings,
    HvfLearner,
    roles=(),
    open_roles=True,
)
