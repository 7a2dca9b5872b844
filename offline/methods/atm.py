"""ATM (Li et al. 2024): channels as tokens, a token per subject, aligned to images and a little to texts.

Queries are not normalised in the loss and the logit scale is theta itself, as in the reference
(dongyangli-del/EEG_Image_decode@22c84ad, Retrieval/ATMS_retrieval.py): the length of a query is its own temperature.
Decisions are by cosine, where it cancels.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from models.atm import ATMS
from streamdec.errors import ConfigError

from ..fit import Schedule
from ..learner import Batch, Learner
from ..losses import LogitScale, atm_reconstruction, atm_retrieval, symmetric_info_nce
from .network import NetworkSettings, Shapes, network

_SCHEDULE = Schedule(n_epochs_train=40, batch_size=64, learning_rate=3e-4, betas=(0.9, 0.999), weight_decay=0.01)


class AtmSettings(NetworkSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """As published, on single epochs; ``validation`` holds out concepts, the reference keeps its best pass on the test.

    ``dropout`` in the transformer; TSConv and head have 0.5. ``image_share`` of the contrastive loss, the rest is to
    texts; all of it where no texts are given. ``mse_share`` above 0 is the variant for generation, published 0.9: ten
    times this share of the mean squared error to the image features as they are, and the rest of their contrastive
    loss; it has no place for texts. ``hidden`` share of the training epochs whose subject is hidden, which trains the
    token of an unknown one [inf]. ``drops_last_channel``, ``shares_batch`` as in the reference, see
    :class:`models.atm.ATMS`.
    """

    average: bool = False
    dropout: float = 0.25
    image_share: float = 0.99
    mse_share: float = 0.0
    hidden: float = 0.1
    drops_last_channel: bool = False
    shares_batch: bool = False
    schedule: Schedule = _SCHEDULE

    def __post_init__(self) -> None:
        for name in ("image_share", "mse_share", "hidden"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} of atm", got=getattr(self, name), allowed="0 to 1")


class AtmLearner(Learner):
    """ATM-S against image features, and text features of the same width if there are any."""

    def __init__(self, settings: AtmSettings, shapes: Shapes) -> None:
        super().__init__()
        texts = {"text"} if settings.mse_share == 0 else set()
        if not shapes.targets.keys() <= {"image"} | texts or len(set(shapes.targets.values())) > 1:
            raise ConfigError(
                "target features of atm",
                got=", ".join(f"{role} {shape}" for role, shape in shapes.targets.items()),
                allowed="image, and text of the same width" if texts else "image alone, with mse_share above 0",
            )
        (self.dim,) = shapes.targets["image"]
        self.settings = settings
        self.network = ATMS(
            *shapes.epochs,
            self.dim,
            n_subjects=len(shapes.subjects),
            dropout=settings.dropout,
            hidden=settings.hidden,
            drops_last_channel=settings.drops_last_channel,
            shares_batch=settings.shares_batch,
        )
        self.logit_scale = LogitScale("raw")

    def encode(self, epochs: Tensor, subject: Tensor) -> Tensor:
        """(B, n_chans, n_times) -> (B, D); an unknown subject has a token that all share."""
        out: Tensor = self.network(epochs, subject)
        return out

    def embed(self, targets: Mapping[str, Tensor]) -> Tensor:
        """Image features (U, D), as they are."""
        return targets["image"]

    def loss(self, batch: Batch) -> Tensor:
        """0.99 to images and 0.01 to texts, or the variant for generation."""
        queries, images = self.encode(batch.epochs, batch.subject), batch.targets["image"][batch.place]
        scale, chosen = self.logit_scale(), self.settings
        if chosen.mse_share:
            return atm_reconstruction(queries, images, scale, mse_share=chosen.mse_share, item=batch.item)
        if "text" not in batch.targets:
            return symmetric_info_nce(queries, images, scale, item=batch.item, normalise_queries=False)
        texts = batch.targets["text"][batch.place]
        return atm_retrieval(queries, images, texts, scale, image_share=chosen.image_share, item=batch.item)

    def folded(self, subject: int) -> nn.Module:
        """Make the plain layers with the subject's token among them."""
        return self.network.folded(subject)


ATM = network(
    "atm",
    "Li et al. (2024), Visual Decoding and Reconstruction via EEG Embeddings with Guided Diffusion, NeurIPS, "
    "arXiv 2403.07721",
    AtmSettings,
    AtmLearner,
    optional=("text",),
)
