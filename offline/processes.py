"""One run over several GPUs: the processes, their start and their end; :mod:`.distributed` is what each does there.

Every process reads the data into memory of its own; the first one writes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from streamdec import errors
from streamdec.errors import ConfigError, DataError, StreamdecError

from . import distributed, experiment
from .data.store import Prepared
from .methods.base import MethodSettings
from .methods.network import NetworkSettings
from .methods.registry import method
from .progress import Report, silent
from .targets.store import Targets

_POLL = 0.2  # seconds


@dataclass(frozen=True)
class Job:
    """A fit, as processes are told of it: names and folders, to be opened by each."""

    method: str
    settings: MethodSettings
    stores: tuple[Path, ...]
    targets: dict[str, Path]
    out: Path
    seed: int = 0

    def __call__(self, device: str, report: Report) -> None:
        """Fit."""
        experiment.fit(
            method(self.method),
            self.settings,
            [Prepared(path) for path in self.stores],
            {role: Targets(path) for role, path in self.targets.items()},
            self.out,
            seed=self.seed,
            device=device,
            report=report,
            writes=distributed.is_first(),
            processes=distributed.count(),
        )


def fit(job: Job, n: int, kind: str = "cuda", report: Report = silent) -> None:
    """Fit in ``n`` processes, as :func:`launch` runs them.

    Raises
    ------
    ConfigError
        The method is none of networks.
    """
    if not isinstance(job.settings, NetworkSettings):
        raise ConfigError(f"processes for {job.method}", got=n, allowed="1: it trains no network")
    launch(n, kind, job, report)


def launch(n: int, kind: str, work: Callable[[str, Report], object], report: Report = silent) -> None:
    """Run ``work(device, report)`` in ``n`` processes that make one run.

    Parameters
    ----------
    n : int
    kind : {"cuda", "cpu"}
        With a GPU each (NCCL), or none (gloo).
    work : callable
        Can be pickled.
    report : callable
        Told what the first process reports.

    Raises
    ------
    ConfigError
        There are not that many GPUs.
    StreamdecError
        What ``work`` raised.
    DataError
        A process died.
    """
    there = torch.cuda.device_count() if kind == "cuda" else n
    if not 1 <= n <= there:
        raise ConfigError("gpus", got=n, allowed=f"1 or more, and {there} are there")
    context = mp.get_context("spawn")
    said = context.Queue()
    with tempfile.TemporaryDirectory() as folder:
        rendezvous = f"file://{Path(folder) / 'rendezvous'}"
        processes = mp.spawn(_process, (n, kind, rendezvous, work, said), n, join=False)  # type: ignore[attr-defined, no-untyped-call]
        told: list[StreamdecError] = []
        try:
            # An error that is told waits for the process to die of it: join ends the others then, which wait for it.
            while not processes.join(timeout=_POLL):
                _hear(said, report, told)
        except Exception as error:
            _hear(said, report, told)
            if told:
                raise told[0] from None
            raise DataError("a process died", got=str(error).strip().splitlines()[-1]) from error
        _hear(said, report, told)


def _hear(said: Any, report: Report, told: list[StreamdecError]) -> None:
    while not said.empty():
        kind, *rest = said.get()
        if kind == "report":
            report(*rest)
        else:
            told.append(cast(type[StreamdecError], getattr(errors, kind))(*rest))


def _process(rank: int, n: int, kind: str, rendezvous: str, work: Callable[[str, Report], object], said: Any) -> None:
    def report(line: str, done: int = 0, total: int = 0) -> None:
        said.put(("report", line, done, total))

    device = f"cuda:{rank}" if kind == "cuda" else "cpu"
    if kind == "cuda":
        torch.cuda.set_device(device)
    else:
        torch.set_num_threads(max(1, torch.get_num_threads() // n))
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    dist.init_process_group("nccl" if kind == "cuda" else "gloo", rendezvous, rank=rank, world_size=n)
    try:
        work(device, report if rank == 0 else silent)
    except StreamdecError as error:
        said.put((type(error).__name__, str(error)))
        said.close()
        said.join_thread()
        raise
    distributed.leave()
