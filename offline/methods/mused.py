"""CLIP-MUSED (Zhou et al. 2024): one transformer for many subjects, told apart by two tokens each.

Losses and widths are the published code's (CLIP-MUSED/CLIP-MUSED @99d153d), the transformer over patches is the
paper's, see :mod:`models.mused`. The paper predicts labels only; the head for retrieval is ours.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from models.mused import Mused
from streamdec.errors import ConfigError

from .. import checkpoint
from ..checkpoint import RunFolder
from ..fit import Schedule, load_weights
from ..learner import Batch, Group, Learner
from ..losses import LogitScale, orthogonality, representational_similarity, symmetric_info_nce
from ..progress import Report
from .base import Fitted, Training, concepts
from .network import NetworkSettings, Shapes, network

_ROLES = ("image", "high", "low", "labels")
# Published: the rate times 0.7 every 25 passes, which ends near 0 as the cosine does.
_SCHEDULE = Schedule(n_epochs_train=500, batch_size=64, learning_rate=1e-3, betas=(0.9, 0.999), cosine=True)


class MusedSettings(NetworkSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Published where there is a value; the transformer's are those of :class:`models.mused.Mused`.

    ``patch`` channels and samples of one patch, None for all channels of 25 samples; ``width``, ``n_layers``,
    ``n_heads``, ``n_hidden``, ``dropout`` of the transformer; ``attention_rate`` of its layers, as a share of the
    learning rate. ``n_tokens`` per subject; 1 is both high and low, without orthogonality (ablation).

    Weights of the losses, each off at 0: ``label_weight`` of the multi-label cross-entropy, ``orthogonality``,
    ``rsa_high`` and ``rsa_low``, which are also off without features in their role, and ``retrieval`` of the
    contrastive loss [ours].

    ``base`` a run of this method with the same settings whose subjects are known already: all that it learned is
    taken and frozen, and the tokens of the new subjects are trained alone, from the mean of the others.
    """

    patch: tuple[int, int] | None = None
    width: int = 256
    n_layers: int = 4
    n_heads: int = 4
    n_hidden: int = 512
    dropout: float = 0.1
    attention_rate: float = 0.1
    n_tokens: Literal[1, 2] = 2
    label_weight: float = 1.0
    orthogonality: float = 1e-3
    rsa_high: float = 1e-3
    rsa_low: float = 1e-1
    retrieval: float = 1.0
    base: str = ""
    schedule: Schedule = _SCHEDULE

    def __post_init__(self) -> None:
        weights = (self.label_weight, self.orthogonality, self.rsa_high, self.rsa_low, self.retrieval)
        if min(weights) < 0 or not max(weights) > 0:
            raise ConfigError("weights of mused's losses", got=weights, allowed="0 or more, one above 0")
        if self.width % self.n_heads:
            raise ConfigError("width of mused", got=self.width, allowed=f"a multiple of n_heads, {self.n_heads}")


class MusedLearner(Learner):
    """The transformer, its label and retrieval heads, and the losses that features of the given roles allow.

    Labels are those in the role "labels" (0 or 1 per column), else each item's concept, of which those that are held
    out for validation count as none.
    """

    plain = ("labels",)

    def __init__(self, settings: MusedSettings, shapes: Shapes) -> None:
        super().__init__()
        unknown = [role for role in shapes.targets if role not in _ROLES]
        if unknown:
            raise ConfigError("target features of mused", got=", ".join(unknown), allowed=", ".join(_ROLES))
        self.settings, self.shapes = settings, shapes
        (self.dim,) = shapes.targets["image"]
        self.network = Mused(
            *shapes.epochs,
            self.dim,
            shapes.targets["labels"][0] if "labels" in shapes.targets else shapes.n_concepts,
            len(shapes.subjects),
            patch=settings.patch,
            width=settings.width,
            n_layers=settings.n_layers,
            n_heads=settings.n_heads,
            n_hidden=settings.n_hidden,
            n_tokens=settings.n_tokens,
            dropout=settings.dropout,
        )
        self.logit_scale = LogitScale()
        # Found again from the samples; a run that goes on from this one checks that its labels are the same ones.
        self.concept: Tensor
        self.register_buffer("concept", torch.empty(0, dtype=torch.int64), persistent=False)
        self.register_buffer("concepts_sha256", torch.zeros(32, dtype=torch.uint8))

    def begin(self, training: Training) -> None:
        """Number the concepts; take what ``base`` learned."""
        names, of_item = concepts(training)
        self.concept = torch.from_numpy(of_item)
        digest = hashlib.sha256("\n".join(names).encode()).digest()
        self.concepts_sha256 = torch.frombuffer(bytearray(digest), dtype=torch.uint8)
        if self.settings.base:
            self._take(_Base(self.settings.base))

    def _take(self, base: _Base) -> None:
        base.check(self.settings, self.shapes)
        taken = {
            name.removeprefix("learner."): tensor
            for name, tensor in base.weights.items()
            if name.startswith("learner.")
        }
        n_known = len(base.shapes.subjects)
        mean = torch.stack([taken[f"network.tokens.{i}"] for i in range(n_known)]).mean(0)
        new = {f"network.tokens.{i}": mean for i in range(n_known, len(self.shapes.subjects))}
        if "labels" not in self.shapes.targets and not torch.equal(taken["concepts_sha256"], self.concepts_sha256):
            raise ConfigError(
                "concepts", got="others", allowed=f"those of {base.path}", do="give multi-hot features as labels=..."
            )
        load_weights(self, taken | new)
        self.requires_grad_(False)
        for name in new:
            self.get_parameter(name).requires_grad_(True)
        self.standards = {
            role: (base.weights[f"centre_{role}"], base.weights[f"scale_{role}"])
            for role in self.shapes.targets
            if f"centre_{role}" in base.weights
        }

    def encode(self, epochs: Tensor, subject: Tensor) -> Tensor:
        """(B, n_chans, n_times), (B,) -> (B, D). A subject it does not know has the mean of all tokens."""
        return self.network.embed(*self.network(epochs, subject))

    def embed(self, targets: Mapping[str, Tensor]) -> Tensor:
        """Features of the role "image" as they are: (U, D)."""
        return targets["image"]

    def classify(self, epochs: Tensor, subject: Tensor) -> Tensor | None:
        """Logits of the labels: (B, n_labels); None where they were not trained."""
        if not self.settings.label_weight:
            return None
        return self.network.logits(*self.network(epochs, subject))

    def loss(self, batch: Batch) -> Tensor:
        """All terms, weighted."""
        settings, targets = self.settings, batch.targets
        high, low = self.network(batch.epochs, batch.subject)
        loss: Tensor = high.new_zeros(())
        if settings.label_weight:
            loss = loss + settings.label_weight * self._of_labels(self.network.logits(high, low), batch)
        if settings.orthogonality and settings.n_tokens == 2:
            loss = loss + settings.orthogonality * orthogonality(high, low)
        for role, token, weight in (("high", high, settings.rsa_high), ("low", low, settings.rsa_low)):
            if weight and role in targets:
                loss = loss + weight * representational_similarity(token, targets[role].flatten(1)[batch.place])
        if settings.retrieval:
            queries, shown = self.network.embed(high, low), self.embed(targets)[batch.place]
            loss = loss + settings.retrieval * symmetric_info_nce(queries, shown, self.logit_scale(), item=batch.item)
        return loss

    def _of_labels(self, logits: Tensor, batch: Batch) -> Tensor:
        if "labels" in batch.targets:
            labels = batch.targets["labels"][batch.place]
        else:
            concept = self.concept[batch.item]
            labelled = concept >= 0
            logits = logits[labelled]
            labels = nnf.one_hot(concept[labelled], logits.shape[1]).to(logits.dtype)
        if not len(labels):
            return logits.new_zeros(())
        loss: Tensor = nnf.binary_cross_entropy_with_logits(logits, labels)
        return loss

    def groups(self) -> list[Group]:
        """The transformer's layers learn at their own rate; tokens, norms, biases and the scale do not decay."""
        found = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                rate = self.settings.attention_rate if name.startswith("network.blocks.") else 1.0
                decays = parameter.ndim > 1 and not name.startswith(("network.tokens.", "network.position"))
                found.append(Group([parameter], rate, 1.0 if decays else 0.0))
        return found

    def folded(self, subject: int) -> nn.Module:
        """Make one subject's layers and retrieval head."""
        return self.network.folded(subject)


class _Base:
    """A run to go on from."""

    def __init__(self, path: str) -> None:
        self.path = path
        arrays, state = checkpoint.load(RunFolder(Path(path)).encoder)
        self.weights = {name: torch.from_numpy(array) for name, array in arrays.items()}
        try:
            self.settings = msgspec.convert(state["settings"], MusedSettings)
            self.shapes = msgspec.convert(state["shapes"], Shapes)
        except (TypeError, KeyError, msgspec.ValidationError) as error:
            raise ConfigError("base", got=path, allowed="a run of mused") from error

    def check(self, settings: MusedSettings, shapes: Shapes) -> None:
        """Refuse what is not as it was there."""
        for field in msgspec.structs.fields(MusedSettings):
            got, was = getattr(settings, field.name), getattr(self.settings, field.name)
            if got != was and field.name not in ("base", "schedule", "average", "validation"):
                raise ConfigError(f"{field.name} of a run on base {self.path}", got=got, allowed=was)
        for what in ("epochs", "targets") if "labels" in shapes.targets else ("epochs", "targets", "n_concepts"):
            got, was = getattr(shapes, what), getattr(self.shapes, what)
            if got != was:
                raise ConfigError(f"{what} of a run on base {self.path}", got=got, allowed=was)


def _fit(training: Training, settings: MusedSettings, seed: int, device: str, run: RunFolder, report: Report) -> Fitted:
    """Fit; with ``base``, number the new subjects behind the known ones."""
    if settings.base:
        known = _Base(settings.base).shapes.subjects
        twice = sorted(set(known) & set(training.subjects))
        if twice:
            raise ConfigError("new subjects", got=", ".join(twice), allowed=f"others than those of {settings.base}")
        training = msgspec.structs.replace(
            training,
            subject=np.asarray(training.subject + len(known), np.int64),
            subjects=known + training.subjects,
        )
    return _NETWORK.fit(training, settings, seed, device, run, report)


_NETWORK = network(
    "mused",
    "Zhou et al. (2024), CLIP-MUSED: CLIP-Guided Multi-Subject Visual Neural Information Semantic Decoding, ICLR, "
    "arXiv 2402.08994",
    MusedSettings,
    MusedLearner,
    optional=_ROLES[1:],
)
MUSED = dataclasses.replace(_NETWORK, fit=_fit)
