"""Files by name in a folder or a .zip from a stranger: none outside is reached, no more is read than declared."""

from __future__ import annotations

import hashlib
import os
import re
import stat
import struct
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import BinaryIO, cast

from ..errors import BundleError

# Roomy for a gallery of 200 000 candidates with thumbnails.
MAX_BYTES = 4 << 30
MAX_FILES = 250_000
MAX_ZIP_RATIO = 200  # ours are stored; another tool's zip of text and weights reaches a few

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*(/[A-Za-z0-9_][A-Za-z0-9_.-]*)*")


class Archive(ABC):
    """Files by name. Names are relative, with "/" between folders.

    Attributes
    ----------
    path : Path
    sizes : dict of str to int
        Bytes of each file, as declared; checked against the limits before any is read.
    """

    def __init__(self, path: Path, sizes: dict[str, int], max_bytes: int | None = None) -> None:
        self.path = path
        self.sizes = sizes
        for name in sizes:
            if not _NAME.fullmatch(name):
                raise BundleError(
                    "a file name", got=repr(name), allowed="letters, digits, _ . - and / within the bundle"
                )
        if len(sizes) > MAX_FILES:
            raise BundleError("it has too many files", got=len(sizes), allowed=f"up to {MAX_FILES}")
        max_bytes = MAX_BYTES if max_bytes is None else max_bytes
        if sum(sizes.values()) > max_bytes:
            raise BundleError("it is too large", got=f"{sum(sizes.values())} bytes", allowed=f"up to {max_bytes}")

    @abstractmethod
    def open(self, name: str) -> BinaryIO:
        """Open a file of ``sizes`` for reading."""

    def read(self, name: str, limit: int = MAX_BYTES) -> bytes:
        """Read a file.

        Raises
        ------
        BundleError
            It is larger than ``limit``, or has another size than declared.
        """
        size = self.sizes[name]
        if size > limit:
            raise BundleError(name, got=f"{size} bytes", allowed=f"up to {limit}")
        with translated(), self.open(name) as file:
            data = file.read(size + 1)
        if len(data) != size:
            raise BundleError(name, got="another size than declared", do="it is damaged: get it anew")
        return data

    def load(self, name: str, sha256: str, limit: int = MAX_BYTES) -> bytes:
        """Read a file and check its hash."""
        data = self.read(name, limit)
        _compare(name, hashlib.sha256(data).hexdigest(), sha256)
        return data

    def verify(self, name: str, sha256: str) -> None:
        """Check a file's hash in constant memory."""
        with translated(), self.open(name) as file:
            _compare(name, hashlib.file_digest(cast("BufferedReader", file), "sha256").hexdigest(), sha256)


class Folder(Archive):
    """A folder: regular files only, links refused."""

    def __init__(self, path: Path, max_bytes: int | None = None) -> None:
        with translated():
            super().__init__(path, dict(self._walk(path, "")), max_bytes)

    def _walk(self, folder: Path, prefix: str) -> Iterator[tuple[str, int]]:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    yield from self._walk(Path(entry.path), f"{prefix}{entry.name}/")
                elif entry.is_file(follow_symlinks=False):
                    yield prefix + entry.name, entry.stat(follow_symlinks=False).st_size
                else:
                    raise BundleError(prefix + entry.name, got="a link or special file", allowed="regular files")

    def open(self, name: str) -> BinaryIO:
        """Open a file for reading; a link or pipe put in its place since the listing is not followed or waited for."""
        flags = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
        return cast("BinaryIO", open(self.path / name, "rb", opener=lambda file, mode: os.open(file, mode | flags)))


class Zip(Archive):
    """A .zip, read in place: nothing is unpacked to disk."""

    def __init__(self, path: Path) -> None:
        sizes: dict[str, int] = {}
        with translated():
            self._zip = zipfile.ZipFile(path)  # stays open: its directory is parsed once
            for info in self._zip.infolist():
                if info.is_dir():
                    continue
                if info.filename in sizes:
                    raise BundleError(repr(info.filename), got="twice in the zip", allowed="once")
                if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                    raise BundleError(repr(info.filename), got="a link or special file", allowed="regular files")
                if info.flag_bits & 1 or info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                    raise BundleError(
                        repr(info.filename), got="encrypted or packed otherwise", allowed="stored or deflated"
                    )
                sizes[info.filename] = info.file_size
            packed = path.stat().st_size
        if sum(sizes.values()) > MAX_ZIP_RATIO * packed:
            raise BundleError(
                "it unpacks to far more than it is",
                got=f"{sum(sizes.values())} bytes from {packed}",
                allowed=f"{MAX_ZIP_RATIO} times",
            )
        super().__init__(path, sizes)

    def open(self, name: str) -> BinaryIO:
        """Open a member for reading."""
        return cast("BinaryIO", self._zip.open(name))


def open_archive(path: Path) -> Archive:
    """Open the folder or .zip at ``path``."""
    return Folder(path) if path.is_dir() else Zip(path)


def write_archive(path: Path, contents: Mapping[str, bytes], *, zipped: bool) -> None:
    """Write files as a new folder or .zip; the same contents give the same bytes."""
    if not zipped:
        for name, data in contents.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        return
    # Stored: weights do not shrink, and what zlib makes of the rest depends on its version.
    with zipfile.ZipFile(path, "x", zipfile.ZIP_STORED) as archive:
        for name, data in contents.items():
            info = zipfile.ZipInfo(name, date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3
            info.external_attr = (stat.S_IFREG | 0o644) << 16
            archive.writestr(info, data)


@contextmanager
def translated() -> Iterator[None]:
    """Whatever the system and zipfile raise on damaged or unreadable files, as BundleError."""
    try:
        yield
    except FileNotFoundError as error:
        raise BundleError("it is not there", got=error.filename, do="check the path") from error
    # All but OSError are what zipfile and its decompressors raise on garbage; NotImplementedError is a RuntimeError.
    except (OSError, EOFError, ValueError, RuntimeError, struct.error, zipfile.BadZipFile, zlib.error) as error:
        raise BundleError("it cannot be read", got=str(error) or type(error).__name__, do="get it anew") from error


def _compare(name: str, got: str, wanted: str) -> None:
    if got != wanted:
        raise BundleError(
            name,
            got=f"sha256 {got[:12]}...",
            allowed=f"{wanted[:12]}...",
            do="it was changed or damaged: get it anew",
        )
