"""How closely one encoder follows another on the same epochs, and how closely it must."""

from __future__ import annotations

import msgspec
import numpy as np

from streamdec.errors import EngineError
from streamdec.types import Float32

# Both sides sum thousands of float32 products, in another order: 1e-6 of the embedding's largest value is seen.
ERROR = 1e-4
LOST_COSINE = 1e-6


class Difference(msgspec.Struct, frozen=True):
    """``error`` largest, ``size`` of the largest value it is an error of, ``cosine`` lowest over the epochs."""

    error: float
    size: float
    cosine: float

    def __str__(self) -> str:
        return f"error {self.error:.3g} of {self.size:.3g}, cosine {self.cosine:.9f}"


def compare(got: Float32, wanted: Float32) -> Difference:
    """Compare embeddings (n, dim) with those they should be."""
    lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(wanted, axis=1)
    cosines = np.sum(got.astype(np.float64) * wanted, axis=1) / lengths
    return Difference(float(np.abs(got - wanted).max()), float(np.abs(wanted).max()), float(cosines.min()))


def check(what: str, found: Difference, cost: Difference | None = None) -> None:
    """Refuse embeddings that differ by more than 1e-4 of the largest value, or 1e-6 of a cosine.

    Parameters
    ----------
    what : str
        What was compared, for the message.
    found : Difference
    cost : Difference, optional
        What the precision alone costs, measured; twice of that is allowed.

    Raises
    ------
    EngineError
    """
    error, lost = ERROR * found.size, LOST_COSINE
    if cost is not None:
        error, lost = max(error, 2 * cost.error), max(lost, 2 * (1 - cost.cosine))
    if not (found.error <= error and found.cosine >= 1 - lost):
        raise EngineError(what, got=found, allowed=f"error {error:.3g}, cosine {1 - lost:.9f}")
