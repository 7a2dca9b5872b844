"""Which request runs where, by which tier, for how long: the scheduler, without clock, sockets or randomness.

Whatever happens is told to a :class:`Ladder` by one of its methods, with the time; it answers with the actions to be
taken, in order. So it can be driven by the dispatcher or by a simulation alike.

Requests of a kind wait in one queue, earliest deadline first. A free worker takes the first of them, with the best
tier that fits and in it the most units that fit, by the tiers' measured costs. What fits leaves time for those that
wait behind: each of them must still be able to run on the cheapest tier of that worker. A request that fits no worker
is answered by the first tier at once.
"""

from __future__ import annotations

import bisect
import math
from collections import Counter
from collections.abc import Collection, Mapping
from typing import Literal, TypeAlias

import msgspec

from ...errors import ConfigError
from .cost import Cost
from .job import KINDS, LADDER, Answer, Drop, Kind, Request, Tier


class LadderSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Bounds of the ladder.

    ``queue`` requests of a kind may wait. ``guard`` seconds before a deadline the first tier answers in place of a
    worker that has not; ``margin`` seconds before that a worker's answer is planned for. A worker that has not stopped
    ``grace`` seconds after it was told to hangs.
    """

    queue: int = 16
    guard: float = 0.02
    margin: float = 0.01
    grace: float = 5.0

    def __post_init__(self) -> None:
        if self.queue < 1:
            raise ConfigError("ladder.queue", got=self.queue, allowed="1 or more")
        for name, value in (("guard", self.guard), ("margin", self.margin)):
            if not 0 <= value < math.inf:
                raise ConfigError(f"ladder.{name}", got=value, allowed="0 or more, seconds")
        if not 0 < self.grace < math.inf:
            raise ConfigError("ladder.grace", got=self.grace, allowed="more than 0, seconds")


class Offer(msgspec.Struct, frozen=True, eq=False):
    """A tier that a worker offers: its fewest and most ``units``, and what it costs there."""

    units: tuple[int, int]
    cost: Cost


class Start(msgspec.Struct, frozen=True, eq=False):
    """Have ``worker`` do ``request`` by ``tier`` with ``units``, beginning no unit after ``until``, LSL clock.

    From here on the worker is taken until the ladder hears of it by ``finished``, ``failed`` or ``gone``.
    """

    worker: str
    request: Request
    tier: Tier
    units: int
    until: float


class Cancel(msgspec.Struct, frozen=True):
    """Tell ``worker`` to stop working on request ``id``; it answers as soon as it has."""

    worker: str
    id: int


class Kill(msgspec.Struct, frozen=True):
    """End ``worker``, it hangs. For the ladder it is gone already."""

    worker: str
    reason: str


class AnswerHere(msgspec.Struct, frozen=True, eq=False):
    """Answer ``request`` by the first tier, now. ``reason`` says why no worker does."""

    request: Request
    reason: str


class Send(msgspec.Struct, frozen=True):
    """Send ``message`` to the hot loop. It ends its request, unless it is a partial answer."""

    message: Answer | Drop


Action: TypeAlias = Start | Cancel | Kill | AnswerHere | Send


class _Job:
    """What a worker is at."""

    def __init__(self, start: Start, offer: Offer, now: float) -> None:
        self.request, self.offer, self.started = start.request, offer, now
        self.open = True  # its request has no end yet
        self.cancelled = math.inf  # when it was
        self.shown: Answer | None = None  # the newest partial answer that can stand for a whole one
        self.units: list[tuple[int, float]] = []  # first and newest units, and when they were done

    def note(self, units: int, now: float) -> None:
        self.units[1:] = [(units, now)]

    def each(self) -> float | None:
        """Seconds between its units, where it told of two."""
        if len(self.units) < 2 or self.units[1][0] <= self.units[0][0]:
            return None
        (few, early), (many, late) = self.units
        return (late - early) / (many - few)


class _Worker:
    """One worker, its kind, its offers and its job."""

    def __init__(self, kind: Kind, offers: Mapping[Tier, Offer]) -> None:
        self.kind, self.offers = kind, dict(offers)
        self.job: _Job | None = None

    def cheapest(self) -> float:
        """Seconds that its cheapest tier takes for its fewest units."""
        return min(offer.cost.seconds(offer.units[0]) for offer in self.offers.values())

    def best(self, seconds: float) -> tuple[int, int] | None:
        """Position in the ladder and units of the best tier that fits into ``seconds``."""
        tiers = LADDER[self.kind]
        for position in reversed(range(len(tiers))):
            offer = self.offers.get(tiers[position])
            if offer is not None and seconds >= 0:
                fewest, most = offer.units
                if (units := offer.cost.units_within(seconds, most)) >= fewest:
                    return position, units
        return None


class Ladder:
    """The scheduler. Every request it takes ends in exactly one ``AnswerHere`` or final ``Send``.

    Each method but :meth:`next_wake` takes the time as ``now``, LSL clock, which never goes back, and gives the list
    of actions to be taken, in order. Whatever comes of a request or a worker that it no longer knows is passed over.

    Parameters
    ----------
    here : collection of str
        Kinds whose first tier is there. Requests of the others are dropped where it would answer.
    settings : LadderSettings
    punctual : bool
        False, for comparison only: every job is planned as if there were no deadlines, so that it runs by the best
        tier with the most units, and nothing is done when a deadline comes.

    Attributes
    ----------
    tally : Counter
        Requests ``submitted``, and how they ended: ``worker`` (an answer of one), ``here``, ``superseded``,
        ``dropped``.
    """

    def __init__(
        self, here: Collection[Kind] = KINDS, settings: LadderSettings | None = None, *, punctual: bool = True
    ) -> None:
        self.here = frozenset(here)
        self.settings = settings or LadderSettings()
        self.punctual = punctual
        self.tally: Counter[str] = Counter()
        self._queues: dict[Kind, list[Request]] = {kind: [] for kind in KINDS}
        self._workers: dict[str, _Worker] = {}

    @property
    def open(self) -> int:
        """Requests without an end: those that wait and those that run."""
        running = sum(worker.job is not None and worker.job.open for worker in self._workers.values())
        return running + sum(map(len, self._queues.values()))

    def submit(self, request: Request, now: float) -> list[Action]:
        """Take a request; it supersedes those of the same kind and key that wait."""
        self.tally["submitted"] += 1
        queue = self._queues[request.kind]
        actions: list[Action] = []
        for older in [waiting for waiting in queue if waiting.key == request.key]:
            queue.remove(older)
            actions.append(self._end("superseded", Drop(older.id, "superseded")))
        time = self._limit(request) - self.settings.margin - now
        if time > 0:  # else no estimate kept a tier out
            # Workers of one device share what is known of its costs.
            shared = {id(o.cost): o for worker in self._of(request.kind) for o in worker.offers.values()}
            for offer in shared.values():
                if offer.cost.seconds(offer.units[0]) > time:
                    offer.cost.doubt()
        bisect.insort(queue, request, key=_order)
        actions += self._proceed(now)
        if len(queue) > self.settings.queue:
            actions.append(self._here(queue.pop(), "the queue is full"))
        return actions

    def ready(self, worker: str, kind: Kind, offers: Mapping[Tier, Offer], now: float) -> list[Action]:
        """A worker is warmed up and free. One of that name that was there before is gone."""
        if not offers:
            raise ConfigError(f"worker {worker}", got="no tier", allowed=", ".join(LADDER[kind][1:]))
        actions = self._lose(worker, "another took its place")
        self._workers[worker] = _Worker(kind, offers)
        return actions + self._proceed(now)

    def gone(self, worker: str, now: float, reason: str) -> list[Action]:
        """A worker died, left, or was not heard of for too long."""
        return self._lose(worker, reason) + self._proceed(now)

    def progress(self, worker: str, answer: Answer, now: float) -> list[Action]:
        """A worker has done ``answer.result.units`` of its job, and may have something to show."""
        job = self._job(worker, answer.id)
        actions: list[Action] = []
        if job is not None:
            job.note(answer.result.units, now)
            if job.open and _shows(answer):
                if answer.result.units >= job.offer.units[0]:
                    job.shown = answer
                if now < self._limit(job.request):
                    actions.append(Send(answer))
        return actions + self._proceed(now)

    def finished(self, worker: str, answer: Answer, now: float) -> list[Action]:
        """A worker is through with its job, or has stopped where it was; it is free."""
        job = self._job(worker, answer.id)
        actions: list[Action] = []
        if job is not None:
            job.offer.cost.add(now - job.started, max(answer.result.units, 1), job.each())
            self._workers[worker].job = None
            if job.open:
                actions.append(
                    self._end("worker", answer) if _shows(answer) else self._here(job.request, "nothing came of it")
                )
        return actions + self._proceed(now)

    def failed(self, worker: str, id: int, reason: str, now: float) -> list[Action]:
        """A worker could not do its job; it is free."""
        job = self._job(worker, id)
        actions: list[Action] = []
        if job is not None:
            self._workers[worker].job = None
            if job.open:
                actions.append(self._here(job.request, reason))
        return actions + self._proceed(now)

    def tick(self, now: float) -> list[Action]:
        """Nothing has happened but time; to be called at :meth:`next_wake`."""
        return self._proceed(now)

    def next_wake(self) -> float:
        """Tell when time alone makes something to do, LSL clock; infinity for never."""
        wakes = [math.inf]
        for worker in self._workers.values():
            if worker.job is not None:
                wakes.append(self._limit(worker.job.request) if worker.job.open else self._hung(worker.job))
        for kind, queue in self._queues.items():
            hope = self._hope(kind) if queue else math.inf
            wakes += [self._last_call(request, hope) for request in queue]
        return min(wakes)

    # --- when ---------------------------------------------------------------------------------------------------------

    def _limit(self, request: Request) -> float:
        """When the first tier answers in place of a worker."""
        return request.deadline - self.settings.guard if self.punctual else math.inf

    def _hung(self, job: _Job) -> float:
        """When a worker that was told to stop is taken to hang."""
        return job.cancelled + self.settings.grace

    def _hope(self, kind: Kind) -> float:
        """Seconds that the cheapest tier takes of all the workers that are at something else."""
        return min((worker.cheapest() for worker in self._of(kind) if worker.job is not None), default=math.inf)

    def _last_call(self, request: Request, hope: float) -> float:
        """When a request that waits can no longer hope for one of them."""
        return self._limit(request) - self.settings.margin - hope

    def _until(self, place: int, worker: _Worker) -> float:
        """By when the request at this place of its queue must be through, on this worker.

        In time itself, and so that those behind it are in time on the worker's cheapest tier: with n workers of the
        kind, it is taken to have every n-th of them still to do.
        """
        queue, cheapest, n = self._queues[worker.kind], worker.cheapest(), len(self._of(worker.kind))
        limits = [self._limit(later) - cheapest * -(-k // n) for k, later in enumerate(queue[place:])]
        return min(limits) - self.settings.margin

    # --- what ---------------------------------------------------------------------------------------------------------

    def _proceed(self, now: float) -> list[Action]:
        """Do all that the time and the state ask for; done twice, the second time finds nothing."""
        actions: list[Action] = []
        for name, worker in list(self._workers.items()):
            job = worker.job
            if job is not None and job.open and now >= self._limit(job.request):
                actions += [self._stand_in(job, "no time left"), Cancel(name, job.request.id)]
                job.cancelled = now
            elif job is not None and now >= self._hung(job):
                actions.append(Kill(name, f"it has not stopped in {self.settings.grace:g} s"))
                del self._workers[name]
        for kind, queue in self._queues.items():
            place, hope = 0, self._hope(kind)
            while place < len(queue):
                request = queue[place]
                action: Action | None = self._start(place, request, now)
                if action is None and now >= self._last_call(request, hope):
                    action = self._here(request, "no time left" if self._of(kind) else "no worker is there")
                if action is None:
                    place += 1
                else:
                    del queue[place]
                    actions.append(action)
                    hope = self._hope(kind)
        return actions

    def _start(self, place: int, request: Request, now: float) -> Start | None:
        """Start the request at this place of its queue, where a free worker can do it in time."""
        best: tuple[int, int, float, str] | None = None  # better tier, more units, sooner done
        for name, worker in self._workers.items():
            if worker.kind == request.kind and worker.job is None:
                plan = worker.best(self._until(place, worker) - now)
                if plan is not None:
                    offer = worker.offers[LADDER[worker.kind][plan[0]]]
                    best = max(best or (-1, 0, 0.0, ""), (*plan, -offer.cost.seconds(plan[1]), name))
        if best is None:
            return None
        position, units, _, name = best
        worker, tier = self._workers[name], LADDER[request.kind][position]
        start = Start(name, request, tier, units, self._until(place, worker))
        worker.job = _Job(start, worker.offers[tier], now)
        return start

    def _lose(self, name: str, reason: str) -> list[Action]:
        worker = self._workers.pop(name, None)
        if worker is None or worker.job is None or not worker.job.open:
            return []
        return [self._stand_in(worker.job, f"worker {name}: {reason}")]

    def _stand_in(self, job: _Job, reason: str) -> Action:
        """End the request of a job that is not through: by what it has shown, or by the first tier."""
        job.open = False
        if job.shown is not None:
            return self._end("worker", msgspec.structs.replace(job.shown, partial=False))
        return self._here(job.request, reason)

    def _here(self, request: Request, reason: str) -> Action:
        if request.kind not in self.here:
            return self._end("dropped", Drop(request.id, reason))
        self.tally["here"] += 1
        return AnswerHere(request, reason)

    def _end(self, how: Literal["worker", "superseded", "dropped"], message: Answer | Drop) -> Send:
        self.tally[how] += 1
        return Send(message)

    # --- who ----------------------------------------------------------------------------------------------------------

    def _of(self, kind: Kind) -> list[_Worker]:
        return [worker for worker in self._workers.values() if worker.kind == kind]

    def _job(self, worker: str, id: int) -> _Job | None:
        """Give the job a worker has, where it is this one."""
        known = self._workers.get(worker)
        return known.job if known is not None and known.job is not None and known.job.request.id == id else None


def _order(request: Request) -> tuple[float, int]:
    return request.deadline, request.id


def _shows(answer: Answer) -> bool:
    return bool(answer.result.text or answer.result.image)
