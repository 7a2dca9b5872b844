"""Figures of results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from streamdec.intervals import binomial_interval
from streamdec.page.document import Picture
from streamdec.page.drawing import COLOURS, INK, LINES, WIDTH, drawn, legend, panels, style

Curve: TypeAlias = Mapping[float, float]  # x -> y

MAX_BANDS = 4


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
        legend(figure, axes, sorted(numbers, key=lambda method: numbers[method]))

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
        legend(figure, axes, names)

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
