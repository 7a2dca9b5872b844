"""Target features of a tiny store, for roles of many kinds: all follow from what its responses follow from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tiny_store

from offline.data.store import Prepared
from offline.targets.store import Targets, compute


def _turned(known: np.ndarray, n: int, seed: int) -> np.ndarray:
    """(n_items, d) -> (n_items, n), by a random matrix."""
    return known @ np.random.default_rng(seed).standard_normal((known.shape[1], n)) / known.shape[1] ** 0.5


KINDS = {
    "known": lambda known: known,
    "turned": lambda known: _turned(known, known.shape[1], 0),
    "wide": lambda known: _turned(known, 9, 1),
    "latent": lambda known: _turned(known, 12, 2).reshape(-1, 3, 2, 2),
    "clip": lambda known: _turned(known, 64, 3),  # sizes of open_clip:tiny/random
    "tokens": lambda known: _turned(known, 2 * 16 * 64, 4).reshape(-1, 2, 16, 64),
    "thumbnails": lambda known: 0.5 + 0.1 * _turned(known, 3 * 56 * 56, 5).reshape(-1, 3, 56, 56),
    "signs": lambda known: known > 0,
    "blurred": lambda known: known * np.linspace(1, 0.5, known.shape[1]),
}


def make(store: Prepared, kinds: set[str]) -> dict[str, Targets]:
    """Compute each kind for a store, once."""
    items = [item for part in store.meta.items.values() for item in part]
    known = Targets(store.path.parent / f"{store.path.name}-targets").of(items)
    found = {}
    for kind in sorted(kinds):
        path: Path = store.path.parent / f"{store.path.name}-{kind}"
        if not path.exists():
            rows = KINDS[kind](known).astype(np.float32)
            compute(tiny_store.Known(dict(zip((item.id for item in items), rows, strict=True))), items, Path(), path)
        found[kind] = Targets(path)
    return found
