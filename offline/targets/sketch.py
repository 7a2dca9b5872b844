"""Edges of an image, white on black: Thought2Text's stage 1 is aligned to CLIP's features of Canny sketches.

Mishra et al. 2024 (arXiv 2410.07507; abhijitmishra/Thought2Text @475eb89) read them from files whose making is not part
of the code; here scikit-image's detector (Canny 1986) draws them, with its default thresholds.
"""

from __future__ import annotations

import msgspec
import numpy as np

from streamdec.errors import ConfigError

from .frozen import missing
from .images import UInt8, resize


class Sketch(msgspec.Struct, frozen=True):
    """``sigma`` of the Gaussian before the gradient, pixels, at ``size`` pixels of the shorter side."""

    sigma: float = 1.0
    size: int = 224

    def __post_init__(self) -> None:
        if not (self.sigma > 0 and self.size >= 16):
            got = f"sigma {self.sigma:g}, size {self.size}"
            raise ConfigError("sketch", got=got, allowed="sigma above 0, size 16 or more")


def sketch(image: UInt8, settings: Sketch) -> UInt8:
    """Draw the edges of an image.

    Parameters
    ----------
    image : array of shape (height, width, 3), uint8
    settings : Sketch

    Returns
    -------
    array of shape (size, size, 3), uint8
        255 on edges, 0 elsewhere, the same in all colours.

    Raises
    ------
    ConfigError
        scikit-image is not installed.
    """
    try:
        from skimage.color import rgb2gray
        from skimage.feature import canny
    except ImportError as error:
        raise missing("scikit-image", "judge") from error
    edges = canny(rgb2gray(resize(image, settings.size)), sigma=settings.sigma)  # type: ignore[no-untyped-call]
    return np.repeat(edges[..., None], 3, axis=2).astype(np.uint8) * 255
