"""Target features on disk: computed once for a set of stimuli, used by any subject and method.

A folder: ``targets.json`` and ``features.npy`` (n, D) float32 as the encoder gave them, not normalised, one row per id.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import msgspec
import numpy as np

from streamdec.errors import ConfigError, DataError
from streamdec.types import Float32

from ..checkpoint import replace
from ..data.store import Item
from ..progress import Report, silent

_BATCH = 64


class TargetEncoder(Protocol):
    """What EEG is aligned to.

    ``name`` as the user gives it; ``provenance`` all that the features depend on: weights, preprocessing, versions.
    """

    name: str
    provenance: dict[str, Any]

    def __call__(self, items: Sequence[Item], images: Path) -> Float32:
        """Items (n) -> features (n, D) float32; their files lie below ``images``."""


class TargetsMeta(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """``ids`` in the order of the rows, ``done`` of them computed; ``fingerprint`` sha256 of features and ids."""

    encoder: str
    provenance: dict[str, Any]
    ids: tuple[str, ...]
    done: int
    fingerprint: str = ""


class Targets:
    """Opened target features.

    Parameters
    ----------
    path : Path

    Raises
    ------
    DataError
        There are none, or they were not computed to the end.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.meta = msgspec.json.decode((path / "targets.json").read_bytes(), type=TargetsMeta)
            self._features = np.load(path / "features.npy", mmap_mode="r")
        except (OSError, ValueError, msgspec.MsgspecError) as error:
            raise DataError(
                f"{path} holds no target features", got=str(error), do="make some: streamdec-train features"
            ) from error
        if not self.meta.fingerprint:
            raise DataError(
                f"target features {path}",
                got=f"{self.meta.done} of {len(self.meta.ids)} rows",
                do="finish them: the same streamdec-train features command goes on",
            )
        self._row = {id_: row for row, id_ in enumerate(self.meta.ids)}

    def of(self, items: Sequence[Item]) -> Float32:
        """Features of items, (n, D) float32, not normalised.

        Raises
        ------
        DataError
            One was not computed.
        """
        missing = [item.id for item in items if item.id not in self._row]
        if missing:
            raise DataError(
                f"target features {self.path}", got=f"no row for {missing[0]!r}", do="compute them for this data set"
            )
        return np.asarray(self._features[[self._row[item.id] for item in items]], np.float32)


def compute(
    encoder: TargetEncoder,
    items: Sequence[Item],
    images: Path,
    out: Path,
    report: Report = silent,
) -> TargetsMeta:
    """Compute features and keep them; goes on where a killed call was.

    Parameters
    ----------
    encoder : TargetEncoder
    items : sequence of Item
        Each id counts once.
    images : Path
        Folder of the items' files.
    out : Path
        Folder for the features.
    report : callable
        Told how many rows are done.

    Raises
    ------
    ConfigError
        The folder holds other features.
    """
    unique = list({item.id: item for item in items}.values())
    meta = TargetsMeta(encoder.name, encoder.provenance, tuple(item.id for item in unique), 0)
    out.mkdir(parents=True, exist_ok=True)
    if (out / "targets.json").exists():
        started = msgspec.json.decode((out / "targets.json").read_bytes(), type=TargetsMeta)
        if (started.encoder, started.provenance, started.ids) != (meta.encoder, meta.provenance, meta.ids):
            raise ConfigError(
                f"{out} holds other features", got=started.encoder, do="name another folder, or delete it"
            )
        if started.fingerprint:
            return started
        meta = started
    features = np.load(out / "features.npy", mmap_mode="r+") if meta.done else None
    while meta.done < len(unique):
        stop = min(meta.done + _BATCH, len(unique))
        rows = encoder(unique[meta.done : stop], images)
        if not np.isfinite(rows).all():
            raise DataError(f"features of {encoder.name}", got="NaN or infinity", do="look at the images of this batch")
        if features is None:
            shape = (len(unique), rows.shape[1])
            features = np.lib.format.open_memmap(out / "features.npy", mode="w+", dtype="<f4", shape=shape)
        features[meta.done : stop] = rows
        features.flush()
        meta = msgspec.structs.replace(meta, done=stop)
        replace(out / "targets.json", msgspec.json.encode(meta))
        report(f"{encoder.name}: {stop} of {len(unique)} images", stop, len(unique))
    digest = hashlib.sha256(msgspec.json.encode(meta.ids))
    digest.update(np.ascontiguousarray(features).data)
    meta = msgspec.structs.replace(meta, fingerprint=digest.hexdigest())
    replace(out / "targets.json", msgspec.json.encode(meta))
    return meta
