from __future__ import annotations

import gzip
import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import pyxdf
from hypothesis import given
from hypothesis import strategies as st

from streamdec.acquire import xdf
from streamdec.acquire.header import read_header, write_header
from streamdec.errors import RecordingError, StreamError
from streamdec.types import StreamInfo

EEG = StreamInfo(
    "amp", "EEG", 2, 100.0, "float32", "id-1", "u", "host", ("Fz", "Oz"), ("EEG", "EEG"), ("microvolts", "")
)
TEXTS = StreamInfo("stim", "Markers", 1, 0.0, "string")


def read_bytes(tmp_path: Path, data: bytes) -> Any:
    path = tmp_path / "a.xdf"
    path.write_bytes(data)
    return xdf.read(path)


def small_file() -> bytes:
    stamps = np.arange(4) * 0.01 + 5
    values = np.arange(8, dtype=np.float32).reshape(4, 2)
    return b"".join(
        (
            xdf.file_header("2026-01-01T00:00:00+00:00"),
            xdf.stream_header(1, write_header(EEG)),
            xdf.stream_header(2, write_header(TEXTS)),
            xdf.samples(1, stamps, values),
            xdf.texts(2, [5.01, 5.5], ["hé".encode(), b""]),
            xdf.clock_offset(1, 105.0, 100.0),
            xdf.boundary(),
            xdf.samples(1, stamps + 1, values + 8),
            xdf.samples(1, np.empty(0), np.empty((0, 2), np.float32)),
            xdf.clock_offset(2, 106.0, 100.5),
            xdf.stream_footer(1, 5.0, 6.03, 8, [(5.0, 100.0)]),
            xdf.stream_footer(2, 5.01, 5.5, 2, []),
        )
    )


def test_what_is_written_opens_in_pyxdf_and_here(tmp_path: Path) -> None:
    streams, problems = read_bytes(tmp_path, small_file())
    expected, header = pyxdf.load_xdf(io.BytesIO(small_file()), synchronize_clocks=False, dejitter_timestamps=False)
    assert problems == []
    assert header["info"]["version"] == ["1.0"]
    assert [stream.info.name for stream in streams] == ["amp", "stim"]
    for stream, oracle in zip(streams, expected, strict=True):
        np.testing.assert_array_equal(stream.stamps, oracle["time_stamps"])
        assert stream.values.tolist() == list(map(list, oracle["time_series"]))
        assert stream.offsets.tolist() == list(
            map(list, zip(oracle["clock_times"], oracle["clock_values"], strict=True))
        )
    assert expected[0]["footer"]["info"]["sample_count"] == ["8"]
    assert streams[0].info.ch_names == ("Fz", "Oz")


def test_clock_offset_brings_stamps_to_the_recorders_clock() -> None:
    synchronised, _ = pyxdf.load_xdf(io.BytesIO(small_file()), dejitter_timestamps=False)
    np.testing.assert_allclose(synchronised[0]["time_stamps"][:2], [105.0, 105.01])


@pytest.mark.parametrize(
    "name", ["bci_essentials_switch", "clock_resets", "empty_streams", "minimal", "photodiode_unicorn"]
)
@pytest.mark.data
def test_real_files_as_pyxdf_reads_them(data: Path, name: str) -> None:
    path = data / "xdf" / f"{name}.xdf"
    streams, problems = xdf.read(path)
    expected, _ = pyxdf.load_xdf(path, synchronize_clocks=False, dejitter_timestamps=False)
    assert problems == []
    for stream, oracle in zip(streams, expected, strict=True):
        np.testing.assert_array_equal(stream.stamps, oracle["time_stamps"])
        if stream.info.dtype == "string":
            assert stream.values.tolist() == oracle["time_series"]
        else:
            np.testing.assert_array_equal(stream.values, oracle["time_series"])
            assert not len(stream.stamps) or stream.values.dtype == oracle["time_series"].dtype
        np.testing.assert_array_equal(stream.offsets.T.ravel(), [*oracle["clock_times"], *oracle["clock_values"]])
        for key in ("name", "type", "channel_format"):
            assert oracle["info"][key][0] == getattr(stream.info, {"channel_format": "dtype"}.get(key, key))


def chunk(tag: int, content: bytes) -> bytes:
    return struct.pack("<BIH", 4, len(content) + 2, tag) + content


@pytest.mark.parametrize("dtype", ["double64", "int64", "int32", "int16", "int8", "float32"])
def test_samples_without_stamps(tmp_path: Path, dtype: str) -> None:
    info = StreamInfo("amp", "EEG", 3, 250.0, dtype)
    kind = {"double64": "<f8", "float32": "<f4"}.get(dtype) or "<i" + str(int(dtype[3:]) // 8)
    rng = np.random.default_rng(3)
    data = xdf.MAGIC + xdf.stream_header(7, write_header(info))
    for n_times in (1, 5, 0, 300):
        body = b""
        for _ in range(n_times):
            stamp = struct.pack("<Bd", 8, rng.random()) if rng.random() < 0.2 else b"\x00"
            body += stamp + rng.integers(-99, 99, 3).astype(kind).tobytes()
        data += chunk(3, struct.pack("<IBI", 7, 4, n_times) + body)
    (stream,), problems = read_bytes(tmp_path, data)
    (oracle,), _ = pyxdf.load_xdf(io.BytesIO(data), synchronize_clocks=False, dejitter_timestamps=False)
    assert problems == []
    np.testing.assert_array_equal(stream.stamps, oracle["time_stamps"])
    np.testing.assert_array_equal(stream.values, oracle["time_series"])


def test_a_stream_whose_header_cannot_be_read_costs_no_other(tmp_path: Path) -> None:
    """As an eye tracker's whose program writes an odd one."""
    odd = write_header(EEG).replace("float32", "undefined").encode()
    head = chunk(2, struct.pack("<I", 9) + odd)
    middle = chunk(3, struct.pack("<IBI", 9, 4, 1) + b"\x00" + bytes(8)) + chunk(6, struct.pack("<I", 9) + b"<info/>")
    whole = small_file()
    at = len(xdf.file_header("2026-01-01T00:00:00+00:00"))
    streams, problems = read_bytes(tmp_path, whole[:at] + head + whole[at:] + middle)
    expected, _ = read_bytes(tmp_path, whole)
    assert [stream.info.name for stream in streams] == [stream.info.name for stream in expected]
    assert [stream.values.tolist() for stream in streams] == [stream.values.tolist() for stream in expected]
    (problem,) = problems
    assert "stream 9 cannot be read" in problem


def test_texts_in_several_channels(tmp_path: Path) -> None:
    info = StreamInfo("notes", "Notes", 2, 0.0, "string")
    body = struct.pack("<IBB", 1, 1, 2)
    for stamp, pair in ((1.0, ("a", "b" * 300)), (2.0, ("", "ü"))):
        body += struct.pack("<Bd", 8, stamp)
        for text in pair:
            body += struct.pack("<BI", 4, len(text.encode())) + text.encode()
    (stream,), _ = read_bytes(tmp_path, xdf.MAGIC + xdf.stream_header(1, write_header(info)) + chunk(3, body))
    assert stream.values.tolist() == [["a", "b" * 300], ["", "ü"]]


def test_cut_anywhere_reads_what_is_whole(tmp_path: Path) -> None:
    whole = small_file()
    streams, _ = read_bytes(tmp_path, whole)
    stamps = streams[0].stamps
    seen = 0
    ends = chunk_ends(whole)
    for size in sorted({*range(4, len(whole), 5), *ends, *(end - 1 for end in ends if end > 4)} - {len(whole)}):
        partial, problems = read_bytes(tmp_path, whole[:size])
        if partial:
            count = len(partial[0].stamps)
            np.testing.assert_array_equal(partial[0].stamps, stamps[:count])
            assert count >= seen
            seen = count
        assert bool(problems) != (size in ends)
    assert seen == len(stamps)


def chunk_ends(data: bytes) -> set[int]:
    ends, position = {4}, 4
    while position < len(data):
        size = data[position]
        position += 1 + size + int.from_bytes(data[position + 1 : position + 1 + size], "little")
        ends.add(position)
    return ends


def test_garbage_costs_no_more_than_up_to_the_next_boundary(tmp_path: Path) -> None:
    whole = small_file()
    middle = whole.index("hé".encode())
    (eeg, texts), problems = read_bytes(tmp_path, whole[:middle] + b"\xff" * 9 + whole[middle:])
    assert len(problems) == 1
    assert "cannot be read" in problems[0]
    assert len(eeg.stamps) == 8
    assert len(texts.stamps) == 0


def test_repaired_anywhere_it_is_whole_and_as_it_was_read(tmp_path: Path) -> None:
    """Cut anywhere, and with any byte changed: what could be read before, and nothing else, is there after."""
    data, path = small_file(), tmp_path / "a.xdf"
    heads = (
        xdf.file_header("2026-01-01T00:00:00+00:00"),
        *map(xdf.stream_header, (1, 2), map(write_header, (EEG, TEXTS))),
    )
    start = len(b"".join(heads))
    damaged = [data[:stop] for stop in range(start, len(data), 3)]
    damaged += [data[:at] + bytes([data[at] ^ 0x55]) + data[at + 1 :] for at in range(start, len(data), 5)]
    for number, content in enumerate(damaged):
        path.write_bytes(content)
        before, problems = xdf.read(path)
        assert xdf.repair(path) == problems
        after, none = xdf.read(path)
        assert none == []
        for was, now in zip(before, after, strict=True):
            assert now.finished
            np.testing.assert_array_equal(was.stamps, now.stamps)
            assert was.values.tolist() == now.values.tolist()
            np.testing.assert_array_equal(was.offsets, now.offsets)
        if number % 5 == 0 and len(content) < len(data):
            streams, _ = pyxdf.load_xdf(str(path), synchronize_clocks=False, dejitter_timestamps=False)
            for now, oracle in zip(after, streams, strict=True):
                np.testing.assert_array_equal(now.stamps, oracle["time_stamps"])
                assert oracle["footer"]["info"]["sample_count"] == [str(len(now.stamps))]
    assert list(tmp_path.iterdir()) == [path]


@given(st.data())
def test_no_damage_raises_anything_else(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    damaged = bytearray(small_file())
    for place in data.draw(st.lists(st.integers(4, len(damaged) - 1), min_size=1, max_size=4)):
        damaged[place] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged.xdf"
    path.write_bytes(damaged)
    for stream in xdf.read(path)[0]:
        assert len(stream.stamps) == len(stream.values)


def test_compressed(tmp_path: Path) -> None:
    packed = gzip.compress(small_file())
    assert len(read_bytes(tmp_path, packed)[0][0].stamps) == 8
    streams, problems = read_bytes(tmp_path, packed[: len(packed) * 3 // 4])
    assert problems
    assert streams[0].info.name == "amp"


@pytest.mark.parametrize("content", [b"", b"XD", b"%PDF-1.4", gzip.compress(b"text", mtime=0), b"\x1f\x8b\x08\x00"])
def test_what_is_no_xdf(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(RecordingError, match=r"a\.xdf"):
        read_bytes(tmp_path, content)


def test_header_round_trip() -> None:
    again = read_header(write_header(EEG))
    assert again == StreamInfo(
        **{name: getattr(EEG, name) for name in EEG.__struct_fields__} | {"header": again.header}
    )
    assert write_header(again) == again.header
    stored = write_header(again, dtype="string", n_chans=1)
    assert read_header(stored).dtype == "string"
    assert read_header(stored).n_chans == 1


@pytest.mark.parametrize(
    ("channels", "names"),
    [
        ("<channel><label>Fz</label></channel>", ("Fz", "", "")),
        ("<channel><name> Fz </name></channel><channel><label>None</label></channel>", ("Fz", "", "")),
        ("<channel><label>a</label></channel>" * 5, ("a", "a", "a")),
        ("", ("", "", "")),
    ],
)
def test_headers_that_say_little_or_too_much(channels: str, names: tuple[str, ...]) -> None:
    info = read_header(
        "<info><name>a</name><channel_count>3</channel_count><channel_format>int16</channel_format>"
        f"<nominal_srate>250.0</nominal_srate><desc><channels>{channels}</channels></desc></info>"
    )
    assert info.ch_names == names
    assert (info.type, info.source_id, info.sfreq) == ("", "", 250.0)


@pytest.mark.parametrize(
    "change", [("<info>", ""), (">2<", ">many<"), ("float32", "float16"), (">100.0<", ">nan<"), (">2<", ">2000000000<")]
)
def test_headers_that_cannot_be(change: tuple[str, str]) -> None:
    with pytest.raises(StreamError):
        read_header(write_header(EEG).replace(*change))


@given(st.text(), st.text())
def test_any_name_survives_xml(name: str, label: str) -> None:
    info = read_header(write_header(StreamInfo(name, "EEG", 1, 1.0, "float32", ch_names=(label,))))
    assert len(info.ch_names) == 1
