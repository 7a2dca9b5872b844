"""A batch that is spread over processes (torch.distributed): its statistics are those of the whole of it.

Inside :func:`spread` every process holds other rows of one batch; outside all hold the same ones, and nothing here does
anything. A gradient belongs to a loss that each process computes in full from rows gathered of all: what reaches a row
is the sum over the processes, so the mean of the parameters' gradients over the processes is that of one process.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

_SPREAD: ContextVar[tuple[int, int] | None] = ContextVar("spread", default=None)


@contextmanager
def spread(own: int, total: int) -> Iterator[None]:
    """Say that the rows at hand are this process' ``own``, one or more, of ``total``."""
    before = _SPREAD.set((own, total))
    try:
        yield
    finally:
        _SPREAD.reset(before)


def is_spread() -> bool:
    """Tell whether the rows at hand are a share."""
    return _SPREAD.get() is not None


def whole(n: int) -> int:
    """Count in the whole batch what is ``n`` in this share, the same number in each row."""
    own, total = _SPREAD.get() or (1, 1)
    return n * total // own


def summed(tensor: Tensor) -> Tensor:
    """Sum over the processes, with gradients; the tensor itself unless the batch is spread."""
    if not is_spread():
        return tensor
    out: Tensor = _Sum.apply(tensor)
    return out


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return _all(tensor)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Tensor:
        return _all(grads[0])


def _all(tensor: Tensor) -> Tensor:
    out = tensor.clone(memory_format=torch.contiguous_format)
    dist.all_reduce(out)
    return out


class _JoinedNorm(nn.Module):
    """In front of the batch norm it is mixed with: a spread batch is normalised by the moments of the whole of it."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, F, ...) -> the same."""
        norm = cast(nn.BatchNorm2d, self)
        if not (is_spread() and norm.training):
            out: Tensor = super().forward(x)
            return out
        axes = [axis for axis in range(x.ndim) if axis != 1]
        shape = [-1 if axis == 1 else 1 for axis in range(x.ndim)]
        n = whole(x.numel() // x.shape[1])
        mean = summed(x.sum(axes)) / n
        centred = x - mean.view(shape)
        variance = summed(centred.square().sum(axes)) / n
        with torch.no_grad():
            momentum = cast(float, norm.momentum)
            cast(Tensor, norm.running_mean).lerp_(mean, momentum)
            cast(Tensor, norm.running_var).lerp_(variance * (n / max(n - 1, 1)), momentum)
            cast(Tensor, norm.num_batches_tracked).add_(1)
        scale = norm.weight / torch.sqrt(variance + norm.eps)
        return centred * scale.view(shape) + norm.bias.view(shape)


class _JoinedNorm1d(_JoinedNorm, nn.BatchNorm1d):
    pass


class _JoinedNorm2d(_JoinedNorm, nn.BatchNorm2d):
    pass


@contextmanager
def joined_norms(module: nn.Module) -> Iterator[None]:
    """Let every batch norm in a module see the whole of a spread batch."""
    kinds: dict[type, type] = {nn.BatchNorm1d: _JoinedNorm1d, nn.BatchNorm2d: _JoinedNorm2d}
    changed = [(norm, type(norm)) for norm in module.modules() if type(norm) in kinds]
    for norm, kind in changed:
        norm.__class__ = kinds[kind]
    try:
        yield
    finally:
        for norm, kind in changed:
            norm.__class__ = kind
