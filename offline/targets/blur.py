"""Foveal blur of UBP: sharp where one looks, blurred around it.

Wu et al., arXiv 2503.04207; reference code HaitaoWuTJU/Uncertainty-aware-Blur-Prior at commit 89d8b83.
"""

from __future__ import annotations

import msgspec
import numpy as np
from scipy.ndimage import correlate1d

from streamdec.errors import ConfigError
from streamdec.types import Float64

from .images import UInt8, resize

KERNELS = {
    "low": 45,
    "medium": 51,
    "high": 57,
    # What the reference really ran: its loop changes the settings in place, so that low turns the base of 51 into 45,
    # medium takes that base as it is, and high adds 6 to it.
    "reference_low": 45,
    "reference_medium": 45,
    "reference_high": 51,
}
"""Kernel in pixels of each of UBP's levels."""


class Blur(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``kernel`` odd pixels; ``size`` the image is brought to first; ``fall`` of the sharp part from the centre out."""

    kernel: int = KERNELS["medium"]
    size: int = 224
    fall: float = 3.0

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise ConfigError("blur", got=self.kernel, allowed=f"{', '.join(KERNELS)}, or an odd number of pixels")


def foveal(image: UInt8, settings: Blur | None = None) -> UInt8:
    """Mix an image with its blurred self: half sharp in the centre, ``0.5 * exp(-fall)`` in the corners.

    The centre lies between the middle pixels, and the fall is over the distance to the corner pixels: our reading.

    Parameters
    ----------
    image : array of shape (height, width, 3), uint8
        RGB.
    settings : Blur, optional

    Returns
    -------
    array of shape (size, size, 3), uint8
        Rounded.
    """
    chosen = settings or Blur()
    sharp = resize(image, chosen.size).astype(np.float64)
    place = np.arange(chosen.size) - (chosen.size - 1) / 2
    radius = np.hypot(place[:, None], place)
    share = (0.5 * np.exp(-chosen.fall * radius / radius.max()))[:, :, None]
    return np.asarray(np.rint(share * sharp + (1 - share) * gaussian(sharp, chosen.kernel)), np.uint8)


def gaussian(image: Float64, kernel: int) -> Float64:
    """Gaussian blur, its width following from the size of the kernel as in OpenCV with sigma 0.

    Parameters
    ----------
    image : array of shape (height, width, 3), float64
    kernel : int
        Odd number of pixels; sigma is ``0.3 * ((kernel - 1) / 2 - 1) + 0.8``. Beyond 7 pixels OpenCV 5.0 gives the same
        to 1e-12 on float64; up to 7 it has tables of its own, and its fixed-point sums on bytes are off by up to 1.5.

    Returns
    -------
    array of the same shape, float64
    """
    sigma = 0.3 * ((kernel - 1) / 2 - 1) + 0.8
    weights = np.exp(-((np.arange(kernel) - (kernel - 1) / 2) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    across = correlate1d(image, weights, axis=0, mode="mirror")
    return np.asarray(correlate1d(across, weights, axis=1, mode="mirror"))
