"""The hot loop's end: asks for captions and pictures, and takes what has come. Nothing in it grows.

It never waits, but for this: where the dispatcher has died, a process is started in its place, which costs the loop
one to three milliseconds, once for each death; many where every processor is taken and it may not start processes in
real time (:func:`streamdec.priority.start_at_once`).

The dispatcher is a process of its own. This end keeps the list of what is open: whatever becomes of the dispatcher,
each request ends in exactly one answer or drop.
"""

from __future__ import annotations

import math
import os
import shutil
import tempfile
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import msgspec

from ...errors import BundleError, ConfigError
from .dispatcher import DispatcherPlan, Local
from .job import KINDS, Answer, Drop, Kind, Request
from .ladder import LadderSettings
from .link import Close, Line, Notice, Ready, ToLoop, Up, check_listen, lasting_context
from .supervise import LOADING, Keeper

Event: TypeAlias = Answer | Drop | Notice

DISPATCHER = "dispatcher"
"""Its name among the workers."""

_OPEN = 256  # requests that may be open
_GRACE = 1.0  # seconds beyond its deadline, or the asking, after which a request will not be answered any more
_SILENT = 10.0  # seconds without a sign after which the dispatcher is ended and started anew
_LOOK = 0.1  # seconds between two looks at the process and at the list
_DRAIN = 0.5  # seconds that close() waits for answers
_FAREWELL = 1.0  # seconds that the dispatcher has to end
_LONGEST = 107 - len("/workers-99999")  # bytes of a path: 107 are what Linux has for that of a socket


class KindSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One kind of generated result.

    ``on`` it is made. ``budget`` seconds from the moment the epoch's last sample was due, None for the bundle's own.
    ``workers`` processes on this machine; with 0, workers of other machines that join, and until then the first tier.
    ``device`` as torch names it; ``threads`` of a worker within one operation.
    """

    on: bool = True
    budget: float | None = None
    workers: int = 1
    device: str = "cpu"
    threads: int = 1

    def __post_init__(self) -> None:
        if self.budget is not None and not 0 < self.budget < math.inf:
            raise ConfigError("generate budget", got=self.budget, allowed="more than 0, seconds")
        if not 0 <= self.workers <= 16:
            raise ConfigError("generate workers", got=self.workers, allowed="0 to 16")
        if self.threads < 1:
            raise ConfigError("generate threads", got=self.threads, allowed="1 or more")


class GenerateSettings(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Captions and reconstructions, while `serve` runs; `replay` makes none.

    ``generator`` the folder that makes them, "" for none. ``listen`` tcp://host:port where `streamdec worker` may join
    from other machines, port 0 for a free one, "" for nowhere. ``keys`` a folder made by `streamdec keys`, needed where
    ``listen`` can be reached from another machine; not the feed's, whose readers are to make nothing. ``costs`` folder
    that keeps what each tier was measured to cost, "" for the user's own. ``wait`` seconds for the workers to load and
    warm up before the session opens; those that are not there by then come later.
    """

    generator: str = ""
    caption: KindSettings = KindSettings()
    reconstruction: KindSettings = KindSettings()
    listen: str = ""
    keys: str = ""
    costs: str = ""
    wait: float = 120.0
    ladder: LadderSettings = LadderSettings()

    def __post_init__(self) -> None:
        check_listen(self.listen, bool(self.keys))

    def of(self, kind: Kind) -> KindSettings:
        """Give the settings of a kind."""
        return self.caption if kind == "caption" else self.reconstruction


def plan(settings: GenerateSettings, bundle: Path) -> DispatcherPlan:
    """Tell the dispatcher what the settings ask for; endpoints are filled in by the :class:`Client`."""
    kinds = tuple(kind for kind in KINDS if settings.of(kind).on)
    workers = tuple(
        Local(kind, settings.of(kind).device, settings.of(kind).threads)
        for kind in kinds
        for _ in range(settings.of(kind).workers)
    )
    return DispatcherPlan(
        bundle=str(bundle.resolve()),
        generator=str(Path(settings.generator).resolve()),
        kinds=kinds,
        workers=workers,
        loop="",
        local="",
        listen=settings.listen,
        keys=settings.keys and str(Path(settings.keys).resolve()),
        costs=settings.costs and str(Path(settings.costs).resolve()),
        ladder=settings.ladder,
    )


def tell(notice: Notice) -> str:
    """Put a notice into one line."""
    return ": ".join(filter(None, (notice.worker or "generation", notice.state, notice.reason)))


class Client:
    """Starts the dispatcher, asks it, and hears from it. Belongs to the hot thread.

    Parameters
    ----------
    plan : DispatcherPlan
    clock : callable
        LSL clock, seconds.

    Attributes
    ----------
    kinds : tuple of str
        What may be asked for.
    listening : str
        Where workers of other machines may join, "" for nowhere.
    workers : dict of str to Notice
        The newest state of each worker.
    """

    def __init__(self, plan: DispatcherPlan, clock: Callable[[], float]) -> None:
        self.kinds = plan.kinds
        self.listening = ""
        self.workers: dict[str, Notice] = {}
        self._plan, self._clock = plan, clock
        self._folder = _folder()
        self._keeper = Keeper("streamdec.decode.generate.dispatcher", loop=0)
        self._context = lasting_context()  # one for all dispatchers: to end one is to wait for its threads
        self._line: Line[ToLoop] | None = None
        self._lives = 0
        self._open: dict[int, float] = {}  # until when there is hope for an answer
        self._events: deque[Event] = deque()
        self._look = self._heard = -math.inf
        self._up = self._reads_epoch = False  # the dispatcher is
        self._ready = self._opened = self._finished = False

    def open(self, wait: float, say: Callable[[str], None] = lambda line: None) -> None:
        """Start all processes and wait until the workers are warm, or have failed, ``wait`` seconds at most.

        ``say`` is told what is waited for and what came of it.

        Raises
        ------
        BundleError
            The generator cannot be used, or not with this bundle, or ``listen`` cannot be had.
        """
        self._start(self._clock())
        end = time.monotonic() + wait
        while not self._ready:
            if time.monotonic() > end and self._up:
                say(f"not all workers are warm after {wait:g} s; the session opens without them")
                break
            for event in self.poll(_OPEN):
                if isinstance(event, Notice):
                    say(tell(event))
                if isinstance(event, Notice) and event.worker == DISPATCHER:
                    raise BundleError("nothing can be generated", got=event.reason)
            time.sleep(0.01)
        self._opened = True

    def ask(self, request: Request) -> None:
        """Ask for one result; its id is new. Never waits.

        Arrays are copied before this returns. An answer or a drop with this id comes by :meth:`poll`.
        """
        if not self._reads_epoch:
            request = msgspec.structs.replace(request, epoch=None)
        if len(self._open) >= _OPEN:
            self._events.append(Drop(request.id, f"{_OPEN} requests are open"))
        elif self._line is None or not self._up:
            self._events.append(Drop(request.id, "the dispatcher is not there"))
        elif not self._line.send(request):
            self._events.append(Drop(request.id, "the dispatcher does not keep up"))
        else:
            # From now on, where it is late already: the first tier still answers it.
            self._open[request.id] = max(request.deadline, self._clock()) + _GRACE

    def poll(self, most: int) -> list[Event]:
        """Take what has come, ``most`` events at most. Waits only where a dispatcher has died: see this module.

        Partial answers come only before the end of their request, and of each request there is one end.
        """
        self._receive(most)
        now = self._clock()
        if now >= self._look:
            self._look = now + _LOOK
            self._attend(now)
        return [self._events.popleft() for _ in range(min(most, len(self._events)))]

    def finish(self) -> list[Event]:
        """Tell that no more will be asked; return the last answers, and a drop for each request that got none."""
        if self._finished:
            return []
        self._finished = True
        end = time.monotonic() + _DRAIN
        while self._open and self._line is not None and time.monotonic() < end:
            self._attend(self._clock())
            self._receive(_OPEN)
            time.sleep(0.002)
        if self._line is not None:
            self._line.send(Close())
        self._give_up("the session ended")
        events = list(self._events)
        self._events.clear()
        return events

    def close(self) -> None:
        """End all processes. Idempotent."""
        self.finish()
        self._keeper.close(_FAREWELL)
        if self._line is not None:
            self._line.close()
            self._line = None
        self._context.destroy(linger=0)
        shutil.rmtree(self._folder, ignore_errors=True)

    def _receive(self, most: int) -> None:
        while len(self._events) < most and self._line is not None:
            message = self._line.receive()
            if message is None:
                return
            self._heard = self._clock()
            match message:
                case Answer() | Drop() if message.id in self._open:
                    if isinstance(message, Drop) or not message.partial:
                        del self._open[message.id]
                    self._events.append(message)
                case Notice():
                    self._note(message)
                case Up():
                    self._up = True
                    self.listening, self._reads_epoch = message.listening, message.reads_epoch
                    # Workers of other machines know this port: another dispatcher is to listen there too.
                    self._plan = msgspec.structs.replace(self._plan, listen=message.listening)
                case Ready():
                    if self._lives > 1:
                        self._note(Notice(DISPATCHER, "ready"))
                    self._ready = True
                case _:  # a beat, or what comes too late
                    pass

    def _note(self, notice: Notice) -> None:
        if notice.worker:
            self.workers[notice.worker] = notice
        self._events.append(notice)

    def _attend(self, now: float) -> None:
        """Look after the dispatcher, and end what there is no hope for."""
        patience = _SILENT if self._up and self._opened else LOADING
        silent = self._line is not None and now - self._heard > patience
        if silent:
            self._keeper.kill()
        if (why := self._keeper.ended(now)) is not None:
            self._receive(_OPEN)  # what it still said
            self._lose(f"it gave no sign for {patience:g} s" if silent else why)
        if now >= self._keeper.due and self._opened and not self._finished:
            self._start(now)
        for id_ in [id_ for id_, hope in self._open.items() if now > hope]:
            del self._open[id_]
            self._events.append(Drop(id_, "the dispatcher gave no answer"))

    def _start(self, now: float) -> None:
        self._lives += 1
        loop, local = (f"ipc://{self._folder}/{name}-{self._lives}" for name in ("loop", "workers"))
        self._folder.mkdir(mode=0o700, exist_ok=True)  # a session can outlive what cleans up among temporary files
        self._line = Line(loop, ToLoop, "loop", context=self._context)
        told = msgspec.structs.replace(self._plan, loop=loop, local=local)
        self._keeper.start(now, told)
        self._heard, self._up = now, False  # it loads first, and says nothing

    def _lose(self, why: str) -> None:
        """The dispatcher is gone."""
        if self._line is not None:
            self._line.close()
            self._line = None
        self.workers.clear()
        self._note(Notice(DISPATCHER, "failed" if self._keeper.due == math.inf else "lost", why))
        self._give_up("the dispatcher is gone")

    def _give_up(self, why: str) -> None:
        self._events += [Drop(id_, why) for id_ in self._open]
        self._open.clear()


def _folder() -> Path:
    """Make the folder of the sockets, whose paths the system does not let be long."""
    folder = Path(tempfile.mkdtemp(prefix="streamdec-"))
    if (n := len(os.fsencode(folder))) > _LONGEST:
        folder.rmdir()
        raise ConfigError(
            "path of a temporary folder",
            got=f"{n} bytes",
            allowed=f"up to {_LONGEST}",
            do="set TMPDIR to a shorter one",
        )
    return folder
