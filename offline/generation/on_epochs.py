"""A prior trained on by what the brain gives: phi_c, the adapter, and a network beside phi_c that reads the embedding.

The fused features that an epoch lets expect are a mean over all that it leaves open, in a space in which what is known
cannot be told from what is not: of a shape at an unknown place little is left. The embedding itself still says it. Here
what draws learns to read it, by the loss it was trained by, on the epochs the run was fitted on. Not published: HVF
leaves the prior as it is. Of Thought2Text's projector it is the third stage.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy.typing as npt
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from streamdec.errors import ConfigError
from streamdec.types import Float32

from ..progress import Report, silent
from .diffuser import Diffuser
from .loop import Rows, Steps, digest, train
from .prior import Prior, picture_loss, read_adapter, to_tensor

_SPREAD = 0.15
"""Of the conditions' root mean square, what the network beside phi_c counts in; 4 undid in a trial what was learnt."""
_MEASURED = 256


class OnEpochsSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """How to train a prior on by epochs.

    ``latents`` folder of features of what was shown, as the prior was trained on; ``n_inner`` width and ``dropout`` of
    the network beside phi_c.
    """

    latents: str
    n_inner: int = 1024
    dropout: float = 0.1
    steps: Steps = Steps()

    def __post_init__(self) -> None:
        if self.n_inner < 1:
            raise ConfigError("diffusion.epochs.n_inner", got=self.n_inner, allowed="1 or more")
        if not 0 <= self.dropout < 1:
            raise ConfigError("diffusion.epochs.dropout", got=self.dropout, allowed="from 0 to below 1")


class Conditioner(nn.Module):
    """The embedding of an epoch -> the condition, by way of what it lets expect, and by itself.

    Parameters
    ----------
    expected : nn.Module
        (B, D) -> (B, D'): what the embedding lets expect, as phi_c takes it. Stays as it is.
    phi : nn.Module
        (B, D') -> (B, C).
    examples : Tensor of shape (n, D)
        Embeddings, whose conditions say how large conditions are.
    settings : OnEpochsSettings
    """

    def __init__(self, expected: nn.Module, phi: nn.Module, examples: Tensor, settings: OnEpochsSettings) -> None:
        super().__init__()
        self.expected, self.phi = expected, phi
        with torch.no_grad():
            conditions = phi(expected(examples))
        self.spread = _SPREAD * float(conditions.square().mean().sqrt())
        n_in, n_out = examples.shape[1], conditions.shape[1]
        self.linear = nn.Linear(n_in, n_out)
        self.inner = nn.Linear(n_in, settings.n_inner)
        self.outer = nn.Linear(settings.n_inner, n_out)
        self.dropout = nn.Dropout(settings.dropout)
        for layer in (self.linear, self.outer):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, C)."""
        seen = x * (math.sqrt(x.shape[1]) / x.norm(dim=1, keepdim=True).clamp_min(1e-12))
        own = self.linear(seen) + self.outer(self.dropout(nnf.gelu(self.inner(seen))))
        y: Tensor = self.phi(self.expected(x)) + self.spread * own
        return y

    def train(self, mode: bool = True) -> Conditioner:
        """As of any module, but for what stays as it is."""
        super().train(mode)
        self.expected.eval()
        return self

    def trained(self) -> dict[str, nn.Parameter]:
        """Parameters by name, but for those of what stays as it is."""
        return {name: p for name, p in self.named_parameters() if not name.startswith("expected.")}


class Trained(NamedTuple):
    """``conditioner`` on the CPU; ``adapter`` in the official layout; ``loss`` at the end."""

    conditioner: Conditioner
    adapter: dict[str, Tensor]
    loss: float


def fit(
    prior: Prior,
    model: str,
    expected: nn.Module,
    phi: nn.Module,
    embeddings: Float32,
    pictures: npt.NDArray[Any],
    shape: tuple[int, ...],
    settings: OnEpochsSettings,
    folder: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    report: Report = silent,
) -> Trained:
    """Train on; the prior's folder, and ``expected``, stay as they are.

    Parameters
    ----------
    prior : Prior
        Its adapter is begun with.
    model : str
        See :class:`.Diffuser`.
    expected, phi : nn.Module
        See :class:`Conditioner`; ``phi`` is trained in place.
    embeddings : array of shape (n, D), float32
        Of epochs.
    pictures : array of shape (n, channels * height * width)
        Latents of what was shown.
    shape : tuple of int
        (channels, height, width).
    settings : OnEpochsSettings
    folder : Path
        What a killed call goes on with; see :func:`.loop.train`.
    seed : int
    device : str
    report : callable

    Raises
    ------
    ConfigError, DataError
        See :func:`.prior.fit`.
    """
    torch.manual_seed(seed)
    diffuser = Diffuser(model, device)
    adapter = diffuser.add_adapter(read_adapter(str(prior.path / "adapter.safetensors")))
    phi.requires_grad_(True)
    made = Conditioner(expected, phi, torch.from_numpy(embeddings[:_MEASURED]), settings).to(device).train()

    def condition(rows: Rows) -> Tensor:
        y: Tensor = made(to_tensor(embeddings, rows, device))
        return y

    last = train(
        {**made.trained(), **adapter},
        picture_loss(diffuser, condition, pictures, shape, prior.meta.settings),
        len(embeddings),
        settings.steps,
        folder,
        {"prior": prior.meta, "dropout": settings.dropout, "samples": digest(embeddings, pictures)},
        seed=seed,
        report=report,
    )
    weights = {name: parameter.detach().cpu() for name, parameter in adapter.items()}
    return Trained(made.cpu().eval().requires_grad_(False), weights, last)
