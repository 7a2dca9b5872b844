"""The prepared store: epochs as the live chain delivers them, on disk, with everything that says where they come from.

A folder: ``meta.json``, ``arrays.safetensors`` (what the chain needs, such as the whitener), and per part (``train``,
``test``) ``<part>.npy`` (n, n_chans, n_times) float32, read memory-mapped, and ``<part>.rows.safetensors``, one entry
per epoch.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from streamdec.errors import ConfigError, DataError
from streamdec.signal.spec import Signal
from streamdec.types import Float32, Float64

PartName: TypeAlias = Literal["train", "test"]
Int64: TypeAlias = npt.NDArray[np.int64]

_SCHEMA = 1


class Item(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One stimulus, or one class.

    ``id`` the stimulus key a marker names it by; ``label`` what a person reads; ``concept`` what belongs together when
    concepts are held out; ``image`` its file, below the store's ``images``, "" without one.
    """

    id: str
    label: str
    concept: str
    image: str = ""


class Meta(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """What a prepared store says of itself.

    ``kind`` whether items are stimuli or classes. ``signal`` leads from the stream to ``shape`` (n_chans, n_times) of
    the epochs, with the arrays of ``arrays.safetensors``. ``channel_sd`` median over the training epochs of each
    channel's deviation, microvolt, after the filters. ``offline_only`` the reason why what is trained on it cannot run
    live, "" if it can. ``images`` folder of the items' images. ``fingerprint`` sha256 over the epochs, rows and items.
    ``config`` the settings it was prepared with.
    """

    schema: int = _SCHEMA
    dataset: str
    subject: str
    simulated: bool
    kind: Literal["stimulus", "class"]
    signal: Signal
    shape: tuple[int, int]
    channel_sd: dict[str, float]
    offline_only: str
    images: str
    config: dict[str, Any]
    items: dict[PartName, tuple[Item, ...]]
    fingerprint: str = ""


class Rows(msgspec.Struct, frozen=True, eq=False):
    """One entry per epoch, as recorded: index of its item, session, sample of its onset; (n,) int64 each."""

    item: Int64
    session: Int64
    position: Int64


class Part(msgspec.Struct, frozen=True, eq=False):
    """One part of a store. ``epochs`` (n, n_chans, n_times) float32, memory-mapped."""

    items: tuple[Item, ...]
    epochs: Float32
    rows: Rows

    def of_item(self) -> list[Int64]:
        """Epochs of each item, in the order they were recorded."""
        order = np.argsort(self.rows.item, kind="stable")
        counts = np.bincount(self.rows.item, minlength=len(self.items))
        return np.split(order, np.cumsum(counts)[:-1])

    def means(self, epochs_of: list[Int64]) -> Float32:
        """Mean epoch of each group: (len(epochs_of), n_chans, n_times) float32, summed in double in the given order."""
        out = np.empty((len(epochs_of), *self.epochs.shape[1:]), np.float32)
        for mean, indices in zip(out, epochs_of, strict=True):
            mean[:] = self.epochs[indices].mean(axis=0, dtype=np.float64)
        return out


class Prepared:
    """An opened store.

    Parameters
    ----------
    path : Path
        The folder.

    Raises
    ------
    DataError
        It is none, or a newer one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.meta = msgspec.json.decode((path / "meta.json").read_bytes(), type=Meta)
            self.arrays: dict[str, Float64] = load_file(path / "arrays.safetensors")
        except (OSError, msgspec.MsgspecError, SafetensorError) as error:
            raise DataError(
                f"{path} is no prepared store", got=str(error), do="make one: streamdec-train prepare"
            ) from error
        if self.meta.schema != _SCHEMA:
            raise DataError(
                f"prepared store {path}", got=f"schema {self.meta.schema}", allowed=_SCHEMA, do="prepare it again"
            )

    def part(self, name: PartName) -> Part:
        """Open a part.

        Raises
        ------
        DataError
            The store has no such part, or its files do not fit.
        """
        if name not in self.meta.items:
            raise DataError(f"{self.path} has no {name} part", allowed=", ".join(self.meta.items))
        try:
            epochs = np.load(self.path / f"{name}.npy", mmap_mode="r")
            rows = Rows(**load_file(self.path / f"{name}.rows.safetensors"))
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise DataError(f"{name} part of {self.path}", got=str(error), do="prepare it again") from error
        if epochs.shape != (len(rows.item), *self.meta.shape):
            raise DataError(f"{name} part of {self.path}", got=epochs.shape, allowed=(len(rows.item), *self.meta.shape))
        return Part(self.meta.items[name], epochs, rows)


class Writer:
    """Writes a store epoch by epoch; the folder appears under its name once it is whole.

    Parameters
    ----------
    path : Path
        Must not exist.
    meta : Meta
        Without the fingerprint and the channels' deviations.
    arrays : mapping of str to array
        What the chain of ``meta.signal`` needs.
    """

    def __init__(self, path: Path, meta: Meta, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        if path.exists():
            raise ConfigError(f"{path} exists", do="name another folder, or delete it first")
        self._path, self._partial = path, path.with_name(path.name + ".partial")
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        self._meta = meta
        self._hash = hashlib.sha256(msgspec.json.encode(meta.items, order="sorted"))
        self._files: dict[PartName, BinaryIO] = {
            name: (self._partial / f"{name}.npy").open("wb") for name in meta.items
        }
        self._rows: dict[PartName, list[tuple[Int64, int, Int64]]] = {name: [] for name in meta.items}
        for name in meta.items:
            self._header(name, 0)
        save_file(
            {name: np.ascontiguousarray(array) for name, array in arrays.items()}, self._partial / "arrays.safetensors"
        )

    def append(self, part: PartName, epochs: Float32, item: Int64, session: int, position: Int64) -> None:
        """Add epochs (n, n_chans, n_times) with item index (n,), session, and ring position of the onsets (n,)."""
        payload = np.ascontiguousarray(epochs, "<f4").data
        self._files[part].write(payload)
        self._hash.update(payload)
        self._rows[part].append((item, session, position))

    def _header(self, part: PartName, n: int) -> None:
        """Numpy leaves room in the header for the first axis to grow, so that it can be written over."""
        file = self._files[part]
        file.seek(0)
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (n, *self._meta.shape)}
        )

    def close(self, channel_sd: dict[str, float]) -> Meta:
        """Finish; return the description with its fingerprint and the channels' deviations."""
        for name, file in self._files.items():
            rows = self._rows[name]
            empty = [np.empty(0, np.int64)]
            columns = {
                "item": np.concatenate([item for item, _, _ in rows] or empty),
                "session": np.concatenate([np.full(len(item), session) for item, session, _ in rows] or empty),
                "position": np.concatenate([position for _, _, position in rows] or empty),
            }
            columns = {key: column.astype(np.int64) for key, column in columns.items()}
            self._header(name, len(columns["item"]))
            file.close()
            save_file(columns, self._partial / f"{name}.rows.safetensors")
            for column in columns.values():
                self._hash.update(column.data)
        meta = msgspec.structs.replace(self._meta, fingerprint=self._hash.hexdigest(), channel_sd=channel_sd)
        text = msgspec.json.format(msgspec.json.encode(meta), indent=1)
        (self._partial / "meta.json").write_bytes(text)
        self._partial.rename(self._path)
        return meta

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for file in self._files.values():
            file.close()
        shutil.rmtree(self._partial, ignore_errors=True)
