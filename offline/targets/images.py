"""Image files -> arrays."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

import numpy as np
import numpy.typing as npt

from streamdec.errors import DataError

from ..data.store import Item

UInt8 = npt.NDArray[np.uint8]
T = TypeVar("T")


class Images:
    """The images of items, those of the last batch kept: encoders that work on the same ones decode them once.

    Parameters
    ----------
    folder : Path
        The items' files lie below it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept: dict[str, UInt8] = {}

    def of(self, items: Sequence[Item]) -> list[UInt8]:
        """Images of items: each (height, width, 3) uint8, sizes may differ.

        Raises
        ------
        DataError
            An item has none, or it cannot be read.
        """
        for item in items:
            if not item.image:
                raise DataError(f"item {item.id!r}", got="no image", do="use an encoder of labels, or of classes")
        names = list(dict.fromkeys(item.image for item in items))
        if not set(names) <= self._kept.keys():
            self._kept = dict(zip(names, _threads(lambda name: read_rgb(self.folder / name), names), strict=True))
        return [self._kept[item.image] for item in items]

    def map(self, function: Callable[[UInt8], T], items: Sequence[Item]) -> list[T]:
        """``function`` of each image, in threads: decoders and filters let go of the interpreter lock."""
        return _threads(function, self.of(items))

    def changed(self, change: Callable[[UInt8], UInt8]) -> Images:
        """Make the same images seen through ``change``."""
        return _Changed(self, change)


class _Changed(Images):
    def __init__(self, source: Images, change: Callable[[UInt8], UInt8]) -> None:
        super().__init__(source.folder)
        self._source, self._change = source, change

    def of(self, items: Sequence[Item]) -> list[UInt8]:
        return self._source.map(self._change, items)


def _threads(function: Callable[..., T], values: Sequence[object]) -> list[T]:
    if len(values) < 2:
        return [function(value) for value in values]
    with ThreadPoolExecutor() as pool:
        return list(pool.map(function, values))


def read_rgb(path: Path) -> UInt8:
    """Read an image: (height, width, 3) uint8.

    Raises
    ------
    DataError
        It is not there, or no image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.array(image.convert("RGB"))  # a copy: torch warns of arrays it may not write to
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"image {path}", got=str(error), do="check the folder of images") from error


_SUFFIXES = {".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"}


def items_below(folder: Path) -> tuple[Item, ...]:
    """Make an item of every image in the folders below one: what class centres are made of.

    The id is CONCEPT/FILE, sorted; a folder is a concept, and its label is its name without underscores.

    Raises
    ------
    DataError
        There is none.
    """
    found = sorted(path for path in folder.glob("*/*") if path.suffix.lower() in _SUFFIXES)
    if not found:
        raise DataError(f"{folder}", got="no prepared store, and no CONCEPT/IMAGE below it", do="name another folder")
    names = [(path.parent.name, f"{path.parent.name}/{path.name}") for path in found]
    return tuple(Item(name, concept.replace("_", " "), concept, name) for concept, name in names)


def resize(image: UInt8, size: int) -> UInt8:
    """Shorter side to ``size`` pixels (bicubic), then the middle; rounded as torchvision does, which CLIP and VAEs use.

    Parameters
    ----------
    image : array of shape (height, width, 3), uint8
    size : int

    Returns
    -------
    array of shape (size, size, 3), uint8
    """
    from PIL import Image

    height, width = image.shape[:2]
    shorter = min(height, width)
    wide, high = size * width // shorter, size * height // shorter
    scaled = Image.fromarray(image).resize((wide, high), Image.Resampling.BICUBIC)
    left, top = round((wide - size) / 2), round((high - size) / 2)
    return np.array(scaled.crop((left, top, left + size, top + size)))


def thumbnail(path: Path, size: int) -> bytes:
    """Make a JPEG of at most ``size`` x ``size`` pixels; the same file gives the same bytes.

    Raises
    ------
    DataError
        It is not there, or no image.
    """
    from PIL import Image

    file = io.BytesIO()
    image = Image.fromarray(read_rgb(path))
    image.thumbnail((size, size))
    image.save(file, "JPEG", quality=85)
    return file.getvalue()
