"""Latents of an image autoencoder, such as SDXL's: what HVF adds to its features, and generation starts from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np

from streamdec.errors import ConfigError
from streamdec.types import Float32

from ..data.store import Item
from .frozen import missing, run
from .huggingface import network, provenance
from .images import Images, resize

if TYPE_CHECKING:
    from torch import Tensor


class VaeOptions(msgspec.Struct, frozen=True):
    """Options: ``size`` of the image, pixels; HVF's is 128."""

    size: int = 128


class Vae:
    """Mean of the latents times the scaling factor, flattened: 4 x 16 x 16 = 1024 for SDXL's at 128 pixels.

    The mean, so that the same image gives the same features; the reference of HVF (ssshamiii/Brain-HIVE at commit
    f06db69) takes one random sample.

    Parameters
    ----------
    name : str
        Folder, or name on the hub, such as "stabilityai/sdxl-vae".
    options : VaeOptions
    device : str
        As torch names it.

    Raises
    ------
    ConfigError
        diffusers is not installed; no such model; a size it cannot halve often enough.
    """

    def __init__(self, name: str, options: VaeOptions, device: str = "cpu") -> None:
        try:
            from diffusers import AutoencoderKL
        except ImportError as error:
            raise missing("diffusers", "generate") from error
        self.name, self._size, self._device = f"vae:{name}", options.size, device
        self._network = network(AutoencoderKL, name, device, low_cpu_mem_usage=False)  # needs no accelerate
        factor = 2 ** (len(self._network.config.block_out_channels) - 1)
        if options.size < factor or options.size % factor:
            raise ConfigError(f"size for {self.name}", got=options.size, allowed=f"multiples of {factor}")
        side = options.size // factor
        self.provenance: dict[str, Any] = {
            **provenance(name, self._network, "diffusers"),
            "size": options.size,
            "resize": "bicubic, centre crop",
            "latents": [self._network.config.latent_channels, side, side],
            "scaling_factor": self._network.config.scaling_factor,
        }

    def __call__(self, items: Sequence[Item], images: Images) -> Float32:
        """(n, latent channels * rows * columns)."""
        import torch

        squares = np.stack(images.map(lambda image: resize(image, self._size), items))
        pixels = torch.from_numpy(squares).movedim(3, 1) / 127.5 - 1
        latents = run(lambda n: self._latents(pixels[:n].to(self._device)), len(pixels), self._device)
        return np.asarray(latents.float().flatten(1).numpy())

    def _latents(self, pixels: Tensor) -> Tensor:
        latents: Tensor = self._network.encode(pixels).latent_dist.mean * self._network.config.scaling_factor
        return latents
