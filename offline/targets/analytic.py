"""Target encoders that need no weights: pixels, colour, Gabor energy, and the attributes of simulated images."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamdec.errors import DataError
from streamdec.simulate import features
from streamdec.types import Float32

from ..data.store import Item
from .images import read_rgb

FUNCTIONS = {"pixels": features.pixels, "colour": features.colour, "gabor": features.gabor}


class Analytic:
    """One of :data:`FUNCTIONS`.

    Parameters
    ----------
    name : str
    """

    def __init__(self, name: str) -> None:
        self.name, self._function = name, FUNCTIONS[name]
        self.provenance: dict[str, Any] = {"function": f"streamdec.simulate.features.{name}"}

    def __call__(self, items: Sequence[Item], images: Path) -> Float32:
        """(n, D); images may differ in size."""
        return np.concatenate([self._function(read_rgb(images / item.image)[None]) for item in items])


class Attributes:
    """What is true of each simulated image, from the ``image_attributes.tsv`` beside the image folders."""

    name = "attributes"

    def __init__(self) -> None:
        self.provenance: dict[str, Any] = {"table": "image_attributes.tsv"}

    def __call__(self, items: Sequence[Item], images: Path) -> Float32:
        """(n, n_attributes)."""
        path = images / "image_attributes.tsv"
        try:
            with path.open(newline="", encoding="utf-8") as file:
                _, *lines = csv.reader(file, delimiter="\t")
            rows = {line[0]: line[1:] for line in lines}
            return np.array([rows[item.image] for item in items], np.float32)
        except (OSError, ValueError, KeyError) as error:
            raise DataError(f"attributes {path}", got=str(error), do="only simulated images have them") from error
