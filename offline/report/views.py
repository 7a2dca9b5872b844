"""Figures of what a decoder does: the geometry of its embeddings, channels on the scalp, cases, saliency maps."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score

from streamdec.errors import DataError
from streamdec.page.document import Picture
from streamdec.page.drawing import COLOURS, INK, MARKERS, WIDTH, drawn, panels
from streamdec.page.scalp import flattened, scale_bar, topomap
from streamdec.types import Float32, Float64

from ..data.store import Item
from ..metrics import dissimilarity, rsa
from ..targets.images import UInt8, read_rgb
from ..targets.saliency import Saliency, attention, saliency, weighted
from .inside import Case, Look, most_frequent

N_CATEGORIES = len(COLOURS)
_SHEET = 7.2  # inches
_RIGHT, _WRONG = COLOURS[0], COLOURS[1]  # blue and vermilion, and a word beside


def embedded(rows: npt.NDArray[Any]) -> Float64:
    """t-SNE of (n, D) by cosine (van der Maaten and Hinton 2008): (n, 2); perplexity 30, or a third of few items.

    The exact method: for the 200 items of a test part it is the faster one too, and starts no threads.
    """
    flat = np.asarray(rows, np.float64).reshape(len(rows), -1)
    perplexity = min(30.0, (len(flat) - 1) / 3)
    tsne = TSNE(perplexity=perplexity, metric="cosine", init="random", method="exact", random_state=0)
    found: Float64 = tsne.fit_transform(flat)
    return found


def geometry(name: str, title: str, seen: Look, of_item: Mapping[str, str]) -> Picture | None:
    """t-SNE of the epochs and of their embeddings, and the dissimilarities of embeddings and of target embeddings.

    Items of the most frequent categories; None where fewer than two categories have two items.
    """
    of_query = [of_item.get(item.id) for item in seen.shown]
    names = most_frequent(of_query, N_CATEGORIES)
    order = [i for category in names for i, own in enumerate(of_query) if own == category]
    if len(names) < 2 or len(order) < 6:
        return None
    labels = np.array([names.index(of_query[i] or "") for i in order])
    before, after = seen.means[order].reshape(len(order), -1), seen.queries[order]
    brain, target = dissimilarity(after), dissimilarity(seen.candidates[order])
    likeness, whole = rsa(brain, target), rsa(dissimilarity(seen.queries), dissimilarity(seen.candidates))
    apart = [float(silhouette_score(rows, labels, metric="cosine")) for rows in (before, after)]
    maps = [embedded(before), embedded(after)]

    def draw(figure: Figure) -> None:
        (first, second), (third, fourth) = figure.subplots(2, 2)
        for ax, points, heading in ((first, maps[0], "EEG epochs"), (second, maps[1], "embeddings of the epochs")):
            for number, category in enumerate(names):
                own = points[labels == number]
                dots = {"c": COLOURS[number], "marker": MARKERS[number], "s": 22, "linewidths": 0, "alpha": 0.85}
                ax.scatter(own[:, 0], own[:, 1], label=category, **dots)
            ax.set_title(f"t-SNE of {heading}")
            bare(ax)
            ax.spines[:].set_visible(True)
        for ax, matrix, heading in ((third, brain, "embeddings"), (fourth, target, "target embeddings")):
            _matrix(ax, matrix, labels, names)
            ax.set_title(f"1 − cosine, {heading}")
        handles, said = second.get_legend_handles_labels()
        figure.legend(handles, said, loc="outside upper center", ncols=min(len(names), 7), handletextpad=0.2)

    caption = (
        f"{title}. The {len(names)} most frequent categories, {len(order)} items. Representational similarity of "
        f"embeddings and target embeddings (Spearman): {likeness:.2f} on these, {whole:.2f} on all "
        f"{len(seen.queries)} items. Silhouette of the categories (cosine, not from the t-SNE): {apart[0]:.2f} in the "
        f"epochs, {apart[1]:.2f} in the embeddings. Distances between clusters of a t-SNE mean nothing."
    )
    alt = (
        f"Four panels: t-SNE of epochs and of embeddings, coloured by category ({', '.join(names)}), and two "
        f"dissimilarity matrices sorted by category, whose rank correlation is {likeness:.2f}."
    )
    return drawn(name, (WIDTH, 7.4), draw, alt, caption)


def _matrix(ax: Axes, matrix: Float64, labels: npt.NDArray[np.int64], names: Sequence[str]) -> None:
    ranked = np.argsort(np.argsort(matrix, axis=None)).reshape(matrix.shape) / matrix.size
    ax.imshow(ranked, cmap="cividis")
    starts = np.searchsorted(labels, np.arange(len(names)))
    for start in starts[1:]:
        ax.axhline(start - 0.5, color="white", linewidth=0.8)
        ax.axvline(start - 0.5, color="white", linewidth=0.8)
    bare(ax)
    ax.set_yticks((starts + np.append(starts[1:], len(labels)) - 1) / 2, names, fontsize=7.5)
    ax.tick_params(length=0)


def scalp(name: str, title: str, maps: Mapping[str, Float64], ch_names: Sequence[str], caption: str) -> Picture | None:
    """Scalp maps of one value per channel; None where fewer than four channels have a place on the scalp.

    ``maps`` per heading, such as a subject, (n_chans,); all in one scale, symmetric around 0.
    """
    flat = flattened(ch_names)
    if flat is None:
        return None
    limit = max(float(np.abs(values).max()) for values in maps.values()) or 1.0

    def draw(figure: Figure) -> None:
        axes = panels(figure, len(maps), 5)
        for ax, (heading, values) in zip(axes, maps.items(), strict=True):
            topomap(ax, values, flat, limit)
            ax.set_title(heading)
        scale_bar(figure, axes, limit, "loss of margin")

    rows = -(-len(maps) // 5)
    mean = np.mean(list(maps.values()), axis=0)
    strongest = ", ".join(ch_names[i] for i in np.argsort(-mean)[:5])
    alt = f"Scalp maps of {', '.join(maps)}. The channels that matter most on average: {strongest}."
    size = (1.2 + 1.5 * min(len(maps), 5), 0.4 + 1.7 * rows)
    said = f"{title}. {caption} Most: {strongest}."
    return drawn(name, size, draw, alt, said)


def sheet(name: str, title: str, seen: Look, right: Sequence[Case], wrong: Sequence[Case]) -> Picture:
    """Draw queries with the first five candidates of each: the right ones first, then the wrong ones."""
    every = [*right, *wrong]
    thumbnails = {g: _thumbnail(seen, g) for case in every for g in (case.own, *case.first)}
    columns = 1 + max(len(case.first) for case in every)

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(every), columns, squeeze=False)
        for row, case in zip(grid, every, strict=True):
            _tile(row[0], seen.items[case.own], thumbnails[case.own], INK, f"rank {case.rank + 1}")
            for ax, g, cosine in zip(row[1:], case.first, case.cosines, strict=False):
                own = g == case.own
                _tile(ax, seen.items[g], thumbnails[g], _RIGHT if own else _WRONG, f"{cosine:.2f}", mark=own)
        grid[0][0].set_title("shown", pad=8)
        for place, ax in enumerate(grid[0][1:], 1):
            ax.set_title(f"{place}.", pad=8)

    said = "; ".join(
        f"shown {seen.items[case.own].label}, found {', '.join(seen.items[g].label for g in case.first)}"
        for case in every
    )
    caption = (
        f"{title}. Queries drawn by chance: {len(right)} of those found first, then {len(wrong)} of those that were "
        "not. Blue and “own”: the image that was shown; vermilion: another. Below, the rank of the own image and the "
        "cosines."
    )
    height = 0.3 + (1.42 if any(image is not None for image in thumbnails.values()) else 0.62) * len(every)
    return drawn(name, (_SHEET, height), draw, f"Retrieval cases: {said}.", caption)


def _tile(ax: Axes, item: Item, image: UInt8 | None, colour: str, note: str, *, mark: bool = False) -> None:
    label = textwrap.shorten(item.label, 30, placeholder="…")
    if image is None:
        ax.set_facecolor("none")
        ax.text(0.5, 0.5, textwrap.fill(label, 12), ha="center", va="center", fontsize=8, transform=ax.transAxes)
    else:
        ax.imshow(image, interpolation="none")
    bare(ax)
    ax.spines[:].set(visible=True, color=colour, linewidth=2.4)
    said = f"own · {note}" if mark else note
    below = said if image is None else f"{textwrap.fill(label, 16)}\n{said}"
    ax.set_xlabel(below, fontsize=6.8, labelpad=3, color=INK)


def _thumbnail(seen: Look, g: int) -> UInt8 | None:
    return thumbnail(seen.images / seen.items[g].image) if seen.items[g].image else None


def thumbnail(path: Path, size: int = 96) -> UInt8 | None:
    """Centre square of an image, (size, size, 3) uint8; None where it cannot be read."""
    from PIL import Image

    try:
        image = Image.fromarray(read_rgb(path))
    except DataError:
        return None
    side = min(image.size)
    left, upper = (image.width - side) // 2, (image.height - side) // 2
    square = image.crop((left, upper, left + side, upper + side)).resize((size, size), Image.Resampling.LANCZOS)
    return np.asarray(square)


def saliency_maps(
    name: str, items: Sequence[Item], folder: Path, settings: Saliency, caption: str, n: int = 4
) -> Picture | None:
    """Visual saliency of the first ``n`` images that can be read; None where there is none."""
    images: list[tuple[Item, UInt8]] = []
    for item in items:
        image = thumbnail(folder / item.image, 224) if item.image and len(images) < n else None
        if image is not None:
            images.append((item, image))
    if not images:
        return None

    def draw(figure: Figure) -> None:
        grid = figure.subplots(len(images), 5, squeeze=False)
        for row, (item, image) in zip(grid, images, strict=True):
            found = saliency(image, settings)
            stages: tuple[tuple[Float32 | UInt8, str | None], ...] = (
                (image, None),
                (attention(image, settings), "gray"),
                (found, "gray"),
                (found, "inferno"),
                (weighted(image, settings), None),
            )
            for ax, (content, cmap) in zip(row, stages, strict=True):
                ax.imshow(content, cmap=cmap, interpolation="bilinear")
                bare(ax)
            row[0].set_ylabel(textwrap.fill(item.label, 14), fontsize=8)
        headings = ("image", "rapid saliency", "saliency map", "as heat", "weighted image")
        for ax, heading in zip(grid[0], headings, strict=True):
            ax.set_title(heading)

    labels = ", ".join(item.label for item, _ in images)
    return drawn(name, (_SHEET, 0.3 + 1.45 * len(images)), draw, f"Visual saliency extraction of {labels}.", caption)


def bare(ax: Axes) -> None:
    """Take away ticks, grid and frame."""
    ax.set_xticks([])
    ax.set_yticks([])
    ax.grid(visible=False)
    ax.spines[:].set_visible(False)
