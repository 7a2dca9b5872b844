"""``streamdec report``: one session on one page, which shows itself without a network."""

from __future__ import annotations

import datetime
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from .. import __version__
from ..errors import RecordingError, StreamdecError
from ..feed import schema
from ..intervals import binomial_interval
from ..page.document import Block, Column, Document, Note, Section, Table, Text, to_html
from . import evoked, figures, folder
from .recorded import Recorded

_MOST_ROWS = 40
_BROKE = ("gap", "stalled", "lost")  # states of the EEG stream that its clock felt


def report(path: Path, out: Path) -> None:
    """Write a report of a session.

    Parameters
    ----------
    path : Path
        The session's folder.
    out : Path
        The HTML file. It holds all that it shows.

    Raises
    ------
    RecordingError
        It is no session, or the report cannot be written.
    """
    session = Recorded.open(path)
    about = session.about
    made_by = (
        f"Made by streamdec {__version__} of session {about.id}, recorded by streamdec {about.versions['streamdec']} "
        + ("without a bundle." if about.bundle is None else f"with bundle {about.bundle.name}, {about.bundle.hash}.")
    )
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(to_html(compose(session), made_by), encoding="utf-8")
    except OSError as error:
        raise RecordingError(f"report {out} cannot be written", got=error.strerror, do="name another file") from error


def compose(session: Recorded) -> Document:
    """Make the document."""
    sections = (
        Section("Accuracy", _accuracy(session)),
        Section("Stimuli", _stimuli(session)),
        Section("Latency", _latency(session)),
        Section("Captions and pictures", _generated(session)),
        Section("Evoked response and channels", _signal(session)),
        Section("Ends and drops", _ends(session)),
        Section("The amplifier's clock", _clock(session)),
        Section("What happened", _states(session)),
        Section("How this was made", _method(session)),
    )
    started = datetime.datetime.fromisoformat(session.about.start.utc).astimezone()
    return Document(f"Session of {started:%-d %B %Y, %H:%M}", tuple(_lead(session)), sections)


def _lead(session: Recorded) -> list[Block]:
    about, decisions = session.about, session.decisions
    blocks: list[Block] = []
    if about.simulated:
        blocks.append(Note("Simulated EEG. No figure below says anything about people."))
    state, end = folder.state(session.path, about), about.end
    if state != "complete":
        said = "" if end is None else f": {end.broken or end.repaired}"
        blocks.append(Note(f"This recording is not complete ({state}){said}."))
    minutes, seconds = divmod(round(session.last - about.start.lsl), 60)
    if about.bundle is None:
        became = "nothing was decoded: it was recorded without a bundle"
    else:
        became = f"{len(decisions)} decided by {about.bundle.method}, bundle {about.bundle.name}"
    onsets = session.onsets
    soa = _soa(session)
    paced = "" if soa is None else f", one every {1e3 * soa:.0f} ms (median)"
    blocks.append(
        Text(
            f"{minutes} min {seconds} s from {about.eeg.name}, {about.eeg.n_chans} channels at "
            f"{about.eeg.sfreq:g} Hz. {len(onsets)} stimuli{paced}; {became}."
        )
    )
    ranks = [decision.rank for decision in decisions if decision.rank is not None]
    if ranks:
        n = decisions[0].gallery_size
        shares = [_share(sum(rank <= k for rank in ranks), len(ranks)) for k in (1, 5)]
        rows = (
            ("shown image first", shares[0], f"{100 / n:.2g} %"),
            ("among the first five", shares[1], f"{min(100.0, 500 / n):.3g} %"),
            ("median rank", f"{np.median(ranks):g} of {n}", f"{(n + 1) / 2:g}"),
        )
        columns = ("", "#found", "#by chance")
        caption = f"{len(ranks)} decisions on images of the gallery; 95 % intervals, binomial."
        blocks.append(_table(columns, rows, caption))
    return blocks


def _accuracy(session: Recorded) -> tuple[Block, ...]:
    known = [decision for decision in session.decisions if decision.rank is not None]
    if session.about.bundle is None:
        return ()
    if not known:
        return (Text("No shown stimulus was in the gallery, so nothing can be said of accuracy."),)
    return (figures.accuracy(known, session.about.start.lsl),)


def _stimuli(session: Recorded) -> tuple[Block, ...]:
    of_key: dict[str, list[schema.Retrieval]] = {}
    for decision in session.decisions:
        of_key.setdefault(decision.key, []).append(decision)
    if not of_key:
        return ()
    rows = []
    ordered = sorted(of_key.items(), key=lambda item: (-len(item[1]), item[0]))
    for key, decisions in ordered[:_MOST_ROWS]:
        ranks = [decision.rank for decision in decisions if decision.rank is not None]
        others = Counter(d.candidates[0].label for d in decisions if d.candidates and d.candidates[0].id != key)
        taken = ", ".join(f"{label} {n} ×" for label, n in others.most_common(2))
        first = f"{100 * np.mean(np.array(ranks) == 1):.0f} %" if ranks else ""
        median = f"{np.median(ranks):g}" if ranks else ""
        last = decisions[-1]
        final = "" if last.rank is None else str(last.rank)
        rows.append((key, str(len(decisions)), first, median, final, taken))
    columns = ("stimulus", "#decisions", "#first", "#median\nrank", "#rank\nat last", "most often taken for")
    more = len(of_key) - len(rows)
    caption = "By number of decisions. “At last”: the last decision, behind which there is the most evidence."
    return (_table(columns, tuple(rows), caption + (f" {more} more are not shown." if more > 0 else "")),)


def _latency(session: Recorded) -> tuple[Block, ...]:
    kinds = {}
    rows = []
    for name, results in (
        ("retrieval", session.decisions),
        ("caption", [m for m in session.of(schema.Caption) if not m.partial]),
        ("reconstruction", [m for m in session.of(schema.Reconstruction) if not m.partial]),
    ):
        if not results:
            continue
        seconds = np.array([result.timing.latency for result in results])
        budget = results[-1].timing.budget
        met = sum(result.timing.deadline_met for result in results)
        kinds[name] = seconds, budget
        rows.append(
            (
                name,
                str(len(results)),
                *(f"{1e3 * np.quantile(seconds, q):.1f}" for q in (0.5, 0.95, 0.99, 1.0)),
                f"{1e3 * budget:g}",
                f"{100 * met / len(results):.1f} %",
            )
        )
    if not kinds:
        return ()
    columns = ("result", "#n", "#median", "#95 %", "#99 %", "#longest", "#budget", "#in time")
    table = _table(columns, tuple(rows), "Milliseconds after the epoch's last sample was due.")
    return figures.latencies(kinds), table, *_stages(session)


def _stages(session: Recorded) -> tuple[Block, ...]:
    stats = session.of(schema.Stats)
    if not stats or not stats[-1].latency:
        return ()
    what = {
        "wait": "until the packet with the last sample was pulled",
        "ready": "until the epoch was cut and cleaned",
        "encode": "encoder",
        "retrieve": "gallery",
        "publish": "onto the feed",
        "total": "all of it",
        "turn": "any turn of the loop, away from the streams",
    }
    rows = tuple(
        (what.get(name, name), *(f"{1e3 * value:.2f}" for value in (stage.p50, stage.p95, stage.p99, stage.max)))
        for name, stage in stats[-1].latency.items()
    )
    columns = ("stage of a retrieval", "#median", "#95 %", "#99 %", "#longest")
    return (_table(columns, rows, "Milliseconds; quantiles to within 2.3 %, early decisions included."),)


def _generated(session: Recorded) -> tuple[Block, ...]:
    rows = []
    for kind, made in (("caption", session.of(schema.Caption)), ("reconstruction", session.of(schema.Reconstruction))):
        ended = [message for message in made if not message.partial]
        dropped = Counter(m.reason for m in session.of(schema.Dropped) if m.what == kind)
        total = len(ended) + sum(dropped.values())
        for tier, n in Counter(_tier(message) for message in ended).most_common():
            own = [message for message in ended if _tier(message) == tier]
            seconds = [message.timing.latency for message in own]
            met = sum(message.timing.deadline_met for message in own)
            rows.append(
                (
                    kind,
                    tier,
                    str(n),
                    f"{100 * n / total:.1f} %",
                    f"{1e3 * np.median(seconds):.0f}",
                    f"{1e3 * np.quantile(seconds, 0.99):.0f}",
                    f"{100 * met / n:.1f} %",
                )
            )
        rows += [
            (kind, f"dropped: {reason}", str(n), f"{100 * n / total:.1f} %", "", "", "")
            for reason, n in dropped.most_common()
        ]
    if not rows:
        return ()
    columns = ("kind", "tier, or why none was made", "#n", "#share", "#median ms", "#99 % ms", "#in time")
    caption = "Every request has one row it counts in. “Superseded”: newer evidence on the same stimulus replaced it."
    return (_table(columns, tuple(rows), caption),)


def _tier(message: schema.Generated) -> str:
    return f"{message.tier}, {message.units} steps" if message.tier == "diffusion" else message.tier


def _signal(session: Recorded) -> tuple[Block, ...]:
    try:
        found = evoked.look(session)
    except StreamdecError as error:
        return (Text(f"Not shown: {error}"),)
    if found is None:
        return (Text("Not shown: no onset has a clean epoch."),)
    decisions = session.decisions
    filled = Counter(name for decision in decisions for name in decision.interpolated_channels)
    shares = {name: n / len(decisions) for name, n in filled.items()}
    blocks: list[Block] = [
        figures.evoked(found, _soa(session)),
        figures.channels(found, shares, session.about.start.lsl),
    ]
    if unknown := {name: share for name, share in shares.items() if name not in found.ch_names}:
        listed = ", ".join(f"{name} ({100 * share:.0f} % of decisions)" for name, share in unknown.items())
        blocks.append(
            Text(f"Channels of the bundle that the stream has not, filled in from their neighbours: {listed}.")
        )
    return tuple(blocks)


def _ends(session: Recorded) -> tuple[Block, ...]:
    ends = session.of(schema.Epoch)
    rows = [("onset", end, reason, str(n)) for (end, reason), n in _by_reason((m.outcome, m.reason) for m in ends)]
    markers = [m for m in session.of(schema.Dropped) if m.what in ("marker", "record")]
    rows += [
        (what, "no onset", reason, str(n)) for (what, reason), n in _by_reason((m.what, m.reason) for m in markers)
    ]
    flags = Counter(flag for decision in session.decisions for flag in decision.flags)
    rows += [("decision", f"flag {flag}", _FLAGS.get(flag, ""), str(n)) for flag, n in flags.most_common()]
    if not rows:
        return ()
    columns = ("what", "became", "why", "#n")
    counts = session.account
    said = "" if counts is None else f" {counts.markers} markers and {counts.onsets} onsets in the session's account."
    shown = tuple(rows[:_MOST_ROWS])
    more = f" {len(rows) - len(shown)} more reasons are not shown." if len(rows) > len(shown) else ""
    return (_table(columns, shown, f"Every onset has one end.{said}{more}"),)


_FLAGS = {
    "settling": "filters had just started",
    "catch_up": "after a stall, or of a late marker: not fresh",
}


def _by_reason(pairs: Iterable[tuple[str, str]]) -> list[tuple[tuple[str, str], int]]:
    return Counter(pairs).most_common()


def _clock(session: Recorded) -> tuple[Block, ...]:
    stats = session.of(schema.Stats)
    if not any(one.sfreq_effective > 0 for one in stats):
        return ()
    states = [m for m in session.of(schema.Session) if m.stream == "eeg" and m.state in _BROKE]
    start, last = session.about.start.lsl, stats[-1]
    drift = round(last.drift_ppm, 1) + 0.0  # no minus zero
    rows = (
        ("rate by regression", f"{last.sfreq_effective:.4f} Hz"),
        ("drift against the LSL clock", f"{drift:+.1f} ppm ({0.06 * drift:+.2f} ms/min)"),
        ("jitter of stamps", f"{1e3 * last.clock_jitter:.3f} ms"),
        ("gaps", str(last.counts.gaps)),
        ("samples missing in them", str(last.counts.missing_samples)),
        ("unbroken pieces", str(last.counts.segments)),
    )
    table = _table(("", "#at the end"), rows, "Of the EEG stream.")
    return figures.clock(stats, session.about.eeg.sfreq, [m.time for m in states], start), table


def _states(session: Recorded) -> tuple[Block, ...]:
    messages = session.of(schema.Session)
    start = session.about.start.lsl
    rows = tuple(
        (f"{message.time - start:.1f}", message.stream or message.worker, message.state, message.reason)
        for message in messages[:_MOST_ROWS]
    )
    columns = ("#s", "who", "state", "why")
    more = len(messages) - len(rows)
    caption = "Seconds after the start." + (f" {more} more are not shown: see {folder.LOG}." if more else "")
    return (_table(columns, rows, caption),) if rows else ()


def _method(session: Recorded) -> tuple[Block, ...]:
    if session.about.bundle is None:
        source = "The onsets are what the recorded markers say."
    else:
        source = "Accuracy, latencies, drops and the clock are what the session published and recorded while it ran."
    return (
        Text(
            f"{source} The "
            "evoked response comes from playing the recording through the live intake again: epochs from "
            f"{evoked.TMIN:g} to {evoked.TMAX:g} s around the onsets, behind a causal first-order high-pass "
            f"at {evoked.HIGH_PASS:g} Hz; bad channels are filled in and bad epochs left out by the session's own "
            f"settings; the mean is low-pass filtered at {evoked.LOW_PASS:g} Hz without phase shift, and its mean "
            "before the onset subtracted."
        ),
        Text(
            f"Ran with {', '.join(f'{name} {version}' for name, version in session.about.versions.items())}. The "
            f"config stands in {folder.CONFIG}."
        ),
    )


def _table(columns: tuple[str, ...], rows: tuple[tuple[str, ...], ...], caption: str) -> Table:
    """Make a table; columns of numbers are marked by ``#``."""
    kinds: list[tuple[str, Column]] = [
        (name[1:], "number") if name.startswith("#") else (name, "text") for name in columns
    ]
    return Table(tuple(kinds), rows, caption)


def _soa(session: Recorded) -> float | None:
    times = np.sort([onset.onset_time for onset in session.onsets])
    return float(np.median(np.diff(times))) if len(times) > 1 else None


def _share(hits: int, n: int) -> str:
    low, high = binomial_interval(hits / n, n)
    return f"{100 * hits / n:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"
