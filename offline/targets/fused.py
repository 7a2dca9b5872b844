"""Features of several encoders, fused by a trained Fusion Prior: one space for any method to be aligned to."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from streamdec.errors import ConfigError
from streamdec.types import Float32

from ..data.store import Item
from ..generation.prior import Prior
from .images import Images
from .provenance import digest
from .store import TargetEncoder


class Fused:
    """z_f of a prior: the features of its encoders, as :class:`models.fusion.FusionEncoder` adds them up.

    Parameters
    ----------
    path : str
        Folder of the prior.
    encoder : callable
        Makes a target encoder from its name.

    Raises
    ------
    ConfigError
        The prior does not fuse.
    DataError
        There is no trained prior.
    """

    def __init__(self, path: str, encoder: Callable[[str], TargetEncoder]) -> None:
        self.name = f"fused:{path}"
        self._prior = Prior(Path(path))
        if not self._prior.meta.settings.fuse:
            raise ConfigError(f"prior {path}", got="fuse = false", allowed="one that fuses features")
        self._parts = {role: encoder(name) for role, name in self._prior.meta.encoders.items()}
        self.provenance: dict[str, Any] = {
            "fusion": digest(Path(path) / "fusion.safetensors"),
            "parts": {role: part.provenance for role, part in self._parts.items()},
        }

    def __call__(self, items: Sequence[Item], images: Images) -> Float32:
        """(n, D), not normalised."""
        return self._prior.fused({role: part(items, images) for role, part in self._parts.items()})
