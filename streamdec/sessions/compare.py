"""Two sets of results on the same onsets: what a session published, and what a replay of it makes.

Onsets are matched by their stimulus key and which presentation of it they are, so that two bundles may put them at
slightly different times.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np

from ..feed import schema
from ..intervals import binomial_interval
from ..types import Outcome

_Presentation = tuple[str, int]  # stimulus key, which presentation of it, from 0


class Results(msgspec.Struct, frozen=True):
    """One set of results.

    Attributes
    ----------
    ends : how each onset ended.
    decisions : the final decision of each onset that has one.
    messages : number of messages on the events: what a replay with the same bundle gives again, byte for byte.
    essence : these, joined: :func:`streamdec.feed.schema.joined_essence`.
    """

    ends: dict[_Presentation, Outcome]
    decisions: dict[_Presentation, schema.Retrieval]
    messages: int
    essence: bytes

    @classmethod
    def of(cls, messages: Sequence[schema.AnyMessage]) -> Results:
        """Sort out what was published."""
        keys: Counter[str] = Counter()
        places: dict[tuple[str, float], _Presentation] = {}
        for onset in sorted((m for m in messages if isinstance(m, schema.Onset)), key=lambda m: m.onset_time):
            places[onset.key, onset.onset_time] = onset.key, keys[onset.key]
            keys[onset.key] += 1
        ends: dict[_Presentation, Outcome] = {}
        decisions: dict[_Presentation, schema.Retrieval] = {}
        for message in messages:
            if isinstance(message, schema.Retrieval | schema.Epoch):
                place = places.get((message.key, message.onset_time))
                if place is None:
                    continue
                if isinstance(message, schema.Epoch):
                    ends[place] = message.outcome
                elif message.final:
                    decisions[place] = message
        essence = schema.joined_essence(messages)
        return cls(ends, decisions, essence.count(b"\n") + bool(essence), essence)

    @property
    def ranks(self) -> list[int]:
        """Ranks from 1, where the stimulus is in the gallery."""
        return [decision.rank for decision in self.decisions.values() if decision.rank is not None]


class Difference(msgspec.Struct, frozen=True):
    """What differs between two sets of results.

    Attributes
    ----------
    recorded, replayed : Results
    """

    recorded: Results
    replayed: Results

    @property
    def same(self) -> bool:
        """Whether they are the same, byte for byte: every early and final decision, and every end."""
        return self.recorded.essence == self.replayed.essence

    def lines(self) -> list[str]:
        """Say it in words and figures."""
        if self.same:
            return [f"the same as recorded: {self.recorded.messages} messages"]
        return [
            *_side_by_side(self.recorded, self.replayed),
            *self._ends(),
            *self._decisions(),
            self._first(),
        ]

    def _ends(self) -> list[str]:
        old, new = self.recorded.ends, self.replayed.ends
        out = [
            f"{len(these)} onsets only {name}: {_counted(these.values())}"
            for name, these in (
                ("recorded", {place: end for place, end in old.items() if place not in new}),
                ("replayed", {place: end for place, end in new.items() if place not in old}),
            )
            if these
        ]
        changed = Counter(
            f"{old[place]} -> {new[place]}" for place in old.keys() & new.keys() if old[place] != new[place]
        )
        return out + [f"{n} onsets ended otherwise: {which}" for which, n in changed.most_common()]

    def _decisions(self) -> list[str]:
        old, new = self.recorded.decisions, self.replayed.decisions
        both = [(old[place], new[place]) for place in old if place in new]
        both = [(a, b) for a, b in both if a.candidates and b.candidates]
        if not both:
            return ["no onset was decided in both"]
        agree = sum(a.candidates[0].id == b.candidates[0].id for a, b in both)
        out = [
            f"of {len(both)} decided in both, {agree} have the same best candidate ({100 * agree / len(both):.1f} %)"
        ]
        ranks = [(a.rank, b.rank) for a, b in both if a.rank is not None and b.rank is not None]
        if ranks:
            better, worse = sum(b < a for a, b in ranks), sum(b > a for a, b in ranks)
            found, lost = sum(b == 1 < a for a, b in ranks), sum(a == 1 < b for a, b in ranks)
            out.append(
                f"ranks: {better} better when replayed ({found} now first), {worse} worse ({lost} first no more), "
                f"{len(ranks) - better - worse} as before"
            )
        change = np.array([b.candidates[0].probability - a.candidates[0].probability for a, b in both])
        out.append(
            f"probability of the best candidate: median change {np.median(change):+.3f}, largest "
            f"{change[np.argmax(np.abs(change))]:+.3f}"
        )
        return out

    def _first(self) -> str:
        """Show where they part."""
        old, new = self.recorded.essence.split(b"\n"), self.replayed.essence.split(b"\n")
        for number, (a, b) in enumerate(zip(old, new, strict=False), 1):
            if a != b:
                return f"first difference, message {number}:\n  recorded {a.decode()}\n  replayed {b.decode()}"
        return f"the same up to message {min(len(old), len(new))}; {len(old)} recorded, {len(new)} replayed"


def _side_by_side(recorded: Results, replayed: Results) -> list[str]:
    lines = [f"{'':<18}{'recorded':>24}{'replayed':>24}"]
    rows = {
        "messages": [str(side.messages) for side in (recorded, replayed)],
        "decided": [str(len(side.decisions)) for side in (recorded, replayed)],
        "stimulus known": [str(len(side.ranks)) for side in (recorded, replayed)],
        "first": [_share(side, 1) for side in (recorded, replayed)],
        "among first five": [_share(side, 5) for side in (recorded, replayed)],
        "median rank": [f"{np.median(side.ranks):g}" if side.ranks else "" for side in (recorded, replayed)],
    }
    return lines + [f"{name:<18}{old:>24}{new:>24}" for name, (old, new) in rows.items()]


def _share(side: Results, k: int) -> str:
    """Share of ranks up to ``k``, with its 95 % interval."""
    n = len(side.ranks)
    if not n:
        return ""
    share = sum(rank <= k for rank in side.ranks) / n
    low, high = binomial_interval(share, n)
    return f"{100 * share:.1f} % [{100 * low:.1f}, {100 * high:.1f}]"


def _counted(ends: Iterable[str]) -> str:
    return ", ".join(f"{n} {end}" for end, n in Counter(ends).most_common())
