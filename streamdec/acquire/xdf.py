"""The XDF file format: its chunks written, and read as far as they are whole.

A file is ``XDF:`` and then chunks ``[length][tag][content]``; a length is one byte that says 1, 4 or 8, and the number
in that many bytes; everything is little-endian. Specification: https://github.com/sccn/xdf/wiki/Specifications, 1.0.

The recording process imports this module: it must stay light.
"""

from __future__ import annotations

import gzip
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import msgspec
import numpy as np
import numpy.typing as npt

from ..errors import RecordingError, StreamError
from ..types import Float64, StreamInfo
from .header import read_header

MAGIC = b"XDF:"
FILE_HEADER, STREAM_HEADER, SAMPLES, CLOCK_OFFSET, BOUNDARY, STREAM_FOOTER = range(1, 7)
BOUNDARY_MARK = bytes.fromhex("43a546dccbf5410fb30ed5467383cbe4")

_DTYPES = {
    "float32": "<f4",
    "double64": "<f8",
    "int64": "<i8",
    "int32": "<i4",
    "int16": "<i2",
    "int8": "i1",
}


def file_header(started: str) -> bytes:
    """Begin a file; ``started`` is an ISO 8601 date and time."""
    xml = f'<?xml version="1.0"?><info><version>1.0</version><datetime>{started}</datetime></info>'
    return MAGIC + _chunk(FILE_HEADER, xml.encode())


def stream_header(stream: int, xml: str) -> bytes:
    """Declare a stream."""
    return _chunk(STREAM_HEADER, struct.pack("<I", stream) + xml.encode())


def samples(stream: int, stamps: Float64, values: npt.NDArray[np.generic]) -> bytes:
    """Write numeric samples, each with its stamp.

    Parameters
    ----------
    stream : int
        The stream's id.
    stamps : array of shape (n_times,), float64
        Sender's clock, seconds.
    values : array of shape (n_times, n_chans)
        In the type the stream's header states.
    """
    rows = np.empty(len(stamps), _row(values.dtype.newbyteorder("<"), values.shape[1]))
    rows["flag"], rows["stamp"], rows["values"] = 8, stamps, values
    return _chunk(SAMPLES, struct.pack("<I", stream) + _varlen(len(rows)) + rows.tobytes())


def texts(stream: int, stamps: Sequence[float], values: Sequence[bytes]) -> bytes:
    """Write samples of one UTF-8 text each, with their stamps."""
    content = [struct.pack("<I", stream), _varlen(len(values))]
    for stamp, value in zip(stamps, values, strict=True):
        content += struct.pack("<Bd", 8, stamp), _varlen(len(value)), value
    return _chunk(SAMPLES, b"".join(content))


def clock_offset(stream: int, arrival: float, value: float) -> bytes:
    """Write a measured clock offset.

    It is stored with the time of the sender's clock, ``arrival - value``, as LabRecorder does: readers add ``value`` to
    the stamps around it.
    """
    return _chunk(CLOCK_OFFSET, struct.pack("<Idd", stream, arrival - value, value))


def boundary() -> bytes:
    """Mark a place where a reader of a damaged file can start again."""
    return _chunk(BOUNDARY, BOUNDARY_MARK)


def stream_footer(stream: int, first: float, last: float, count: int, offsets: Iterable[tuple[float, float]]) -> bytes:
    """Close a stream: its first and last stamp, its number of samples, its clock offsets (time, value)."""
    listed = "".join(f"<offset><time>{time!r}</time><value>{value!r}</value></offset>" for time, value in offsets)
    xml = (
        f'<?xml version="1.0"?><info><first_timestamp>{first!r}</first_timestamp>'
        f"<last_timestamp>{last!r}</last_timestamp><sample_count>{count}</sample_count>"
        f"<clock_offsets>{listed}</clock_offsets></info>"
    )
    return _chunk(STREAM_FOOTER, struct.pack("<I", stream) + xml.encode())


def _chunk(tag: int, content: bytes) -> bytes:
    return _varlen(len(content) + 2) + struct.pack("<H", tag) + content


def _varlen(number: int) -> bytes:
    if number < 1 << 8:
        return struct.pack("<BB", 1, number)
    return struct.pack("<BI", 4, number) if number < 1 << 32 else struct.pack("<BQ", 8, number)


def _row(dtype: np.dtype[np.generic], n_chans: int) -> np.dtype[np.void]:
    return np.dtype([("flag", "u1"), ("stamp", "<f8"), ("values", dtype, (n_chans,))])


class RawStream(msgspec.Struct, eq=False):
    """A stream as stored.

    ``id`` in the file; ``stamps`` (n_times,) float64; ``values`` (n_times, n_chans), texts as an object array of str;
    ``offsets`` (n, 2) float64: collection time on the sender's clock, value. ``finished`` whether the file has its
    footer, which a recorder writes last.
    """

    id: int
    info: StreamInfo
    stamps: Float64
    values: npt.NDArray[np.generic]
    offsets: Float64
    finished: bool


class _Damaged(Exception):
    """What follows is no whole chunk."""


def read(path: Path) -> tuple[list[RawStream], list[str]]:
    """Read every stream of a file, and say what could not be read.

    Parameters
    ----------
    path : Path
        An .xdf file, or one compressed by gzip.

    Returns
    -------
    streams : list of RawStream
        In the order of the file.
    problems : list of str
        Empty for a whole file. What a killed recorder or a full disk left unfinished is named here; all else is read.

    Raises
    ------
    RecordingError
        There is no such file, or it is no XDF file.
    """
    data, problems = _open(path)
    parts, _ = _parse(data, problems)
    return [part.assemble(id) for id, part in parts.items()], problems


def repair(path: Path, ready: Callable[[], None] = lambda: None) -> list[str]:
    """Make a damaged or unfinished file whole: leave out what cannot be read, and close every stream.

    The new file takes the old one's place once it is complete, or not at all.

    Parameters
    ----------
    path : Path
        An .xdf file, not compressed.
    ready : callable
        Called once the new file is complete, before it takes the old one's place; what it raises keeps the old one.

    Returns
    -------
    list of str
        What could not be read, as :func:`read` says it.

    Raises
    ------
    RecordingError
        It is no XDF file, or the new one cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        problems = _rewrite(path, part)
        ready()
        part.replace(path)
    except OSError as error:
        do = "make room for a second file of its size beside it"
        raise RecordingError(f"cannot repair {path}", got=error.strerror, do=do) from error
    finally:
        part.unlink(missing_ok=True)
    return problems


def _rewrite(path: Path, out: Path) -> list[str]:
    data, problems = _open(path)
    parts, whole = _parse(data, problems)
    with out.open("wb") as file:
        file.write(MAGIC)
        for start, stop in whole:
            file.write(data[start:stop])
        for id, part in parts.items():
            stream = part.assemble(id)
            first, last = (float(stream.stamps[0]), float(stream.stamps[-1])) if len(stream.stamps) else (0.0, 0.0)
            offsets: list[tuple[float, float]] = stream.offsets.tolist()
            file.write(stream_footer(id, first, last, len(stream.stamps), offsets))
        file.flush()
        os.fsync(file.fileno())
    return problems


def _open(path: Path) -> tuple[memoryview, list[str]]:
    """Map a file, or inflate it; also say what is wrong with the compression."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
            if start[:2] == b"\x1f\x8b":
                file.seek(0)
                data, problems = _inflate(file.read())
                if data[:4] != MAGIC:
                    raise RecordingError(f"{path}", got="a compressed file without XDF inside", allowed="XDF")
                return data, problems
            if start != MAGIC:
                raise RecordingError(f"{path}", got=f"a file that begins with {start!r}", allowed="XDF")
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)), []
    except OSError as error:
        raise RecordingError(f"cannot read {path}: {error.strerror or error}") from error


def _inflate(packed: bytes) -> tuple[memoryview, list[str]]:
    try:
        return memoryview(gzip.decompress(packed)), []
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        try:
            return memoryview(zlib.decompressobj(wbits=31).decompress(packed)), [
                f"the compressed file is damaged ({error})"
            ]
        except zlib.error:
            return memoryview(b""), []


def _parse(data: memoryview, problems: list[str]) -> tuple[dict[int, _Parts], list[tuple[int, int]]]:
    """Take in every chunk that can be read.

    Returns
    -------
    parts : dict of int to _Parts
        By the stream's id.
    whole : list of (int, int)
        Where whole chunks lie, those that end a stream left out.
    """
    parts: dict[int, _Parts | None] = {}
    whole: list[tuple[int, int]] = []
    position = len(MAGIC)
    while position < len(data):
        try:
            tag, content, after = _next(data, position)
            _take(parts, tag, content, problems)
            if tag != STREAM_FOOTER:
                joins = bool(whole) and whole[-1][1] == position
                whole.append((whole.pop()[0] if joins else position, after))
            position = after
        except _Damaged as error:
            resume = _after_boundary(data, position + 1)
            lost = (len(data) if resume is None else resume) - position
            problems.append(f"{lost} bytes at byte {position} cannot be read ({error})")
            if resume is None:
                break
            position = resume
    return {stream: of_stream for stream, of_stream in parts.items() if of_stream is not None}, whole


def _next(data: memoryview, position: int) -> tuple[int, memoryview, int]:
    length, start = _number(data, position)
    if length < 2 or start + length > len(data):
        raise _Damaged("an unfinished chunk")
    (tag,) = struct.unpack_from("<H", data, start)
    return tag, data[start + 2 : start + length], start + length


def _after_boundary(data: memoryview, position: int) -> int | None:
    # A search in slices: bytes() of an hour's recording would double the memory.
    step = 1 << 20
    while position < len(data):
        found = bytes(data[position : position + step + len(BOUNDARY_MARK)]).find(BOUNDARY_MARK)
        if found >= 0:
            return position + found + len(BOUNDARY_MARK)
        position += step
    return None


def _number(data: memoryview, position: int) -> tuple[int, int]:
    """Read a variable-length number; return it and where it ends."""
    if position < len(data):
        size = data[position]
        end = position + 1 + size
        if size in (1, 4, 8) and end <= len(data):
            return int.from_bytes(data[position + 1 : end], "little"), end
        if size not in (1, 4, 8):
            raise _Damaged("no length where a chunk or a text should begin")
    raise _Damaged("an unfinished chunk")


def _take(parts: dict[int, _Parts | None], tag: int, content: memoryview, problems: list[str]) -> None:
    """Take in a chunk; of a stream whose header nobody can read, nothing: the others are whole all the same."""
    if tag not in (STREAM_HEADER, SAMPLES, CLOCK_OFFSET, STREAM_FOOTER):
        return
    if len(content) < 4:
        raise _Damaged("a chunk without a stream")
    (stream,) = struct.unpack_from("<I", content)
    if tag == STREAM_HEADER:
        try:
            parts[stream] = _Parts(read_header(bytes(content[4:]).decode("utf-8", "replace")))
        except StreamError as error:
            parts[stream] = None
            problems.append(f"stream {stream} cannot be read ({error})")
        return
    if stream not in parts:
        raise _Damaged(f"stream {stream} was never declared")
    of_stream = parts[stream]
    if of_stream is None:
        return
    if tag == SAMPLES:
        of_stream.add(content[4:])
    elif tag == STREAM_FOOTER:
        of_stream.finished = True
    elif len(content) != 20:
        raise _Damaged("a clock offset of the wrong size")
    else:
        of_stream.offsets.append(struct.unpack_from("<dd", content, 4))


class _Parts:
    """What was read of one stream so far."""

    def __init__(self, info: StreamInfo) -> None:
        self.info = info
        self.finished = False
        self.offsets: list[tuple[float, float]] = []
        self._rows: list[npt.NDArray[np.void]] = []  # may be views of the mapped file: copied once, in assemble
        self._text = info.dtype == "string"
        self._type = np.dtype(object) if self._text else np.dtype(_DTYPES[info.dtype])
        self._row = _row(self._type, info.n_chans)
        self._period = 1.0 / info.sfreq if info.sfreq > 0 else 0.0
        self._last = 0.0  # newest stamp: a sample without one follows it by a period

    def add(self, content: memoryview) -> None:
        count, start = _number(content, 0)
        body = content[start:]
        smallest = 1 + self.info.n_chans * (2 if self._text else self._type.itemsize)
        if count * smallest > len(body):
            raise _Damaged("samples that end too early")
        # A sample has one byte that announces its stamp: only when all have one does the size come out.
        plain = not self._text and len(body) == count * self._row.itemsize
        rows = np.frombuffer(body, self._row) if plain else self._walk(body, count)
        if count:
            self._last = float(rows["stamp"][-1])
            self._rows.append(rows)

    def _walk(self, body: memoryview, count: int) -> npt.NDArray[np.void]:
        """Read sample by sample, where some have no stamp or values differ in size."""
        rows = np.empty(count, self._row)
        stamps, values = rows["stamp"], rows["values"]
        last, position = self._last, 0
        for i in range(count):
            stamped = self._bytes(body, position, 1)[0] != 0
            last = struct.unpack("<d", self._bytes(body, position + 1, 8))[0] if stamped else last + self._period
            stamps[i] = last
            position += 9 if stamped else 1
            if self._text:
                for k in range(self.info.n_chans):
                    length, position = _number(body, position)
                    values[i, k] = bytes(self._bytes(body, position, length)).decode("utf-8", "replace")
                    position += length
            else:
                size = self._type.itemsize * self.info.n_chans
                values[i] = np.frombuffer(self._bytes(body, position, size), self._type)
                position += size
        return rows

    @staticmethod
    def _bytes(body: memoryview, position: int, size: int) -> memoryview:
        if position + size > len(body):
            raise _Damaged("samples that end too early")
        return body[position : position + size]

    def assemble(self, id: int) -> RawStream:
        count = sum(map(len, self._rows))
        stamps, values = np.empty(count), np.empty((count, self.info.n_chans), self._type)
        start = 0
        for rows in self._rows:
            stop = start + len(rows)
            stamps[start:stop], values[start:stop] = rows["stamp"], rows["values"]
            start = stop
        self._rows.clear()
        offsets = np.array(self.offsets, np.float64).reshape(-1, 2)
        return RawStream(id, self.info, stamps, values, offsets, self.finished)
