"""A live view of a feed in the terminal: a table where there is one, plain lines in a log.

The view is a pure function of a :class:`State`, and the state a fold over the messages. The table is drawn by rich's
own thread from the newest state, so that a terminal that stops reading delays the drawing and not the subscriber.
"""

from __future__ import annotations

import math
import time
from contextlib import nullcontext, suppress

import msgspec
from msgspec.structs import replace
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from .feed.schema import Caption, Counts, Dropped, Epoch, Generated, Reconstruction, Retrieval, Session, Stats
from .feed.subscriber import Subscriber
from .feed.wire import Received

_REFRESH = 8.0  # Hz
_DECISIONS = 12  # rows
_DROPS = 4  # rows
_TOP = 5
_QUIET = 3.0  # s without a sign of the publisher before the view says so
_STATS_LINE = 10.0  # s between lines of statistics in a log


class State(msgspec.Struct, frozen=True):
    """What the view shows.

    Attributes
    ----------
    session : id of the session, "" before one is joined.
    started : the session's start, where it was seen.
    eeg, markers : last change of each stream, "" before the first.
    ended : the session has said that it is over.
    counts : the account, newest.
    stats : newest statistics.
    decisions : newest decisions, newest first.
    captions : newest caption of each stimulus among the decisions.
    pictures : newest reconstruction of each stimulus among the decisions.
    drops : newest onsets without a decision and what else was dropped, as (what, reason), newest first.
    missed : messages that this subscriber missed.
    silence : s since the last sign of the publisher.
    """

    session: str = ""
    started: Session | None = None
    eeg: str = ""
    markers: str = ""
    ended: bool = False
    counts: Counts = Counts()
    stats: Stats | None = None
    decisions: tuple[Retrieval, ...] = ()
    captions: dict[str, Caption] = {}
    pictures: dict[str, Reconstruction] = {}
    drops: tuple[tuple[str, str], ...] = ()
    missed: int = 0
    silence: float = 0.0


def fold(state: State, received: Received) -> State:
    """Return ``state`` after ``received``. Another session begins from nothing."""
    message = received.message
    if message.session != state.session:
        state = State(session=message.session, missed=state.missed)
    match message:
        case Retrieval():
            decisions = (message, *state.decisions)[:_DECISIONS]
            keys = {decision.key for decision in decisions}
            return replace(
                state,
                decisions=decisions,
                captions={key: caption for key, caption in state.captions.items() if key in keys},
                pictures={key: picture for key, picture in state.pictures.items() if key in keys},
            )
        case Caption():
            return replace(state, captions={**state.captions, message.key: message})
        case Reconstruction():
            return replace(state, pictures={**state.pictures, message.key: message})
        case Epoch() if message.outcome != "decided":
            return _drop(state, f"{message.key}: {message.outcome}", message.reason)
        case Dropped():
            return _drop(state, _dropped(message), message.reason)
        case Stats():
            return replace(state, stats=message, counts=message.counts)
        case Session():
            state = replace(state, counts=message.counts or state.counts)
            change = f"{message.state}: {message.reason}" if message.reason else message.state
            if message.state == "started":
                return replace(state, started=message)
            if message.state == "ended":
                return replace(state, ended=True)
            if message.stream == "eeg":
                return replace(state, eeg=change)
            if message.stream == "markers":
                return replace(state, markers=change)
            return _drop(state, f"{message.worker} {message.state}".strip(), message.reason)
    return state


def _drop(state: State, what: str, reason: str) -> State:
    return replace(state, drops=((what, reason), *state.drops)[:_DROPS])


def watch(feed: Subscriber, console: Console, seconds: float | None = None) -> State:
    """Show ``feed`` on ``console`` for ``seconds``, or until Ctrl-C.

    Parameters
    ----------
    feed : Subscriber
        Of all topics, or the view has holes.
    console : rich Console
        A table where it is a terminal; elsewhere one line for each final decision, drop and change, and one of
        statistics every 10 s.
    seconds : float, optional
        How long; without it, until Ctrl-C, from one session to the next.

    Returns
    -------
    State
        The last one.
    """
    state = State()
    lines = Lines()
    until = math.inf if seconds is None else time.monotonic() + seconds
    table = Live(get_renderable=lambda: render(state), console=console, refresh_per_second=_REFRESH)
    with table if console.is_terminal else nullcontext(), suppress(KeyboardInterrupt):
        while time.monotonic() < until:
            received = feed.receive(1 / _REFRESH)
            missed = sum(feed.gaps.values()) + feed.garbage
            state = replace(fold(state, received) if received else state, missed=missed, silence=feed.silence)
            if received and not console.is_terminal:
                for line in lines(received):
                    console.print(line, soft_wrap=True)
    return state


def render(state: State) -> RenderableType:
    """Draw ``state``: the session, its streams, clock and account, and the newest decisions."""
    return Group(_heading(state), _decisions(state), *(_line(f"✗ {what}", reason) for what, reason in state.drops))


def _heading(state: State) -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_column(style="dim", justify="right")
    grid.add_column()
    grid.add_row("session", _session(state))
    grid.add_row("streams", _line(f"EEG {state.eeg or 'not seen'}", f"markers {state.markers or 'not seen'}"))
    if state.stats is not None:
        grid.add_row("clock", Text(clock(state.stats)))
        grid.add_row("latency", Text(latency(state.stats)))
        for kind, line in generation(state.stats).items():
            grid.add_row(kind, Text(line))
    grid.add_row("account", Text(account(state.counts)))
    if state.missed:
        grid.add_row("missed", Text(f"{state.missed} messages did not reach this view", style="yellow"))
    return grid


def _session(state: State) -> Text:
    if not state.session:
        return Text(f"no publisher yet ({state.silence:.0f} s)", style="yellow")
    started = state.started
    text = Text(clean(state.session))
    if started is not None:
        text.append(clean(f"  {started.bundle} ({started.method})"))
        if started.simulated:
            text.append("  SIMULATED", style="bold magenta")
    if state.ended:
        text.append("  ended", style="bold")
    elif state.silence > _QUIET:
        text.append(f"  no sign of the publisher for {state.silence:.0f} s", style="bold red")
    return text


def _decisions(state: State) -> Table:
    table = Table(expand=True)
    table.add_column("stimulus", ratio=2, no_wrap=True)
    table.add_column(f"top {_TOP}", ratio=5, no_wrap=True)
    generated = bool(state.captions or state.pictures)
    if generated:
        table.add_column("caption", ratio=5, no_wrap=True)
        table.add_column("picture", ratio=2, no_wrap=True)
    for name in ("p", "rank", "of", "reps", "to s", "late ms"):
        table.add_column(name, justify="right", no_wrap=True)
    for decision in state.decisions:
        names = Text()
        for i, candidate in enumerate(decision.candidates[:_TOP]):
            hit = candidate.id == decision.key
            names.append(", " if i else "")
            names.append(clean(candidate.label or candidate.id), style="bold green" if hit else "")
        table.add_row(
            Text(clean(decision.key)),
            names,
            *((_said(state.captions.get(decision.key)), _made(state.pictures.get(decision.key))) if generated else ()),
            _best_probability(decision),
            Text(
                "–" if decision.rank is None else str(decision.rank), style="bold green" if decision.rank == 1 else ""
            ),
            str(decision.gallery_size),
            Text(f"{decision.repetitions}{'■' if decision.stop else ''}"),
            f"{decision.horizon:.2f}",
            Text(f"{decision.timing.latency * 1e3:.1f}", style="" if decision.timing.deadline_met else "bold red"),
            style="" if decision.final else "dim",
        )
    return table


def _said(caption: Caption | None) -> Text:
    if caption is None:
        return Text("–")
    return Text(clean(f"{caption.text}{' …' if caption.partial else ''}  ({caption.tier})"))


def _made(picture: Reconstruction | None) -> Text:
    if picture is None:
        return Text("–")
    return Text(
        clean(f"{picture.tier} {picture.units}/{picture.wanted}{f' {picture.source}' if picture.source else ''}")
    )


def _best_probability(decision: Retrieval) -> str:
    return f"{decision.candidates[0].probability:.2f}" if decision.candidates else "–"


def clock(stats: Stats) -> str:
    """Write the clock of the EEG in one line."""
    return (
        f"{stats.sfreq_effective:.3f} Hz  offset {stats.clock_offset * 1e3:+.3f} ms  "
        f"drift {stats.drift_ppm:+.1f} ppm  jitter {stats.clock_jitter * 1e3:.3f} ms"
    )


def latency(stats: Stats) -> str:
    """Write the latencies in one line: median and 99th percentile of each stage, ms."""
    return (
        "  ".join(f"{name} {q.p50 * 1e3:.1f}/{q.p99 * 1e3:.1f}" for name, q in stats.latency.items()) + " ms (p50/p99)"
    )


def generation(stats: Stats) -> dict[str, str]:
    """Write what was generated, one line for each kind, and the workers."""
    lines = {}
    for kind, made in stats.generation.items():
        tiers = "  ".join(f"{tier} {n}" for tier, n in made.answered.items())
        lines[kind] = f"{made.requests} asked  {tiers}  dropped {made.dropped}  open {made.open}  in time {made.met}"
    if stats.workers:
        lines["workers"] = clean("  ".join(f"{name} {state}" for name, state in stats.workers.items()))
    return lines


def account(counts: Counts) -> str:
    """Write the account in one line; what never happened is left out."""
    refused = ("duplicate", "garbage", "ignored", "lost_markers")
    rare = ("rejected", "lost_data", "late", "cancelled", *refused, "gaps", "missing_samples", "unrecorded")
    parts = [f"onsets {counts.onsets}", f"decided {counts.decided}", f"open {counts.open}"]
    parts += [f"{name.replace('_', ' ')} {n}" for name in rare if (n := getattr(counts, name))]
    return "  ".join(parts)


class Lines:
    """The lines a log gets, one call per message."""

    def __init__(self) -> None:
        self._next_stats = 0.0

    def __call__(self, received: Received) -> list[Text]:
        """Return the lines to print for ``received``."""
        match received.message:
            case Retrieval() as decision if decision.final:
                best = ", ".join(c.label or c.id for c in decision.candidates[:_TOP])
                late = "" if decision.timing.deadline_met else " LATE"
                return [
                    _line(
                        f"{decision.key}: {best}",
                        f"p {_best_probability(decision)}  rank {decision.rank or '–'}/{decision.gallery_size}  "
                        f"reps {decision.repetitions}  {decision.timing.latency * 1e3:.1f} ms{late}",
                    )
                ]
            case Generated() as made if not made.partial:
                return [_line(*_generated(made))]
            case Epoch() as epoch if epoch.outcome != "decided":
                return [_line(f"{epoch.key}: {epoch.outcome}", epoch.reason)]
            case Dropped() as dropped:
                return [_line(f"{_dropped(dropped)} dropped", dropped.reason)]
            case Session() as session:
                return [_line(f"{session.stream or session.worker or 'session'} {session.state}", session.reason)]
            case Stats() as stats if time.monotonic() >= self._next_stats:
                self._next_stats = time.monotonic() + _STATS_LINE
                generated = [_line(f"{kind}:", line) for kind, line in generation(stats).items()]
                return [_line(account(stats.counts), clock(stats)), *generated]
        return []


def _dropped(message: Dropped) -> str:
    return f"{message.what} of {message.key}" if message.key else f"{message.what} {message.text!r}"


def _generated(message: Generated) -> tuple[str, str]:
    late = "" if message.timing.deadline_met else " LATE"
    units = f" {message.units}/{message.wanted}" if message.wanted > 1 else ""
    about = f"{message.tier}{units}  reps {message.repetitions}  {message.timing.latency * 1e3:.1f} ms{late}"
    if isinstance(message, Caption):
        return f"{message.key} caption: {message.text}", about
    source = message.source if isinstance(message, Reconstruction) else ""
    return f"{message.key} picture{f' of {source}' if source else ''}", about


def _line(what: str, more: str) -> Text:
    return Text(clean(f"{what}  {more}" if more else what))


def clean(text: str) -> str:
    """Return ``text`` without what would steer a terminal: keys and labels come from outside."""
    return "".join(c if c.isprintable() else "·" for c in text)
