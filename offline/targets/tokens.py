"""Token cache of NeuroCLIP: patch tokens of an image seen through a bank of low-pass filters.

NeuroCLIP (arXiv 2511.09250) has no published code; the filter bank is our reading of its "dynamic filtering". The patch
embedding of a ViT is linear: of an image filtered by a weighted sum of kernels it is the weighted sum of these tokens,
so training the weights needs no pixels.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamdec.errors import ConfigError

from ..data.store import Item
from .frozen import run
from .images import Images
from .openclip import load, split, stacked

if TYPE_CHECKING:
    import torch

SIGMAS = (0.0, 2.0, 4.0, 8.0)
"""Standard deviations of the filters, pixels of the network's input; 0 leaves the image as it is."""


class TokenOptions(msgspec.Struct, frozen=True):
    """Options: ``file`` holding the weights that have the given tag, where there is no network."""

    file: str = ""


class Tokens:
    """Patch tokens before class token, position and blocks; at sigma 0 what the network itself starts from.

    Parameters
    ----------
    name : str
        "MODEL/WEIGHTS" of a vision transformer of open_clip's own, see :func:`.openclip.load`.
    options : TokenOptions
    device : str
        As torch names it.

    Raises
    ------
    ConfigError
        See :func:`.openclip.load`; the network has no patch embedding.
    """

    def __init__(self, name: str, options: TokenOptions, device: str = "cpu") -> None:
        self.name = f"tokens:{name}"
        self._loaded, self._device = load(*split(name), options.file, device), device
        visual = self._loaded.network.visual
        if not hasattr(visual, "conv1") or not hasattr(visual, "transformer"):
            raise ConfigError(f"tokens of {name}", allowed="vision transformers of open_clip's own, such as ViT-B-32")
        self._patches = visual.conv1
        self.provenance: dict[str, Any] = {
            **self._loaded.provenance,
            "preprocess": str(self._loaded.transform),
            "sigmas": SIGMAS,
        }

    def __call__(self, items: Sequence[Item], images: Images) -> npt.NDArray[np.float16]:
        """(n, n_filters, n_patches, width)."""
        batch = stacked(self._loaded.transform, items, images)
        tokens = run(lambda n: self._filtered(batch[:n].to(self._device)), len(batch), self._device)
        return np.asarray(tokens.half().numpy())

    def _filtered(self, batch: torch.Tensor) -> torch.Tensor:
        import torch

        views = [self._patches(low_pass(batch, sigma)).flatten(2).mT for sigma in SIGMAS]
        return torch.stack(views, dim=1)


def low_pass(images: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian low-pass, reflected at the border, its kernel cut at 3 sigma; 0 gives the images back.

    Parameters
    ----------
    images : Tensor of shape (n, channels, height, width)
    sigma : float
        Pixels.

    Returns
    -------
    Tensor of the same shape
    """
    import torch
    from torch.nn.functional import conv2d, pad

    if sigma == 0:
        return images
    radius = math.ceil(3 * sigma)
    place = torch.arange(-radius, radius + 1, device=images.device, dtype=images.dtype)
    kernel = torch.exp(-(place**2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    channels = images.shape[1]
    wide = pad(images, (radius, radius, radius, radius), mode="reflect")
    across = conv2d(wide, kernel.view(1, 1, 1, -1).expand(channels, 1, 1, -1), groups=channels)
    return conv2d(across, kernel.view(1, 1, -1, 1).expand(channels, 1, -1, 1), groups=channels)
