"""The pictures of the site, drawn from what the code does; each in a light and a dark version.

python tools/make_docs_pictures.py [NAME ...]       # default: all that come out the same each time
python tools/make_docs_pictures.py latency          # a measurement of this machine
"""

from __future__ import annotations

import heapq
import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.patches import FancyBboxPatch, Rectangle

from streamdec import bench
from streamdec.acquire.clock import SampleClock
from streamdec.config import Config, load
from streamdec.decode import bundle as bundles
from streamdec.decode.generate.cost import Cost
from streamdec.decode.generate.job import Answer, Drop, Request, Result, Tier
from streamdec.decode.generate.ladder import AnswerHere, Ladder, Offer, Send, Start
from streamdec.demo import (
    DEMO_BUNDLE,
    DEMO_SESSION,
)
from streamdec.feed import schema
from streamdec.serve import engines, session
from streamdec.session import MemoryOutlet
from streamdec.simulate.amplifier import CATCH, CHUNK, streams
from streamdec.simulate.schedule import TARGET, Timing, rsvp
from streamdec.simulate.subject import Subject
from streamdec.simulate.world import World
from streamdec.types import Chunk, Event, Marker

TARGETS = Path(__file__).parents[1] / "docs" / "pages" / "pictures"


class Palette(NamedTuple):
    """Colours of one version: text, lesser text, lines, boxes, marks.

    ``marks`` are told apart by colour-blind readers too (Okabe and Ito).
    """

    name: str
    ink: str
    soft: str
    faint: str
    box: str
    marks: tuple[str, ...]


PALETTES = (
    Palette(
        "light", "#1f2933", "#52606d", "#9aa5b1", "#eef2f7", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00")
    ),
    Palette(
        "dark", "#e4e7eb", "#a7b1bd", "#7b8794", "#2b303b", ("#56b4e9", "#ff8c42", "#2ecc9b", "#e29ac0", "#f0c05a")
    ),
)


# --- what is drawn: data from the code -------------------------------------------------------------------------------


def clock() -> dict[str, Any]:
    """A stream of 1000.2 Hz said to have 1000, stamps jittered by 2 ms, half a second lost at 5 s."""
    random = np.random.default_rng(0)
    rate, lost_from, lost_to = 1000.2, 5000, 5500
    index = np.concatenate([np.arange(lost_from), np.arange(lost_to, 10000)])
    true = index / rate
    stamps = true + random.normal(0, 2e-3, len(true))
    ours, clock_ = np.empty(len(true)), SampleClock(1000.0)
    for first in range(0, len(index), 10):
        for run in clock_.place(stamps[first : first + 10]):
            ours[first + run.start : first + run.stop] = run.times
    return {
        "time": true,
        "raw": 1e3 * (stamps - true),
        "ours": 1e3 * (ours - true),
        "gap": (lost_from / rate, lost_to / rate),
        "missing": clock_.missing,
    }


def played(
    n_images: int, repetitions: int, timing: Timing | None = None, lose: tuple[float, float] = (0.0, 0.0)
) -> Any:
    """The demo's subject through the whole loop, in this process, without the samples from ``lose`` s to ``lose`` s."""
    subject = Subject(World(0), 0)
    images = np.random.default_rng(DEMO_SESSION).permutation(200)[:n_images]
    schedule = rsvp("test", images, repetitions=repetitions, seed=(DEMO_SESSION, 0), timing=timing)
    bundle, config = bundles.read(DEMO_BUNDLE), load(None)
    markers = config.intake.markers.__class__(ignore=CATCH)
    config = Config(intake=config.intake.__class__(markers=markers))
    outlet = MemoryOutlet()
    eeg, marker_stream = streams(subject)
    live = session(bundle, eeg, outlet, config, engines(bundle, config))
    live.start(eeg, marker_stream)
    for event in _events(subject, schedule, lose):
        live.step(event)
    live.close("stopped")
    return outlet.messages


def _events(subject: Subject, schedule: Any, lose: tuple[float, float]) -> Iterator[Event]:
    ids, shown, position = subject.world.ids(schedule.split), 0, 0
    for data in subject.record(schedule, subject.noise(DEMO_SESSION), chunk=CHUNK):
        stamps = (position + np.arange(data.shape[1])) / subject.sfreq
        position += data.shape[1]
        while shown < len(schedule.samples) and schedule.samples[shown] < position:
            code, onset = schedule.codes[shown], schedule.samples[shown] / subject.sfreq
            yield Marker(CATCH if code == TARGET else ids[code - 1], float(onset), float(stamps[-1]))
            shown += 1
        if not lose[0] <= stamps[0] < lose[1]:
            yield Chunk(data, stamps, float(stamps[-1]))


def epochs() -> dict[str, Any]:
    """Epochs of a few seconds of RSVP, with 0.3 s of samples lost."""
    lose = (5.5, 5.8)
    messages = played(20, 2, Timing(before=3.5, after=2.0, targets=0.0), lose)
    signal = bundles.read(DEMO_BUNDLE).manifest.signal
    onsets = [m.onset_time for m in messages if isinstance(m, schema.Onset)]
    ends = {m.onset_time: m.outcome for m in messages if isinstance(m, schema.Epoch)}
    return {"lose": lose, "window": (signal.tmin, signal.tmax), "onsets": onsets, "ends": ends}


def evidence() -> dict[str, Any]:
    """Rank and probability of each of the demo's eight images, repetition by repetition."""
    rows: dict[str, list[tuple[int, int, float, bool]]] = {}
    for message in played(8, 24):
        if isinstance(message, schema.Retrieval) and message.final:
            own = next((c.probability for c in message.candidates if c.id == message.key), 0.0)
            rows.setdefault(message.key, []).append((message.repetitions, message.rank or 0, own, message.stop))
    return {"rows": rows}


COSTS: dict[Tier, tuple[tuple[int, int], float, float]] = {
    "latent": ((1, 1), 0.03, 0.0),
    "diffusion": ((1, 4), 0.07, 0.03),
}
"""Simulated tiers: units, seconds of the first unit and of each further one."""
BUDGET = 0.8  # s


class _Worker:
    """One worker on a virtual clock."""

    def __init__(self) -> None:
        self.random = np.random.default_rng(3)
        self.ladder = Ladder()
        self.queue: list[tuple[float, int, Callable[[float], None]]] = []
        self.number = itertools.count()
        self.asked: dict[int, float] = {}
        self.found: list[tuple[float, float, str, int]] = []  # asked, answered, tier, steps
        offers = {t: Offer(units, Cost(first=[a], each=[b])) for t, (units, a, b) in COSTS.items()}
        self.ladder.ready("worker", "reconstruction", offers, 0.0)

    def at(self, time: float, what: Callable[[float], None]) -> None:
        heapq.heappush(self.queue, (time, next(self.number), what))

    def run(self) -> None:
        while self.queue or self.ladder.next_wake() < np.inf:
            wake = self.ladder.next_wake()
            if self.queue and self.queue[0][0] <= wake:
                now, _, what = heapq.heappop(self.queue)
                what(now)
            else:
                self.take(self.ladder.tick(wake), wake)

    def ask(self, now: float) -> None:
        number = len(self.asked) + 1
        self.asked[number] = now
        nothing = np.zeros(0, np.float32)
        request = Request(number, "reconstruction", f"image {number}", 1, now, now + BUDGET, (), nothing)
        self.take(self.ladder.submit(request, now), now)

    def take(self, actions: list[Any], now: float) -> None:
        for action in actions:
            if isinstance(action, Start):
                self.work(action, now)
            elif isinstance(action, AnswerHere):
                self.found.append((self.asked[action.request.id], now, "nearest", 1))
            elif isinstance(action, Send) and isinstance(action.message, Answer) and not action.message.partial:
                made = action.message
                self.found.append((self.asked[made.id], now, made.tier, made.result.units))
            elif isinstance(action, Send) and isinstance(action.message, Drop):
                self.found.append((self.asked[action.message.id], now, "dropped", 0))

    def work(self, start: Start, now: float) -> None:
        _, first, each = COSTS[start.tier]
        scale = float(self.random.lognormal(0, 0.1))
        units = start.units
        while units > 1 and now + scale * (first + (units - 2) * each) > start.until:
            units -= 1  # no unit begins after `until`
        answer = Answer(start.request.id, start.tier, Result(image=b"picture", units=units), now, now, start.worker)
        end = now + scale * (first + (units - 1) * each)
        self.at(end, lambda now: self.take(self.ladder.finished(start.worker, answer, now), now))


def ladder() -> dict[str, Any]:
    """A request every 200 ms, every 50 ms for a while, every 200 ms again."""
    worker = _Worker()
    for at in np.concatenate([np.arange(0, 4, 0.2), np.arange(4, 8, 0.05), np.arange(8, 12, 0.2)]):
        worker.at(float(at), worker.ask)
    worker.run()
    return {"found": worker.found, "budget": BUDGET, "busy": (4.0, 8.0)}


def latency() -> dict[str, Any]:
    """Three hundred stimuli over real streams, on the machine that draws."""
    signal = bundles.read(DEMO_BUNDLE).manifest.signal
    plan = bench.Plan("pictures", signal.ch_names, signal.sfreq, 300, 0.2, 10, signal.tmin, signal.tmax)
    return {"ms": 1e3 * bench.measure(DEMO_BUNDLE, plan).latency, "machine": mpl.__version__}


# --- how it is drawn -------------------------------------------------------------------------------------------------


def draw_clock(data: dict[str, Any], p: Palette) -> Any:
    """Error of the raw stamps, and of the times that the samples get."""
    figure, axes = plt.subplots(figsize=(7.2, 2.8))
    axes.axvspan(*data["gap"], color=p.faint, alpha=0.25, lw=0)
    axes.plot(data["time"][::20], data["raw"][::20], ".", color=p.faint, ms=2, label="raw stamps")
    axes.plot(data["time"][::20], data["ours"][::20], ".", color=p.marks[0], ms=2, label="the clock's times")
    for sample in (-0.5, 0.5):
        axes.axhline(sample, color=p.ink, lw=0.7, ls=":")
    axes.text(9.95, 0.6, "half a sample", fontsize=8, va="bottom", ha="right", color=p.soft)
    axes.text(np.mean(data["gap"]), 7.0, f"{data['missing']} samples lost", ha="center", fontsize=8)
    axes.set(xlabel="time (s)", ylabel="error (ms)", ylim=(-8, 8), xlim=(0, 10))
    axes.legend(loc="lower right", markerscale=5, frameon=False, ncols=2, fontsize=8)
    return figure


def draw_epochs(data: dict[str, Any], p: Palette) -> Any:
    """A bar per epoch, coloured by its end; above, how many are open."""
    colours = {"decided": p.marks[0], "lost_data": p.marks[1], "cancelled": p.faint, "late": p.marks[3]}
    figure, (axes, above) = plt.subplots(2, 1, figsize=(7.2, 4.2), sharex=True, height_ratios=(4, 1))
    tmin, tmax = data["window"]
    shown = data["onsets"][:20]
    for row, onset in enumerate(shown):
        end = data["ends"][onset]
        axes.barh(row, tmax - tmin, left=onset + tmin, height=0.7, color=colours[end], alpha=0.85)
        axes.plot([onset, onset], [row - 0.35, row + 0.35], color=p.ink, lw=1.2)
    axes.axvspan(*data["lose"], color=p.ink, alpha=0.15, lw=0)
    axes.text(np.mean(data["lose"]), -1.1, "samples lost", ha="center", fontsize=8)
    axes.set_yticks(range(0, len(shown), 5))
    axes.set(ylabel="marker", ylim=(len(shown) + 0.2, -2), xlim=(shown[0] - 0.4, shown[-1] + tmax + 0.3))
    handles = [Rectangle((0, 0), 1, 1, color=colours[end]) for end in ("decided", "lost_data")]
    axes.legend(handles, ["decided", "lost_data"], loc="lower left", frameon=False, fontsize=8)
    times = np.linspace(shown[0] - 0.4, shown[-1] + tmax + 0.3, 300)
    starts, stops = np.array(shown), np.array(shown) + tmax
    n_open = [(int(np.sum((starts <= t) & (t < stops)))) for t in times]
    above.fill_between(times, n_open, step="post", color=p.faint, alpha=0.5, lw=0)
    above.set(xlabel="time (s)", ylabel="open", ylim=(0, max(n_open) + 1))
    return figure


def draw_evidence(data: dict[str, Any], p: Palette) -> Any:
    """Probability and rank of the image that was shown."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(7.2, 2.9))
    for i, rows in enumerate(data["rows"].values()):
        repetitions, ranks, probabilities, stops = (np.array(column) for column in zip(*rows, strict=True))
        colour = p.marks[i % len(p.marks)]
        style = "-" if i < len(p.marks) else "--"
        left.plot(repetitions, 100 * probabilities, style, color=colour, lw=1.3)
        right.plot(repetitions, ranks, style, color=colour, lw=1.3)
        met = np.flatnonzero(stops)
        if len(met):
            left.plot(repetitions[met[0]], 100 * probabilities[met[0]], "o", color=colour, ms=4)
    left.set(xlabel="repetitions", ylabel="probability (%)", ylim=(0, 100))
    right.set(xlabel="repetitions", ylabel="rank among 200", yscale="log", ylim=(250, 0.8))
    right.set_yticks([1, 10, 100], ["1", "10", "100"])
    right.minorticks_off()
    return figure


def draw_ladder(data: dict[str, Any], p: Palette) -> Any:
    """Each request at the time it came, as late as its answer was, coloured by tier and steps."""
    figure, axes = plt.subplots(figsize=(7.2, 3.0))
    kinds: dict[str, tuple[str, Callable[[str, int], bool]]] = {
        "diffusion, 4 steps": (p.marks[0], lambda tier, n: tier == "diffusion" and n == 4),
        "diffusion, 1 to 3 steps": (p.marks[2], lambda tier, n: tier == "diffusion" and n < 4),
        "latent": (p.marks[4], lambda tier, n: tier == "latent"),
        "nearest": (p.marks[1], lambda tier, n: tier == "nearest"),
    }
    for name, (colour, belongs) in kinds.items():
        points = np.array([(at, 1e3 * (done - at)) for at, done, tier, n in data["found"] if belongs(tier, n)])
        if len(points):
            axes.scatter(points[:, 0], points[:, 1], s=16, color=colour, label=f"{name} ({len(points)})")
    axes.axhline(1e3 * data["budget"], color=p.ink, lw=0.8, ls=":")
    axes.text(0, 1e3 * data["budget"] + 15, "deadline", fontsize=8)
    axes.axvspan(*data["busy"], color=p.faint, alpha=0.2, lw=0)
    axes.text(np.mean(data["busy"]), 30, "four times as many requests", ha="center", fontsize=8)
    axes.set(xlabel="request came at (s)", ylabel="answered after (ms)", ylim=(0, 1150), xlim=(-0.2, 12.2))
    axes.legend(loc="upper center", ncols=2, frameon=False, fontsize=8)
    return figure


def draw_latency(data: dict[str, Any], p: Palette) -> Any:
    """Histogram of push to receipt."""
    figure, axes = plt.subplots(figsize=(7.2, 2.6))
    ms = data["ms"]
    axes.hist(ms, bins=np.linspace(0, max(8.0, float(np.percentile(ms, 99)) * 1.2), 60).tolist(), color=p.marks[0])
    for share, name in ((50, "median"), (99, "99th percentile")):
        value = float(np.percentile(ms, share))
        axes.axvline(value, color=p.ink, lw=0.8, ls=":")
        axes.text(value, axes.get_ylim()[1], f" {name} {value:.1f} ms", fontsize=8, va="top")
    axes.set(xlabel="push of the last needed sample to receipt (ms)", ylabel="stimuli")
    return figure


class Sheet:
    """Boxes and arrows on a grid whose unit is a tenth of an inch."""

    def __init__(self, width: float, height: float, p: Palette) -> None:
        self.figure, self.axes = plt.subplots(figsize=(width / 10, height / 10))
        self.axes.set(xlim=(0, width), ylim=(height, 0))
        self.axes.axis("off")
        self.figure.subplots_adjust(0, 0, 1, 1)
        self.p = p

    def box(
        self, x: float, y: float, w: float, h: float, text: str, *, mark: int | None = None, small: str = ""
    ) -> None:
        """One thing; ``mark`` colours its edge."""
        edge = self.p.faint if mark is None else self.p.marks[mark]
        style = "round,pad=0,rounding_size=0.8"
        self.axes.add_patch(FancyBboxPatch((x, y), w, h, boxstyle=style, fc=self.p.box, ec=edge, lw=1.2))
        middle = y + h / 2
        self.axes.text(x + w / 2, middle - (0.9 if small else 0), text, ha="center", va="center", fontsize=9)
        if small:
            self.axes.text(x + w / 2, middle + 1.2, small, ha="center", va="center", fontsize=7, color=self.p.soft)

    def arrow(self, x: float, y: float, to_x: float, to_y: float, text: str = "", *, bend: float = 0.0) -> None:
        """From one to the other."""
        arrow = {"arrowstyle": "-|>", "color": self.p.faint, "lw": 1.2, "connectionstyle": f"arc3,rad={bend}"}
        self.axes.annotate("", (to_x, to_y), (x, y), arrowprops=arrow)
        if text:
            self.axes.text((x + to_x) / 2, (y + to_y) / 2 - 0.9, text, ha="center", fontsize=7, color=self.p.soft)

    def note(self, x: float, y: float, text: str, *, align: str = "center") -> None:
        """A line of text."""
        self.axes.text(x, y, text, ha=align, va="center", fontsize=8, color=self.p.soft)


def draw_way(_: dict[str, Any], p: Palette) -> Any:
    """The way of the data."""
    s = Sheet(76, 27, p)
    s.axes.add_patch(
        FancyBboxPatch((13, 3), 49, 13, boxstyle="round,pad=0,rounding_size=1", fc="none", ec=p.faint, ls=":")
    )
    s.note(37.5, 1.8, "streamdec serve: one thread, nothing in it waits")
    s.box(0, 4.5, 10, 4, "amplifier", small="LSL samples")
    s.box(0, 10.5, 10, 4, "stimuli", small="LSL markers")
    s.box(14.5, 4.5, 8, 4, "clock", small="filters, ring")
    s.box(14.5, 10.5, 8, 4, "onsets")
    s.box(25.5, 7.5, 8, 4, "epochs", small="quality")
    s.box(36, 7.5, 7, 4, "encoder")
    s.box(45.5, 7.5, 7, 4, "gallery", small="evidence")
    s.box(55, 7.5, 6, 4, "feed", mark=0)
    for y in (6.5, 12.5):
        s.arrow(10, y, 14.5, y)
        s.arrow(22.5, y, 25.5, 9.5, bend=0.0)
    s.arrow(33.5, 9.5, 36, 9.5)
    s.arrow(43, 9.5, 45.5, 9.5)
    s.arrow(52.5, 9.5, 55, 9.5)
    s.box(66, 4.5, 10, 4, "dashboard", small="watch")
    s.box(66, 10.5, 10, 4, "your program")
    s.arrow(61, 9, 66, 6.5)
    s.arrow(61, 10, 66, 12.5)
    s.box(14.5, 20.5, 16, 4, "recorder", small="a process of its own")
    s.box(42, 20.5, 22, 4, "captions and pictures", small="processes of their own, or machines")
    s.arrow(20, 16, 20, 20.5)
    s.arrow(49, 16, 49, 20.5)
    s.arrow(58, 20.5, 58, 11.5)
    s.note(38, 26, "what lies outside of the dotted line can only lose its own work")
    return s.figure


def draw_chain(_: dict[str, Any], p: Palette) -> Any:
    """One signal chain, run twice."""
    s = Sheet(72, 19, p)
    s.box(0, 1, 12, 4, "recording")
    s.box(0, 13, 12, 4, "amplifier")
    s.box(20, 7, 26, 5, "streamdec.signal, intake", mark=0, small="the same functions, the same parameters")
    s.arrow(12, 3, 22, 7, "prepare")
    s.arrow(12, 15, 22, 12, "serve")
    s.box(54, 1, 18, 4, "training epochs")
    s.box(54, 13, 18, 4, "live epochs")
    s.arrow(44, 7, 54, 3)
    s.arrow(44, 12, 54, 15)
    s.note(63, 9.5, "equal, sample by sample")
    return s.figure


def draw_day(_: dict[str, Any], p: Palette) -> Any:
    """The lab's day."""
    s = Sheet(76, 20, p)
    steps = (
        ("present", "show images"),
        ("record", "keep the EEG"),
        ("prepare", "cut epochs"),
        ("fit", "train"),
        ("export", "bundle"),
    )
    for i, (name, small) in enumerate(steps):
        s.box(1 + 15 * i, 2, 12, 4.4, name, small=small)
        if i:
            s.arrow(15 * i - 2, 4.2, 15 * i + 1, 4.2)
    live = (
        ("calibrate", "this day, this cap"),
        ("serve", "decode live"),
        ("dashboard", "watch"),
        ("sessions", "keep"),
        ("report", "one page"),
    )
    for i, (name, small) in enumerate(live):
        s.box(1 + 15 * i, 12.5, 12, 4.4, name, small=small, mark=0 if name == "serve" else None)
        if i:
            s.arrow(15 * i - 2, 14.7, 15 * i + 1, 14.7)
    s.axes.plot([67, 67, 7, 7], [6.4, 9.4, 9.4, 11.6], color=p.faint, lw=1.2)
    s.arrow(7, 11.2, 7, 12.5)
    s.note(37.5, 8.4, "once per decoder")
    s.note(37.5, 10.6, "every session")
    return s.figure


PICTURES: dict[str, tuple[Callable[[], dict[str, Any]], Callable[[dict[str, Any], Palette], Any]]] = {
    "way": (dict, draw_way),
    "chain": (dict, draw_chain),
    "day": (dict, draw_day),
    "clock": (clock, draw_clock),
    "epochs": (epochs, draw_epochs),
    "evidence": (evidence, draw_evidence),
    "ladder": (ladder, draw_ladder),
    "latency": (latency, draw_latency),
}


def main(names: list[str]) -> None:
    """Make the data once, draw it twice."""
    TARGETS.mkdir(exist_ok=True)
    for name in names or [name for name in PICTURES if name != "latency"]:
        make, draw = PICTURES[name]
        data = make()
        for p in PALETTES:
            style: dict[Any, Any] = {
                "svg.fonttype": "none", "svg.hashsalt": name, "font.family": "sans-serif", "font.size": 9,
                "text.color": p.ink, "axes.edgecolor": p.faint, "axes.labelcolor": p.ink, "axes.spines.top": False,
                "axes.spines.right": False, "xtick.color": p.ink, "ytick.color": p.ink, "axes.facecolor": "none",
                "figure.facecolor": "none", "figure.constrained_layout.use": name not in ("way", "chain", "day"),
            }  # fmt: skip
            with mpl.rc_context(style):
                figure = draw(data, p)
                path = TARGETS / f"{name}-{p.name}.svg"
                figure.savefig(path, transparent=True, metadata={"Date": None, "Creator": None})
                plt.close(figure)
            print(f"{path.relative_to(TARGETS.parents[2])}: {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    main(sys.argv[1:])
