"""Figures of reconstructed pictures, as MindEye (Scotti et al. 2023, arXiv 2305.18274) and its heirs define them.

Pictures that are compared have one size and lie in 0..1. Published figures differ by where they resize: here the short
side goes to the size that each figure asks for, bilinear and antialiased, without a crop, as MindEye's lineage does.

Shapes: n pictures, H x W pixels, D features.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from streamdec.types import Float32, Float64

from ..targets.frozen import missing
from ..targets.images import UInt8, resize

PIXELS = 425
"""Side at which PixCorr and SSIM look, pixels; NSD's stimuli had it."""

_AT_ONCE = 1 << 24  # features that are widened to float64 at a time: 128 MB


def common(pictures: Sequence[UInt8], size: int) -> UInt8:
    """Bring pictures (height, width, 3) uint8 to one size: (n, size, size, 3) uint8."""
    return np.stack([resize(picture, size) for picture in pictures])


def scaled(pictures: UInt8, size: int) -> Float32:
    """Resize pictures (n, H, W, 3) uint8, short side to ``size``: (n, 3, h, w) float32 in 0..1."""
    import torch
    from torch.nn.functional import interpolate

    batch = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
    height, width = batch.shape[2:]
    shorter = min(height, width)
    wanted = [size * height // shorter, size * width // shorter]
    out = interpolate(batch, wanted, mode="bilinear", antialias=True)
    return np.asarray(out.clamp(0, 1).numpy())


def pix_corr(real: UInt8, made: UInt8) -> Float64:
    """Correlate pixels: Pearson's r of each pair, over all pixels and colours.

    Parameters
    ----------
    real, made : arrays of shape (n, H, W, 3), uint8

    Returns
    -------
    array of shape (n,), float64
        0 where a picture is of one colour.
    """
    out = np.empty(len(real))
    for i in range(len(real)):
        one, other = (scaled(pictures[i : i + 1], PIXELS).reshape(1, -1) for pictures in (real, made))
        out[i] = correlations(one, other)[0, 0]
    return out


def ssim(real: UInt8, made: UInt8) -> Float64:
    """Compare structure (Wang et al. 2004, doi:10.1109/TIP.2003.819861) in grey, of each pair, by scikit-image.

    Parameters
    ----------
    real, made : arrays of shape (n, H, W, 3), uint8

    Returns
    -------
    array of shape (n,), float64

    Raises
    ------
    ConfigError
        scikit-image is not installed.
    """
    try:
        from skimage.color import rgb2gray
        from skimage.metrics import structural_similarity
    except ImportError as error:
        raise missing("scikit-image", "judge") from error
    out = np.empty(len(real))
    for i in range(len(real)):
        one, other = (
            rgb2gray(scaled(pictures[i : i + 1], PIXELS)[0], channel_axis=0).astype(np.float64)
            for pictures in (real, made)
        )
        out[i] = structural_similarity(  # type: ignore[no-untyped-call]
            one, other, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=1.0
        )
    return out


def correlations(one: Float32, other: Float32) -> Float64:
    """Pearson's r of every row of ``one`` (n, D) with every row of ``other`` (m, D): (n, m); 0 for constant rows."""
    n, m = len(one), len(other)
    centres = [rows.mean(axis=1, dtype=np.float64, keepdims=True) for rows in (one, other)]
    products, squares = np.zeros((n, m)), [np.zeros(n), np.zeros(m)]
    step = max(1, _AT_ONCE // (n + m))
    for start in range(0, one.shape[1], step):
        a, b = (
            rows[:, start : start + step] - centre for rows, centre in zip((one, other), centres, strict=True)
        )  # float64
        products += a @ b.T
        squares[0] += np.vecdot(a, a)
        squares[1] += np.vecdot(b, b)
    # What float32 leaves of a constant row is 1e-7 of its value; it has no direction.
    for square, centre in zip(squares, centres, strict=True):
        square[square <= 1e-12 * one.shape[1] * centre[:, 0] ** 2] = 0
    lengths = np.sqrt(np.outer(*squares))
    out: Float64 = np.divide(products, lengths, out=np.zeros((n, m)), where=lengths > 0)
    return out


def two_way(real: Float32, made: Float32) -> Float64:
    """Two-way identification: how often a made picture is nearer to its own real one than to another.

    Chance is a half, and one and the same picture for all of them comes out at exactly that, ties apart. A tie counts
    as lost, as in MindEye.

    Parameters
    ----------
    real, made : arrays of shape (n, D), float32
        Features; two at least.

    Returns
    -------
    array of shape (n,), float64
        Of each made picture, the share of the n - 1 other real ones that correlate less with it than its own does.
    """
    r = correlations(real, made)
    out: Float64 = np.sum(r < np.diag(r), axis=0) / (len(r) - 1)
    return out


def correlation_distance(real: Float32, made: Float32) -> Float64:
    """1 - Pearson's r of the features (n, D) of each pair: (n,) float64, 0..2, lower is better."""
    pairs: npt.NDArray[np.float64] = np.array(
        [correlations(real[i : i + 1], made[i : i + 1])[0, 0] for i in range(len(real))]
    )
    return 1 - pairs
