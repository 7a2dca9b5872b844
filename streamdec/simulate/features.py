"""Image features without weights: what the simulated cortex responds to, and what an encoder can be aligned to.

Every function takes images of any size and returns features of a fixed one: images are first shrunk by area averaging,
so 500 x 500 photographs and 64 x 64 renderings give comparable numbers.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import scipy.fft

from ..errors import DataError
from ..types import Float32

UInt8 = npt.NDArray[np.uint8]

PIXELS_SHAPE = (8, 8, 3)
"""Row, column, RGB of :func:`pixels`."""
COLOUR_SHAPE = (3, 4, 4)
"""Opponent channel, row, column of :func:`colour`."""
GABOR_SHAPE = (3, 4, 4, 4)
"""Scale (fine to coarse), orientation, row, column of :func:`gabor`."""

_WAVELENGTHS = (4.0, 8.0, 16.0)  # pixels of the 64 x 64 working image
_SIZE = 64
_BLOCK = 128  # images worked on at once: bounds the memory of the spectra
# Luminance (Rec. 709 weights), red-green, blue-yellow.
_OPPONENT = np.array([[0.2126, 0.7152, 0.0722], [0.5, -0.5, 0.0], [-0.25, -0.25, 0.5]], np.float32)


def pixels(images: UInt8, size: int = PIXELS_SHAPE[0]) -> Float32:
    """Thumbnails of 8 x 8 pixels, or of another size.

    Parameters
    ----------
    images : array of shape (n, height, width, 3), uint8
        RGB images.
    size : int
        Pixels along one side.

    Returns
    -------
    array of shape (n, size * size * 3), float32
        Values 0..1, laid out as ``PIXELS_SHAPE``: row, column, RGB.
    """
    return _blockwise(images, lambda block: _shrink(block, size), (size, size, 3))


def colour(images: UInt8) -> Float32:
    """Luminance, red-green and blue-yellow contrast on a 4 x 4 grid.

    Parameters
    ----------
    images : array of shape (n, height, width, 3), uint8
        RGB images.

    Returns
    -------
    array of shape (n, 48), float32
        Laid out as ``COLOUR_SHAPE``; luminance 0..1, contrasts -0.5..0.5.
    """
    grid = COLOUR_SHAPE[1]
    return _blockwise(images, lambda block: np.moveaxis(_shrink(block, grid) @ _OPPONENT.T, 3, 1), COLOUR_SHAPE)


def gabor(images: UInt8) -> Float32:
    """Orientation energy: amplitude of log-Gabor filters on luminance, averaged over a 4 x 4 grid.

    Three scales (wavelengths of 1/16, 1/8 and 1/4 of the image), four orientations; the filters are those of Field
    (1987), doi:10.1364/JOSAA.4.002379.

    Parameters
    ----------
    images : array of shape (n, height, width, 3), uint8
        RGB images.

    Returns
    -------
    array of shape (n, 192), float32
        Laid out as ``GABOR_SHAPE``, 0 or more.
    """
    bank = _log_gabors()
    window = np.sqrt(np.hanning(_SIZE + 2)[1:-1])
    taper = np.outer(window, window).astype(np.float32)  # the Fourier transform wraps around: no contrast at the border
    n_scales, n_orientations, grid, _ = GABOR_SHAPE

    def energy(block: UInt8) -> Float32:
        luminance = _shrink(block, _SIZE) @ _OPPONENT[0]
        luminance = (luminance - luminance.mean(axis=(1, 2), keepdims=True)) * taper
        spectrum = scipy.fft.fft2(luminance)
        amplitude = np.stack([np.abs(scipy.fft.ifft2(spectrum * one)) for one in bank], axis=1)
        cells = amplitude.reshape(len(block), n_scales, n_orientations, grid, _SIZE // grid, grid, _SIZE // grid)
        mean: Float32 = cells.mean(axis=(4, 6)).astype(np.float32)
        return mean

    return _blockwise(images, energy, GABOR_SHAPE)


def low_level(images: UInt8) -> Float32:
    """:func:`gabor` and :func:`colour` side by side: (n, 240) float32."""
    return np.concatenate([gabor(images), colour(images)], axis=1)


def _log_gabors() -> Float32:
    """Make the filters in the frequency domain: (scales * orientations, size, size), each one-sided."""
    fy, fx = np.meshgrid(np.fft.fftfreq(_SIZE), np.fft.fftfreq(_SIZE), indexing="ij")
    radius, angle = np.hypot(fx, fy), np.arctan2(fy, fx)
    radius[0, 0] = 1.0
    n_orientations = GABOR_SHAPE[1]
    bank = []
    for wavelength in _WAVELENGTHS:
        radial = np.exp(-(np.log(radius * wavelength) ** 2) / (2 * np.log(0.6) ** 2))
        radial[0, 0] = 0.0
        for k in range(n_orientations):
            off = np.angle(np.exp(1j * (angle - np.pi * k / n_orientations)))
            bank.append(radial * np.exp(-(off**2) / (2 * (np.pi / n_orientations / 1.5) ** 2)))
    return np.array(bank, np.float32)


def _blockwise(images: UInt8, function: Callable[[UInt8], Float32], shape: tuple[int, ...]) -> Float32:
    if images.ndim != 4 or images.shape[3] != 3 or images.dtype != np.uint8 or 0 in images.shape[1:3]:
        raise DataError("images", got=f"{images.dtype} {images.shape}", allowed="uint8 (n, height, width, 3)")
    out = np.empty((len(images), *shape), np.float32)
    for first in range(0, len(images), _BLOCK):
        block = slice(first, first + _BLOCK)
        out[block] = function(images[block])
    return out.reshape(len(images), math.prod(shape))


def _shrink(images: UInt8, size: int) -> Float32:
    """Area average to ``size`` x ``size``, values 0..1: (n, height, width, 3) -> (n, size, size, 3) float32."""
    rows, columns = (_area(n, size) for n in images.shape[1:3])
    small: Float32 = np.einsum("yh,nhwc,xw->nyxc", rows, images.astype(np.float32) / 255, columns, optimize=True)
    return small


def _area(n_in: int, n_out: int) -> Float32:
    """(n_out, n_in) weights: the share of each input pixel in each output pixel, rows sum to 1."""
    edges = np.linspace(0, n_in, n_out + 1)
    pixel = np.arange(n_in)
    overlap = np.minimum(edges[1:, None], pixel + 1) - np.maximum(edges[:-1, None], pixel)
    weights: Float32 = (np.clip(overlap, 0, None) * (n_out / n_in)).astype(np.float32)
    return weights
