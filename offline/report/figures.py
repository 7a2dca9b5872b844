"""Figures of results, as SVG that follows the reader's light or dark scheme and prints in black.

Colours are those of Okabe and Ito, which colour-blind people tell apart; what differs in colour differs in marker or
line too.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from streamdec.intervals import binomial_interval

from .page import Picture

Curve: TypeAlias = Mapping[float, float]  # x -> y

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":")
INK, SOFT = "#1f2328", "#8b949e"  # stand for the page's own colours: see _SCHEME
WIDTH = 8.8  # inches
MAX_BANDS = 4

_SCHEME = (
    "<style>svg{color:%s}@media screen and (prefers-color-scheme:dark){svg{color:#e6e9ec}}</style>" % INK  # noqa: UP031
)
_STYLE: Any = {  # matplotlib's own type of it lists every key there is
    "svg.fonttype": "path",
    "svg.hashsalt": "streamdec",
    "font.family": "DejaVu Sans",
    "font.size": 9.0,
    "axes.titlesize": 9.5,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "grid.color": SOFT,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.labelcolor": INK,
    "lines.linewidth": 1.8,
    "lines.markersize": 5.0,
    "image.interpolation": "nearest",
}


def drawn(name: str, size: tuple[float, float], draw: Callable[[Figure], None], alt: str, caption: str) -> Picture:
    """Draw a figure: ``draw`` fills it; ``size`` in inches."""
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasSVG(figure)
        draw(figure)
        out = io.BytesIO()
        nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
        figure.savefig(out, format="svg", transparent=True, dpi=150, metadata=nothing)
    text = out.getvalue().decode()
    text = text.replace(INK, "currentColor")
    start = text.index(">", text.index("<svg")) + 1
    return Picture(f"{name}.svg", (text[:start] + _SCHEME + text[start:]).encode(), alt, caption)


def style(number: int) -> dict[str, Any]:
    """Colour, marker and line of the ``number``-th of several things."""
    turn = number // len(COLOURS)
    return {
        "color": COLOURS[number % len(COLOURS)],
        "marker": MARKERS[number % len(MARKERS)],
        "linestyle": LINES[turn % len(LINES)],
    }


def panels(figure: Figure, n: int, columns: int, **shared: Any) -> list[Axes]:
    """Make ``n`` axes in rows of ``columns``."""
    columns = min(columns, n)
    grid = figure.subplots(-(-n // columns), columns, squeeze=False, **shared).ravel()
    for spare in grid[n:]:
        spare.remove()
    return list(grid[:n])


def per_subject(
    name: str,
    values: Mapping[str, Mapping[str, Sequence[float]]],
    numbers: Mapping[str, int],
    n_queries: int,
    chance: float,
    caption: str,
) -> Picture:
    """Bars of every subject, a panel per method.

    ``values`` per method and subject the top-1 of each seed, ``numbers`` what each method's colour is; whiskers are the
    binomial 95 % interval of ``n_queries`` at the mean, dots the seeds.
    """
    subjects = sorted({subject for of_method in values.values() for subject in of_method})
    places = np.arange(len(subjects))

    def draw(figure: Figure) -> None:
        axes = panels(figure, len(values), 3, sharey=True)
        for ax, (method, of_subject) in zip(axes, values.items(), strict=True):
            means = np.array([np.mean(of_subject.get(subject, [np.nan])) for subject in subjects])
            known = np.flatnonzero(np.isfinite(means))
            bounds = np.array([binomial_interval(means[i], n_queries) for i in known]).reshape(-1, 2)
            reach = np.abs(bounds.T - means[known])
            ax.bar(places, 100 * means, 0.7, color=style(numbers[method])["color"], alpha=0.85)
            ax.errorbar(places[known], 100 * means[known], 100 * reach, fmt="none", ecolor=INK, elinewidth=0.9)
            for place, subject in zip(places, subjects, strict=True):
                seeds = of_subject.get(subject, [])
                if len(seeds) > 1:
                    spread = place + np.linspace(-0.18, 0.18, len(seeds))
                    ax.plot(spread, 100 * np.array(seeds), ".", color=INK, markersize=3.5)
            ax.axhline(100 * chance, color=INK, linewidth=0.9, linestyle=":")
            ax.set_title(method)
            crowded = len(subjects) > 4
            ax.set_xticks(places, subjects, rotation=90 if crowded else 0, fontsize=7.5 if crowded else 9)
            ax.tick_params(axis="x", length=0)
            ax.set_xlim(-0.6, len(subjects) - 0.4)
        axes[0].set_ylim(bottom=0)  # last: it ends the scaling to what is drawn
        for ax in axes[:: min(3, len(axes))]:
            ax.set_ylabel("top-1 %")

    said = "; ".join(
        f"{method}: " + ", ".join(f"{s} {100 * np.mean(of_subject[s]):.1f}" for s in subjects if s in of_subject)
        for method, of_subject in values.items()
    )
    rows = -(-len(values) // 3)
    return drawn(name, (WIDTH, 0.5 + 2.3 * rows), draw, f"Bars of top-1 in percent per subject. {said}.", caption)


def curves(
    name: str,
    groups: Mapping[str, Mapping[str, Mapping[float, Sequence[float]]]],
    numbers: Mapping[str, int],
    labels: tuple[str, str],
    chance: float,
    caption: str,
    *,
    doubling: bool = False,
) -> Picture:
    """Draw shares in percent as curves with bands, a panel per group.

    ``groups`` per panel and method, at each x the values that are averaged, such as one per subject; the band is their
    sample deviation, left out where more than ``MAX_BANDS`` would overlap. ``numbers`` what each method's colour is;
    ``doubling`` sets x in steps of two.
    """

    def draw(figure: Figure) -> None:
        axes = panels(figure, len(groups), 2, sharey=True)
        for ax, (title, of_group) in zip(axes, groups.items(), strict=True):
            for method, points in of_group.items():
                x = np.array(sorted(points))
                mean = 100 * np.array([np.mean(points[at]) for at in x])
                ax.plot(x, mean, label=method, **style(numbers[method]))
                if len(of_group) <= MAX_BANDS and all(len(points[at]) > 1 for at in x):
                    band = 100 * np.array([np.std(points[at], ddof=1) for at in x])
                    colour = style(numbers[method])["color"]
                    ax.fill_between(x, mean - band, mean + band, color=colour, alpha=0.15, linewidth=0)
            ax.axhline(100 * chance, color=INK, linewidth=0.9, linestyle=":")
            if doubling:
                at = sorted({place for points in of_group.values() for place in points})
                ax.set_xscale("log", base=2)
                ax.xaxis.set_major_locator(FixedLocator(at))
                ax.xaxis.set_minor_locator(NullLocator())
                ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            ax.set_title(title)
            ax.set_xlabel(labels[0])
        ax.annotate("chance", (1.01, 100 * chance), xycoords=("axes fraction", "data"), va="center", fontsize=8)
        axes[0].set_ylim(bottom=0)
        axes[0].set_ylabel(labels[1])
        _legend(figure, axes, sorted(numbers, key=lambda method: numbers[method]))

    said = "; ".join(
        f"{title}, {method}: " + ", ".join(f"{x:g}: {100 * np.mean(points[x]):.3g}" for x in sorted(points))
        for title, of_group in groups.items()
        for method, points in of_group.items()
    )
    height = 3.3 if len(groups) < 3 else 0.3 + 2.7 * -(-len(groups) // 2)
    width = WIDTH if len(groups) > 1 else 0.65 * WIDTH
    return drawn(name, (width, height), draw, f"Curves of {labels[1]} over {labels[0]}. {said}.", caption)


def lines(
    name: str, groups: Mapping[str, Mapping[str, Sequence[Curve]]], labels: tuple[str, str], caption: str
) -> Picture:
    """Draw curves of single runs, thin, and their mean over those that reach each x, thick; a panel per group.

    ``groups`` per panel and quantity the curve of each run.
    """
    names = list(dict.fromkeys(quantity for of_group in groups.values() for quantity in of_group))
    means = {title: {q: _mean(runs) for q, runs in of_group.items()} for title, of_group in groups.items()}

    def draw(figure: Figure) -> None:
        axes = panels(figure, len(groups), 3)
        for ax, (title, of_group) in zip(axes, groups.items(), strict=True):
            for quantity, runs in of_group.items():
                number = names.index(quantity)
                look = {"color": COLOURS[number % len(COLOURS)], "linestyle": LINES[number % len(LINES)]}
                for run in runs if len(runs) > 1 else ():
                    ax.plot(list(run), list(run.values()), linewidth=0.6, alpha=0.35, **look)
                mean = means[title][quantity]
                ax.plot(list(mean), list(mean.values()), label=quantity, **look)
            ax.set_title(title)
            ax.set_xlabel(labels[0])
            ax.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes[0].set_ylabel(labels[1])
        _legend(figure, axes, names)

    said = "; ".join(
        f"{title}, {quantity}: {next(iter(mean.values())):.3g} at first, {list(mean.values())[-1]:.3g} at last"
        for title, of_group in means.items()
        for quantity, mean in of_group.items()
    )
    height = 0.6 + 2.3 * -(-len(groups) // 3)
    width = WIDTH * (0.55, 0.8, 1.0)[min(len(groups), 3) - 1]
    return drawn(name, (width, height), draw, f"Curves of {labels[1]} over {labels[0]}. {said}.", caption)


def _mean(runs: Sequence[Curve]) -> dict[float, float]:
    places = sorted({x for run in runs for x in run})
    return {x: float(np.mean([run[x] for run in runs if x in run])) for x in places}


def _legend(figure: Figure, axes: Sequence[Axes], names: Sequence[str]) -> None:
    found: dict[str, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    if len(found) > 1:
        ordered = [name for name in names if name in found]
        figure.legend([found[name] for name in ordered], ordered, loc="outside upper center", ncols=min(len(found), 5))
