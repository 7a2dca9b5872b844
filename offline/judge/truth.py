"""What was really shown: the stimuli, sentences about them, and pictures to compare a reconstruction with instead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import msgspec
import numpy as np

from streamdec.errors import ConfigError, DataError
from streamdec.simulate.captions import Attributes, attributes, describe
from streamdec.simulate.world import World

from ..data.store import Prepared
from ..targets.images import UInt8, read_rgb
from ..targets.text import read_captions
from .pictures import common

WORLD = "world"
_N_MEAN = 1000  # training images in the mean image
_COMMON = 256  # as ATM has it
_SEED = 0


class Truth(msgspec.Struct, frozen=True, eq=False):
    """The stimuli of a test.

    ``name`` of the data; ``simulated`` whether they are. Of each key: ``labels`` what it is in words, ``concepts`` what
    it is an example of, ``image`` its picture (height, width, 3) uint8, ``references`` a sentence about it and
    ``attributes`` what it shows, where that is known. ``training`` concept and picture of images that are no stimulus.
    ``size`` pixels that pictures are brought to before they are compared.
    """

    name: str
    simulated: bool
    size: int
    labels: Mapping[str, str]
    concepts: Mapping[str, str]
    image: Callable[[str], UInt8]
    training: tuple[tuple[str, Callable[[], UInt8]], ...]
    references: Mapping[str, str] = {}
    attributes: Mapping[str, Attributes] = {}

    def pictures(self, keys: Sequence[str]) -> UInt8:
        """Pictures of stimuli, brought to one size: (n, size, size, 3) uint8."""
        return common([self.image(key) for key in keys], self.size)

    def wrong_images(self, keys: Sequence[str]) -> UInt8:
        """Draw for each stimulus a training picture of another concept: (n, size, size, 3) uint8.

        Raises
        ------
        DataError
            There is none.
        """
        order = np.random.default_rng(_SEED).permutation(len(self.training))
        out: list[UInt8] = []
        for n, key in enumerate(keys):
            others = (self.training[i] for i in np.roll(order, -n))
            picture = next((load for concept, load in others if concept != self.concepts[key]), None)
            if picture is None:
                raise DataError(f"training images of {self.name}", got=f"none of another concept than {key!r}")
            out.append(picture())
        return common(out, self.size)

    def mean_image(self) -> UInt8:
        """Average training pictures, 1000 of them where there are more: (size, size, 3) uint8."""
        chosen = np.random.default_rng(_SEED).permutation(len(self.training))[:_N_MEAN]
        total = np.zeros((self.size, self.size, 3), np.int64)
        for i in chosen:
            total += common([self.training[i][1]()], self.size)[0]
        out: UInt8 = np.rint(total / len(chosen)).astype(np.uint8)
        return out


def open_truth(name: str, captions: Path | None = None) -> Truth:
    """Open the truth.

    Parameters
    ----------
    name : str
        A prepared store; or ``world``, ``world:SEED``: the procedural world of simulated subjects, of whose stimuli
        everything is known.
    captions : Path, optional
        Sentences about the stimuli of a store, as ``streamdec-train captions`` writes them: THINGS has none of people.

    Raises
    ------
    ConfigError
        It is neither, or the world is given captions of somebody else.
    DataError
        The store or the captions cannot be read.
    """
    if name.partition(":")[0] == WORLD:
        if captions is not None:
            raise ConfigError("captions of the world", got=str(captions), allowed="none: its own are true")
        return _world(name)
    prepared = Prepared(Path(name))
    meta = prepared.meta
    items = {item.id: item for item in prepared.items("test")}
    folder = Path(meta.images)

    def image(key: str) -> UInt8:
        if not items[key].image:
            raise DataError(f"item {key!r}", got="no image", do="pictures are judged by those that were shown")
        return read_rgb(folder / items[key].image)

    return Truth(
        f"{meta.dataset} {meta.subject}",
        meta.simulated,
        _COMMON,
        {key: item.label for key, item in items.items()},
        {key: item.concept for key, item in items.items()},
        image,
        tuple(
            (item.concept, lambda file=folder / item.image: read_rgb(file))  # type: ignore[misc]
            for item in meta.items.get("train", ())
            if item.image
        ),
        read_captions(captions) if captions is not None else {},
    )


def _world(name: str) -> Truth:
    seed = name.partition(":")[2] or "0"
    if not seed.isdecimal():
        raise ConfigError("world", got=name, allowed="world, or world:SEED")
    world = World(int(seed))
    place = {key: i for i, key in enumerate(world.ids("test"))}
    shows = {key: attributes(world.concept("test", i), world.look("test", i)) for key, i in place.items()}
    return Truth(
        f"world {seed}",
        True,
        world.size,
        {key: world.concept("test", i).name.replace("_", " ") for key, i in place.items()},
        {key: world.concept("test", i).name for key, i in place.items()},
        lambda key: world.image("test", place[key]),
        tuple(
            (world.concept("train", i).name, lambda i=i: world.image("train", i))  # type: ignore[misc]
            for i in range(world.n_images("train"))
        ),
        {key: describe(shown) for key, shown in shows.items()},
        shows,
    )
