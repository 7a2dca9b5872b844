"""Figures of one session."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.signal import find_peaks

from ..feed import schema
from ..intervals import binomial_interval
from ..page.document import Picture
from ..page.drawing import COLOURS, INK, SOFT, WIDTH, drawn, panels
from ..page.scalp import flattened, scale_bar, topomap
from ..types import Float32, Float64
from .evoked import HIGH_PASS, Evoked

if TYPE_CHECKING:  # matplotlib comes with an extra
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_BLUE, _RED, _GREEN = COLOURS[0], COLOURS[1], COLOURS[2]
_FOUND = {1: (_BLUE, "o", "first"), 5: (_GREEN, "s", "among the first five")}
_PER_BIN = 25  # decisions behind one point over time, at least
_BINS = 24
_LABELS = 70  # channels whose names can still be read


def accuracy(decisions: Sequence[schema.Retrieval], start: float) -> Picture:
    """Draw accuracy over time, over repetitions, and against the probability that was given.

    ``decisions`` with a rank, in order; ``start`` LSL clock, seconds.
    """
    ranks = np.array([decision.rank for decision in decisions])
    minutes = np.array([decision.onset_time - start for decision in decisions]) / 60
    repetitions = np.array([decision.repetitions for decision in decisions])
    given = np.array([decision.candidates[0].probability if decision.candidates else 0.0 for decision in decisions])
    chance = 1 / decisions[0].gallery_size
    order = np.argsort(minutes, kind="stable")
    over_time = np.array_split(order, max(1, min(_BINS, len(order) // _PER_BIN)))
    edges = _doubling(int(repetitions.max()))
    over_repetitions = [np.flatnonzero((repetitions >= low) & (repetitions < high)) for low, high in pairwise(edges)]
    over_given = np.array_split(np.argsort(given, kind="stable"), max(1, min(8, len(given) // _PER_BIN)))

    def draw(figure: Figure) -> None:
        above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
        wide = above.subplots()
        at = [float(minutes[some].mean()) for some in over_time]
        for k, (colour, marker, name) in _FOUND.items():
            _points(wide, at, [ranks[some] <= k for some in over_time], colour, marker, name)
        _chance(wide, chance)
        wide.set_xlabel("min after the start")
        wide.set_ylabel("shown image found, %")
        wide.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=2)
        wide.set_ylim(0, 105)
        left, right = below.subplots(1, 2)
        shown = [(low, some) for low, some in zip(edges, over_repetitions, strict=False) if len(some)]
        places = list(range(len(shown)))
        for k, (colour, marker, name) in _FOUND.items():
            _points(
                left,
                [place + 0.015 * k for place in places],
                [ranks[some] <= k for _, some in shown],
                colour,
                marker,
                name,
            )
        _chance(left, chance)
        ranges = [_range(low, high) for low, high in pairwise(edges) if _any(repetitions, low, high)]
        left.set_xticks(places, ranges, rotation=0 if len(ranges) < 8 else 60)
        left.set_xlabel("presentations behind the decision")
        left.set_ylabel("shown image found, %")
        left.set_ylim(0, 105)
        at = [100 * float(given[some].mean()) for some in over_given]
        _points(right, at, [ranks[some] == 1 for some in over_given], _BLUE, "o", "", linestyle="")
        most = max(*right.get_ylim(), 1.1 * max(at))
        right.plot((0, most), (0, most), ":", color=INK, linewidth=0.9)
        right.set_xlabel("probability given to the best candidate, %")
        right.set_ylabel("best candidate is right, %")
        right.set_xlim(0, most)
        right.set_ylim(0, most)

    first, five = (100 * np.mean(ranks <= k) for k in (1, 5))
    said = f"{first:.1f} % first of {decisions[0].gallery_size}, {five:.1f} % among five"
    caption = (
        "Share of decisions in which the shown image came first, or among the first five. Above: over time, at least "
        f"{min(_PER_BIN, len(ranks))} decisions behind each point. Below left: by the number of presentations of the "
        "image that the decision had seen. Below right: probability that was given, against how often it was right; "
        "on the dotted line both agree. Whiskers: binomial 95 % intervals, which take decisions as independent: those "
        "on one image are not quite. Dotted: chance."
    )
    return drawn("accuracy", (WIDTH, 5.6), draw, f"Accuracy over time and repetitions: {said}.", caption)


def _points(
    ax: Axes, at: Sequence[float], hits: Sequence[Any], colour: str, marker: str, name: str, linestyle: str = "-"
) -> None:
    """Draw shares of True, with binomial intervals."""
    shares = np.array([np.mean(some) for some in hits])
    bounds = np.array([binomial_interval(float(share), len(some)) for share, some in zip(shares, hits, strict=True)])
    reach = np.abs(bounds.T - shares)
    look: dict[str, Any] = {"color": colour, "marker": marker, "linestyle": linestyle, "elinewidth": 0.9}
    ax.errorbar(at, 100 * shares, 100 * reach, label=name, **look)


def _chance(ax: Axes, chance: float) -> None:
    ax.axhline(100 * chance, color=INK, linewidth=0.9, linestyle=":")


def _doubling(most: int) -> list[int]:
    """Edges of classes of repetitions: 1, 2, 3-4, 5-8, ..."""
    edges = [1, 2]
    while edges[-1] <= most:
        edges.append(2 * (edges[-1] - 1) + 1)
    return edges


def _range(low: int, high: int) -> str:
    return str(low) if high - low == 1 else f"{low}–{high - 1}"


def _any(values: Any, low: int, high: int) -> bool:
    return bool(np.any((values >= low) & (values < high)))


def latencies(kinds: Mapping[str, tuple[Float64, float]]) -> Picture:
    """Draw histograms of latency; per kind the latencies and the budget, seconds."""

    def draw(figure: Figure) -> None:
        axes = panels(figure, len(kinds), 3)
        for ax, (kind, (seconds, budget)) in zip(axes, kinds.items(), strict=True):
            ms = 1e3 * np.maximum(seconds, 1e-4)
            low, high = min(ms.min(), 1e3 * budget) / 1.2, max(ms.max(), 1e3 * budget) * 1.2
            bins = np.geomspace(low, high, 50)
            late = ms > 1e3 * budget
            ax.hist([ms[~late], ms[late]], bins=bins.tolist(), stacked=True, color=[_BLUE, _RED], linewidth=0)
            ax.set_xscale("log")
            ax.axvline(1e3 * budget, color=INK, linewidth=1.2, linestyle="--")
            ax.set_title(kind)
            ax.set_xlabel("ms after the epoch's end")
            ticks = [t for t in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000) if low <= t <= high]
            ax.set_xticks(ticks, [f"{t:g}" for t in ticks])
            ax.minorticks_off()
        axes[0].set_ylabel("results")

    said = "; ".join(
        f"{kind}: median {1e3 * np.median(seconds):.1f} ms, 99th percentile {1e3 * np.quantile(seconds, 0.99):.1f} ms, "
        f"budget {1e3 * budget:g} ms"
        for kind, (seconds, budget) in kinds.items()
    )
    caption = (
        "From the moment the epoch's last sample was due to the published result; dashed: the budget; vermilion: "
        "too late."
    )
    width = WIDTH * (0.5, 0.8, 1.0)[len(kinds) - 1]
    return drawn("latencies", (width, 2.7), draw, f"Histograms of latency. {said}.", caption)


def evoked(found: Evoked, soa: float | None) -> Picture:
    """Draw the evoked response: every channel, the global field power, and the scalp at its peaks."""
    ms = 1e3 * found.times
    power = found.mean.std(axis=0)
    flat = flattened(found.ch_names)
    after = np.flatnonzero((found.times > 0.05) & (found.times < 0.6))
    apart = max(1, int(np.searchsorted(found.times, found.times[0] + 0.04)))
    places = after[find_peaks(power[after], distance=apart)[0]]
    places = np.sort(places[np.argsort(power[places])[::-1][:4]])
    if not len(places):
        places = after[[int(np.argmax(power[after]))]]

    def draw(figure: Figure) -> None:
        if flat is None:
            ax = figure.subplots()
        else:
            above, below = figure.subfigures(2, 1, squeeze=False, height_ratios=(1.6, 1))[:, 0]
            ax = above.subplots()
            limit = float(np.abs(found.mean[:, places]).max()) or 1.0
            heads = below.subplots(1, len(places), squeeze=False)[0]
            for head, place in zip(heads, places, strict=True):
                topomap(head, found.mean[:, place], flat, limit)
                head.set_title(f"{ms[place]:.0f} ms")
            scale_bar(below, heads, limit, "µV")
        ax.plot(ms, found.mean.T, color=SOFT, linewidth=0.6, alpha=0.7)
        ax.plot(ms, power, color=_RED, linewidth=1.8, label="global field power")
        ax.axvline(0, color=INK, linewidth=0.9)
        ax.plot(ms[places], power[places], "v", color=INK, markersize=4)
        ax.margins(x=0)
        ax.set_xlabel("ms after the onset")
        ax.set_ylabel("µV")
        ax.legend(loc="lower left", bbox_to_anchor=(0, 1))

    peaks = ", ".join(f"{ms[place]:.0f} ms ({power[place]:.1f} µV)" for place in places)
    overlap = (
        ""
        if soa is None or soa > found.times[-1]
        else (f" Stimuli came every {1e3 * soa:.0f} ms (median), so responses to those before and after are in it.")
    )
    caption = (
        f"Mean of {len(found.onsets)} epochs, all stimuli together, {found.n_left_out} left out; grey: the channels."
        f"{overlap} How it was filtered stands below."
    )
    height = 3.0 if flat is None else 5.2
    return drawn("evoked", (WIDTH, height), draw, f"Evoked response; global field power peaks at {peaks}.", caption)


def channels(found: Evoked, filled: Mapping[str, float], start: float) -> Picture:
    """Draw each channel's standard deviation over time, and how often it was filled in from its neighbours.

    ``filled`` share of decisions, by channel; ``start`` LSL clock, seconds.
    """
    names = found.ch_names
    minutes = (found.onsets - start) / 60
    bins = np.array_split(np.argsort(minutes, kind="stable"), max(1, min(60, len(minutes) // 5)))
    image: Float32 = np.stack([np.median(found.sd[some], axis=0) for some in bins], axis=1)
    middle = np.median(found.sd, axis=0)
    shares = 100 * np.array([filled.get(name, 0.0) for name in names])

    def draw(figure: Figure) -> None:
        axes = figure.subplots(1, 1 + any(shares), squeeze=False, sharey=True, width_ratios=(5, 1)[: 1 + any(shares)])[
            0
        ]
        over_time = axes[0]
        edges = np.array([minutes[bins[0][0]], *(minutes[some[-1]] for some in bins)])
        rows = np.arange(len(names) + 1) - 0.5
        if not np.all(np.diff(edges) > 0):
            edges = np.linspace(edges[0], edges[-1] + 1e-3, len(edges))
        top = float(np.quantile(image, 0.98)) * 1.2 or 1.0
        shown = over_time.pcolormesh(edges, rows, image, cmap="cividis", vmin=0, vmax=top, rasterized=True)
        bar = figure.colorbar(shown, ax=over_time, pad=0.01, extend="max", fraction=0.04, aspect=40)
        bar.set_label("standard deviation within an epoch, µV", fontsize=8)
        bar.ax.spines["outline"].set_visible(False)
        over_time.set_xlabel("min after the start")
        over_time.grid(visible=False)
        over_time.set_ylim(len(names) - 0.5, -0.5)
        labels = (
            names
            if len(names) <= _LABELS
            else ["" if share == 0 else n for n, share in zip(names, shares, strict=True)]
        )
        over_time.set_yticks(np.arange(len(names)), labels, fontsize=max(4.5, min(9.0, 300 / len(names))))
        over_time.tick_params(length=0)
        for beside in axes[1:]:
            beside.barh(np.arange(len(names)), shares, color=_RED, height=0.8)
            beside.set_xlabel("filled in, %\nof decisions")
            beside.grid(visible=True, axis="x")
            beside.grid(visible=False, axis="y")
            beside.tick_params(axis="y", length=0)

    loud = [names[i] for i in np.argsort(-middle)[:3]]
    often = [f"{names[i]} {shares[i]:.1f} %" for i in np.argsort(-shares)[:5] if shares[i] > 0]
    said = f"Loudest: {', '.join(loud)}. Filled in from their neighbours: {', '.join(often) or 'none'}."
    right = " Right: decisions in which a channel was bad or missing." if any(shares) else ""
    caption = f"Median standard deviation within epochs, behind a {HIGH_PASS:g} Hz high-pass.{right} {said}"
    height = 1.0 + min(7.0, max(2.0, 0.09 * len(names)))
    return drawn("channels", (WIDTH, height), draw, f"Channel quality over time. {said}", caption)


def clock(stats: Sequence[schema.Stats], nominal: float, breaks: Sequence[float], start: float) -> Picture:
    """Draw how the amplifier's clock went: its rate, the jitter of its stamps, its offset to ours, and where it broke.

    ``breaks`` LSL clock of gaps, stalls and losses; ``start`` LSL clock, seconds.
    """
    known = [one for one in stats if one.sfreq_effective > 0]
    minutes = np.array([one.time - start for one in known]) / 60
    offset = 1e3 * np.array([one.clock_offset for one in known])
    curves = {
        "rate, ppm off nominal": 1e6 * (np.array([one.sfreq_effective for one in known]) / nominal - 1),
        "jitter of stamps, ms": 1e3 * np.array([one.clock_jitter for one in known]),
        "clock offset less its first, ms": offset - (offset[0] if len(offset) else 0.0),
    }

    def draw(figure: Figure) -> None:
        for ax, (name, values), least in zip(panels(figure, 3, 3), curves.items(), (1.0, 0.1, 0.1), strict=True):
            ax.plot(minutes, values, color=_BLUE, linewidth=1.2)
            low, high = ax.get_ylim()
            if high - low < least:  # what no stamp resolves is no finding
                middle = float(np.median(values))
                ax.set_ylim(middle - least / 2, middle + least / 2)
            ax.ticklabel_format(useOffset=False)
            for at in breaks:
                ax.axvline((at - start) / 60, color=_RED, linewidth=0.9, alpha=0.7)
            ax.set_title(name)
            ax.set_xlabel("min after the start")

    said = "; ".join(f"{name}: {values[-1]:.3g} at last" for name, values in curves.items() if len(values))
    caption = f"As the session measured it, once a second. Vermilion: gaps, stalls and losses ({len(breaks)})."
    return drawn("clock", (WIDTH, 2.5), draw, f"The amplifier's clock. {said}.", caption)
