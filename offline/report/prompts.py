"""NeuroCLIP's prompts: which filters an image gets, where its instance prompt acts, how alike the shared ones are.

Nothing of the kind is published (arXiv 2511.09250 has no public code); what is drawn is what its parts are said to do.
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from models.neuroclip import NeuroClipVision
from streamdec.decode.gallery import unit
from streamdec.page.document import Picture
from streamdec.page.drawing import COLOURS, INK, drawn
from streamdec.types import Float32

from ..data.store import Item
from ..experiment import Opened
from ..methods.network import NetworkEncoder
from ..targets.tokens import SIGMAS
from .views import bare, thumbnail

_WIDTH = 7.2  # inches
_IMAGES = 4


class Prompts(msgspec.Struct, frozen=True, eq=False):
    """What a trained image side does to the test images; None where that part is switched off.

    ``filters`` (n, K) weights of the low-passes, rows sum to 1; ``instance`` (n, side, side) length of the instance
    prompt by that of the patch token it is added to; ``shared`` (layers, M, D) the shared prompts; ``items`` (n,) and
    ``images``, the folder of their files.
    """

    filters: Float32 | None
    instance: Float32 | None
    shared: Float32 | None
    items: tuple[Item, ...]
    images: Path


def look(test: Opened) -> Prompts | None:
    """Put the test images through the trained prompts; None of a run without them."""
    if not isinstance(test.encoder, NetworkEncoder):
        return None
    vision = getattr(test.encoder.learner, "vision", None)
    if not isinstance(vision, NeuroClipVision):
        return None
    items = test.part.items
    tokens = torch.from_numpy(np.array(test.targets["tokens"].of(items), np.float32))
    thumbnails = None
    if vision.filter is not None:
        thumbnails = torch.from_numpy(np.array(test.targets["thumbnails"].of(items), np.float32))
    return acting(vision, tokens, thumbnails, items, Path(test.prepared.meta.images))


@torch.no_grad()
def acting(
    vision: NeuroClipVision, tokens: Tensor, thumbnails: Tensor | None, items: tuple[Item, ...], images: Path
) -> Prompts:
    """Put images, as :meth:`NeuroClipVision.forward` takes them, through the prompts."""
    filters = instance = None
    if vision.filter is not None:
        filters = vision.filter(thumbnails).numpy()
    if vision.instance is not None:
        plain = tokens[:, 0]
        added = (vision.patches(tokens, thumbnails) - plain).norm(dim=-1) / plain.norm(dim=-1).clamp_min(1e-9)
        side = round(added.shape[1] ** 0.5)
        instance = added.view(-1, side, side).numpy()
    shared = None if vision.prompts is None else vision.prompts.numpy()
    return Prompts(filters, instance, shared, items, images)


def picture(name: str, title: str, seen: Prompts) -> Picture | None:
    """Draw them; None where every part is switched off."""
    shown = _shown(seen)
    above = [part for part in (seen.filters, seen.shared) if part is not None]
    if not above and not shown:
        return None

    def draw(figure: Figure) -> None:
        rows = figure.subfigures(bool(above) + bool(shown), 1, squeeze=False)[:, 0]
        if above:
            axes = iter(rows[0].subplots(1, len(above), squeeze=False)[0])
            if seen.filters is not None:
                _filters(next(axes), seen.filters)
            if seen.shared is not None:
                _shared(next(axes), seen.shared)
        if shown and seen.instance is not None:
            limit = float(seen.instance.max()) or 1.0
            grid = rows[-1].subplots(1, 2 * len(shown), squeeze=False)[0]
            for k, (i, image) in enumerate(shown):
                grid[2 * k].imshow(image)
                grid[2 * k + 1].imshow(seen.instance[i], cmap="inferno", vmin=0, vmax=limit)
                grid[2 * k].set_xlabel(textwrap.fill(seen.items[i].label, 16), fontsize=6.8, color=INK)
            for ax in grid:
                bare(ax)
            rows[-1].suptitle("Instance prompt, length by patch (bright: much is added)", fontsize=9, weight="bold")

    said = []
    if seen.filters is not None:
        mean = seen.filters.mean(axis=0)
        said.append(
            "weights of the filters " + ", ".join(f"{s:g} px {w:.2f}" for s, w in zip(SIGMAS, mean, strict=True))
        )
    if seen.instance is not None:
        said.append(f"instance prompts are {seen.instance.mean():.2f} times as long as their tokens")
    if seen.shared is not None:
        said.append(f"shared prompts: mean cosine between two of a layer {_likeness(seen.shared):.2f}")
    caption = f"{title}. What the trained prompts do to the test images: {'; '.join(said)}."
    return drawn(name, (_WIDTH, 2.6 * bool(above) + 1.7 * bool(shown)), draw, caption, caption)


def _shown(seen: Prompts) -> list[tuple[int, np.ndarray]]:
    """The first images that can be read, with their place; none without instance prompts."""
    found: list[tuple[int, np.ndarray]] = []
    for i, item in enumerate(seen.items):
        image = thumbnail(seen.images / item.image) if item.image and len(found) < _IMAGES else None
        if seen.instance is not None and image is not None:
            found.append((i, image))
    return found


def _filters(ax: Axes, weights: Float32) -> None:
    for k, of_filter in enumerate(weights.T):
        spread = np.random.default_rng(k).uniform(-0.25, 0.25, len(of_filter))
        ax.scatter(k + spread, of_filter, s=6, color=COLOURS[k % len(COLOURS)], alpha=0.5, linewidths=0)
    ax.set_xticks(range(weights.shape[1]), [f"{sigma:g}" for sigma in SIGMAS])
    ax.set_xlabel("low-pass, SD in pixels (0: the image itself)")
    ax.set_ylabel("weight, one dot per image")
    ax.set_ylim(0, None)
    ax.set_title("Dynamic filter")


def _shared(ax: Axes, prompts: Float32) -> None:
    layers, n, width = prompts.shape
    rows = unit(prompts.reshape(-1, width))
    matrix = ax.imshow(rows @ rows.T, cmap="RdBu_r", vmin=-1, vmax=1)
    middles: Sequence[float] = [n * (layer + 0.5) - 0.5 for layer in range(layers)]
    ax.set_xticks(middles, [str(layer + 1) for layer in range(layers)])
    ax.set_yticks(middles, [str(layer + 1) for layer in range(layers)])
    ax.set_xlabel("layer of the transformer")
    ax.grid(visible=False)
    bar = ax.figure.colorbar(matrix, ax=ax, shrink=0.8)
    bar.ax.spines["outline"].set_visible(False)
    bar.set_label("cosine", fontsize=8)
    ax.set_title("Shared prompts")


def _likeness(prompts: Float32) -> float:
    """Mean cosine between two different prompts of one layer; 0 of a single one."""
    n = prompts.shape[1]
    if n < 2:
        return 0.0
    rows = prompts / np.linalg.norm(prompts, axis=-1, keepdims=True)
    cosines = np.einsum("lmd,lnd->lmn", rows, rows)
    return float((cosines.sum() - np.trace(cosines, axis1=1, axis2=2).sum()) / (len(prompts) * n * (n - 1)))
