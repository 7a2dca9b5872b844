"""What a session does about captions and reconstructions: it asks after each decision, and says what came of it.

The work is done in other processes. Here is what the hot thread has to do with it: a request per kind and decision,
some messages a step, an account.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol, TypeAlias

import msgspec

from .decode.evidence import Query
from .decode.generate.client import Event
from .decode.generate.job import Answer, Drop, Kind, Request
from .decode.generate.link import Notice
from .feed import schema
from .feed.publisher import Buffer
from .types import Candidate, Epoch

BUDGETS: dict[Kind, float] = {"caption": 0.3, "reconstruction": 0.8}
"""Seconds, where neither config nor bundle say."""

_PER_STEP = 4  # messages: a step of a session takes one packet's time at most

Outgoing: TypeAlias = tuple[schema.AnyMessage, Sequence[Buffer]]


class Maker(Protocol):
    """Who makes captions and pictures. :class:`streamdec.decode.generate.client.Client` is one."""

    kinds: tuple[Kind, ...]
    workers: dict[str, Notice]

    def ask(self, request: Request) -> None:
        """Ask for one result, never wait. The arrays are copied before this returns."""

    def poll(self, most: int) -> list[Event]:
        """Take what has come, never wait. Each request ends in one Drop or one Answer that is not partial."""

    def finish(self) -> list[Event]:
        """Tell that no more will be asked; return the last that comes."""


class _Asked(msgspec.Struct, frozen=True):
    """What a message must say of its request."""

    kind: Kind
    key: str
    onset_time: float
    repetitions: int
    due: float
    requested: float


class Generation:
    """Asks a maker, and turns what it says into messages.

    Parameters
    ----------
    maker : Maker
    budgets : mapping of str to float
        Seconds from the moment an epoch's last sample was due, for each of the maker's kinds.
    clock : callable
        LSL clock, seconds.
    """

    def __init__(self, maker: Maker, budgets: Mapping[Kind, float], clock: Callable[[], float]) -> None:
        self.budgets: dict[Kind, float] = {kind: budgets[kind] for kind in maker.kinds}
        self._maker, self._clock = maker, clock
        self._ids = 0
        self._open: dict[int, _Asked] = {}
        self._answered: dict[Kind, Counter[str]] = {kind: Counter() for kind in maker.kinds}
        self._tally: dict[Kind, Counter[str]] = {kind: Counter() for kind in maker.kinds}
        self._lost: set[str] = set()

    def ask(self, epoch: Epoch, query: Query, candidates: tuple[Candidate, ...]) -> None:
        """Ask for all kinds on a decision that has just been published."""
        onset, now = epoch.onset, self._clock()
        for kind, budget in self.budgets.items():
            self._tally[kind]["requests"] += 1
            self._ids += 1
            self._open[self._ids] = _Asked(kind, onset.key, onset.time, query.repetitions, epoch.due, now)
            self._maker.ask(
                Request(
                    self._ids,
                    kind,
                    onset.key,
                    query.repetitions,
                    epoch.due,
                    epoch.due + budget,
                    candidates,
                    query.raw,
                    query.epoch,
                )
            )

    @property
    def open(self) -> int:
        """How many requests have no end yet."""
        return len(self._open)

    def take(self) -> list[Outgoing]:
        """Give the messages to publish now, a few at most."""
        return self._messages(self._maker.poll(_PER_STEP))

    def finish(self) -> list[Outgoing]:
        """Give the last messages: with them every request has its end."""
        messages = self._messages(self._maker.finish())
        assert not self._open, self._open
        return messages

    def account(self) -> dict[str, schema.Generation]:
        """Give the account so far, by kind."""
        return {
            kind: schema.Generation(
                answered=dict(self._answered[kind]),
                open=sum(asked.kind == kind for asked in self._open.values()),
                **tally,
            )
            for kind, tally in self._tally.items()
        }

    def workers(self) -> dict[str, str]:
        """Give the state of each worker."""
        return {name: notice.state for name, notice in self._maker.workers.items()}

    def _messages(self, events: list[Event]) -> list[Outgoing]:
        messages: list[Outgoing] = []
        for event in events:
            if isinstance(event, Notice):
                if (change := self._notice(event)) is not None:
                    messages.append((change, ()))
            elif isinstance(event, Drop):
                messages.append((self._drop(event), ()))
            else:
                messages.append(self._answer(event))
        return messages

    def _answer(self, answer: Answer) -> Outgoing:
        asked, result = self._open[answer.id], answer.result
        budget, published = self.budgets[asked.kind], self._clock()
        latency = published - asked.due
        met = latency <= budget
        if not answer.partial:
            del self._open[answer.id]
            self._answered[asked.kind][answer.tier] += 1
            self._tally[asked.kind]["met"] += met
        about: dict[str, Any] = {
            "key": asked.key,
            "onset_time": asked.onset_time,
            "repetitions": asked.repetitions,
            "tier": answer.tier,
            "units": result.units,
            "wanted": result.wanted,
            "partial": answer.partial,
            "worker": answer.worker,
            "probability": result.probability,
            "timing": schema.GenerationTiming(
                asked.due, asked.requested, answer.started, answer.finished, published, latency, budget, met
            ),
        }
        if asked.kind == "caption":
            return schema.Caption(text=result.text, **about), ()
        if not result.image:
            return schema.Reconstruction(source=result.source, **about), ()
        picture = schema.image(0, result.image, asked.key)
        return schema.Reconstruction(source=result.source, payloads=(picture,), **about), (result.image,)

    def _drop(self, drop: Drop) -> schema.Dropped:
        asked = self._open.pop(drop.id)
        self._tally[asked.kind]["dropped"] += 1
        self._tally[asked.kind]["superseded"] += drop.reason == "superseded"
        return schema.Dropped(what=asked.kind, text="", reason=drop.reason, key=asked.key, onset_time=asked.onset_time)

    def _notice(self, notice: Notice) -> schema.Session | None:
        """Say that a worker is lost, or there (again); that it is starting is in the statistics."""
        name, state = notice.worker, notice.state
        said: schema.SessionState = "warning"
        if name and state == "starting":
            return None
        if name and state == "lost":
            self._lost.add(name)
            said = "lost"
        elif name and state == "ready":
            said = "found" if name in self._lost else "connected"
            self._lost.discard(name)
        return schema.Session(state=said, time=self._clock(), worker=name, reason=notice.reason)
