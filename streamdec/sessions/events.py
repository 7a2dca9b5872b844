"""``events.tsv``: one row for each onset, in the order in which they ended.

A table as BIDS has them: tabs, "n/a" for what is not known. ``onset`` is seconds after the session's start, whose LSL
clock stands in ``session.json``; how long a stimulus was shown is not in its marker.
"""

from __future__ import annotations

from collections.abc import Iterable

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
HEADER = ("\t".join(COLUMNS) + "\n").encode()

_UNKNOWN = "n/a"


def row(end: schema.Epoch, decision: schema.Retrieval | None, start: float) -> dict[str, str]:
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
    return cells


def line(cells: dict[str, str]) -> bytes:
    """Write a row. Tabs and ends of lines within a cell become blanks: the format cannot quote them."""
    return ("\t".join(" ".join(cell.split()) for cell in cells.values()) + "\n").encode("utf-8", "replace")


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


def table(messages: Iterable[schema.AnyMessage], start: float) -> list[dict[str, str]]:
    """Make all rows of a session; ``start`` LSL clock, seconds."""
    return [row(*end, start) for end in filter(None, map(Ends(), messages))]


def write(messages: Iterable[schema.AnyMessage], start: float) -> bytes:
    """Make the whole file, as the recorder wrote it."""
    return HEADER + b"".join(map(line, table(messages, start)))
