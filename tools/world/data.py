"""Images of the world, drawn once: every concept but the 200 test concepts of World(0), twelve looks of each."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from streamdec.simulate.captions import PHRASINGS, Attributes, attributes, describe
from streamdec.simulate.features import UInt8
from streamdec.simulate.world import World

N_CONCEPTS = 2680
"""All but the test concepts, which are those of World(0) whatever the number of training concepts."""
LOOKS = 12
N_IMAGES = N_CONCEPTS * LOOKS


class Data:
    """Images and what they show.

    Parameters
    ----------
    cache : Path
        Folder in which the training images are kept once drawn (395 MB).
    n_images : int
        How many of them, for a trial; they are taken from all over the concepts.
    """

    def __init__(self, cache: Path, n_images: int = N_IMAGES) -> None:
        self.world = World(0, n_train=N_CONCEPTS, images_per_concept=LOOKS)
        rows = np.linspace(0, N_IMAGES - 1, n_images).astype(int)
        file = cache / f"images-{n_images}.npy"
        if not file.exists():
            cache.mkdir(parents=True, exist_ok=True)
            part = file.with_suffix(".part.npy")
            np.save(part, self.world.images("train", rows.tolist()))
            part.rename(file)
        self.images: UInt8 = np.load(file, mmap_mode="r")
        self.shows = [attributes(self.world.concept("train", int(i)), self.world.look("train", int(i))) for i in rows]

    def test(self, n: int = 200) -> tuple[UInt8, list[Attributes]]:
        """Images of the first ``n`` test concepts, never trained on, and what they show."""
        shows = [attributes(self.world.concept("test", i), self.world.look("test", i)) for i in range(n)]
        return self.world.images("test", range(n)), shows

    def caption(self, row: int, rng: np.random.Generator, short: float = 0.0) -> str:
        """Say what training image ``row`` shows, in any phrasing; with probability ``short`` its concept only."""
        said = self.shows[row]
        if rng.random() < short:
            said = Attributes(said.shape, said.colour, said.texture, said.layout)
        return describe(said, int(rng.integers(PHRASINGS)))
