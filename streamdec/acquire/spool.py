"""A ring of bytes between two processes: one writes, one reads, neither waits.

The memory has no name that could be left behind: it goes when both processes have gone, however they went.

The recording process imports this module: it must stay light.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import tempfile
import uuid
from typing import Self

# 8-byte words at the start: bytes ever written, bytes ever read, records the writer had no room for, length of the
# reason why the reader failed, whether the reader is there. Then that reason, as text.
_HEAD, _TAIL, _DROPPED, _FAILED, _READING = range(5)
_REASON = slice(64, 1024)
_DATA = 4096

_RECORD = struct.Struct("<II")  # kind and size; every record starts at a multiple of 8
_SKIP = 0  # kind of the filler at the end, where the next record did not fit


class Spool:
    """Both ends of the ring.

    Parameters
    ----------
    memory : mmap
        Shared by both processes.
    """

    def __init__(self, memory: mmap.mmap) -> None:
        self._memory = memoryview(memory)
        self._words = self._memory[: _REASON.start].cast("Q")
        self._data = self._memory[_DATA:]
        self._next = self._words[_TAIL]

    @classmethod
    def create(cls, size: int) -> tuple[Self, str, tuple[int, ...]]:
        """Make a ring of ``size`` bytes.

        Returns
        -------
        spool : Spool
            The writer's end.
        handle : str
            What :meth:`attach` needs in the reader's process.
        inherit : tuple of int
            File descriptors that process must inherit; close them once it runs.
        """
        size = _DATA + -(-size // 8) * 8
        if sys.platform == "win32":
            handle = f"streamdec-{uuid.uuid4().hex}:{size}"
            return cls(mmap.mmap(-1, size, tagname=handle)), handle, ()
        if sys.platform == "linux":
            descriptor = os.memfd_create("streamdec-spool")
        else:
            with tempfile.TemporaryFile() as file:
                descriptor = os.dup(file.fileno())
        os.ftruncate(descriptor, size)
        return cls(mmap.mmap(descriptor, size)), f"{descriptor}:{size}", (descriptor,)

    @classmethod
    def attach(cls, handle: str) -> Self:
        """Open the reader's end."""
        name, _, size = handle.rpartition(":")
        if sys.platform == "win32":
            return cls(mmap.mmap(-1, int(size), tagname=handle))
        memory = mmap.mmap(int(name), int(size))
        os.close(int(name))
        return cls(memory)

    def put(self, kind: int, content: bytes) -> bool:
        """Write one record of a ``kind`` above 0, or return False when there is no room."""
        size = len(content)
        need = _RECORD.size + -(-size // 8) * 8
        head, capacity = self._words[_HEAD], len(self._data)
        start = head % capacity
        skip = capacity - start if start + need > capacity else 0
        if head + skip + need - self._words[_TAIL] > capacity:
            return False
        if skip:
            _RECORD.pack_into(self._data, start, _SKIP, skip - _RECORD.size)
            start = 0
        _RECORD.pack_into(self._data, start, kind, size)
        start += _RECORD.size
        self._data[start : start + size] = content
        self._words[_HEAD] = head + skip + need
        return True

    @property
    def head(self) -> int:
        """Where the next record will be written: bytes since the beginning."""
        return self._words[_HEAD]

    def peek(self, until: int, limit: int) -> list[tuple[int, memoryview]]:
        """Return records that wait, as (kind, content), without copying. They hold until :meth:`release`.

        Parameters
        ----------
        until : int
            A :attr:`head`: records behind it are left for another time.
        limit : int
            Bytes after which to stop.
        """
        records: list[tuple[int, memoryview]] = []
        position, capacity = self._words[_TAIL], len(self._data)
        taken = 0
        while position < until and taken < limit:
            start = position % capacity
            kind, size = _RECORD.unpack_from(self._data, start)
            start += _RECORD.size
            if kind != _SKIP:
                records.append((kind, self._data[start : start + size]))
                taken += size
            position += _RECORD.size + -(-size // 8) * 8
        self._next = position
        return records

    def release(self) -> None:
        """Give the room of the records seen by the last :meth:`peek` back to the writer."""
        self._words[_TAIL] = self._next

    @property
    def dropped(self) -> int:
        """What the writer could not write: it keeps the count."""
        return self._words[_DROPPED]

    @dropped.setter
    def dropped(self, count: int) -> None:
        self._words[_DROPPED] = count

    @property
    def reading(self) -> bool:
        """Whether the reader is there, ready to read."""
        return self._words[_READING] != 0

    @reading.setter
    def reading(self, reading: bool) -> None:
        self._words[_READING] = reading

    def fail(self, reason: str) -> None:
        """Tell the writer that the reader cannot go on."""
        area = self._memory[_REASON]
        text = reason.encode()[: len(area)]
        area[: len(text)] = text
        self._words[_FAILED] = len(text)

    @property
    def failed(self) -> bool:
        """Whether the reader cannot go on."""
        return self._words[_FAILED] != 0

    @property
    def reason(self) -> str:
        """Why the reader cannot go on, or ""."""
        return bytes(self._memory[_REASON][: self._words[_FAILED]]).decode("utf-8", "replace")
