"""Target features on disk: computed once for a set of stimuli, used by any subject and method.

A folder: ``targets.json``, and ``features.npy`` (n, ...) with one row per id, of any shape, float32 or float16, as the
encoder gave them. Never normalised: generation needs the scale, and retrieval compares by cosine.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt

from streamdec.errors import ConfigError, DataError

from ..checkpoint import replace, writing
from ..data.store import Item
from ..progress import Report, silent
from .images import Images

_BLOCK = 256  # rows looked at at once

Features: TypeAlias = npt.NDArray[np.float32] | npt.NDArray[np.float16]


class TargetEncoder(Protocol):
    """What EEG is aligned to.

    ``name`` as the user gives it; ``provenance`` all that the features depend on: weights, preprocessing, versions.
    """

    name: str
    provenance: dict[str, Any]

    def __call__(self, items: Sequence[Item], images: Images) -> Features:
        """Items (n) -> features (n, ...) float32 or float16; ``images`` gives those of the items."""


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
        self.meta = _read_meta(path)
        if not self.meta.fingerprint:
            raise DataError(
                f"target features {path}",
                got=f"{self.meta.done} of {len(self.meta.ids)} rows",
                do="finish them: the same streamdec-train features command goes on",
            )
        try:  # copy on write: never changes the file, and torch takes such arrays without a warning
            self._features = np.load(path / "features.npy", mmap_mode="c")
        except (OSError, ValueError, EOFError) as error:
            raise DataError(f"{path / 'features.npy'}", got=str(error), do="compute the features again") from error
        if len(self._features) != len(self.meta.ids):
            raise DataError(f"rows of {path}", got=len(self._features), allowed=len(self.meta.ids))
        self._row = {id_: row for row, id_ in enumerate(self.meta.ids)}

    def rows(self) -> Features:
        """All rows, in the order of ``meta.ids``, memory-mapped."""
        return np.asarray(self._features)

    def check(self, items: Sequence[Item]) -> None:
        """Refuse items of which one was not computed.

        Raises
        ------
        DataError
            Naming the first.
        """
        missing = next((item.id for item in items if item.id not in self._row), None)
        if missing is not None:
            raise DataError(
                f"target features {self.path}", got=f"no row for {missing!r}", do="compute them for this data set"
            )

    def of(self, items: Sequence[Item]) -> Features:
        """Features of items.

        Parameters
        ----------
        items : sequence of Item

        Returns
        -------
        array of shape (len(items), ...), float32 or float16
            Memory-mapped where the items stand in the file one after the other, as those of one part do.

        Raises
        ------
        DataError
            One was not computed, or holds NaN or infinity: the file is not what was computed.
        """
        self.check(items)
        rows = np.array([self._row[item.id] for item in items], np.int64)
        consecutive = len(rows) > 0 and bool(np.all(np.diff(rows) == 1))
        found: Features = np.asarray(self._features[rows[0] : rows[-1] + 1] if consecutive else self._features[rows])
        for start in range(0, len(found), _BLOCK):
            if not np.isfinite(found[start : start + _BLOCK]).all():
                raise DataError(f"target features {self.path}", got="NaN or infinity", do="compute them again")
        return found


def compute(
    encoder: TargetEncoder,
    items: Sequence[Item],
    images: Path,
    out: Path,
    report: Report = silent,
    batch: int = 64,
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
    batch : int
        Items the encoder is given at once.

    Raises
    ------
    ConfigError
        The folder holds other features.
    DataError
        NaN or infinity among the features; no room on the disk.
    """
    unique = list({item.id: item for item in items}.values())
    meta = TargetsMeta(encoder.name, encoder.provenance, tuple(item.id for item in unique), 0)
    if batch < 1:
        raise ConfigError("batch", got=batch, allowed="1 or more")
    if not unique:
        raise DataError("target features", got="no items", do="prepare a data set that has some")
    with writing(out):
        out.mkdir(parents=True, exist_ok=True)
    if (out / "targets.json").exists():
        started = _read_meta(out)
        if (started.encoder, started.ids) != (meta.encoder, meta.ids) or not _same(started.provenance, meta.provenance):
            raise ConfigError(
                f"{out} holds other features", got=started.encoder, do="name another folder, or delete it"
            )
        if started.fingerprint:
            return started
        meta = started
    source = Images(images)
    while meta.done < len(unique):
        group = unique[meta.done : meta.done + batch]
        rows = encoder(group, source)
        _check(encoder.name, rows, group)
        with writing(out):
            _append(out / "features.npy", rows, meta.done, len(unique))
            meta = msgspec.structs.replace(meta, done=meta.done + len(group))
            replace(out / "targets.json", msgspec.json.encode(meta))
        report(f"{encoder.name}: {meta.done} of {len(unique)} items", meta.done, len(unique))
    features = np.load(out / "features.npy", mmap_mode="r")
    digest = hashlib.sha256(msgspec.json.encode(meta.ids))
    digest.update(np.ascontiguousarray(features).data)
    meta = msgspec.structs.replace(meta, fingerprint=digest.hexdigest())
    with writing(out):
        replace(out / "targets.json", msgspec.json.encode(meta))
    return meta


def _read_meta(path: Path) -> TargetsMeta:
    try:
        return msgspec.json.decode((path / "targets.json").read_bytes(), type=TargetsMeta)
    except (OSError, msgspec.MsgspecError) as error:
        raise DataError(
            f"{path} holds no target features", got=str(error), do="make some: streamdec-train features"
        ) from error


def _same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Equal as JSON, which knows no tuples."""
    return msgspec.json.encode(one, order="sorted") == msgspec.json.encode(other, order="sorted")


def _check(name: str, rows: Features, group: Sequence[Item]) -> None:
    assert len(rows) == len(group), f"{name} gave {len(rows)} rows for {len(group)} items"
    assert rows.dtype in (np.float32, np.float16), f"{name} gave {rows.dtype}"
    good = np.isfinite(rows.reshape(len(rows), -1)).all(axis=1)
    if not good.all():
        item = group[int(np.argmin(good))]
        raise DataError(f"features of {name}", got=f"NaN or infinity for {item.id!r}", do=f"look at {item.image!r}")


def _append(path: Path, rows: Features, done: int, total: int) -> None:
    """Write rows behind the ``done`` ones; what a killed call left beyond them is overwritten.

    Plain writes, not a memory map: on a full disk a map kills the process, a write raises.
    """
    header = io.BytesIO()
    kind = rows.dtype.newbyteorder("<")
    fields = {"descr": kind.str, "fortran_order": False, "shape": (total, *rows.shape[1:])}
    np.lib.format.write_array_header_1_0(header, fields)
    content = np.ascontiguousarray(rows, kind)
    with path.open("r+b" if done else "wb") as file:
        if done:
            assert file.read(len(header.getvalue())) == header.getvalue(), "the rows changed their shape"
        else:
            file.write(header.getvalue())
        file.seek(len(header.getvalue()) + done * content[0].nbytes)
        file.truncate()
        file.write(content.data)
