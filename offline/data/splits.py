"""Validation: what is held out of the training part. The test part is never looked at."""

from __future__ import annotations

from typing import Literal, TypeAlias

import numpy as np

from streamdec.errors import ConfigError
from streamdec.types import Bool

from .store import Int64, Part

HoldOut: TypeAlias = Literal["concept", "image", "time"]


def hold_out(part: Part, by: HoldOut, share: float, seed: int) -> Bool:
    """Choose the epochs to validate on.

    Parameters
    ----------
    part : Part
        The training part.
    by : {"concept", "image", "time"}
        ``concept``: all images of random concepts, so that none of a validation image's kind is trained on. ``image``:
        random images (NICE's 740 of 16 540), which leaks concepts. ``time``: the last epochs, for classes.
    share : float
        Share of the concepts, images or epochs, between 0 and 1; at least one is held out and one kept.
    seed : int
        Draws concepts and images.

    Returns
    -------
    array of shape (n,), bool
        True for the epochs held out.
    """
    if not 0 < share < 1:
        raise ConfigError("share held out for validation", got=share, allowed="above 0, below 1")
    if by == "time":
        held = np.zeros(len(part.rows.item), bool)
        held[len(held) - _count(share, len(held)) :] = True
        return held
    names = [item.concept if by == "concept" else item.id for item in part.items]
    group, members = np.unique(names, return_inverse=True)
    chosen = np.random.default_rng(seed).permutation(len(group))[: _count(share, len(group))]
    held = np.isin(members, chosen)[part.rows.item]
    return held


def groups(part: Part, kind: Literal["stimulus", "class"], n_blocks: int = 10) -> Int64:
    """Group epochs that cross-validation must leave out together: a concept's, of classes a stretch of time.

    Returns
    -------
    array of shape (n,), int64
        Group of each epoch, from 0.
    """
    n = len(part.rows.item)
    if kind == "class":
        return np.arange(n, dtype=np.int64) * n_blocks // max(n, 1)
    members = np.unique([item.concept for item in part.items], return_inverse=True)[1]
    return members[part.rows.item].astype(np.int64)


def _count(share: float, n: int) -> int:
    if n < 2:
        raise ConfigError("validation", got=f"{n} to choose from", allowed="two or more")
    return min(max(round(share * n), 1), n - 1)
