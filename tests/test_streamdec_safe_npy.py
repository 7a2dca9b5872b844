from __future__ import annotations

import os
import pickle
import tempfile
import zipfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from streamdec.acquire.safe_npy import read_npy, read_pt
from streamdec.errors import DataError


def things() -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "raw_eeg_data": rng.standard_normal((3, 50)),
        "fortran": np.asfortranarray(rng.standard_normal((3, 4))),
        "big_endian": np.arange(3, dtype=">i4"),
        "ch_names": ["Fp1", "Oz", "stim"],
        "objects": np.array(["x", 1, [np.arange(3)]], object),
        "texts": np.array(["ab", "cde"]),
        "sfreq": np.float64(1000),
        "zero_d": np.array(4.0),
        "flags": np.array([True, False]),
        "bytes": b"ab",
        "none": b"",
        "tuple": (np.arange(2), None),
        "set": {1, 2},
    }


def assert_same(a: Any, b: Any) -> None:
    if isinstance(a, np.ndarray):
        assert type(b) is np.ndarray
        assert a.dtype.newbyteorder("=") == b.dtype.newbyteorder("=")
        assert a.shape == b.shape
        for x, y in zip(a.ravel(), b.ravel(), strict=True):
            assert_same(x, y)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, list | tuple):
        assert type(a) is type(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert type(a) is type(b)
        assert a == b


def test_saved_dictionary(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", things())  # type: ignore[arg-type]
    assert_same(things(), read_npy(tmp_path / "a.npy"))


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_bare_pickle(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "a.npy").write_bytes(pickle.dumps(things(), protocol=protocol))
    assert_same(things(), read_npy(tmp_path / "a.npy"))


def test_names_of_numpy_1(tmp_path: Path) -> None:
    new = pickle.dumps(things(), protocol=2)
    (tmp_path / "a.npy").write_bytes(new.replace(b"numpy._core.", b"numpy.core."))
    assert_same(things(), read_npy(tmp_path / "a.npy"))


@pytest.mark.parametrize("array", [np.arange(5.0), np.zeros((0, 3), np.float32), np.array(["a", None], object)])
def test_plain_arrays(tmp_path: Path, array: np.ndarray[Any, Any]) -> None:
    np.save(tmp_path / "a.npy", array)
    assert_same(array, read_npy(tmp_path / "a.npy"))


class Calls:
    def __init__(self, function: Any, *args: Any) -> None:
        self._call = function, args

    def __reduce__(self) -> Any:
        return self._call


def attacks(proof: Path) -> dict[str, tuple[bytes, str]]:
    touch = f"touch {proof}"
    return {
        "system": (pickle.dumps(Calls(os.system, touch)), "posix.system"),
        "eval": (pickle.dumps(Calls(eval, f"open({str(proof)!r}, 'w')")), "builtins.eval"),
        "getattr": (pickle.dumps(Calls(getattr, np.ndarray, "tofile")), "builtins.getattr"),
        "numpy.load": (b"cnumpy\nload\n(V/etc/passwd\ntR.", "numpy.load"),
        "numpy.core runstring": (
            b"cnumpy.core.multiarray\nfromfile\n(V/etc/passwd\ntR.",
            "numpy.core.multiarray.fromfile",
        ),
        "dotted": (b"\x80\x04\x8c\x05numpy\x8c\x0endarray.tofile\x93.", "numpy.ndarray.tofile"),
        "in a dictionary": (pickle.dumps({"a": [Calls(os.system, touch)]}), "posix.system"),
        "extension": (b"\x80\x02\x82\xf0.", "a.npy"),
        "persistent": (b"Pid\n.", "a.npy"),
    }


@pytest.mark.parametrize("name", attacks(Path()))
def test_nothing_runs(tmp_path: Path, name: str) -> None:
    content, named = attacks(tmp_path / "proof")[name]
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match=named.replace(".", r"\.")):
        read_npy(tmp_path / "a.npy")
    assert not (tmp_path / "proof").exists()


def test_nothing_runs_inside_object_arrays(tmp_path: Path) -> None:
    proof = tmp_path / "proof"
    hidden = np.array([Calls(os.system, f"touch {proof}")], object)
    np.save(tmp_path / "a.npy", {"a": hidden})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="system"):
        read_npy(tmp_path / "a.npy")
    assert not proof.exists()


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(Calls(np.ndarray, (1,), np.dtype(object), b"A" * 8)),  # a pointer of the attacker's
        pickle.dumps(np.array([1, 2], object)).replace(b"O8", b"V8"),
        pickle.dumps(np.arange(3.0))[:-20],
        b"not a pickle",
        b"",
        b"\x93NUMPY\x01\x00\x05\x00{'de}",
    ],
)
def test_damage_and_forged_arrays(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npy"):
        read_npy(tmp_path / "a.npy")


def test_absent(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot read"):
        read_npy(tmp_path / "a.npy")


def large() -> dict[str, Any]:
    rng = np.random.default_rng(1)
    return {
        "eeg": rng.standard_normal((300, 50, 40)).astype(np.float16),
        "fortran": np.asfortranarray(rng.standard_normal((400, 500))),
        "big_endian": np.arange(300_000, dtype=">f8"),
        "img": np.array([["train_images/a/b.jpg", "c"]]),
        "times": np.arange(3) / 250,
    }


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_large_arrays_stay_in_the_file(tmp_path: Path, protocol: int) -> None:
    (tmp_path / "a.npy").write_bytes(pickle.dumps(large(), protocol=protocol))
    found = read_npy(tmp_path / "a.npy")
    for key, array in large().items():
        np.testing.assert_array_equal(found[key], array)
        assert isinstance(found[key], np.memmap) == (array.nbytes > 1 << 20)
        assert found[key].flags.f_contiguous == array.flags.f_contiguous
    np.save(tmp_path / "b.npy", large()["eeg"])
    assert isinstance(read_npy(tmp_path / "b.npy"), np.memmap)


@pytest.mark.parametrize("protocol", range(3, pickle.HIGHEST_PROTOCOL + 1))
def test_torch_archive(tmp_path: Path, protocol: int) -> None:
    torch = pytest.importorskip("torch")
    content = things() | large()
    torch.save(content, tmp_path / "a.pt", pickle_protocol=protocol)
    found = read_pt(tmp_path / "a.pt")
    assert found.keys() == content.keys()
    for key, array in large().items():
        np.testing.assert_array_equal(found[key], array)
    assert isinstance(found["eeg"], np.memmap)


def test_torch_archive_of_anything_else_is_refused(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    proof = tmp_path / "proof"
    for content, named in (
        ({"eeg": torch.zeros(3)}, r"torch\._utils"),
        ({"eeg": Calls(os.system, f"touch {proof}")}, r"posix\.system"),
    ):
        torch.save(content, tmp_path / "a.pt")
        with pytest.raises(DataError, match=named):
            read_pt(tmp_path / "a.pt")
    assert not proof.exists()
    (tmp_path / "b.pt").write_bytes(pickle.dumps({}))
    with pytest.raises(DataError, match="damaged"):
        read_pt(tmp_path / "b.pt")
    with zipfile.ZipFile(tmp_path / "c.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("c/data.pkl", pickle.dumps({}))
    with pytest.raises(DataError, match="compressed"):
        read_pt(tmp_path / "c.pt")
    with pytest.raises(DataError, match="cannot read"):
        read_pt(tmp_path / "d.pt")


@pytest.mark.parametrize(
    "content",
    [
        pickle.dumps(large()["eeg"])[:-100_000],  # mapped past the end
        pickle.dumps(large()["eeg"]).replace(b"\x4d\x2c\x01", b"\x4d\x2d\x01"),  # 301 epochs of 300
        b"cnumpy\nndarray\n}b.",  # the state of something that has none
    ],
)
def test_forged_mapping(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(DataError, match="damaged"):
        read_npy(tmp_path / "a.npy")


@given(
    protocol=st.integers(0, pickle.HIGHEST_PROTOCOL),
    changes=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    end=st.integers(0, 10_000),
)
def test_a_pickle_with_any_bytes_changed_is_read_or_refused(protocol: int, changes: Any, end: int) -> None:
    content = bytearray(pickle.dumps(things(), protocol=protocol))
    for at, value in changes:
        content[at % len(content)] = value
    del content[max(end % (4 * len(content)), 1) :]
    with tempfile.NamedTemporaryFile(suffix=".npy") as file:
        file.write(content)
        file.flush()
        with suppress(DataError):
            read_npy(file.name)
