"""HVF (Brain-HIVE, 2026): an MLP on the epoch aligned to features of several image encoders, fused.

Any target features are fused, under any names; published: CLIP RN50, CLIP ViT-B/32 and the SDXL VAE of a 128-pixel
image. Fewer of them are the paper's ablation. For retrieval the fusion is trained along; for reconstruction it is that
of a Fusion Prior, frozen. Reference: ssshamiii/Brain-HIVE@f06db69, train_clip.py.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self, cast

from torch import Tensor, nn

from models.fusion import FusionEncoder
from models.registry import NETWORKS
from streamdec.errors import ConfigError

from ..fit import Schedule
from ..generation.prior import Prior
from ..learner import Batch, Learner
from ..losses import LogitScale, symmetric_info_nce
from .base import Training
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
    each with its published dropout. ``n_dims`` of the shared space; ``n_inner`` of the fusion encoder, published 4096
    with a prior; ``dropout`` in the fusion encoder [inf]. The logit scale starts at 1 / 0.07 and is learned. ``prior``
    a folder that ``streamdec-train prior`` made: its fusion encoder is taken and stays as it is, "" trains one.
    """

    backbone: Literal["brainmlp", "eegproject", "tsconv", "shallownet", "deepnet", "eegnet"] = "brainmlp"
    n_dims: int = 1024
    n_inner: int = 1024
    dropout: float = 0.1
    prior: str = ""
    schedule: Schedule = _SCHEDULE

    def __post_init__(self) -> None:
        if self.n_dims < 1 or self.n_inner < 1:
            raise ConfigError("hvf", got=f"n_dims {self.n_dims}, n_inner {self.n_inner}", allowed="1 or more")
        if self.prior and self.standardise:
            raise ConfigError(
                "hvf.standardise with a prior", got="true", allowed="false: it knows features as they are"
            )


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
        self._prior = settings.prior
        if settings.prior:
            self.fusion.requires_grad_(False).eval()

    def begin(self, training: Training) -> None:
        """Take the prior's fusion encoder; a trained run has it among its own weights.

        Raises
        ------
        ConfigError
            It was made for other features, or another size.
        """
        if not self._prior:
            return
        prior = Prior(Path(self._prior))
        ours = {role: layer.in_features for role, layer in self.fusion.align.items()}
        if not prior.meta.settings.fuse or prior.meta.widths != ours:
            raise ConfigError(f"features for the prior {self._prior}", got=ours, allowed=prior.meta.widths)
        for key, got in (("n_dims", self.dim), ("n_inner", self.fusion.inner.out_features)):
            wanted = getattr(prior.meta.settings, key)
            if got != wanted:
                raise ConfigError(f"hvf.{key} with the prior {self._prior}", got=got, allowed=wanted)
        self.fusion.load_state_dict(prior.network.fusion.state_dict())

    def train(self, mode: bool = True) -> Self:
        """Switch to training; a frozen fusion encoder goes on without dropout."""
        super().train(mode)
        if self._prior:
            self.fusion.eval()
        return self

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
