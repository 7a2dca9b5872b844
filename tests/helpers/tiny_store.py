"""A small prepared store with responses that can be decoded, made through the real writer.

Subjects differ in the order of what they were shown and in noise.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from offline.data.store import Item, Meta, Prepared, Writer
from offline.targets.store import compute
from streamdec.signal.spec import Signal

N_CHANS, N_TIMES = 4, 80


class Known:
    """Features that are given, instead of computed."""

    name = "known"

    def __init__(self, features: dict[str, np.ndarray]) -> None:
        self.features = features
        self.provenance = {"seed": 0}

    def __call__(self, items, images):
        return np.stack([self.features[item.id] for item in items])


def make(
    path: Path,
    *,
    kind: str = "stimulus",
    n_train: int = 60,
    n_test: int = 12,
    repetitions: int = 4,
    noise: float = 1.0,
    subject: str = "nobody",
    n_chans: int = N_CHANS,
) -> Prepared:
    """Epochs = features @ patterns + noise; classes have 2 items, 90 train and 60 test epochs."""
    rng = np.random.default_rng(3)
    dim = 6
    if kind == "class":
        items = {part: tuple(Item(name, name, name) for name in ("target", "other")) for part in ("train", "test")}
        features = {"target": np.eye(2, dtype=np.float32)[0], "other": np.eye(2, dtype=np.float32)[1]}
        dim = 2
    else:
        items = {
            part: tuple(
                Item(f"{part}{i}", f"thing {i}", f"{part}/{i // 2 if part == 'train' else i}") for i in range(n)
            )
            for part, n in (("train", n_train), ("test", n_test))
        }
        features = {i.id: rng.standard_normal(dim).astype(np.float32) for part in items.values() for i in part}
    patterns = rng.standard_normal((dim, n_chans, N_TIMES))
    of_subject = np.random.default_rng([4, *subject.encode()])
    signal = Signal(tuple("ABCDEFGH"[:n_chans]), 100.0, 0.0, (N_TIMES - 1) / 100)
    meta = Meta(
        dataset="tiny",
        subject=subject,
        simulated=True,
        kind=kind,
        signal=signal,
        shape=(n_chans, N_TIMES),
        channel_sd={},
        offline_only="",
        images="",
        config={},
        items=items,
    )
    with Writer(path, meta, {}) as writer:
        for part, members in items.items():
            if kind == "class":
                order = of_subject.integers(0, 2, 90 if part == "train" else 60)
            else:
                order = np.concatenate([of_subject.permutation(len(members)) for _ in range(repetitions)])
            mean = np.stack([np.tensordot(features[members[i].id], patterns, 1) for i in order])
            epochs = (mean + noise * of_subject.standard_normal(mean.shape)).astype(np.float32)
            writer.append(part, epochs, order.astype(np.int64), 0, np.arange(len(order), dtype=np.int64) * 20)
        writer.close(dict.fromkeys(signal.ch_names, 1.0))
    targets = path.parent / f"{path.name}-targets"
    compute(Known(features), [item for part in items.values() for item in part], Path(), targets)
    return Prepared(path)
