"""NeuroCLIP (Wang et al. 2025, arXiv 2511.09250): EEG aligned to a frozen CLIP whose image side is prompted.

The code is not public, and of the paper its abstract: widths, rates and the formula of the softened loss are inferred,
see :mod:`models.neuroclip` and :func:`.losses.softened_info_nce`. Target features are patch tokens
(``streamdec-train features STORE tokens:MODEL/WEIGHTS``) and thumbnails, so that training needs no pixels, and the
frozen model's own image features, which soften the loss.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

from torch import Tensor, nn

from models.convnets import TSConvNet
from models.mlp import EEGProject
from models.neuroclip import NeuroClipVision, identity
from streamdec.errors import ConfigError

from ..fit import Schedule
from ..learner import Batch, Group, Learner
from ..losses import LogitScale, softened_info_nce
from ..targets.openclip import load, split
from .network import NetworkSettings, Shapes, network

_SCHEDULE = Schedule(
    n_epochs_train=50,
    batch_size=512,
    learning_rate=1e-4,
    betas=(0.9, 0.999),
    weight_decay=1e-4,
    warm_up=0.05,
    cosine=True,
    precision="bfloat16",
    keep="last",
)
_VISION_RATE = 10.0  # prompts, filter, fusion: 1e-3 where the encoder has 1e-4


class NeuroClipSettings(NetworkSettings, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """All inferred, for want of published values.

    ``model`` "MODEL/WEIGHTS" of open_clip, a vision transformer, and the one that made the tokens; ``file`` its weights
    where there is no network. ``encoder`` of the EEG: "mlp" within a subject, on 17 channels, or "tsconv" across
    subjects. ``dynamic_filter``, ``instance`` (which the filter needs), ``n_prompts`` shared prompts (0: none) and
    ``alpha`` of the softened loss (0: plain) can each be switched off, as in the ablations; ``softening`` its
    temperature. ``cached``: no transformer in training, but one linear layer on the frozen image features; for machines
    without a GPU, where an image through ViT-B-32 and back takes half a second.
    """

    model: str = "ViT-B-32/laion2b_s34b_b79k"
    file: str = ""
    encoder: Literal["mlp", "tsconv"] = "mlp"
    dynamic_filter: bool = True
    instance: bool = True
    n_prompts: int = 8
    depth: Literal["deep", "shallow"] = "deep"
    alpha: float = 0.2
    softening: float = 0.1
    cached: bool = False
    schedule: Schedule = _SCHEDULE

    def __post_init__(self) -> None:
        if self.dynamic_filter and not self.instance:
            raise ConfigError("dynamic_filter", got="true without instance prompt", allowed="false: nothing sees it")
        if not (0 <= self.alpha < 1 and self.softening > 0 and self.n_prompts >= 0):
            got = f"alpha {self.alpha}, softening {self.softening}, n_prompts {self.n_prompts}"
            raise ConfigError(
                "neuroclip", got=got, allowed="alpha 0 to below 1, softening above 0, n_prompts 0 or more"
            )


class NeuroClipLearner(Learner):
    """EEG encoder and prompted image encoder, into the image encoder's space."""

    frozen = ("vision.vit.",)

    def __init__(self, settings: NeuroClipSettings, shapes: Shapes) -> None:
        super().__init__()
        self.settings = settings
        (self.dim,) = shapes.targets["image"]
        self.vision: nn.Module
        if settings.cached:
            self.vision = identity(self.dim)
        else:
            self.vision = _vision(settings, shapes, self.dim)
        self.encoder = (EEGProject if settings.encoder == "mlp" else TSConvNet)(*shapes.epochs, self.dim)
        self.logit_scale = LogitScale()

    def encode(self, epochs: Tensor, subject: Tensor) -> Tensor:
        """(B, n_chans, n_times) -> (B, D); the same for every subject."""
        out: Tensor = self.encoder(epochs)
        return out

    def embed(self, targets: Mapping[str, Tensor]) -> Tensor:
        """Tokens (U, K, N, W) and thumbnails (U, 3, 56, 56), or frozen features (U, D) -> (U, D)."""
        if self.settings.cached:
            cached: Tensor = self.vision(targets["image"])
            return cached
        out: Tensor = self.vision(targets["tokens"], targets.get("thumbnails"))
        return out

    def loss(self, batch: Batch) -> Tensor:
        """Softened InfoNCE; each image goes through the transformer once."""
        queries = self.encode(batch.epochs, batch.subject)
        return softened_info_nce(
            queries,
            self.embed(batch.targets)[batch.place],
            batch.targets["image"][batch.place],
            self.logit_scale(),
            alpha=self.settings.alpha,
            temperature=self.settings.softening,
            item=batch.item,
        )

    def groups(self) -> list[Group]:
        """The image side learns ten times as fast; prompts, norms, biases and the scale do not decay."""
        found = []
        for module, rate in ((self.vision, _VISION_RATE), (self.encoder, 1.0), (self.logit_scale, 1.0)):
            for name, parameter in module.named_parameters():
                if parameter.requires_grad:
                    decays = parameter.ndim > 1 and name != "prompts"
                    found.append(Group([parameter], rate, 1.0 if decays else 0.0))
        return found

    def folded(self, subject: int) -> nn.Module:
        """Make the encoder's layers for inference."""
        return self.encoder.folded()


def _vision(settings: NeuroClipSettings, shapes: Shapes, dim: int) -> NeuroClipVision:
    needed = ("tokens", "thumbnails") if settings.dynamic_filter else ("tokens",)
    missing = [role for role in needed if role not in shapes.targets]
    if missing:
        raise ConfigError(
            f"target features of neuroclip: {', '.join(missing)}",
            got="none",
            do=f"make them with streamdec-train features STORE tokens:{settings.model}, or set cached = true",
        )
    network = load(*split(settings.model), settings.file).network
    n_filters, _, width = shapes.targets["tokens"]
    try:
        vision = NeuroClipVision(
            network.visual,
            n_filters,
            dynamic_filter=settings.dynamic_filter,
            instance=settings.instance,
            n_prompts=settings.n_prompts,
            depth=settings.depth,
        )
    except ValueError as error:
        raise ConfigError(f"image encoder {settings.model}", got=error) from error
    expected = tuple(network.visual.proj.shape)
    if (width, dim) != expected:
        raise ConfigError(
            "widths of tokens and image features", got=(width, dim), allowed=f"{expected}, as of {settings.model}"
        )
    return vision


NEUROCLIP = network(
    "neuroclip",
    "Wang et al. (2025), NeuroCLIP, arXiv 2511.09250",
    NeuroClipSettings,
    NeuroClipLearner,
    optional=("tokens", "thumbnails"),
)
