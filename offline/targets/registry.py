"""Target encoders by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from streamdec.errors import ConfigError
from streamdec.types import Float32

from ..data.store import Item
from .analytic import FUNCTIONS, Analytic, Attributes
from .classes import OneHot
from .store import TargetEncoder

NAMES = (*sorted(FUNCTIONS), "attributes", "classes", "open_clip:MODEL/WEIGHTS")


class Joined:
    """Features of several encoders, side by side.

    Parameters
    ----------
    parts : sequence of TargetEncoder
    """

    def __init__(self, parts: Sequence[TargetEncoder]) -> None:
        self._parts = parts
        self.name = "+".join(part.name for part in parts)
        self.provenance: dict[str, Any] = {part.name: part.provenance for part in parts}

    def __call__(self, items: Sequence[Item], images: Path) -> Float32:
        """(n, sum of the widths)."""
        return np.concatenate([part(items, images) for part in self._parts], axis=1)


def encoder(name: str, items: Sequence[Item], device: str = "cpu") -> TargetEncoder:
    """Make the target encoder ``name`` for ``items``; names joined by "+" put their features side by side.

    Raises
    ------
    ConfigError
        There is none of this name.
    """
    if "+" in name:
        return Joined([encoder(part, items, device) for part in name.split("+")])
    if name in FUNCTIONS:
        return Analytic(name)
    if name == "attributes":
        return Attributes()
    if name == "classes":
        return OneHot(items)
    kind, _, rest = name.partition(":")
    model, _, weights = rest.partition("/")
    if kind == "open_clip" and model and weights:
        from .openclip import OpenClip

        return OpenClip(model, weights, device)
    raise ConfigError("target encoder", got=name, allowed=", ".join(NAMES))
