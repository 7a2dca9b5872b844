"""Figures as SVG that follows the reader's light or dark scheme and prints in black.

Colours are those of Okabe and Ito, which colour-blind people tell apart; what differs in colour differs in marker or
line too.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ..errors import ConfigError
from .document import Picture

if TYPE_CHECKING:  # matplotlib comes with an extra
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#8c6bb1")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":")
INK, SOFT = "#1f2328", "#8b949e"  # stand for the page's own colours: see _SCHEME
WIDTH = 8.8  # inches

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
    """Draw a figure: ``draw`` fills it; ``size`` in inches.

    Raises
    ------
    ConfigError
        Matplotlib is not installed.
    """
    try:
        import matplotlib as mpl
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ConfigError("a report needs matplotlib", do="pip install 'streamdec[report]'") from error
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


def legend(figure: Figure, axes: Sequence[Axes], names: Sequence[str]) -> None:
    """Put one legend above the figure, of what the axes show, in the order of ``names``; none for one thing."""
    found: dict[str, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        found |= dict(zip(labels, handles, strict=True))
    if len(found) > 1:
        ordered = [name for name in names if name in found]
        figure.legend([found[name] for name in ordered], ordered, loc="outside upper center", ncols=min(len(found), 5))
