"""Validation: what is held out of the training part. The test part is never looked at."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias

import numpy as np

from streamdec.errors import ConfigError
from streamdec.types import Bool

from .store import Int64, Item

HoldOut: TypeAlias = Literal["concept", "image", "time"]


def choose(items: Sequence[Item], by: Literal["concept", "image"], share: float, seed: int) -> Bool:
    """Choose the items to validate on.

    Parameters
    ----------
    items : sequence of Item
    by : {"concept", "image"}
        ``concept``: all images of random concepts, so that none of a validation image's kind is trained on. ``image``:
        random images (NICE's 740 of 16 540), which leaks concepts.
    share : float
        Share of the concepts or images, between 0 and 1; at least one is held out and one kept.
    seed : int

    Returns
    -------
    array of shape (n_items,), bool
        True for the items held out.
    """
    names = [item.concept if by == "concept" else item.id for item in items]
    group, members = np.unique(names, return_inverse=True)
    chosen = np.random.default_rng(seed).permutation(len(group))[: _count(share, len(group))]
    held: Bool = np.isin(members, chosen)
    return held


def last(n: int, share: float) -> Bool:
    """Hold out the last of ``n`` epochs: (n,) bool; at least one is held out and one kept."""
    held = np.zeros(n, bool)
    held[n - _count(share, n) :] = True
    return held


def stretches(n: int, n_blocks: int = 10) -> Int64:
    """Number the stretches of time that cross-validation leaves out of ``n`` epochs: (n,) int64, from 0."""
    return np.arange(n, dtype=np.int64) * n_blocks // max(n, 1)


def _count(share: float, n: int) -> int:
    if not 0 < share < 1:
        raise ConfigError("share held out for validation", got=share, allowed="above 0, below 1")
    if n < 2:
        raise ConfigError("validation", got=f"{n} to choose from", allowed="two or more")
    return min(max(round(share * n), 1), n - 1)
