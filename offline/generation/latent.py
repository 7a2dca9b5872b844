"""A picture in one pass: ridge regression to the latents of an image autoencoder, and its decoder, as one network.

After Perceptogram (desa-lab/Perceptogram@8924f99), which regresses the epoch on Stable Diffusion's latents; without its
rescaling by statistics of the test set.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from streamdec.errors import ConfigError
from streamdec.types import Float32

from ..data.store import Int64
from ..targets.frozen import missing
from ..targets.huggingface import network
from . import onnx_file
from .linear import fit_linear

_CHECKED = 4  # samples the exported network is compared on


class LatentNetwork(nn.Module):
    """Embedding or epoch -> latents -> picture.

    Parameters
    ----------
    regression : nn.Linear
        To the latents, scaled and flattened.
    vae : AutoencoderKL
    shape : sequence of int
        (channels, height, width) of the latents.
    """

    def __init__(self, regression: nn.Linear, vae: Any, shape: Sequence[int]) -> None:
        super().__init__()
        self.regression, self.shape = nn.Sequential(nn.Flatten(), regression), tuple(shape)
        self.unscale, self.decoder = 1 / vae.config.scaling_factor, vae.decoder
        self.after = vae.post_quant_conv if vae.config.use_post_quant_conv else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """(B, dim) or (B, n_chans, n_times) -> (B, 3, height, width), 0..1."""
        latents = self.regression(x).view(-1, *self.shape)
        pixels: Tensor = self.decoder(self.after(latents * self.unscale))
        return (pixels / 2 + 0.5).clamp(0, 1)


def autoencoder(name: str) -> Any:
    """Load an image autoencoder of diffusers: a folder of its own, or that of a pipeline with ``vae/`` in it.

    Raises
    ------
    ConfigError
        diffusers is not installed; no such model.
    """
    try:
        from diffusers import AutoencoderKL
    except ImportError as error:
        raise missing("diffusers", "generate") from error
    inner = Path(name) / "vae"
    return network(AutoencoderKL, str(inner) if inner.is_dir() else name, "cpu", low_cpu_mem_usage=False)


def write_latent(
    path: Path,
    name: str,
    x: Float32,
    latents: Float32,
    shape: Sequence[int],
    group: Int64,
    what: str,
) -> float:
    """Fit the regression and write the network.

    Parameters
    ----------
    path : Path
        ONNX file.
    name : str
        The autoencoder, see :func:`autoencoder`.
    x : array of shape (n, ...), float32
        Embeddings of images, or epochs; what the regression is fitted on.
    latents : array of shape (n, q), float32
        Scaled, of the same images.
    shape : sequence of int
        (channels, height, width), q numbers.
    group : array of shape (n,), int64
        Images of one concept.
    what : str
        Name of the input: "embedding" or "epoch".

    Returns
    -------
    float
        Share of the latents' variance explained in concepts left out.

    Raises
    ------
    ConfigError
        The autoencoder has other latents.
    EngineError
        The exported network differs.
    """
    vae = autoencoder(name)
    if vae.config.latent_channels != shape[0]:
        raise ConfigError(f"latents for {name}", got=f"{shape[0]} channels", allowed=vae.config.latent_channels)
    regression, explained = fit_linear(x.reshape(len(x), -1), latents, group)
    made = LatentNetwork(regression, vae, shape)
    rows = np.linspace(0, len(x) - 1, _CHECKED).astype(int)
    onnx_file.write(path, made, [{what: np.ascontiguousarray(x[i : i + 1])} for i in rows], "picture")
    return explained
