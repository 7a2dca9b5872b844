"""Target encoders that need no weights: pixels, colour, Gabor energy, the attributes of simulated images, spelling."""

from __future__ import annotations

import csv
import zlib
from collections.abc import Callable, Sequence
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from streamdec.errors import ConfigError, DataError
from streamdec.simulate import features
from streamdec.types import Float32

from ..data.store import Item
from .images import Images, UInt8, resize
from .text import Sentences

_COLUMNS = 256


class Size(msgspec.Struct, frozen=True):
    """Options: ``size`` of the picture, pixels along one side."""

    size: int = 8

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError("size", got=self.size, allowed="1 pixel or more")


class ThumbnailSize(Size, frozen=True):
    """Options: ``size`` as NeuroCLIP's filter network takes it."""

    size: int = 56


class Function:
    """A function of :mod:`streamdec.simulate.features`, such as ``gabor``.

    Parameters
    ----------
    function : callable
        (n, height, width, 3) uint8 -> (n, D) float32.
    settings : dict
        What it is called with beside the images.
    """

    def __init__(self, function: Callable[..., Float32], settings: dict[str, int] | None = None) -> None:
        self._function, self._settings = function, settings or {}
        self.name = function.__name__
        self.provenance: dict[str, Any] = {"function": f"{function.__module__}.{function.__name__}", **self._settings}

    def __call__(self, items: Sequence[Item], images: Images) -> Float32:
        """(n, D); images may differ in size."""
        return np.concatenate(images.map(self._one, items))

    def _one(self, image: UInt8) -> Float32:
        return self._function(image[None], **self._settings)


def pixels(size: Size) -> Function:
    """Make an encoder of small pictures: (n, size * size * 3), laid out row, column, RGB, values 0..1.

    With size 16 it stands in for the latents of a VAE where there are no weights.
    """
    return Function(features.pixels, {"size": size.size})


class Thumbnails:
    """The middle square, small: what NeuroCLIP's filter network looks at.

    Parameters
    ----------
    size : ThumbnailSize
    """

    name = "thumbnails"

    def __init__(self, size: ThumbnailSize) -> None:
        self._size = size.size
        self.provenance: dict[str, Any] = {"size": self._size, "resize": "bicubic, centre crop"}

    def __call__(self, items: Sequence[Item], images: Images) -> npt.NDArray[np.float16]:
        """(n, 3, size, size), values 0..1, float16: finer than the 8 bits of an image."""
        small = np.stack(images.map(lambda image: resize(image, self._size), items))
        return (np.moveaxis(small, 3, 1) / np.float32(255)).astype(np.float16)


class Attributes:
    """What is true of each simulated image, from the ``image_attributes.tsv`` beside the image folders."""

    name = "attributes"

    def __init__(self) -> None:
        self.provenance: dict[str, Any] = {"table": "image_attributes.tsv"}

    def __call__(self, items: Sequence[Item], images: Images) -> Float32:
        """(n, n_attributes)."""
        path = images.folder / "image_attributes.tsv"
        try:
            with path.open(newline="", encoding="utf-8") as file:
                _, *lines = csv.reader(file, delimiter="\t")
            rows = {line[0]: line[1:] for line in lines}
            return np.array([rows[item.image] for item in items], np.float32)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"attributes {path}", got=str(error), do="only simulated images have them") from error


class Spelling:
    """How often each sequence of three letters occurs, hashed to 256 columns: text features without weights.

    Sentences that share words or parts of words are similar; there is no meaning in it.

    Parameters
    ----------
    sentences : Sentences
        What is said of each item.
    """

    name = "spelling"

    def __init__(self, sentences: Sentences) -> None:
        self._sentences = sentences
        self.provenance: dict[str, Any] = {"letters": 3, "columns": _COLUMNS, "text": sentences.provenance}

    def __call__(self, items: Sequence[Item], images: Images) -> Float32:
        """(n, 256)."""
        rows = np.zeros((len(items), _COLUMNS), np.float32)
        for row, sentence in zip(rows, self._sentences.of(items), strict=True):
            padded = f"  {sentence.lower()} "
            for start in range(len(padded) - 2):
                row[zlib.crc32(padded[start : start + 3].encode()) % _COLUMNS] += 1
        return rows
