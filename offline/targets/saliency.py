"""Visual Saliency Extraction of NeuroAlign: a map of what stands out, and the image weighted by it.

After sections 3.2 and A.2.1 of the paper (equations 1-3, 10-13, table 3). It has no published code; where its text is
silent or disagrees with itself the reading is ours and named at the setting. Nothing in it is learned, so it runs once.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
from scipy.ndimage import correlate1d, gaussian_filter
from scipy.special import expit

from streamdec.errors import ConfigError
from streamdec.types import Float64

from .images import UInt8

Map: TypeAlias = npt.NDArray[np.float32]

_GRAY = np.array([0.299, 0.587, 0.114])  # Rec. 601, as OpenCV turns RGB to gray
_EPSILON = 1e-8


class Saliency(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Every constant of the extraction.

    ``sobel`` taps of the edge filter, odd; ``weights`` of luminance, contrast and colour (alpha; not given in the
    paper: equal); ``gate`` added to the gated map (eta; not given: 0.5 keeps it positive); ``scales`` of the difference
    of Gaussians, pixels (table 3 says 1, 2, 4 and A.2.1 1, 2: the table holds); ``centre`` and ``surround`` standard
    deviations at scale 1; ``surround_weight`` lambda; ``exponent`` gamma.
    """

    sobel: int = 7
    weights: tuple[float, float, float] = (1 / 3, 1 / 3, 1 / 3)
    gate: float = 0.5
    scales: tuple[float, ...] = (1.0, 2.0, 4.0)
    centre: float = 1.0
    surround: float = 2.0
    surround_weight: float = 0.5
    exponent: float = 1.2

    def __post_init__(self) -> None:
        if self.sobel < 3 or self.sobel % 2 == 0:
            raise ConfigError("vse sobel", got=self.sobel, allowed="3, 5, 7, ...")
        if not self.scales or min(*self.scales, self.centre, self.surround, self.exponent) <= 0:
            raise ConfigError("vse scales, centre, surround and exponent", allowed="more than 0")


def attention(image: UInt8, settings: Saliency | None = None) -> Map:
    """Rapid saliency detection (equation 1): edges against luminance, contrast and colour.

    Parameters
    ----------
    image : array of shape (height, width, 3), uint8
        RGB.
    settings : Saliency, optional

    Returns
    -------
    array of shape (height, width), float32
        ``gate`` plus or minus at most 0.23.
    """
    chosen = settings or Saliency()
    rgb = image.astype(np.float64) / 255
    gray = rgb @ _GRAY
    edges = np.hypot(_derivative(gray, 1, chosen.sobel), _derivative(gray, 0, chosen.sobel))
    luminance = np.abs(gray - gray.mean())
    contrast = np.abs(gray - gray.std())  # literally equation 11: a deviation taken from an intensity
    red, green, blue = np.moveaxis(rgb, 2, 0)
    colour = 2 * (np.abs(red - green) + np.abs(green - blue) + np.abs(red - blue))  # ordered pairs
    shares = zip(chosen.weights, (luminance, contrast, colour), strict=True)
    exogenous = sum((weight * one for weight, one in shares), np.zeros_like(gray))
    return np.asarray(expit(_unit(edges)) - expit(_unit(exogenous)) + chosen.gate, np.float32)


def saliency(image: UInt8, settings: Saliency | None = None) -> Map:
    """Saliency map (equation 2): :func:`attention` through centre-surround antagonism.

    Parameters
    ----------
    image : array of shape (height, width, 3), uint8
        RGB.
    settings : Saliency, optional

    Returns
    -------
    array of shape (height, width), float32
        0..1; zeros where the image is of one colour.
    """
    chosen = settings or Saliency()
    attended = attention(image, chosen).astype(np.float64)
    centre = [_blur(attended, chosen.centre * scale) for scale in chosen.scales]
    surround = [_blur(attended, chosen.surround * scale) for scale in chosen.scales]
    response = np.mean(np.subtract(centre, np.multiply(chosen.surround_weight, surround)), axis=0)
    return np.asarray(_unit(np.abs(response) ** chosen.exponent), np.float32)


def weighted(image: UInt8, settings: Saliency | None = None) -> UInt8:
    """Image times its saliency map (equation 3), rounded.

    Parameters
    ----------
    image : array of shape (height, width, 3), uint8
        RGB.
    settings : Saliency, optional

    Returns
    -------
    array of the same shape, uint8
    """
    return np.asarray(np.rint(image * saliency(image, settings)[:, :, None]), np.uint8)


def _derivative(gray: Float64, axis: int, taps: int) -> Float64:
    """Sobel derivative along one axis, smoothed along the other: the kernels of OpenCV, reflected at the border."""
    smooth = _binomial(taps)
    slope = np.convolve(_binomial(taps - 2), (-1.0, 0.0, 1.0))
    along = correlate1d(gray, slope, axis=axis, mode="mirror")
    return np.asarray(correlate1d(along, smooth, axis=1 - axis, mode="mirror"))


def _binomial(taps: int) -> Float64:
    row = np.ones(1)
    for _ in range(taps - 1):
        row = np.convolve(row, (1.0, 1.0))
    return row


def _blur(image: Float64, sigma: float) -> Float64:
    return np.asarray(gaussian_filter(image, sigma, mode="mirror", radius=int(np.ceil(3 * sigma))))


def _unit(image: Float64) -> Float64:
    """Least value to 0, greatest to 1; an even image to 0 (the rounding of a filter is no structure)."""
    low, high = image.min(), image.max()
    if high - low < _EPSILON:
        return np.zeros_like(image)
    return np.asarray((image - low) / (high - low))
