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
from .data.store import Item
from .methods.base import Encoder
from .targets.store import Targets

_PROBES = 3
_FUSION = ("learner.fusion.",)
_SCALING = ("centre", "scale")
_LIBRARIES = ("open_clip", "transformers", "diffusers")


def space(path: Path, meta: RunMeta, encoder: Encoder, targets: Mapping[str, Targets]) -> str:
    """Name the space of a run.

    It is made of where the target features are from, and of what the method does to them: nothing, scaling, the fusion
    of a frozen prior; two runs that agree in these share it. Where a method trains its target side, it is of this run
    alone. Where a model lay, which version of a library ran it, and what was done to the images do not count.

    Parameters
    ----------
    path : Path
        The run's encoder file.
    meta : RunMeta
    encoder : Encoder
    targets : mapping of str to Targets
        What it was fitted to.
    """
    role = _untouched(encoder, targets)
    if role is not None:
        return _named([origin(targets[role].meta.provenance)], {})
    arrays, _ = checkpoint.load(path)
    kept = dict(arrays)
    if meta.settings.get("prior"):
        kept = {name: array for name, array in arrays.items() if name.startswith((*_FUSION, *_SCALING))}
    elif meta.method == "ridge":
        kept = {name: arrays[name] for name in _SCALING}
    return _named({name: origin(of_role.meta.provenance) for name, of_role in sorted(targets.items())}, kept)


def origin(provenance: Mapping[str, Any]) -> dict[str, Any]:
    """Give what defines the space of a target encoder's features, of all its provenance says."""
    by_content = str(provenance.get("weights", "")).startswith("sha256:")
    left_out = {*_LIBRARIES, "images", *(("model",) if by_content else ())}
    return {
        key: origin(value) if isinstance(value, Mapping) else value
        for key, value in provenance.items()
        if key not in left_out
    }


def _named(told: Any, arrays: Mapping[str, npt.NDArray[Any]]) -> str:
    whole = hashlib.sha256(msgspec.json.encode(told, order="deterministic"))
    for name in sorted(arrays):
        whole.update(name.encode() + np.ascontiguousarray(arrays[name]).tobytes())
    return f"sha256:{whole.hexdigest()}"


def _untouched(encoder: Encoder, targets: Mapping[str, Targets]) -> str | None:
    """Find the role whose features the candidates are, as they are; None where there is none."""
    first = next(iter(targets.values()))
    items = [Item(name, name, name) for name in first.meta.ids[:_PROBES]]
    rows = {role: np.asarray(of_role.of(items)) for role, of_role in targets.items()}
    made = encoder.candidates(rows)
    return next((role for role in rows if np.array_equal(made, rows[role])), None)
