"""A procedural world of images with known content: shapes, colours, textures and layouts.

A concept is one combination of the four ("blue striped ring pair"); its images differ in place, size, tilt, shade and
background.
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
    """Make a regular polygon of circumradius 1 with a corner ``turn`` rad from the top."""
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


_REACH = 1.2  # no shape is larger, in object radii


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

    ``x``, ``y`` shift in units of half the image, ``size`` factor, ``tilt`` rad, ``shade`` brightness of the object,
    ``ground`` brightness of the background, 0..1; ``slope`` direction in which the background brightens, rad; ``grain``
    periods of the texture per object radius.
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


class World:
    """Concepts and images. Simulated: nothing of it was photographed.

    Parameters
    ----------
    seed : int
        Draws concepts and looks. An image depends on the seed, its concept and its number only: a world of fewer
        training concepts holds the same images.
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
        sizes = {"n_train": n_train, "images_per_concept": images_per_concept, "n_test": n_test, "size": size}
        for what, got in sizes.items():
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
        """List the concepts of a split, sorted by name."""
        return self._concepts[split]

    def n_images(self, split: Split) -> int:
        """Count the images of a split."""
        return len(self._concepts[split]) * self._per_concept(split)

    def concept(self, split: Split, i: int) -> Concept:
        """Find the concept of image ``i``, 0-based: images stand in the order of their concepts."""
        return self._concepts[split][i // self._per_concept(split)]

    def ids(self, split: Split) -> list[str]:
        """Name each image's file below the split's folder: ``00001_red_striped_ring/red_striped_ring_01b.jpg``.

        Folders are numbered within the split, as THINGS-EEG2 has them.
        """
        n = self._per_concept(split)
        return [
            f"{c:05d}_{concept.name}/{concept.name}_{k:02d}{'b' if k == 1 else 's'}.jpg"
            for c, concept in enumerate(self._concepts[split], 1)
            for k in range(1, n + 1)
        ]

    def image(self, split: Split, i: int) -> features.UInt8:
        """Draw image ``i`` of a split: (size, size, 3) uint8 RGB, the same on every call and machine."""
        return render(self.concept(split, i), self.look(split, i), self.size)

    def images(self, split: Split, indices: Sequence[int] | None = None) -> features.UInt8:
        """Draw the images ``indices`` (all when None): (n, size, size, 3) uint8 RGB."""
        wanted = range(self.n_images(split)) if indices is None else indices
        out = np.empty((len(wanted), self.size, self.size, 3), np.uint8)
        for row, i in enumerate(wanted):
            out[row] = self.image(split, i)
        return out

    def look(self, split: Split, i: int) -> Look:
        """Tell what is particular to image ``i``."""
        rng = np.random.default_rng([self.seed, 1, self.concept(split, i).number, i % self._per_concept(split)])
        x, y, size, tilt, shade, ground, slope, grain = rng.uniform(
            (-0.2, -0.2, 0.8, -0.35, 0.75, 0.15, -np.pi, 1.4), (0.2, 0.2, 1.2, 0.35, 1.05, 0.75, np.pi, 2.0)
        )
        return Look(x, y, size, tilt, shade, ground, slope, grain)

    def low_level(self, split: Split) -> Float32:
        """Give :func:`features.low_level` of every image, (n, 240) float32; computed once, read-only."""
        if split not in self._low_level:
            self._low_level[split] = features.low_level(self.images(split))
            self._low_level[split].flags.writeable = False
        return self._low_level[split]

    @property
    def attribute_names(self) -> tuple[str, ...]:
        """Names of the columns of :meth:`attributes`: ``shape=ring``, ..., then ``x``, ``y``, ``size``, ..."""
        kinds = (("shape", SHAPES), ("colour", COLOURS), ("texture", TEXTURES), ("layout", LAYOUTS))
        return (*(f"{kind}={value}" for kind, values in kinds for value in values), *_LOOK_ATTRIBUTES)

    @property
    def n_semantic(self) -> int:
        """How many leading columns of :meth:`attributes` belong to the concept; the others to the single image."""
        return len(self.attribute_names) - len(_LOOK_ATTRIBUTES)

    def attributes(self, split: Split) -> Float32:
        """Describe every image: (n, 38) float32, 0 or 1 for the concept, then the look, units of :class:`Look`."""
        names = {name: column for column, name in enumerate(self.attribute_names)}
        out = np.zeros((self.n_images(split), len(names)), np.float32)
        for i, row in enumerate(out):
            concept, look = self.concept(split, i), self.look(split, i)
            for kind in ("shape", "colour", "texture", "layout"):
                row[names[f"{kind}={getattr(concept, kind)}"]] = 1
            for kind in _LOOK_ATTRIBUTES:
                row[names[kind]] = getattr(look, kind)
        return out

    def _per_concept(self, split: Split) -> int:
        return self.images_per_concept if split == "train" else 1


def render(concept: Concept, look: Look, size: int) -> features.UInt8:
    """Draw one image: (size, size, 3) uint8 RGB, antialiased by drawing at twice the size."""
    axis = (np.arange(2 * size) + 0.5) / size - 1
    gradient = 0.12 * (axis * np.cos(look.slope) + axis[:, None] * np.sin(look.slope))
    canvas = np.repeat(np.clip(look.ground + gradient, 0, 1)[..., None], 3, axis=2)
    light = look.shade * np.array(COLOURS[concept.colour])
    dark = 0.3 * light
    cos, sin = np.cos(look.tilt), np.sin(look.tilt)
    for centre_x, centre_y, radius in LAYOUTS[concept.layout]:
        x, y = (
            (axis - shift) / (look.size * radius)
            for shift in (look.x + look.size * centre_x, look.y + look.size * centre_y)
        )
        columns, rows = (slice(*np.searchsorted(along, (-_REACH, _REACH))) for along in (x, y))
        u, v = cos * x[columns] + sin * y[rows, None], cos * y[rows, None] - sin * x[columns]
        inside = SHAPES[concept.shape](u, v)
        second = TEXTURES[concept.texture](look.grain * u, look.grain * v)
        canvas[rows, columns][inside & second] = dark
        canvas[rows, columns][inside & ~second] = light
    fine = canvas.reshape(size, 2, size, 2, 3).mean(axis=(1, 3))
    out: features.UInt8 = np.rint(255 * np.clip(fine, 0, 1)).astype(np.uint8)
    return out
