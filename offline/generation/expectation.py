"""What the embedding of an epoch lets expect of its image's.

Training by cosine makes the right image the nearest, and leaves it free by how much and along which directions; what is
fitted on embeddings of images, which have no noise, would take all of it at its word. The expected value is a ridge
regression, and, since images are anything but Gaussian, what a small network finds beyond it. The encoder is surer of
samples it was trained on than of new ones: those it was not trained on choose between the two.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import msgspec
import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from streamdec.errors import ConfigError
from streamdec.types import Bool, Float32, Float64

from ..methods.ridge import decompose, solve
from ..progress import Report, silent
from .linear import ALPHAS, as_layer
from .loop import Rows, Steps, digest, train


class ExpectationSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Whether to ``fit`` one, and the network in it.

    ``n_inner`` its width; ``noise`` added to the embeddings it is trained on, in units of their root mean square.
    """

    fit: bool = True
    n_inner: int = 1024
    dropout: float = 0.2
    noise: float = 0.3
    steps: Steps = Steps(n_steps=1500, batch_size=256, learning_rate=2e-3, weight_decay=0.05, warm_up=450, cosine=True)

    def __post_init__(self) -> None:
        for name, right, allowed in (
            ("n_inner", self.n_inner >= 1, "1 or more"),
            ("dropout", 0 <= self.dropout < 1, "from 0 to below 1"),
            ("noise", self.noise >= 0, "0 or more"),
        ):
            if not right:
                raise ConfigError(f"expectation.{name}", got=getattr(self, name), allowed=allowed)


class Expectation(nn.Module):
    """A linear map and a network of one inner layer beside it, which begins at 0.

    Inside, values have a mean square of 1.

    Parameters
    ----------
    linear : nn.Linear
        D -> D, that it begins as.
    scale : float
        Root mean square of what goes in.
    centre : array of shape (D,), float32
        Mean of what comes out.
    spread : float
        Its root mean square about the mean.
    settings : ExpectationSettings
    """

    centre: Tensor

    def __init__(
        self, linear: nn.Linear, scale: float, centre: Float32, spread: float, settings: ExpectationSettings
    ) -> None:
        super().__init__()
        self.scale, self.spread, self.noise = scale, spread, settings.noise
        self.register_buffer("centre", torch.from_numpy(centre))
        self.linear = nn.Linear(linear.in_features, linear.out_features)
        self.inner = nn.Linear(linear.in_features, settings.n_inner)
        self.outer = nn.Linear(settings.n_inner, linear.out_features)
        self.dropout = nn.Dropout(settings.dropout)
        with torch.no_grad():
            self.linear.weight.copy_(linear.weight * scale / spread)
            self.linear.bias.copy_((linear.bias - self.centre) / spread)
        nn.init.zeros_(self.outer.weight)
        nn.init.zeros_(self.outer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, D) -> (B, D)."""
        return self.centre + self.spread * self._standard(x / self.scale)

    def loss(self, x: Tensor, wanted: Tensor) -> Tensor:
        """Mean squared error of what is seen through more noise, in units of the variance, ()."""
        seen = x / self.scale
        found = self._standard(seen + self.noise * torch.randn_like(seen))
        return nnf.mse_loss(found, (wanted - self.centre) / self.spread)

    def _standard(self, x: Tensor) -> Tensor:
        found: Tensor = self.linear(x) + self.outer(self.dropout(nnf.gelu(self.inner(x))))
        return found


class Fitted(NamedTuple):
    """What was found: ``network`` on the CPU, the share of the held-out variance it explains, and that of ``ridge``."""

    network: nn.Module
    explained: float
    ridge: float


def fit(
    epochs: Float32,
    shown: Float32,
    held: Bool,
    settings: ExpectationSettings,
    folder: Path,
    *,
    seed: int = 0,
    device: str = "cpu",
    report: Report = silent,
) -> Fitted:
    """Fit the expectation: the network where it explains more of what was held out than ridge regression, else that.

    Parameters
    ----------
    epochs : array of shape (n, D), float32
        Embeddings of epochs.
    shown : array of shape (n, D), float32
        Those of their images.
    held : array of shape (n,), bool
        Whether the encoder was not trained on them; some, not all.
    settings : ExpectationSettings
    folder : Path
        Of the training state: a killed call goes on there.
    seed : int
    device : str
    report : callable
    """
    linear, by_ridge = ridge(epochs, shown, held)
    seen, wanted = torch.from_numpy(epochs[~held]), torch.from_numpy(shown[~held])
    centre = shown[~held].mean(axis=0)
    torch.manual_seed(seed)
    network = Expectation(linear, _rms(epochs[~held]), centre, _rms(shown[~held] - centre), settings).to(device).train()

    def loss(rows: Rows) -> Tensor:
        batch = torch.from_numpy(rows)
        return network.loss(seen[batch].to(device), wanted[batch].to(device))

    about = {"samples": digest(epochs, shown, held), "settings": settings}
    parameters = dict(network.named_parameters())
    train(parameters, loss, len(seen), settings.steps, folder, about, seed=seed, report=report)
    network = network.cpu().eval().requires_grad_(False)
    with torch.no_grad():
        found = network(torch.from_numpy(epochs[held])).numpy()
    by_network = _explained(found, shown, held)
    best = network if by_network > by_ridge else linear
    return Fitted(best, max(by_network, by_ridge), by_ridge)


def ridge(epochs: Float32, shown: Float32, held: Bool) -> tuple[nn.Linear, float]:
    """Fit the regression alone, with the penalty that serves best on what was held out; see :func:`fit`.

    Returns
    -------
    layer : nn.Linear
    explained : float
        Share of the variance of ``shown``, of those held.
    """
    parts, wanted = decompose(epochs[~held]), shown[~held].astype(np.float64)
    scale = float(np.sum(parts.s**2) / len(wanted))
    found = [solve(parts, wanted, np.full(shown.shape[1], alpha * scale)) for alpha in ALPHAS]
    shares = [_explained(epochs[held] @ weights + bias, shown, held) for weights, bias in found]
    best = int(np.argmax(shares))
    return as_layer(*found[best]), shares[best]


def _explained(found: Float32 | Float64, shown: Float32, held: Bool) -> float:
    total = np.sum(np.square(shown[held] - shown[~held].mean(axis=0), dtype=np.float64))
    return 1 - float(np.sum(np.square(found - shown[held], dtype=np.float64)) / total)


def _rms(x: Float32) -> float:
    return float(np.sqrt(np.mean(np.square(x, dtype=np.float64)))) or 1.0
