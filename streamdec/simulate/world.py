"""A procedural world of images with known content: shapes, colours, textures and layouts.

A concept is one combination of the four ("blue striped ring pair"); its images differ in place, size, tilt, shade and background.
Training and test concepts are disjoint, as in THINGS-EEG2 (Gifford et al. 2022, doi:10.1016/j.neuroimage.2022.119754).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import ConfigError
from ..types import Float32
from . import features

Split: TypeAlias = Literal["train", "test"]
SPLITS: tuple[Split, Split] = ("train", "test")

_Grid: TypeAlias = npt.NDArray[np.float64]


def _polygon(n: int, turn: float) -> Callable[[_Grid, _Grid], npt.NDArray[np.bool_]]:
    """A regular polygon of circumradius 1 with a corner ``turn`` rad from the top."""
    normals = turn + np.pi / n + 2 * np.pi * np.arange(n) / n

    def inside(x: _Grid, y: _Grid) -> npt.NDArray[np.bool_]:
        reach = np.max([x * np.sin(a) - y * np.cos(a) for a in normals], axis=0)
        return np.asarray(reach <= np.cos(np.pi / n))

    return inside


# Is (x, y) inside the shape of about unit radius? x to the right, y down.
SHAPES: dict[str, Callable[[_Grid, _Grid], npt.NDArray[np.bool_]]] = {
    "disc": lambda x, y: x**2 + y**2 <= 0.9,
    "ring": lambda x, y: np.abs(np.hypot(x, y) - 0.75) <= 0.22,
    "square": _polygon(4, np.pi / 4),
    "diamond": lambda x, y: np.abs(x) / 0.7 + np.abs(y) / 1.1 <= 1,
    "triangle": _polygon(3, 0.0),
    "hexagon": _polygon(6, 0.0),
    "cross": lambda x, y: (np.minimum(np.abs(x), np.abs(y)) <= 0.3) & (np.maximum(np.abs(x), np.abs(y)) <= 1),
    "star": lambda x, y: np.hypot(x, y) <= 0.68 + 0.34 * np.cos(5 * np.arctan2(x, -y)),
    "heart": lambda x, y: (1.3 * x) ** 2 + (-1.2 * y - 0.75 * np.sqrt(np.abs(1.3 * x))) ** 2 <= 1,
    "crescent": lambda x, y: (x**2 + y**2 <= 1) & ((x - 0.5) ** 2 + y**2 > 0.7),
    "arrow": lambda x, y: ((np.abs(y) <= 0.28) & (np.abs(x) <= 0.9)) | ((x >= 0) & (x + np.abs(y) <= 1)),
    "hourglass": lambda x, y: (np.abs(x) <= np.abs(y) + 0.08) & (np.abs(y) <= 0.9),
}
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.85, 0.12, 0.12),
    "orange": (0.95, 0.52, 0.08),
    "yellow": (0.95, 0.88, 0.15),
    "green": (0.18, 0.65, 0.20),
    "teal": (0.08, 0.62, 0.62),
    "blue": (0.15, 0.30, 0.85),
    "violet": (0.50, 0.20, 0.75),
    "pink": (0.96, 0.55, 0.72),
    "brown": (0.45, 0.28, 0.14),
    "white": (0.95, 0.95, 0.95),
}
# How much of the dark second tone is at (u, v), in units of the texture's period.
TEXTURES: dict[str, Callable[[_Grid, _Grid], npt.NDArray[np.bool_]]] = {
    "plain": lambda u, v: np.zeros(u.shape, bool),
    "striped": lambda u, v: np.cos(2 * np.pi * u) > 0,
    "banded": lambda u, v: np.cos(2 * np.pi * v) > 0,
    "checked": lambda u, v: np.cos(2 * np.pi * u) * np.cos(2 * np.pi * v) > 0,
    "dotted": lambda u, v: np.cos(2 * np.pi * u) + np.cos(2 * np.pi * v) > 0.8,
    "ringed": lambda u, v: np.cos(2 * np.pi * np.hypot(u, v)) > 0,
}
# Centre (x, y) and size of each copy, in units of half the image.
LAYOUTS: dict[str, tuple[tuple[float, float, float], ...]] = {
    "single": ((0.0, 0.0, 0.60),),
    "pair": ((-0.42, 0.0, 0.38), (0.42, 0.0, 0.38)),
    "row": ((-0.58, 0.12, 0.27), (0.0, -0.12, 0.27), (0.58, 0.12, 0.27)),
    "cluster": ((-0.4, -0.4, 0.26), (0.4, -0.4, 0.26), (0.0, 0.0, 0.26), (-0.4, 0.4, 0.26), (0.4, 0.4, 0.26)),
}


class Concept(msgspec.Struct, frozen=True):
    """What all images of a concept show. ``number`` identifies it in the whole world, whatever was drawn from it."""

    number: int
    shape: str
    colour: str
    texture: str
    layout: str

    @property
    def name(self) -> str:
        """Such as ``blue_striped_ring_pair``."""
        parts = (self.colour, self.texture, self.shape, "" if self.layout == "single" else self.layout)
        return "_".join(part for part in parts if part)


class Look(msgspec.Struct, frozen=True):
    """What differs between images of a concept.

    ``x``, ``y`` shift in units of half the image, ``size`` factor, ``tilt`` rad, ``shade`` brightness of the object, ``ground`` brightness of the
    background, 0..1; ``slope`` direction in which the background brightens, rad; ``grain`` periods of the texture per object radius.
    """

    x: float
    y: float
    size: float
    tilt: float
    shade: float
    ground: float
    slope: float
    grain: float


_LOOK_ATTRIBUTES = ("x", "y", "size", "tilt", "shade", "ground")
_TEST_OR_TRAIN = {"train": 0, "test": 1}


class World:
    """Concepts and images. Simulated: nothing of it was photographed.

    Parameters
    ----------
    seed : int
        Draws concepts and looks. An image depends on the seed, its concept and its number only: a smaller world holds the same images.
    n_train, images_per_concept, n_test : int
        Training concepts, images of each, and test concepts of one image each.
    size : int
        Height and width of the images, pixels.

    Raises
    ------
    ConfigError
        When a number is not positive or there are not that many concepts.
    """

    def __init__(
        self, seed: int = 0, *, n_train: int = 400, images_per_concept: int = 10, n_test: int = 200, size: int = 64
    ) -> None:
        every = [
            Concept(0, shape, colour, texture, layout)
            for shape in SHAPES
            for colour in COLOURS
            for texture in TEXTURES
            for layout in LAYOUTS
        ]
        for what, got in (("n_train", n_train), ("images_per_concept", images_per_concept), ("n_test", n_test), ("size", size)):
            if got < 1:
                raise ConfigError(f"world: {what}", got=got, allowed="1 or more")
        if n_train + n_test > len(every):
            raise ConfigError("world: n_train + n_test", got=n_train + n_test, allowed=f"at most {len(every)} concepts")
        order = np.random.default_rng([seed, 0]).permutation(len(every))
        drawn = [msgspec.structs.replace(every[i], number=int(i)) for i in order[: n_test + n_train]]
        self.seed = seed
        self.size = size
        self.images_per_concept = images_per_concept
        self._concepts: dict[Split, list[Concept]] = {
            "test": sorted(drawn[:n_test], key=lambda c: c.name),
            "train": sorted(drawn[n_test:], key=lambda c: c.name),
        }
        self._low_level: dict[Split, Float32] = {}

    def concepts(self, split: Split) -> list[Concept]:
        """Concepts of a split, sorted by name."""
        return self._concepts[split]

    def n_images(self, split: Split) -> int:
        """Number of images of a split."""
        return len(self._concepts[split]) * self._per_concept(split)

    def concept(self, split: Split, i: int) -> Concept:
        """Concept of image ``i``, 0-based: images stand in the order of their concepts."""
        return self._concepts[split][i // self._per_concept(split)]

    def ids(self, split: Split) -> list[str]:
        """File of each image below the split's folder: ``00001_red_striped_ring/red_striped_ring_01b.jpg``.

        Folders are numbered within the split, as THINGS-EEG2 has them.
        """
        n = self._per_concept(split)
        return [
            f"{c:05d}_{concept.name}/{concept.name}_{k:02d}{'b' if k == 1 else 's'}.jpg"
            for c, concept in enumerate(self._concepts[split], 1)
            for k in range(1, n + 1)
        ]

    def image(self, split: Split, i: int) -> features.UInt8:
        """Image ``i`` of a split: (size, size, 3) uint8 RGB, the same on every call and machine."""
        return render(self.concept(split, i), self.look(split, i), self.size)

    def images(self, split: Split, indices: Sequence[int] | None = None) -> features.UInt8:
        """The images ``indices`` (all when None), (n, size, size, 3) uint8 RGB."""
        wanted = range(self.n_images(split)) if indices is None else indices
        out = np.empty((len(wanted), self.size, self.size, 3), np.uint8)
        for row, i in enumerate(wanted):
            out[row] = self.image(split, i)
        return out
