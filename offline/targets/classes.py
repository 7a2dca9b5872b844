"""Classes as targets: one-hot."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from streamdec.types import Float32

from ..data.store import Item
from .images import Images


class OneHot:
    """One column per class.

    Parameters
    ----------
    items : sequence of Item
        All classes.
    """

    name = "classes"

    def __init__(self, items: Sequence[Item]) -> None:
        self._column = {id_: column for column, id_ in enumerate(dict.fromkeys(item.id for item in items))}
        self.provenance: dict[str, Any] = {"classes": list(self._column)}

    def __call__(self, items: Sequence[Item], images: Images) -> Float32:
        """(n, n_classes)."""
        return np.eye(len(self._column), dtype=np.float32)[[self._column[item.id] for item in items]]
