"""Workers for a session on another machine: kept running, and told about, until somebody stops them."""

from __future__ import annotations

import select
import socket
import time
import uuid
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from ...access import TCP, read_key
from ...errors import ConfigError, EngineError
from .generator import open_generator
from .job import KINDS, LADDER, Kind
from .supervise import Keeper
from .worker import MODULE, OPENS, WorkerPlan

_LOOK = 0.25  # seconds between two looks at whether to stop
_FAREWELL = 1.0  # seconds that the workers have to end


def join(
    generator: Path,
    connect: str,
    keys: Path | None,
    kinds: Sequence[Kind],
    device: str,
    threads: int,
    stopped: Callable[[], bool],
    say: Callable[[str], None],
    opens: str = OPENS,
) -> None:
    """Run a worker per kind for the session whose dispatcher listens at ``connect``.

    Parameters
    ----------
    generator : Path
        Folder; the same generator as the session's.
    connect : str
        ``tcp://host:port``, the session's ``generate.listen``.
    keys : Path, optional
        This client's folder, made by `streamdec keys`.
    kinds : sequence of str
        What to generate; none for all that the generator has tiers for.
    device, threads
        As :func:`~.tiers.open.open_tiers` has them.
    stopped : callable
        Asked a few times a second.
    say : callable
        Takes each line that a worker writes, and why one ended.
    opens : str
        As in :class:`~.worker.WorkerPlan`.

    Raises
    ------
    ConfigError, BundleError
        The address, the keys or the generator are not as they should be.
    EngineError
        No worker is left that could serve.
    """
    match = TCP.fullmatch(connect)
    if match is None or not 0 < int(match["port"]) <= 65_535:
        raise ConfigError("--connect", got=repr(connect), allowed="tcp://host:port, the session's generate.listen")
    if keys is not None:
        for name in ("feed.key", "client.secret"):
            read_key(keys / name)
    manifest = open_generator(generator).manifest
    able = [kind for kind in KINDS if any(getattr(manifest, tier) is not None for tier in LADDER[kind][1:])]
    if missing := [kind for kind in kinds or able or KINDS if kind not in able]:
        raise ConfigError(f"generator {generator.name}", got=f"nothing for {missing[0]} that needs a worker")
    keepers: dict[str, Keeper] = {}
    plans: dict[str, WorkerPlan] = {}
    for kind in kinds or able:
        # Containers may share both the name of their host and their process number.
        name = f"{kind}-{socket.gethostname()}-{uuid.uuid4().hex[:8]}"
        folder = str(keys.resolve()) if keys is not None else ""
        plans[kind] = WorkerPlan(name, kind, str(generator.resolve()), connect, folder, device, threads, opens)
        keepers[kind] = Keeper(MODULE, threads, partial(_tell, say, kind))
    try:
        while not stopped():
            now = time.monotonic()
            for name, keeper in keepers.items():
                if (why := keeper.ended(now)) is not None:
                    again = f"; starting again in {keeper.due - now:.1f} s" if keeper.due < float("inf") else ""
                    say(f"{name}: {why}{again}")
                if keeper.due <= now:
                    keeper.start(now, plans[name])
            running = [descriptor for keeper in keepers.values() if (descriptor := keeper.descriptor) is not None]
            if not running and all(keeper.due == float("inf") for keeper in keepers.values()):
                raise EngineError("no worker can serve", do="what each said stands above")
            select.select(running, [], [], _LOOK)
    finally:
        for keeper in keepers.values():
            keeper.let_go()
        for keeper in keepers.values():
            keeper.close(_FAREWELL)


def _tell(say: Callable[[str], None], kind: Kind, line: str) -> None:
    say(f"{kind}: {line}")
