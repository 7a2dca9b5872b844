"""Features of a few images that are nothing but random numbers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import tiny_diffusers

from offline.data.store import Item
from offline.targets.store import Targets, compute

N = 10
LATENTS = (4, tiny_diffusers.SIDE, tiny_diffusers.SIDE)


class Made:
    """Random features, of any shape."""

    def __init__(self, name: str, *shape: int, **provenance: object) -> None:
        self.name, self._shape, self.provenance = name, shape, provenance

    def __call__(self, items, images):
        rng = np.random.default_rng(len(self.name))
        return rng.standard_normal((len(items), *self._shape)).astype(np.float32)


def features(folder: Path, encoder: Made, n: int = N) -> Targets:
    compute(encoder, [Item(f"c/{i}", "c", "c", f"c/{i}.png") for i in range(n)], folder, folder / encoder.name)
    return Targets(folder / encoder.name)


def of_images(folder: Path) -> dict[str, Targets]:
    """Features of two kinds, and latents."""
    return {
        "clip": features(folder, Made("clip", 5)),
        "vae": features(folder, Made("vae", 2, 3)),
        "latents": features(folder, Made("latents", math.prod(LATENTS), latents=list(LATENTS))),
    }
