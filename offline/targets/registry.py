"""Target encoders by name."""

from __future__ import annotations

from collections.abc import Sequence

from streamdec.errors import ConfigError

from ..data.store import Item
from .analytic import FUNCTIONS, Analytic, Attributes
from .classes import OneHot
from .store import TargetEncoder

NAMES = (*sorted(FUNCTIONS), "attributes", "classes", "open_clip:MODEL/WEIGHTS")


def encoder(name: str, items: Sequence[Item], device: str = "cpu") -> TargetEncoder:
    """Make the target encoder ``name`` for ``items``.

    Raises
    ------
    ConfigError
        There is none of this name.
    """
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
