"""Data sets that hold pickled dictionaries under a .npy, .pkl or .pt name, read without running anything in them.

THINGS-EEG2 ships its recordings as ``np.save(path, dictionary)``, NICE as ``pickle.dump(dictionary, file)`` under the
same name, UBP as ``torch.save(dictionary, path)``, which is a zip archive with a pickle in it. Unpickling calls
whatever the file names; here the few names that numpy's arrays need lead to functions of this module that check what
they get, because numpy's own can be made to read memory that is not theirs (an object array over a buffer). Any other
name is refused.

Arrays of a megabyte and more stay in the file, as ``np.memmap``: a dictionary of 8 GB opens in milliseconds.
"""

from __future__ import annotations

import math
import pickle
import re
import struct
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Literal

import numpy as np

from ..errors import DataError

_MAGIC = b"\x93NUMPY"
_MAPPED_FROM = 1 << 20  # bytes; picklers put whatever is longer than 64 KiB outside of their frames
_LOCAL_HEADER = struct.Struct("<26xHH")  # of a zip entry: lengths of its name and of its extra field


def read_npy(path: Path | str) -> Any:
    """Read a .npy file that holds an array, an array with pickled dictionaries in it, or just a pickle.

    Parameters
    ----------
    path : Path or str
        The file.

    Returns
    -------
    object
        The array; of an array without dimensions, what it holds, such as a dictionary. Large arrays are mapped,
        read-only.

    Raises
    ------
    DataError
        It is not there, is damaged, or names anything but arrays and plain values.
    """
    path = Path(path)
    with _border(path), path.open("rb") as file:
        magic = file.read(len(_MAGIC))
        file.seek(0)
        if magic == _MAGIC:
            version = np.lib.format.read_magic(file)
            header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            if not header(file)[2].hasobject:
                mapped = path.stat().st_size >= _MAPPED_FROM
                return np.load(path, mmap_mode="r" if mapped else None, allow_pickle=False)
        return _content(file, path)


def read_pt(path: Path | str) -> Any:
    """Read what ``torch.save`` wrote, where it holds numpy arrays and plain values; tensors are refused.

    ``torch.load(weights_only=True)`` would copy every array; this maps the large ones, and needs no torch.

    Parameters, what is returned and what is raised are those of :func:`read_npy`.
    """
    path = Path(path)
    with _border(path), path.open("rb") as file:
        with zipfile.ZipFile(file) as archive:
            entry = next((entry for entry in archive.infolist() if entry.filename.endswith("/data.pkl")), None)
        if entry is None or entry.compress_type != zipfile.ZIP_STORED:
            raise DataError(
                f"{path}", got="no data.pkl" if entry is None else "compressed", allowed="what torch.save writes"
            )
        file.seek(entry.header_offset)
        lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
        file.seek(sum(lengths), 1)
        return _content(file, path)


@contextmanager
def _border(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror or error}") from error
    except DataError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise DataError(f"{path} is damaged", got=f"{type(error).__name__}: {error}") from error


def _content(file: BinaryIO, path: Path) -> Any:
    content = _plain(_Unpickler(file, path).load())
    if isinstance(content, np.ndarray) and content.dtype == object and content.ndim == 0:
        return content.item()
    return content


class _Mapped:
    """Bytes that were left in the file."""

    __slots__ = ("path", "size", "start")

    def __init__(self, path: Path, start: int, size: int) -> None:
        self.path, self.start, self.size = path, start, size

    def array(self, dtype: np.dtype[Any], shape: tuple[int, ...], order: Literal["C", "F"]) -> np.ndarray[Any, Any]:
        if dtype.hasobject or dtype.itemsize * math.prod(shape) != self.size:
            raise pickle.UnpicklingError("size of an array")
        return np.memmap(self.path, dtype, "r", self.start, tuple(shape), order)


class _Unpickler(pickle._Unpickler):
    """Knows the names in ``_NAMES`` and no other, and leaves long bytes in the file.

    The unpickler in Python, since the one in C cannot be kept from reading: ``dispatch`` is its table of what to do.
    """

    dispatch: ClassVar[dict[int, Callable[[Any], None]]] = dict(pickle._Unpickler.dispatch)
    _load_build = dispatch[pickle.BUILD[0]]
    _unframer: Any
    append: Callable[[object], None]
    read: Callable[[int], bytes]
    stack: list[Any]

    def __init__(self, file: BinaryIO, path: Path) -> None:
        super().__init__(file)
        self._file, self._path = file, path

    def find_class(self, module: str, name: str) -> Any:
        """Return what a name in the file stands for."""
        known = _NAMES.get((re.sub(r"^numpy\.core\b", "numpy._core", module), name))
        if known is None:
            raise DataError(
                f"{self._path} wants to call {module}.{name}",
                allowed="numpy arrays and plain values",
                do="nothing was called; do not trust this file",
            )
        return known

    def _bytes(self, size: int) -> Any:
        if size < _MAPPED_FROM or self._unframer.current_frame:
            return self.read(size)
        start = self._file.tell()
        if self._file.seek(0, 2) < start + size:
            raise pickle.UnpicklingError("pickle data was truncated")
        self._file.seek(start + size)
        return _Mapped(self._path, start, size)

    def _binbytes(self) -> None:
        self.append(self._bytes(struct.unpack("<I", self.read(4))[0]))

    def _binbytes8(self) -> None:
        self.append(self._bytes(struct.unpack("<Q", self.read(8))[0]))

    def _build(self) -> None:
        if not isinstance(self.stack[-2], _Dtype | _Array):
            raise pickle.UnpicklingError("state of something that has none")
        self._load_build()

    dispatch[pickle.BINBYTES[0]] = _binbytes
    dispatch[pickle.BINBYTES8[0]] = _binbytes8
    dispatch[pickle.BYTEARRAY8[0]] = _binbytes8
    dispatch[pickle.BUILD[0]] = _build


class _Dtype:
    """Stands for a plain numpy.dtype, and takes no more of its state than the byte order."""

    __slots__ = ("dtype",)

    def __init__(self, code: str, align: bool = False, copy: bool = False) -> None:
        if not re.fullmatch(r"[<>|=]?([biufc]\d{1,2}|[SU]\d{0,9}|O8?|\?)", code):
            raise pickle.UnpicklingError(f"dtype {code!r}")
        self.dtype = np.dtype(code)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        if state[1] in ("<", ">"):
            self.dtype = self.dtype.newbyteorder(state[1])


class _Array:
    """Stands for numpy.ndarray: filled from bytes, or, for objects, from a list, and in no other way."""

    __slots__ = ("array",)

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        _, shape, dtype, is_fortran, content = state
        if not isinstance(dtype, _Dtype):
            raise pickle.UnpicklingError("state of an array")
        self.array = _filled(content, dtype.dtype, shape, "F" if is_fortran else "C")


def _filled(
    content: object, dtype: np.dtype[Any], shape: tuple[int, ...], order: Literal["C", "F"]
) -> np.ndarray[Any, Any]:
    if isinstance(content, _Mapped):
        return content.array(dtype, shape, order)
    if dtype.hasobject and isinstance(content, list):
        flat = np.empty(len(content), object)
        for i, item in enumerate(content):
            flat[i] = item
    elif not dtype.hasobject and isinstance(content, bytes | bytearray):
        flat = np.frombuffer(bytearray(content), dtype)
    else:
        raise pickle.UnpicklingError("content of an array")
    return flat.reshape(shape, order=order)


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    return _Array()


def _from_buffer(buffer: object, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> np.ndarray[Any, Any]:
    return _filled(buffer, dtype.dtype, shape, order)


def _scalar(dtype: _Dtype, content: Any) -> Any:
    return content if dtype.dtype == object else np.frombuffer(content, dtype.dtype, 1)[0]


def _encode(text: str, encoding: str) -> bytes:
    """Pickles below protocol 3 hold bytes as text."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"bytes as {encoding}")
    return text.encode("latin1")


_CONTAINERS = (dict, list, tuple, set, frozenset, str, int, float, complex, bool, bytes, bytearray)
_NAMES: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): object(),  # named by every pickled array, called by none
    ("numpy", "dtype"): _Dtype,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "scalar"): _scalar,
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
    ("_codecs", "encode"): _encode,
    **{(module, kind.__name__): kind for module in ("builtins", "__builtin__") for kind in _CONTAINERS},
}


def _plain(value: Any) -> Any:
    """Replace what stands for arrays by arrays, in place where a container allows."""
    if isinstance(value, _Dtype):
        return value.dtype
    if isinstance(value, _Array):
        return _plain(value.array)
    if isinstance(value, np.ndarray):
        if value.dtype == object:
            for index, item in np.ndenumerate(value):
                value[index] = _plain(item)
        return value
    if isinstance(value, dict):
        for key in value:
            value[key] = _plain(value[key])
    elif isinstance(value, list):
        value[:] = map(_plain, value)
    elif isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value
