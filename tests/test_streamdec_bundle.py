"""Bundles: what is written is read back; nothing damaged, tampered with, unsafe or inconsistent is."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import stat
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from streamdec.decode import archive, bundle
from streamdec.decode.bundle import Bundle, Manifest
from streamdec.decode.gallery import Gallery
from streamdec.decode.manifest import Calibration, Head, Parity
from streamdec.errors import BundleError
from streamdec.signal.chain import Chain
from streamdec.signal.spec import Baseline, Resample, Signal, Standardise, Whiten

PNG, JPG, WEBP = b"\x89PNG\r\n\x1a\n" + bytes(40), b"\xff\xd8\xff" + bytes(20), b"RIFF\x00\x00\x00\x00WEBP" + bytes(9)
ENCODERS = {"early.onnx": b"early" * 50, "encoder.onnx": bytes(range(256)) * 4}
ARRAYS = {"whitener": np.eye(3, dtype=np.float32), "mean": np.zeros(3), "std": np.ones(3)}


def manifest(**change: Any) -> Manifest:
    calibration = Calibration((1, 4), (10.0, 20.0))
    fields: dict[str, Any] = {
        "method": "ridge",
        "citation": "nobody 2026",
        "created": "2026-01-01T00:00:00Z",
        "commit": "0123abc",
        "config": {"alpha": 1.5, "layers": [1, 2], "name": "µ"},
        "seeds": (0, 1),
        "data": "fingerprint",
        "simulated": True,
        "signal": Signal(
            ("Oz", "O1", "O2"), 250.0, -0.2, 1.0, steps=(Baseline(-0.2, 0.0), Resample(100.0), Whiten(), Standardise())
        ),
        "channel_sd": {"Oz": 11.5, "O1": 9.0, "O2": 8.0},
        "heads": (
            Head(0.5, "early.onnx", (3, 70), 8, calibration),
            Head(1.0, "encoder.onnx", (3, 120), 8, calibration),
        ),
        "evidence": "mean",
        "budgets": {"retrieval": 0.05},
        "parity": (Parity("encoder.onnx", "onnxruntime", 64, 1e-6, 0.99999),),
    }
    return Manifest(**(fields | change))


def gallery() -> Gallery:
    features = np.random.default_rng(0).standard_normal((5, 8))
    return Gallery(features, ["a", "b", "c/ö", "d", "e"], ["A", "B", "Ö", "D", "E"], "class_centre")


def write(path: Path, m: Manifest | None = None, **change: Any) -> Path:
    parts: dict[str, Any] = {
        "arrays": ARRAYS,
        "gallery": gallery(),
        "encoders": ENCODERS,
        "thumbnails": {"a": PNG, "c/ö": JPG, "e": WEBP},
    }
    return bundle.write(path, m or manifest(), **(parts | change))


def content(b: Bundle) -> tuple[Any, ...]:
    """All that a bundle tells."""
    return (
        b.hash,
        b.manifest,
        {name: (array.dtype, array.tobytes()) for name, array in b.arrays.items()},
        (b.gallery.features.tobytes(), b.gallery.ids, b.gallery.labels, b.gallery.kind),
        [b.encoder(head) for head in b.manifest.heads],
        [b.thumbnail(name) for name in b.gallery.ids],
    )


def files(path: Path) -> dict[str, bytes]:
    if path.is_dir():
        return {str(p.relative_to(path)): p.read_bytes() for p in path.rglob("*") if p.is_file()}
    with zipfile.ZipFile(path) as z:
        return {name: z.read(name) for name in z.namelist()}


def sealed(path: Path, contents: Mapping[str, bytes], change: Callable[[dict[str, Any]], None]) -> Path:
    """Somebody's bundle whose hashes are right and whose manifest says what ``change`` makes of it."""
    listed = {n: hashlib.sha256(d).hexdigest() for n, d in contents.items() if not n.startswith("manifest.")}
    fields = msgspec.json.decode(contents["manifest.json"]) | {"files": listed}
    change(fields)
    raw = msgspec.json.encode(fields)
    seal = f"{hashlib.sha256(raw).hexdigest()}  manifest.json\n".encode()
    for name, data in {**contents, "manifest.json": raw, "manifest.sha256": seal}.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    return path


def unchanged(fields: dict[str, Any]) -> None:
    pass


@pytest.fixture(params=["bundle", "bundle.zip"])
def path(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path / request.param)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("bundles") / "bundle")


def opened(path: Path) -> tuple[Any, ...] | None:
    """What a bundle tells, None if it is refused."""
    try:
        return content(bundle.read(path))
    except BundleError:
        return None


def refuse(path: Path, message: str) -> None:
    with pytest.raises(BundleError, match=message) as caught:
        bundle.read(path)
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith(f"bundle {path.name}: ")


def test_reads_what_was_written(path: Path) -> None:
    b = bundle.read(path)
    m = manifest()
    assert msgspec.structs.replace(b.manifest, files={}, gallery="stimulus") == m
    assert b.manifest.gallery == b.gallery.kind == "class_centre"
    assert b.hash == hashlib.sha256(files(path)["manifest.json"]).hexdigest()
    assert b.path == path
    for name, array in ARRAYS.items():
        np.testing.assert_array_equal(b.arrays[name], array)
        assert not b.arrays[name].flags.writeable
    np.testing.assert_array_equal(b.gallery.features, gallery().features)  # bit for bit
    assert b.gallery.ids == gallery().ids
    assert b.gallery.labels == gallery().labels
    assert [b.encoder(head) for head in m.heads] == [ENCODERS["early.onnx"], ENCODERS["encoder.onnx"]]
    assert [b.thumbnail(n) for n in (*b.gallery.ids, "nobody")] == [PNG, None, JPG, None, WEBP, None]
    assert "ridge" in repr(b)


def test_weights_beside_an_encoder_are_kept_and_verified(tmp_path: Path) -> None:
    path = write(tmp_path / "b", encoders=ENCODERS | {"encoder.safetensors": b"weights"})
    b = bundle.read(path)
    early, final = b.manifest.heads
    assert b.weights(final) == b"weights"
    with pytest.raises(BundleError, match=r"no early\.safetensors; export it again"):
        b.weights(early)
    (path / "encoder.safetensors").write_bytes(b"Weights")
    with pytest.raises(BundleError, match=r"encoder\.safetensors; got sha256"):
        b.weights(final)
    refuse(path, r"encoder\.safetensors; got sha256")


def test_a_head_may_have_arrays_of_its_own(tmp_path: Path) -> None:
    own = 3 * np.eye(3)
    b = bundle.read(write(tmp_path / "b", arrays=ARRAYS | {"0.5/whitener": own}))
    early, final = b.manifest.heads
    epoch = np.random.default_rng(0).standard_normal((3, 176)).astype(np.float32)
    whitened, plain = b.chain(early)(epoch), Chain(b.manifest.signal.until(0.5), ARRAYS)(epoch)
    np.testing.assert_allclose(whitened, 3 * plain, rtol=1e-5, atol=1e-5)
    assert b.chain(final).shape == Chain(b.manifest.signal, ARRAYS).shape


def test_folder_and_zip_hold_the_same_and_the_same_content_gives_the_same_bytes(tmp_path: Path) -> None:
    paths = [write(tmp_path / name) for name in ("one", "two", "one.zip", "two.zip")]
    assert files(paths[0]) == files(paths[1]) == files(paths[2])
    assert paths[2].read_bytes() == paths[3].read_bytes()
    assert len({bundle.read(p).hash for p in paths}) == 1


def test_a_zip_that_another_tool_made_of_the_folder_is_read(folder: Path, tmp_path: Path) -> None:
    other = Path(shutil.make_archive(str(tmp_path / "other"), "zip", folder))  # deflated, with folder entries
    assert content(bundle.read(other)) == content(bundle.read(folder))


def test_what_exists_is_not_overwritten(path: Path) -> None:
    before = files(path)
    with pytest.raises(BundleError, match="it exists"):
        write(path)
    assert files(path) == before


@pytest.mark.parametrize("name", ["bundle", "bundle.zip"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arrays": {"whitener": np.eye(3)}}, "no array 'mean'"),
        ({"arrays": ARRAYS | {"mean": np.array([np.nan] * 3)}}, "NaN or infinity"),
        ({"encoders": {"encoder.onnx": b"x"}}, "what the heads name"),
        ({"encoders": ENCODERS | {"../evil.onnx": b"x"}}, "what the heads name"),
        ({"encoders": ENCODERS | {"more.safetensors": b"x"}}, "what the heads name"),
        ({"gallery": Gallery(np.eye(4), list("abce"), list("abce")), "thumbnails": {}}, "1 or more candidates, 8"),
        ({"gallery": Gallery(np.empty((0, 8)), [], []), "thumbnails": {}}, "1 or more candidates, 8"),
        ({"thumbnails": {"nobody": PNG}}, "ids of the gallery"),
        ({"thumbnails": {"a": b"GIF89a"}}, "PNG, JPEG or WebP"),
    ],
)
def test_parts_that_do_not_fit_are_not_written(tmp_path: Path, name: str, change: dict[str, Any], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        write(tmp_path / name, **change)
    assert list(tmp_path.iterdir()) == []


def test_offline_only_is_refused_live_and_says_why(tmp_path: Path) -> None:
    path = write(tmp_path / "b", manifest(offline_only="zero-phase filter"))
    refuse(path, "offline use only; got zero-phase filter")
    assert bundle.read(path, live=False).manifest.offline_only == "zero-phase filter"


def test_any_changed_byte_of_any_file_is_found(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    contents = files(copy)

    @given(st.sampled_from(sorted(contents)), st.integers(0), st.integers(1, 255))
    @settings(max_examples=150, deadline=None)
    def flip(name: str, at: int, change: int) -> None:
        data = bytearray(contents[name])
        data[at % len(data)] ^= change
        (copy / name).write_bytes(data)
        with pytest.raises(BundleError):
            bundle.read(copy)
        (copy / name).write_bytes(contents[name])

    flip()
    assert content(bundle.read(copy)) == content(bundle.read(folder))


@given(at=st.integers(0), change=st.integers(1, 255), cut=st.booleans())
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_changed_zip_is_refused_or_says_the_same(
    folder: Path, tmp_path: Path, at: int, change: int, cut: bool
) -> None:
    """Bytes that carry nothing, such as a member's date, may change."""
    whole = tmp_path / "whole.zip"
    if not whole.exists():
        write(whole)
    data = bytearray(whole.read_bytes())
    if cut:
        data = data[: at % len(data)]
    else:
        data[at % len(data)] ^= change
    path = tmp_path / "changed.zip"
    path.write_bytes(data)
    assert opened(path) in (None, content(bundle.read(whole)))


def test_a_file_changed_after_reading_is_found_when_it_is_asked_for(tmp_path: Path) -> None:
    path = write(tmp_path / "b")
    b = bundle.read(path)
    (path / "encoder.onnx").write_bytes(bytes(1024))
    with pytest.raises(BundleError, match=r"encoder.onnx; got sha256"):
        b.encoder(b.manifest.heads[1])
    assert b.encoder(b.manifest.heads[0]) == ENCODERS["early.onnx"]
    (path / "early.onnx").unlink()
    with pytest.raises(BundleError, match="not there"):
        b.encoder(b.manifest.heads[0])


@pytest.mark.parametrize("name", ["encoder.onnx", "manifest.sha256", "gallery.json", "thumbnails/000000.png"])
def test_a_missing_file_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / name).unlink()
    refuse(copy, re.escape(name))


def test_an_extra_file_is_named(folder: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "thumbnails" / "more.png").write_bytes(PNG)
    refuse(copy, r"does not list; got thumbnails/more\.png")


def test_what_is_no_bundle_is_told(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "not there")
    (tmp_path / "empty").mkdir()
    refuse(tmp_path / "empty", r"no bundle; got no manifest\.json")
    (tmp_path / "text.zip").write_text("hello", encoding="utf-8")
    refuse(tmp_path / "text.zip", "cannot be read; got File is not a zip file")
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as z:
        z.writestr("bundle/manifest.json", "{}")
    refuse(tmp_path / "other.zip", "no manifest.json at its top")
    (tmp_path / "closed.zip").mkdir()
    refuse(tmp_path / "closed.zip", "no bundle")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.update(schema=2, new_in_schema_2=1), "schema is newer; got 2; allowed: up to 1; update streamdec"),
        (lambda f: f.update(surprise=1), "unknown field `surprise`"),
        (lambda f: f.pop("method"), "missing required field `method`"),
        (lambda f: f.update(seeds="0"), "seeds"),
        (lambda f: f["signal"].update(sfreq="fast"), "sfreq"),
        (lambda f: f["signal"]["steps"].append({"kind": "magic"}), "steps"),
        (lambda f: f.update(heads=[]), "head horizons"),
        (lambda f: f["heads"].reverse(), "strictly increasing"),
        (lambda f: f["heads"].pop(), "the epoch's end, 1.0 s"),
        (lambda f: f["heads"][0].update(dim=9), "one embedding space"),
        (lambda f: f["heads"][0].update(encoder="../x.onnx"), "plain file name"),
        (lambda f: f["heads"][0].update(encoder="other.onnx"), "missing; got other.onnx"),
        (lambda f: f["heads"][0].update(shape=[0, 5]), "head size"),
        (lambda f: f["heads"][0]["calibration"].update(scale=[1.0]), "calibration"),
        (lambda f: f.update(budgets={"retrieval": 0}), "budgets"),
        (lambda f: f.update(gallery="zoo"), "gallery"),
        (lambda f: f["files"].update({"manifest.json": "0"}), "missing; got manifest.json"),
        (lambda f: f["files"].pop("arrays.safetensors"), r"does not list; got arrays\.safetensors"),
        (lambda f: f["files"].update({"encoder.onnx": "0" * 64}), "encoder.onnx; got sha256"),
    ],
)
def test_a_sealed_manifest_that_makes_no_sense_is_refused(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], None], message: str
) -> None:
    refuse(sealed(tmp_path / "b", files(folder), change), message)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"schema": 1}', b'{"schema": "one"}', b'{"schema": 1e999}']
)
def test_garbage_manifests_are_refused(folder: Path, tmp_path: Path, raw: bytes) -> None:
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "manifest.json").write_bytes(raw)
    (copy / "manifest.sha256").write_bytes(f"{hashlib.sha256(raw).hexdigest()}  manifest.json\n".encode())
    refuse(copy, r"manifest\.json")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("arrays.safetensors", b"\x80\x04cos\nsystem\n", "arrays.safetensors"),
        ("arrays.safetensors", (2**62).to_bytes(8, "little") + b"{}", "arrays.safetensors"),
        ("gallery.safetensors", safetensors.numpy.save({"features": np.ones((5, 8))}), "float64"),
        ("gallery.safetensors", safetensors.numpy.save({"other": np.ones((5, 8), np.float32)}), "other"),
        ("gallery.safetensors", safetensors.numpy.save({"features": np.zeros((5, 8), np.float32)}), "length zero"),
        ("gallery.safetensors", safetensors.numpy.save({"features": np.ones((4, 8), np.float32)}), "4 features, 5 ids"),
        ("gallery.json", b'[{"id": "a", "label": "a", "run": "me"}]', "unknown field `run`"),
        ("gallery.json", b'[{"id": "a", "label": "a", "thumbnail": "../../x"}]', "a file that the manifest lists"),
        ("gallery.json", b'[{"id": "a", "label": ""}, {"id": "a", "label": ""}]', "2 ids"),
    ],
)
def test_sealed_contents_that_make_no_sense_are_refused(
    folder: Path, tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    refuse(sealed(tmp_path / "b", files(folder) | {name: data}, unchanged), message)


@pytest.mark.parametrize(
    "name", ["../out.png", "/abs.png", "a/../../b.png", "a\\b.png", "C:x", ".hidden", "a//b", "ä.png"]
)
def test_names_that_leave_the_zip_are_refused(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "b.zip")
    with zipfile.ZipFile(path, "a") as z:
        z.writestr(name, b"x")
    refuse(path, "a file name")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["b.zip"]


def test_links_and_special_files_are_refused(folder: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(ENCODERS["encoder.onnx"])
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    (copy / "encoder.onnx").unlink()
    (copy / "encoder.onnx").symlink_to(secret)  # even to the right bytes
    refuse(copy, r"encoder\.onnx; got a link or special file")
    (copy / "encoder.onnx").unlink()
    os.mkfifo(copy / "encoder.onnx")
    refuse(copy, "a link or special file")
    (copy / "encoder.onnx").unlink()
    shutil.rmtree(copy / "thumbnails")
    (copy / "thumbnails").symlink_to(folder / "thumbnails")
    refuse(copy, "thumbnails; got a link or special file")

    path = write(tmp_path / "b.zip")
    link = zipfile.ZipInfo("thumbnails/link.png")
    link.create_system, link.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "a") as z:
        z.writestr(link, "/etc/passwd")
    refuse(path, "a link or special file")


def test_a_link_put_in_place_after_reading_is_not_followed(tmp_path: Path) -> None:
    path = write(tmp_path / "b")
    b = bundle.read(path)
    (path / "encoder.onnx").rename(tmp_path / "moved")
    (path / "encoder.onnx").symlink_to(tmp_path / "moved")
    with pytest.raises(BundleError, match="cannot be read"):
        b.encoder(b.manifest.heads[1])


def test_zip_bombs_are_refused_before_anything_is_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bomb = tmp_path / "bomb.zip"
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as z:
        z.writestr("manifest.json", bytes(20 << 20))
    monkeypatch.setattr(zipfile.ZipFile, "open", lambda *_: pytest.fail("unpacked"))
    refuse(bomb, "unpacks to far more than it is; got 20971520 bytes from")


def test_a_zip_that_understates_a_size_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "b.zip")
    data = path.read_bytes()
    size = len(ENCODERS["encoder.onnx"]).to_bytes(4, "little")
    assert data.count(size * 2) == 2  # packed and unpacked, in the member's own header and in the directory
    path.write_bytes(data.replace(size * 2, size + (5).to_bytes(4, "little")))
    refuse(path, "cannot be read|encoder.onnx")


def test_twice_the_same_name_or_another_packing_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "b.zip")
    packed = Path(shutil.copy(path, tmp_path / "packed.zip"))
    with pytest.warns(UserWarning, match="Duplicate"), zipfile.ZipFile(path, "a") as z:
        z.writestr("encoder.onnx", b"other")
    refuse(path, "twice in the zip")
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_LZMA) as z:
        z.writestr("more.onnx", bytes(100))
    refuse(packed, "stored or deflated")


def test_limits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    n, size = len(files(folder)), sum(map(len, files(folder).values()))
    monkeypatch.setattr(archive, "MAX_FILES", n)
    monkeypatch.setattr(archive, "MAX_BYTES", size)
    bundle.read(folder)
    monkeypatch.setattr(archive, "MAX_FILES", n - 1)
    refuse(folder, f"too many files; got {n}")
    monkeypatch.setattr(archive, "MAX_FILES", n)
    monkeypatch.setattr(archive, "MAX_BYTES", size - 1)
    refuse(folder, "too large")
    monkeypatch.setattr(archive, "MAX_BYTES", size)
    monkeypatch.setattr(bundle, "MAX_JSON_BYTES", 10)
    refuse(folder, r"manifest\.json; got \d+ bytes; allowed: up to 10")
