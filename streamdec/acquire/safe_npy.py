"""Data sets that hold pickled dictionaries under a .npy name, read without running anything in them.

THINGS-EEG2 ships its recordings as ``np.save(path, dictionary)``, NICE as ``pickle.dump(dictionary, file)``. Unpickling
calls whatever the file names; here the few names that numpy's arrays need lead to functions of this module that check
what they get, because numpy's own can be made to read memory that is not theirs (an object array over a buffer). Any
other name is refused.
"""

from __future__ import annotations

import pickle
import re
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import DataError

_MAGIC = b"\x93NUMPY"


def read_npy(path: Path | str) -> Any:
    """Read a .npy file that holds an array, an array with pickled dictionaries in it, or just a pickle.

    Parameters
    ----------
    path : Path or str
        The file.

    Returns
    -------
    object
        The array; of an array without dimensions, what it holds, such as a dictionary.

    Raises
    ------
    DataError
        It is not there, is damaged, or names anything but arrays and plain values.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            magic = file.read(len(_MAGIC))
            file.seek(0)
            if magic == _MAGIC:
                version = np.lib.format.read_magic(file)
                header = (
                    np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                )
                if not header(file)[2].hasobject:
                    file.seek(0)
                    return np.lib.format.read_array(file, allow_pickle=False)
            content = _plain(_Unpickler(file, path).load())
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from error
    except DataError:
        raise
    except Exception as error:  # a damaged pickle raises anything
        raise DataError(f"{path} is damaged", got=f"{type(error).__name__}: {error}") from error
    if isinstance(content, np.ndarray) and content.dtype == object and content.ndim == 0:
        return content.item()
    return content


class _Unpickler(pickle.Unpickler):
    """Knows the names in ``_NAMES`` and no other."""

    def __init__(self, file: Any, path: Path) -> None:
        super().__init__(file)
        self._path = path

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


class _Array(np.ndarray[Any, Any]):
    """Stands for numpy.ndarray: filled from bytes, or, for objects, from a list, and in no other way."""

    __slots__ = ()

    def __setstate__(self, state: tuple[Any, ...]) -> None:
        version, shape, dtype, is_fortran, content = state
        if not isinstance(dtype, _Dtype) or not isinstance(content, list if dtype.dtype == object else bytes):
            raise pickle.UnpicklingError("state of an array")
        super().__setstate__((version, shape, dtype.dtype, is_fortran, content))


def _reconstruct(kind: object, shape: object, code: object) -> _Array:
    return np.empty(0, np.int8).view(_Array)


def _from_buffer(buffer: bytes | bytearray, dtype: _Dtype, shape: tuple[int, ...], order: Any) -> np.ndarray[Any, Any]:
    return np.frombuffer(buffer, dtype.dtype).reshape(shape, order=order)


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
        array = value.view(np.ndarray)
        if array.dtype == object:
            for index, item in np.ndenumerate(array):
                array[index] = _plain(item)
        return array
    if isinstance(value, dict):
        for key in value:
            value[key] = _plain(value[key])
    elif isinstance(value, list):
        value[:] = map(_plain, value)
    elif isinstance(value, tuple):
        return tuple(map(_plain, value))
    return value
