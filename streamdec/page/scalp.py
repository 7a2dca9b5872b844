"""Values of channels on the scalp."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from ..signal.montage import has_position, positions
from ..types import Float64
from .drawing import INK

if TYPE_CHECKING:  # matplotlib comes with an extra
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_CMAP = "RdBu_r"


def flattened(ch_names: Sequence[str]) -> Float64 | None:
    """Places of channels on a disc of radius 1, nose up: (n_chans, 2) float64; None where one has none, or under four.

    Azimuthal: the distance from the middle is the angle from the top, the equator of the 10-20 sphere lies at 0.94.
    """
    if len(ch_names) < 4 or not all(has_position(name) for name in ch_names):
        return None
    xyz = positions(ch_names)
    angle = np.arccos(np.clip(xyz[:, 2], -1, 1))
    across = np.linalg.norm(xyz[:, :2], axis=1)
    out: Float64 = 0.94 * (angle / (np.pi / 2) / np.maximum(across, 1e-9))[:, None] * xyz[:, :2]
    return out


def topomap(ax: Axes, values: Float64, flat: Float64, limit: float) -> None:
    """Draw one head.

    Parameters
    ----------
    ax : Axes
    values : array of shape (n_chans,)
    flat : array of shape (n_chans, 2)
        Of :func:`flattened`.
    limit : float
        The scale goes from minus it to it.
    """
    import mne

    with warnings.catch_warnings():  # of the layout engine, which mne does not know
        warnings.simplefilter("ignore")
        mne.viz.plot_topomap(
            values,
            flat,
            axes=ax,
            show=False,
            cmap=_CMAP,
            vlim=(-limit, limit),
            sphere=(0.0, 0.0, 0.0, 1.0),
            extrapolate="head",
            contours=0,
            sensors="k.",
        )
    for artist in (*ax.lines, *ax.collections):
        artist.set_clip_on(False)
    for line in ax.lines:
        line.set_color(INK)
        line.set_markersize(2)


def scale_bar(figure: Figure, axes: Sequence[Axes], limit: float, label: str) -> None:
    """Put the scale of some heads beside them."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import Normalize

    shades = ScalarMappable(Normalize(-limit, limit), _CMAP)
    bar = figure.colorbar(shades, ax=list(axes), shrink=0.7, pad=0.02)
    bar.ax.spines["outline"].set_visible(False)
    bar.set_label(label, fontsize=8)
    bar.ax.tick_params(labelsize=7.5)
