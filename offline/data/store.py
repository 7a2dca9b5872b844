"""The prepared store: epochs as the live chain delivers them, on disk, with everything that says where they come from.

A folder: ``meta.json``, ``arrays.safetensors`` (what the chain needs, such as the whitener), and per part (``train``,
``test``) ``<part>.npy`` (n, n_chans, n_times) float32 or float16, read memory-mapped, and ``<part>.rows.safetensors``,
one entry per epoch.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, Literal, Self, TypeAlias, cast

import msgspec
import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file

from streamdec.errors import ConfigError, DataError
from streamdec.signal.spec import Signal
from streamdec.types import Float32, Float64

from ..checkpoint import write_arrays

PartName: TypeAlias = Literal["train", "test"]
Precision: TypeAlias = Literal["float32", "float16"]
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


class _Schema(msgspec.Struct):
    schema: int


class Rows(msgspec.Struct, frozen=True, eq=False):
    """One entry per epoch, as recorded: index of its item, session, sample of its onset; (n,) int64 each."""

    item: Int64
    session: Int64
    position: Int64


class Widened:
    """An array that float16 holds and float32 comes out of, so that nobody computes in float16.

    Parameters
    ----------
    half : array of shape (n, ...), float16
        Memory-mapped. What is asked for is read, and only that.
    """

    dtype = np.dtype(np.float32)

    def __init__(self, half: npt.NDArray[np.float16]) -> None:
        self._half = half
        self.shape, self.ndim = half.shape, half.ndim

    def __len__(self) -> int:
        return len(self._half)

    def __getitem__(self, index: Any) -> Float32:
        return np.asarray(self._half[index], np.float32)

    def __array__(self, dtype: npt.DTypeLike | None = None, copy: bool | None = None) -> npt.NDArray[Any]:
        return np.asarray(self._half, dtype or np.float32)


class Part(msgspec.Struct, frozen=True, eq=False):
    """One part of a store. ``epochs`` (n, n_chans, n_times) float32, memory-mapped, or a :class:`Widened` one."""

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
        It is none, or of another version.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            said = (path / "meta.json").read_bytes()
            schema = msgspec.json.decode(said, type=_Schema).schema
            if schema != _SCHEMA:  # before the rest, which a newer one may call otherwise
                raise DataError(
                    f"prepared store {path}", got=f"schema {schema}", allowed=_SCHEMA, do="prepare it again"
                )
            self.meta = msgspec.json.decode(said, type=Meta)
            self.arrays: dict[str, Float64] = load_file(path / "arrays.safetensors")
        except (OSError, msgspec.MsgspecError, SafetensorError) as error:
            raise DataError(
                f"{path} is no prepared store", got=str(error), do="make one: streamdec-train prepare"
            ) from error

    def items(self, name: PartName) -> tuple[Item, ...]:
        """Items of a part.

        Raises
        ------
        DataError
            The store has no such part.
        """
        if name not in self.meta.items:
            raise DataError(f"{self.path} has no {name} part", allowed=", ".join(self.meta.items))
        return self.meta.items[name]

    def part(self, name: PartName) -> Part:
        """Open a part.

        Raises
        ------
        DataError
            The store has no such part, or its files do not fit.
        """
        items = self.items(name)
        try:
            stored = np.load(self.path / f"{name}.npy", mmap_mode="r")
            rows = Rows(**load_file(self.path / f"{name}.rows.safetensors"))
        except (OSError, ValueError, TypeError, SafetensorError) as error:
            raise DataError(f"{name} part of {self.path}", got=str(error), do="prepare it again") from error
        if stored.shape != (len(rows.item), *self.meta.shape):
            raise DataError(f"{name} part of {self.path}", got=stored.shape, allowed=(len(rows.item), *self.meta.shape))
        epochs = cast(Float32, Widened(stored)) if stored.dtype == np.float16 else stored
        return Part(items, epochs, rows)


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
    precision : {"float32", "float16"}
        Of the epochs on disk. Half keeps three digits, which whitened epochs do not miss, in half of the space.

    Raises
    ------
    ConfigError
        The folder exists.
    DataError
        It cannot be written, as where the disk is full; what was written is taken away again.
    """

    def __init__(
        self, path: Path, meta: Meta, arrays: Mapping[str, npt.NDArray[Any]], precision: Precision = "float32"
    ) -> None:
        if path.exists():
            raise ConfigError(f"{path} exists", do="name another folder, or delete it first")
        self._path, self._partial = path, path.with_name(path.name + ".partial")
        self._meta = meta
        self._dtype = np.dtype(precision).newbyteorder("<")
        self._hash = hashlib.sha256(msgspec.json.encode(meta.items, order="sorted"))
        self._files: dict[PartName, BinaryIO] = {}
        self._rows: dict[PartName, list[tuple[Int64, int, Int64]]] = {name: [] for name in meta.items}
        shutil.rmtree(self._partial, ignore_errors=True)
        try:
            self._partial.mkdir(parents=True)
            for name in meta.items:
                self._files[name] = (self._partial / f"{name}.npy").open("wb")
                self._header(name, 0)
            write_arrays(self._partial / "arrays.safetensors", arrays)
        except (OSError, SafetensorError) as error:
            self.__exit__(type(error), error, None)

    def append(self, part: PartName, epochs: Float32, item: Int64, session: int, position: Int64) -> None:
        """Add epochs (n, n_chans, n_times) with item index (n,), session, and ring position of the onsets (n,).

        Raises
        ------
        DataError
            A value is NaN, infinite, or beyond float16 where that is what the store holds.
        """
        stored = _rounded(epochs, self._dtype)
        wrong = ~np.isfinite(stored).all(axis=2)
        if wrong.any():
            first, channel = np.argwhere(wrong)[0]
            at = f"{part} epoch {sum(len(row) for row, _, _ in self._rows[part]) + first}, channel {channel}"
            if np.isfinite(epochs[first, channel]).all():
                raise DataError(f"{at} is too large for float16", do="store it as float32")
            raise DataError(at, got="NaN or infinite values", do="leave out that stimulus or mend the file")
        payload = np.ascontiguousarray(stored).data
        self._files[part].write(payload)
        self._hash.update(payload)
        self._rows[part].append((item, session, position))

    def _header(self, part: PartName, n: int) -> None:
        """Numpy leaves room in the header for the first axis to grow, so that it can be written over."""
        file = self._files[part]
        file.seek(0)
        np.lib.format.write_array_header_1_0(
            file, {"descr": self._dtype.str, "fortran_order": False, "shape": (n, *self._meta.shape)}
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
            write_arrays(self._partial / f"{name}.rows.safetensors", columns)
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
            with suppress(OSError):  # a full disk takes no last bytes either; the first refusal is what is told
                file.close()
        shutil.rmtree(self._partial, ignore_errors=True)
        if isinstance(error, OSError | SafetensorError):
            said = error.strerror if isinstance(error, OSError) else None
            raise DataError(f"cannot write {self._path}", got=said or str(error)) from error


def _rounded(epochs: Float32, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    with np.errstate(over="ignore"):
        return epochs.astype(dtype, copy=False)
