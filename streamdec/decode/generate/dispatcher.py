"""The dispatcher process: schedules requests over workers, answers by the first tier, keeps the workers alive.

It has one thread and never imports torch. What to do when is the :class:`~.ladder.Ladder`'s to say; here is what that
takes: sockets, processes, clocks.
"""

from __future__ import annotations

import math
import os
import select
import signal
import sys
from collections import deque
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from ...acquire.lsl.library import local_clock
from ...errors import EngineError, StreamdecError
from .. import bundle as bundles
from .cost import Costs
from .generator import OpenGenerator, open_generator
from .job import LADDER, Answer, Drop, Kind, Request, Result, Tier
from .ladder import Action, AnswerHere, Cancel, Kill, Ladder, LadderSettings, Offer, Send, Start
from .link import (
    MAX_IMAGE,
    MAX_TEXT,
    PROTOCOL,
    Beat,
    Close,
    Failed,
    FromWorker,
    Hello,
    Hub,
    Introduce,
    Job,
    Line,
    Notice,
    Progress,
    Quit,
    Ready,
    ToDispatcher,
    Up,
    Waiter,
    WorkerState,
)
from .link import Cancel as CancelJob
from .supervise import LOADING, UNABLE, Keeper, die_with_parent
from .tiers.base import First, plain
from .tiers.open import open_first
from .worker import BEAT, MODULE, OPENS, SILENCE, STUCK, WorkerPlan, fingerprint

_SAVE = 60.0  # seconds between two looks at whether costs are to be saved
_CROWDED = 0.005  # seconds until the next try where the hot loop has not yet read what it was sent
_FAREWELL = 0.5  # seconds that workers have to end
_MOST_UNITS = 10_000
_NICE = 10


class Local(msgspec.Struct, frozen=True):
    """A worker on this machine."""

    kind: Kind
    device: str = "cpu"
    threads: int = 1


class DispatcherPlan(msgspec.Struct, frozen=True):
    """What the dispatcher is told.

    ``bundle`` and ``generator`` to read; ``kinds`` that will be asked for; ``workers`` to start, where the generator
    has a tier for them; ``loop`` endpoint of the hot loop, ``local`` that of these workers; ``listen`` where those of
    other machines may join, with ``keys``, or ""; ``costs`` folder, "" to keep none; ``loading`` seconds that each
    of these workers may take to come up; ``punctual`` and ``opens``: see :class:`~.ladder.Ladder` and
    :class:`~.worker.WorkerPlan`.
    """

    bundle: str
    generator: str
    kinds: tuple[Kind, ...]
    workers: tuple[Local, ...]
    loop: str
    local: str
    listen: str = ""
    keys: str = ""
    costs: str = ""
    ladder: LadderSettings = LadderSettings()
    loading: float = LOADING
    punctual: bool = True
    opens: str = OPENS


class _Peer:
    """A worker that was heard of, where to write to it, and when it last gave a sign."""

    def __init__(self, name: str, heard: float) -> None:
        self.name, self.heard = name, heard


class Dispatcher:
    """Sockets, processes and clock around a ladder.

    Parameters
    ----------
    plan : DispatcherPlan
    clock : callable
        LSL clock, seconds.

    Raises
    ------
    StreamdecError
        The bundle or the generator cannot be opened, or ``listen`` cannot be had.
    """

    def __init__(self, plan: DispatcherPlan, line: Line[ToDispatcher], clock: Callable[[], float]) -> None:
        bundle = bundles.read(plan.bundle)
        self.generator: OpenGenerator = open_generator(plan.generator, bundle.manifest)
        self._plan, self._line, self._clock = plan, line, clock
        tiers = {kind: open_first(kind, bundle, self.generator) for kind in plan.kinds}
        self._first: dict[Kind, First] = {kind: tier for kind, tier in tiers.items() if tier is not None}
        self._ladder = Ladder(tuple(self._first), plan.ladder, punctual=plan.punctual)
        self._costs = Costs(Path(plan.costs) if plan.costs else None, self.generator.hash)
        self._hub = Hub(plan.local, plan.listen, Path(plan.keys) if plan.keys else None)
        self._fingerprint = fingerprint(self.generator.manifest)
        self._keepers: dict[str, tuple[Keeper, WorkerPlan]] = {}
        self._peers: dict[bytes, _Peer] = {}
        self._loading: dict[str, float] = {}  # workers that were started and have not said Hello: since when
        self._running: dict[str, tuple[Start, float]] = {}
        self._states: dict[str, WorkerState] = {}
        self._tried: set[str] = set()
        latent = self.generator.manifest.latent
        up = Up(self._hub.listening, latent is not None and latent.reads == "epoch")
        self._outbox: deque[Answer | Drop | Notice | Up | Ready] = deque([up])
        self._waiter = Waiter()
        self._refused = 0
        self._said_ready = self._ended = False
        self._beat_due = 0.0
        self._save_due = clock() + _SAVE
        for end in (line, self._hub, sys.stdin.fileno()):
            self._waiter.add(end)
        numbers: dict[Kind, int] = {}
        for local in plan.workers:
            if local.kind in plan.kinds and any(getattr(self.generator.manifest, t) for t in LADDER[local.kind][1:]):
                numbers[local.kind] = numbers.get(local.kind, 0) + 1
                self._keep(f"{local.kind}-{numbers[local.kind]}", local)

    def run(self) -> None:
        """Work until the hot loop closes, or is gone."""
        now = self._clock()
        while not self._ended:
            due = min(
                self._ladder.next_wake(),
                self._beat_due,
                *(keeper.due for keeper, _ in self._keepers.values()),
                now + _CROWDED if self._outbox else math.inf,
            )
            self._waiter.wait(due - self._clock())
            now = self._clock()
            self._hear()
            self._tend(now)
            self._act(self._ladder.tick(self._clock()))
            self._flush()

    def close(self) -> None:
        """Keep what was learnt of the workers' costs, and let them go."""
        try:  # first: who waits for this process does not wait for long
            self._costs.save()
        except EngineError as error:
            self._line.send(Notice("", "failed", str(error)))
        for keeper, _ in self._keepers.values():
            keeper.let_go()
        for keeper, _ in self._keepers.values():
            keeper.close(_FAREWELL)
        self._hub.close()
        self._flush()

    # --- what comes in ------------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        """Take in all that has come: requests, answers, the end."""
        while (message := self._line.receive()) is not None:
            match message:
                case Request():
                    self._act(self._ladder.submit(message, self._clock()))
                case Close():
                    self._ended = True
        while (heard := self._hub.receive()) is not None:
            self._take(*heard)
        if not self._ended and _readable(sys.stdin.fileno()) and not os.read(sys.stdin.fileno(), 4096):
            self._ended = True

    def _take(self, peer: bytes, message: FromWorker) -> None:
        now = self._clock()
        known = self._peers.get(peer)
        if known is None:
            if isinstance(message, Hello):
                self._welcome(peer, message, now)
            else:
                self._hub.send(peer, Introduce())
            return
        known.heard = now
        if isinstance(message, Hello):  # it and the question who this is have met on their way
            return
        running = self._running.get(known.name)
        if isinstance(message, Beat) or running is None or running[0].request.id != message.id:
            return
        start, began = running
        if isinstance(message, Failed):
            del self._running[known.name]
            self._act(self._ladder.failed(known.name, message.id, plain(message.reason)[:300], now))
            return
        partial = isinstance(message, Progress)
        answer = Answer(message.id, start.tier, _clean(message.result), began, now, known.name, partial)
        if partial:
            self._act(self._ladder.progress(known.name, answer, now))
        else:
            del self._running[known.name]
            self._act(self._ladder.finished(known.name, answer, now))

    def _welcome(self, peer: bytes, hello: Hello, now: float) -> None:
        """Let a worker take part, or tell it why not."""
        name = plain(hello.name)[:64]
        if (problem := self._problem(hello)) is not None:
            self._hub.send(peer, Quit(f"the session does not take this worker: {problem}"))
            self._say(name, "failed", problem)
            return
        for other in [key for key, known in self._peers.items() if known.name == name]:
            del self._peers[other]
        self._peers[peer] = _Peer(name, now)
        self._running.pop(name, None)
        self._loading.pop(name, None)
        if name in self._keepers:
            self._keepers[name][0].loaded()
        offers: dict[Tier, Offer] = {}
        for card in hello.tiers:
            cost = self._costs.of(card.tier, plain(hello.device)[:64], plain(hello.host)[:64])
            cost.warmed(card.runs)
            offers[card.tier] = Offer(card.units, cost)
        self._say(name, "ready", f"{', '.join(offers)} on {plain(hello.device)[:64]} of {plain(hello.host)[:64]}")
        self._act(self._ladder.ready(name, hello.kind, offers, now))

    def _problem(self, hello: Hello) -> str | None:
        if hello.protocol != PROTOCOL:
            return f"protocol {hello.protocol}; allowed: {PROTOCOL}; install the same streamdec on both machines"
        if hello.generator != self._fingerprint:
            return f"another generator, {hello.generator[:12]}; allowed: {self._fingerprint[:12]}, the session's"
        if hello.kind not in self._plan.kinds:
            return f"a worker for {hello.kind}; allowed: {', '.join(self._plan.kinds)}"
        for card in hello.tiers:
            few, most = card.units
            numbers = [number for run in card.runs for number in (run[0], run[2] or 0.0)]
            sound = all(0 <= number < math.inf for number in numbers) and all(run[1] >= 1 for run in card.runs)
            if card.tier not in LADDER[hello.kind][1:] or not 1 <= few <= most <= _MOST_UNITS or not sound:
                return f"tier {card.tier} of {few}..{most} units"
        return None if hello.tiers else "no tier"

    # --- what goes out ------------------------------------------------------------------------------------------------

    def _act(self, actions: Sequence[Action]) -> None:
        for action in actions:
            match action:
                case Start():
                    self._start(action)
                case Cancel():
                    self._write(action.worker, CancelJob(action.id))
                case Kill():
                    self._kill(action.worker, action.reason)
                case AnswerHere():
                    self._answer(action.request)
                case Send():
                    self._outbox.append(action.message)

    def _start(self, start: Start) -> None:
        now = self._clock()
        self._running[start.worker] = (start, now)
        if not self._write(start.worker, Job(start.request, start.tier, start.units, start.until - now)):
            del self._running[start.worker]
            self._act(self._ladder.failed(start.worker, start.request.id, "the worker is not to be reached", now))

    def _answer(self, request: Request) -> None:
        """Answer by the first tier, or, where not even that can be done, drop."""
        tier, began = self._first[request.kind], self._clock()
        try:
            result = _clean(tier.run(request))
        except StreamdecError as error:  # a picture of the bundle that cannot be read any more, for one
            self._outbox.append(Drop(request.id, str(error)))
        else:
            self._outbox.append(Answer(request.id, tier.name, result, began, self._clock()))

    def _write(self, worker: str, message: msgspec.Struct) -> bool:
        peer = next((key for key, known in self._peers.items() if known.name == worker), None)
        return peer is not None and self._hub.send(peer, message)

    def _say(self, worker: str, state: WorkerState, reason: str = "") -> None:
        self._states[worker] = state
        if state != "starting":
            self._tried.add(worker)
        self._outbox.append(Notice(worker, state, plain(reason)[:300]))

    def _flush(self) -> None:
        """Send what waits to the hot loop; partial answers are not worth waiting for."""
        if not self._said_ready and self._tried >= self._keepers.keys():
            self._said_ready = True
            self._outbox.append(Ready())
        while self._outbox:
            message = self._outbox[0]
            if not self._line.send(message) and not (isinstance(message, Answer) and message.partial):
                return
            self._outbox.popleft()

    # --- who is there -------------------------------------------------------------------------------------------------

    def _keep(self, name: str, local: Local) -> None:
        plan = self._plan
        told = WorkerPlan(name, local.kind, plan.generator, plan.local, "", local.device, local.threads, plan.opens)
        loop = os.getppid()  # on Linux a process's number is that of its first thread, which the hot loop is
        self._keepers[name] = (Keeper(MODULE, local.threads, loop=loop), told)

    def _tend(self, now: float) -> None:
        """Start, count out and end workers; give a sign of life, and look for theirs."""
        for name, (keeper, told) in self._keepers.items():
            descriptor = keeper.descriptor
            if (why := keeper.ended(now)) is not None:
                if descriptor is not None:
                    self._waiter.remove(descriptor)
                self._lose(name, why, "failed" if keeper.due == math.inf else "lost")
            if keeper.due <= now:
                keeper.start(now, told)
                self._loading[name] = now
                if keeper.descriptor is not None:
                    self._waiter.add(keeper.descriptor)
                self._say(name, "starting")
        if now < self._beat_due:
            return
        self._beat_due = now + BEAT
        self._line.send(Beat())
        for peer, known in list(self._peers.items()):
            self._hub.send(peer, Beat())
            if now - known.heard > (STUCK if known.name in self._keepers else SILENCE):
                self._kill(known.name, f"not heard of for {now - known.heard:.0f} s")
        for name in [name for name, since in self._loading.items() if now - since > self._plan.loading]:
            self._kill(name, f"not up {self._plan.loading:g} s after its start")
        if self._hub.refused > self._refused:
            self._refused = self._hub.refused
            self._outbox.append(
                Notice("", "failed", f"a worker without a key on the list was turned away ({self._refused} so far)")
            )
        if now >= self._save_due:
            self._save_due = now + _SAVE
            try:
                self._costs.save()
            except EngineError as error:
                self._save_due = math.inf
                self._outbox.append(Notice("", "failed", str(error)))

    def _kill(self, name: str, why: str) -> None:
        """End a worker: one of ours for certain, one of another machine if it still listens."""
        if name in self._keepers:
            self._keepers[name][0].kill()
        else:
            self._write(name, Quit(why, again=True))
        self._lose(name, why, "lost")

    def _lose(self, name: str, why: str, state: Literal["lost", "failed"]) -> None:
        """A worker is gone. What it told of itself before stands."""
        for peer in [key for key, known in self._peers.items() if known.name == name]:
            del self._peers[peer]
        self._running.pop(name, None)
        self._loading.pop(name, None)
        if self._states.get(name) not in ("lost", "failed"):
            self._say(name, state, why)
        self._act(self._ladder.gone(name, self._clock(), why))


def _clean(result: Result) -> Result:
    """What came from a tier, as the feed may have it: one printable line, a picture of a known kind, a number."""
    fits = bool(result.media) and len(result.image) <= MAX_IMAGE
    probability = result.probability
    return msgspec.structs.replace(
        result,
        text=plain(result.text)[:MAX_TEXT],
        image=result.image if fits else b"",
        probability=probability if probability is not None and 0 <= probability <= 1 else None,
    )


def _readable(descriptor: int) -> bool:
    return bool(select.select([descriptor], [], [], 0)[0])


def main() -> int:
    """Run as ``python -m streamdec.decode.generate.dispatcher PLAN``, until stdin ends."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the hot loop says when
    die_with_parent()
    os.nice(_NICE)
    plan = msgspec.json.decode(sys.argv[1], type=DispatcherPlan)
    line: Line[ToDispatcher] = Line(plan.loop, ToDispatcher, "dispatcher")
    try:
        dispatcher = Dispatcher(plan, line, local_clock)
    except StreamdecError as error:
        print(error, file=sys.stderr, flush=True)  # noqa: T201 - its parent listens
        line.close()
        return UNABLE
    try:
        dispatcher.run()
    finally:
        dispatcher.close()
        line.close(_FAREWELL)
    return 0


if __name__ == "__main__":
    sys.exit(main())
