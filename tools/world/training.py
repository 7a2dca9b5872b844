"""One training loop for all of them: resumable, and the same batches on every machine."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


def train(
    module: M,
    loss: Callable[[np.random.Generator], Tensor],
    checkpoint: Path,
    *,
    steps: int,
    rate: float,
    seed: int,
    weight_decay: float = 0.01,
    every: int = 50,
) -> M:
    """Train with AdamW, a warm-up and a cosine; continue from ``checkpoint`` where there is one.

    Parameters
    ----------
    module : nn.Module
        What is trained.
    loss : callable
        Draws a batch with the generator it is given, which depends on seed and step only, and gives the mean loss.
    checkpoint : Path
        Written every ``every`` steps.
    steps, rate, seed, weight_decay
        Steps in all, highest learning rate, seed of the batches, of AdamW.

    Returns
    -------
    nn.Module
        ``module``, frozen, in evaluation mode.
    """
    matrices = [p for p in module.parameters() if p.requires_grad and p.ndim > 1]
    others = [p for p in module.parameters() if p.requires_grad and p.ndim <= 1]
    groups: list[dict[str, Any]] = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(
        groups,
        rate,
        betas=(0.9, 0.98),
        weight_decay=weight_decay,
    )
    first = 0
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        module.load_state_dict(state["module"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
    warm_up = min(100, max(1, steps // 10))
    module.train()
    recent, began = [], time.monotonic()
    for step in range(first, steps):
        factor = min((step + 1) / warm_up, 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        for group in optimiser.param_groups:
            group["lr"] = rate * factor
        torch.manual_seed(1_000_003 * seed + step)
        value = loss(np.random.default_rng([seed, step]))
        optimiser.zero_grad()
        value.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        optimiser.step()
        recent.append(value.item())
        if (step + 1) % every == 0 or step + 1 == steps:
            pace = (time.monotonic() - began) / (step + 1 - first)
            print(f"{checkpoint.stem} {step + 1}/{steps}: loss {np.mean(recent):.4f}, {pace:.2f} s a step", flush=True)
            recent = []
            part = checkpoint.with_suffix(".part")
            torch.save(
                {
                    "module": module.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "step": step + 1,
                },
                part,
            )
            part.rename(checkpoint)
    return module.eval().requires_grad_(False)
