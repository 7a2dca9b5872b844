"""One run over several GPUs: each process encodes its share of a batch, and all compute the loss of the whole of it.

A learner knows nothing of it. Its ``encode`` and ``embed`` are replaced while it trains: a process runs them on its
share of the rows and gets those of all (:func:`.losses.gathered`), with the batch norms seeing the whole batch
(:mod:`models.processes`). So every negative is there, losses that look at a batch as a whole need no word about it, and
what a learner keeps from batch to batch is the same everywhere. What else a loss runs, it runs in full in each process.

Loss, gradients and running statistics are those of one process with the same batch, up to the order of float32 sums.
Dropout is not: each process draws its own. Every process reads the data into memory of its own; the first one writes.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as nnf
from torch import Tensor, nn

from models.processes import is_spread, joined_norms, spread
from streamdec import errors
from streamdec.errors import ConfigError, DataError, StreamdecError

from .losses import gathered
from .losses.processes import averaged
from .progress import Report, silent

if TYPE_CHECKING:
    from .learner import Learner
    from .methods.base import MethodSettings

_POLL = 0.2  # seconds


def several() -> bool:
    """Tell whether this is one of several processes."""
    return dist.is_available() and dist.is_initialized()


def is_first() -> bool:
    """Tell whether this is the process that writes."""
    return not several() or dist.get_rank() == 0


@contextmanager
def shared_out(learner: Learner) -> Iterator[None]:
    """Let the processes share what a learner encodes and embeds."""
    if not several():
        yield
        return
    from .learner import Learner

    learners = [module for module in learner.modules() if isinstance(module, Learner)]
    for each in learners:
        _replace(each, "encode", _shared_encode(each))
        _replace(each, "embed", _shared_embed(each))
    try:
        with joined_norms(learner):
            yield
    finally:
        for each in learners:
            del each.__dict__["encode"], each.__dict__["embed"]


def _replace(learner: Learner, name: str, call: Callable[..., Tensor]) -> None:
    learner.__dict__[name] = call  # in front of the class' method; no submodule, and not part of the state


def _shared_encode(learner: Learner) -> Callable[[Tensor, Tensor], Tensor]:
    plain = learner.encode

    def encode(epochs: Tensor, subject: Tensor) -> Tensor:
        return _over_processes(lambda own: plain(epochs[own], subject[own]), len(epochs), epochs.device, learner)

    return encode


def _shared_embed(learner: Learner) -> Callable[[Mapping[str, Tensor]], Tensor]:
    plain = learner.embed

    def embed(targets: Mapping[str, Tensor]) -> Tensor:
        rows = next(iter(targets.values()))
        part = lambda own: plain({role: tensor[own] for role, tensor in targets.items()})  # noqa: E731
        return _over_processes(part, len(rows), rows.device, learner)

    return embed


def _over_processes(call: Callable[[slice], Tensor], n: int, device: torch.device, module: nn.Module) -> Tensor:
    """Rows of all processes, each of which makes its own: (n, ...)."""
    rank, world = dist.get_rank(), dist.get_world_size()
    if is_spread() or n < world:
        return call(slice(None))
    cuts = [n * i // world for i in range(world + 1)]
    own = slice(cuts[rank], cuts[rank + 1])
    with spread(own.stop - own.start, n), _own_noise(device, rank, module.training):
        rows = call(own)
    longest = -(-n // world)
    padded = nnf.pad(rows, (0, 0) * (rows.ndim - 1) + (0, longest - len(rows)))
    there = [longest * i + row for i in range(world) for row in range(cuts[i + 1] - cuts[i])]
    return gathered(padded)[torch.tensor(there, device=rows.device)]


@contextmanager
def _own_noise(device: torch.device, rank: int, training: bool) -> Iterator[None]:
    """Another dropout in each process, and after it the same generator as before in all."""
    if not training:
        yield
        return
    seed = int(torch.randint(2**62, ()))
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seed + rank)
        yield


def mean_gradients(optimiser: torch.optim.Optimizer) -> None:
    """Replace every gradient by its mean over the processes."""
    if not several():
        return
    grads = [p.grad for group in optimiser.param_groups for p in group["params"] if p.grad is not None]
    flat = averaged(torch.cat([grad.flatten() for grad in grads]))
    for grad, mean in zip(grads, torch.split(flat, [grad.numel() for grad in grads]), strict=True):
        grad.copy_(mean.view_as(grad))


def agreed(values: tuple[float, float], device: str) -> tuple[float, float]:
    """Give everyone the first process' values: what is decided by them must be decided alike."""
    if not several():
        return values
    shared = torch.tensor(values, dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    first, second = shared.tolist()
    return first, second


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
        from .data.store import Prepared
        from .experiment import fit
        from .methods.registry import method
        from .targets.store import Targets

        fit(
            method(self.method),
            self.settings,
            [Prepared(path) for path in self.stores],
            {role: Targets(path) for role, path in self.targets.items()},
            self.out,
            seed=self.seed,
            device=device,
            report=report,
            writes=is_first(),
        )


def fit(job: Job, n: int, kind: str = "cuda", report: Report = silent) -> None:
    """Fit in ``n`` processes, as :func:`launch` runs them.

    Raises
    ------
    ConfigError
        The method is none of networks.
    """
    from .methods.network import NetworkSettings

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
        try:
            while not processes.join(timeout=_POLL):
                _hear(said, report)
        except Exception as error:
            _hear(said, report)
            raise DataError("a process died", got=str(error).strip().splitlines()[-1]) from error
        _hear(said, report)


def _hear(said: Any, report: Report) -> None:
    while not said.empty():
        kind, *rest = said.get()
        if kind == "report":
            report(*rest)
        else:
            raise cast(type[StreamdecError], getattr(errors, kind))(*rest)


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
    dist.barrier()  # none lets go while another still waits for it
    dist.destroy_process_group()
