"""Which embedding space a run's queries live in: a name that a bundle and the generator made for it share."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt

from . import checkpoint
from .checkpoint import RunMeta
from .methods.base import Encoder
from .targets.store import Targets

_PROBES = 3
_FUSION = ("learner.fusion.",)
_SCALING = ("centre", "scale")


def space(path: Path, meta: RunMeta, encoder: Encoder, targets: Mapping[str, Targets]) -> str:
    """Name the space of a run.

    It is made of where the target features are from, and of what the method does to them: nothing, scaling, the fusion
    of a frozen prior; two runs that agree in these share it. Where a method trains its target side, it is of this run
    alone.

    Parameters
    ----------
    path : Path
        The run's encoder file.
    meta : RunMeta
    encoder : Encoder
    targets : mapping of str to Targets
        What it was fitted to.
    """
    told = {role: of_role.meta.provenance for role, of_role in sorted(targets.items())}
    whole = hashlib.sha256(msgspec.json.encode(told, order="deterministic"))
    arrays, _ = checkpoint.load(path)
    if _identity(encoder, targets):
        kept: dict[str, npt.NDArray[Any]] = {}
    elif meta.settings.get("prior"):
        kept = {name: array for name, array in arrays.items() if name.startswith((*_FUSION, *_SCALING))}
    elif meta.method == "ridge":
        kept = {name: arrays[name] for name in _SCALING}
    else:
        kept = dict(arrays)
    for name in sorted(kept):
        whole.update(name.encode() + np.ascontiguousarray(kept[name]).tobytes())
    return f"sha256:{whole.hexdigest()}"


def _identity(encoder: Encoder, targets: Mapping[str, Targets]) -> bool:
    """Whether candidates are the features themselves."""
    if len(targets) != 1:
        return False
    ((role, features),) = targets.items()
    rows = np.asarray(features.rows()[:_PROBES], np.float32)
    return rows.ndim == 2 and np.array_equal(encoder.candidates({role: rows}), rows)
