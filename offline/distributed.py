"""Within one of several processes that make a run: each encodes its share of a batch, and all compute the whole loss.

A learner knows nothing of it. Its ``encode`` and ``embed`` are replaced while it trains: a process runs them on its
share of the rows and gets those of all (:func:`.losses.gathered`), with the batch norms seeing the whole batch
(:mod:`models.processes`). So every negative is there, losses that look at a batch as a whole need no word about it, and
what a learner keeps from batch to batch is the same everywhere. What else a loss runs, it runs in full in each process.

Loss, gradients and running statistics are those of one process with the same batch, up to the order of float32 sums.
Dropout is not: each process draws its own. :mod:`.processes` starts them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
import torch.distributed as dist
import torch.nn.functional as nnf
from torch import Tensor, nn

from models.processes import is_spread, joined_norms, spread

from .learner import Learner
from .losses import gathered
from .losses.processes import averaged


def several() -> bool:
    """Tell whether this is one of several processes."""
    return dist.is_available() and dist.is_initialized()


def leave() -> None:
    """End what the processes do together, once all are here; each goes on alone."""
    if several():
        dist.barrier()  # none lets go while another still waits for it
        dist.destroy_process_group()


def count() -> int:
    """Count the processes of this run."""
    return dist.get_world_size() if several() else 1


def is_first() -> bool:
    """Tell whether this is the process that writes."""
    return not several() or dist.get_rank() == 0


@contextmanager
def shared_out(learner: Learner) -> Iterator[None]:
    """Let the processes share what a learner encodes and embeds."""
    if not several():
        yield
        return
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
