"""One batch over several processes (torch.distributed): each has its own rows and computes the loss of all.

Shapes: B batch of one process.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def gathered(tensor: Tensor) -> Tensor:
    """Rows of all processes, in order of rank, with gradients; the tensor itself where there is one process.

    Each process computes the loss of the joined batch. Backward adds up what all of them ask of a row, so that the mean
    over processes, which DistributedDataParallel takes, is the gradient of one process with the joined batch.

    Parameters
    ----------
    tensor : Tensor of shape (B, ...)
        The same shape in all processes.

    Returns
    -------
    Tensor of shape (processes · B, ...)
    """
    if not _several():
        return tensor
    out: Tensor = _Gather.apply(tensor)
    return out


def averaged(tensor: Tensor) -> Tensor:
    """Mean over all processes of a tensor of any shape, without gradients; the tensor itself where there is one."""
    if not _several():
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def _several() -> bool:
    return dist.is_available() and dist.is_initialized()


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        rows = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
        dist.all_gather(rows, tensor.contiguous())
        return torch.cat(rows)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        joined = grads[0].contiguous()
        dist.all_reduce(joined)
        return joined.chunk(dist.get_world_size())[dist.get_rank()]
