"""``events.tsv``: one row for each onset, in the order in which they ended.

A table as BIDS has them: tabs, "n/a" for what is not known. ``onset`` is seconds after the session's start, whose LSL
clock stands in ``session.json``; how long a stimulus was shown is not in its marker. Where nothing was decoded, a row
has the first three columns only.
"""

from __future__ import annotations

from collections.abc import Iterable

import msgspec

from ..feed import schema

COLUMNS: dict[str, str] = {
    "onset": "s after the start",
    "duration": "s; n/a, as no marker says",
    "stimulus": "stimulus key",
    "outcome": "decided, or how it ended without a decision",
    "reason": "why there is no decision",
    "rank": "place of the stimulus in the gallery, from 1; n/a where it is not in it",
    "candidate": "the best candidate",
    "probability": "of the best candidate, calibrated",
    "repetitions": "presentations of the stimulus behind the decision",
    "latency": "s from the moment the epoch's last sample was due to the published decision",
}
SHOWN = ("onset", "duration", "stimulus")
"""Columns of a session in which nothing was decoded."""

_UNKNOWN = "n/a"


def header(*, decoded: bool) -> bytes:
    """Write the first line."""
    return ("\t".join(COLUMNS if decoded else SHOWN) + "\n").encode()


class Row(msgspec.Struct, frozen=True):
    """One onset: ``time`` LSL clock, seconds; ``cells`` by the names of their columns."""

    time: float
    cells: dict[str, str]

    def line(self) -> bytes:
        """Write it. Tabs and ends of lines in a cell become blanks: the format cannot quote them."""
        return ("\t".join(" ".join(cell.split()) for cell in self.cells.values()) + "\n").encode("utf-8", "replace")


def shown(onset: schema.Onset, start: float) -> Row:
    """Say in one row what was shown; ``start`` LSL clock at the session's start, seconds."""
    cells = (f"{onset.onset_time - start:.4f}", _UNKNOWN, onset.key)
    return Row(onset.onset_time, dict(zip(SHOWN, cells, strict=True)))


def row(end: schema.Epoch, decision: schema.Retrieval | None, start: float) -> Row:
    """Say in one row how an onset ended.

    Parameters
    ----------
    end : schema.Epoch
    decision : schema.Retrieval or None
        The final one on this onset, where there is one.
    start : float
        LSL clock at the session's start, seconds.
    """
    cells = dict.fromkeys(COLUMNS, _UNKNOWN)
    cells |= {"onset": f"{end.onset_time - start:.4f}", "stimulus": end.key, "outcome": end.outcome}
    cells["reason"] = end.reason or _UNKNOWN
    if decision is not None:
        cells["rank"] = _UNKNOWN if decision.rank is None else str(decision.rank)
        if decision.candidates:
            best = decision.candidates[0]
            cells |= {"candidate": best.id, "probability": f"{best.probability:.4g}"}
        cells |= {"repetitions": str(decision.repetitions), "latency": f"{decision.timing.latency:.4f}"}
    return Row(end.onset_time, cells)


class Ends:
    """Puts the end of each onset beside its decision, from messages in their order."""

    def __init__(self) -> None:
        self._decision: schema.Retrieval | None = None

    def __call__(self, message: schema.AnyMessage) -> tuple[schema.Epoch, schema.Retrieval | None] | None:
        """Take a message; give what it completes."""
        if isinstance(message, schema.Retrieval):
            if message.final:
                self._decision = message
        elif isinstance(message, schema.Epoch):
            made = self._decision
            own = made is not None and (made.key, made.onset_time) == (message.key, message.onset_time)
            return message, made if own else None
        return None


def table(messages: Iterable[schema.AnyMessage], start: float) -> list[Row]:
    """Make all rows of a session that was decoded; ``start`` LSL clock, seconds."""
    return [row(*end, start) for end in filter(None, map(Ends(), messages))]
