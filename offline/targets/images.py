"""Image files -> arrays."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from streamdec.errors import DataError


def read_rgb(path: Path) -> npt.NDArray[np.uint8]:
    """Read an image: (height, width, 3) uint8.

    Raises
    ------
    DataError
        It is not there, or no image.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise DataError(f"image {path}", got=str(error), do="check the folder of images") from error


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
