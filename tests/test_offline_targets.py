"""Target features: encoders by name, those without weights, and the store that goes on after a kill."""

from __future__ import annotations

import resource
import tempfile
from pathlib import Path

import msgspec
import numpy as np
import pytest
import tiny_store
from hypothesis import given, settings
from hypothesis import strategies as st

from offline.data.store import Item
from offline.targets import registry
from offline.targets.blur import KERNELS
from offline.targets.images import Images
from offline.targets.registry import encoder
from offline.targets.store import Targets, compute
from streamdec.errors import ConfigError, DataError
from streamdec.simulate import features

ITEMS = [Item(f"i{i}", f"i{i}", "c", f"{i}.png") for i in range(150)]


class Counting(tiny_store.Known):
    def __init__(self, stop_at: int | None = None) -> None:
        super().__init__({item.id: np.arange(3, dtype=np.float32) + i for i, item in enumerate(ITEMS)})
        self.asked, self.stop_at = [], stop_at

    def __call__(self, items, images):
        self.asked += [item.id for item in items]
        if self.stop_at is not None and len(self.asked) > self.stop_at:
            raise KeyboardInterrupt
        return super().__call__(items, images)


def test_killed_call_goes_on(tmp_path) -> None:
    whole = compute(Counting(), ITEMS, Path(), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        compute(Counting(stop_at=100), ITEMS, Path(), tmp_path / "killed")
    with pytest.raises(DataError, match="64 of 150"):
        Targets(tmp_path / "killed")
    second = Counting()
    assert compute(second, ITEMS, Path(), tmp_path / "killed").fingerprint == whole.fingerprint
    assert second.asked == [item.id for item in ITEMS[64:]]
    third = Counting()
    compute(third, ITEMS, Path(), tmp_path / "killed")
    assert not third.asked
    rows = Targets(tmp_path / "killed").of([ITEMS[140], ITEMS[2]])
    assert rows.tolist() == [[140, 141, 142], [2, 3, 4]]
    with pytest.raises(DataError, match="no row for 'unknown'"):
        Targets(tmp_path / "killed").of([Item("unknown", "", "")])
    with pytest.raises(ConfigError, match="other features"):
        compute(Counting(), ITEMS[1:], Path(), tmp_path / "killed")


class Made:
    """Given rows, with a kill after so many of them."""

    name = "made"

    def __init__(self, rows: np.ndarray, kill_at: int | None = None) -> None:
        self.rows, self.kill_at, self.given = rows, kill_at, 0
        self.provenance = {"sizes": (1, 2)}

    def __call__(self, items, images):
        self.given += len(items)
        if self.kill_at is not None and self.given > self.kill_at:
            raise KeyboardInterrupt
        return self.rows[[int(item.id[1:]) for item in items]]


@settings(deadline=None, max_examples=60)
@given(
    shape=st.lists(st.integers(1, 3), max_size=3),
    dtype=st.sampled_from([np.float32, np.float16]),
    batch=st.integers(1, 20),
    kill_at=st.integers(0, 12),
    other_batch=st.integers(1, 20),
)
def test_rows_of_any_shape(shape, dtype, batch, kill_at, other_batch) -> None:
    rows = np.random.default_rng(0).standard_normal((12, *shape)).astype(dtype)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole = compute(Made(rows), ITEMS[:12], Path(), folder / "whole", batch=12)
        try:
            compute(Made(rows, kill_at), ITEMS[:12], Path(), folder / "killed", batch=batch)
        except KeyboardInterrupt:
            compute(Made(rows), ITEMS[:12], Path(), folder / "killed", batch=other_batch)
        targets = Targets(folder / "killed")
        assert targets.meta.fingerprint == whole.fingerprint
        for items in (ITEMS[:12], ITEMS[3:7], ITEMS[:0], [ITEMS[5], ITEMS[2], ITEMS[5]]):
            found = targets.of(items)
            expected = rows[[int(item.id[1:]) for item in items]]
            assert found.dtype == dtype
            np.testing.assert_array_equal(found, expected)


def test_consecutive_rows_are_mapped_and_the_file_is_safe(tmp_path) -> None:
    rows = np.random.default_rng(0).standard_normal((12, 2, 3)).astype(np.float32)
    compute(Made(rows), ITEMS[:12], Path(), tmp_path)
    found = Targets(tmp_path).of(ITEMS[4:9])
    assert isinstance(found.base, np.memmap)
    found[:] = 0
    np.testing.assert_array_equal(np.load(tmp_path / "features.npy"), rows)


def test_a_file_with_nan_is_refused_on_reading(tmp_path) -> None:
    compute(Made(np.ones((12, 2), np.float32)), ITEMS[:12], Path(), tmp_path)
    rows = np.load(tmp_path / "features.npy")
    rows[7, 1] = np.nan
    np.save(tmp_path / "features.npy", rows)
    assert len(Targets(tmp_path).of(ITEMS[:7])) == 7
    with pytest.raises(DataError, match="got NaN or infinity; compute them again"):
        Targets(tmp_path).of(ITEMS[:12])


def test_what_cannot_be_kept(tmp_path) -> None:
    rows = np.ones((12, 4), np.float32)
    rows[7, 2] = np.nan
    with pytest.raises(DataError, match=r"NaN or infinity for 'i7'; look at '7\.png'"):
        compute(Made(rows), ITEMS[:12], Path(), tmp_path / "nan")
    with pytest.raises(ConfigError, match="batch"):
        compute(Made(rows), ITEMS[:7], Path(), tmp_path / "batch", batch=0)
    with pytest.raises(DataError, match="no items"):
        compute(Made(rows), [], Path(), tmp_path / "none")
    compute(Made(rows), ITEMS[:7], Path(), tmp_path / "cut")
    (tmp_path / "cut" / "features.npy").write_bytes((tmp_path / "cut" / "features.npy").read_bytes()[:-4])
    with pytest.raises(DataError, match="compute the features again"):
        Targets(tmp_path / "cut")


def test_full_disk_is_an_error_and_then_goes_on(tmp_path) -> None:
    rows = np.random.default_rng(0).standard_normal((12, 2000)).astype(np.float32)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
        with pytest.raises(DataError, match="the same command goes on"):
            compute(Made(rows), ITEMS[:12], Path(), tmp_path / "full", batch=4)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    again = Made(rows)
    compute(again, ITEMS[:12], Path(), tmp_path / "full", batch=4)
    assert again.given == 8
    np.testing.assert_array_equal(Targets(tmp_path / "full").of(ITEMS[:12]), rows)


def test_encoders(tmp_path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow comes with the train extra")
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (40 + i, 50, 3), dtype=np.uint8) for i in range(3)]
    for i, picture in enumerate(pictures):
        image.fromarray(picture).save(tmp_path / f"{i}.png")
    for name, function in (("pixels", features.pixels), ("colour", features.colour), ("gabor", features.gabor)):
        expected = np.concatenate([function(picture[None]) for picture in pictures])
        assert np.array_equal(encoder(name, ITEMS)(ITEMS[:3], Images(tmp_path)), expected)
    (tmp_path / "image_attributes.tsv").write_text("file\tshape=ring\tx\n1.png\t1\t0.5\n0.png\t0\t-1\n")
    assert encoder("attributes", ITEMS)(ITEMS[:2], Images(tmp_path)).tolist() == [[0, -1], [1, 0.5]]
    with pytest.raises(DataError, match="only simulated"):
        encoder("attributes", ITEMS)(ITEMS[:3], Images(tmp_path))
    with pytest.raises(DataError, match=r"image .*9\.png"):
        encoder("pixels", ITEMS)([ITEMS[9]], Images(tmp_path))
    both = encoder("colour+attributes", ITEMS)(ITEMS[:2], Images(tmp_path))
    assert both.shape == (2, 48 + 2)
    assert both[:, 48:].tolist() == [[0, -1], [1, 0.5]]
    classes = [Item(name, name, name) for name in ("b", "a", "b")]
    assert encoder("classes", classes)(classes, Images(tmp_path)).tolist() == [[1, 0], [0, 1], [1, 0]]


@pytest.mark.parametrize("name", ["nothing", "open_clip", "gabor:what", "vae"])
def test_unknown_encoder(name: str) -> None:
    with pytest.raises(ConfigError, match="target encoder"):
        encoder(name, ITEMS)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("gabor@size=3", r"option 'size'; allowed: blur, vse, sketch"),
        ("pixels@size=many", r"options of pixels@size=many; got Expected `int`"),
        ("pixels@size=0", r"size; got 0"),
        ("gabor@blur=50", r"blur; got 50; allowed: low, medium, high"),
        ("gabor@blur=soft", r"options of blur of gabor@blur=soft"),
        ("gabor@vse=gates:1", r"option 'gates'; allowed: sobel, weights, gate"),
        ("gabor@vse=sobel:4", r"vse sobel; got 4"),
        ("spelling@blur", r"option 'blur'; allowed: template, captions"),
        ("classes@vse", r"option 'vse'; allowed: none"),
        ("spelling@template=hello", r"template; got 'hello'"),
        ("spelling@template=a {caption}", r"@captions=FILE"),
    ],
)
def test_wrong_option(name: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        encoder(name, ITEMS)


def test_without_weights(tmp_path) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow comes with the train extra")
    rng = np.random.default_rng(0)
    pictures = [rng.integers(0, 256, (112, 112 + 2 * i, 3), dtype=np.uint8) for i in range(3)]
    for i, picture in enumerate(pictures):
        image.fromarray(picture).save(tmp_path / f"{i}.png")
    images, items = Images(tmp_path), ITEMS[:3]
    small = encoder("pixels@size=16", items)(items, images)
    assert small.shape == (3, 16 * 16 * 3)
    blocks = pictures[0].reshape(16, 7, 16, 7, 3).mean((1, 3)) / 255
    np.testing.assert_allclose(small[0], blocks.reshape(-1), atol=1e-6)
    thumbnails = encoder("thumbnails", items)(items, images)
    assert thumbnails.shape == (3, 3, 56, 56)
    assert thumbnails.min() >= 0
    assert thumbnails.max() <= 1
    expected = np.asarray(image.fromarray(pictures[2]).resize((58, 56), image.Resampling.BICUBIC))[:, 1:57] / 255
    np.testing.assert_allclose(thumbnails[2], expected.transpose(2, 0, 1), atol=1 / 4096)


def test_an_image_is_decoded_once_for_joined_encoders(tmp_path, monkeypatch) -> None:
    image = pytest.importorskip("PIL.Image", reason="Pillow comes with the train extra")
    for i in range(3):
        image.new("RGB", (20, 20), (i, 0, 0)).save(tmp_path / f"{i}.png")
    opened = []
    real = image.open
    monkeypatch.setattr(image, "open", lambda path: opened.append(path.name) or real(path))
    made = encoder("pixels+colour+gabor@vse+gabor@blur", ITEMS)
    assert made(ITEMS[:3], Images(tmp_path)).shape == (3, 192 + 48 + 192 + 192)
    assert sorted(opened) == ["0.png", "1.png", "2.png"]
    assert made.provenance["gabor@blur"]["images"] == [{"blur": {"kernel": 51, "size": 224, "fall": 3.0}}]
    with pytest.raises(DataError, match="item 'none'; got no image"):
        made([Item("none", "", "")], Images(tmp_path))


def test_features_of_one_space_are_averaged(tmp_path) -> None:
    """As CLIP-MUSED has an image's features and its caption's; ``|`` binds tighter than ``+``."""
    pytest.importorskip("open_clip", reason="open_clip comes with the train extra")
    image = pytest.importorskip("PIL.Image", reason="Pillow comes with the train extra")
    for i in range(3):
        image.new("RGB", (64, 64), (80 * i, 0, 0)).save(tmp_path / f"{i}.png")
    (tmp_path / "said.json").write_text('{"i0": "a red disc", "i1": "a blue star", "i2": "two green bars"}')
    seen, told = "open_clip:tiny/world", f"open_clip_text:tiny/world@captions={tmp_path / 'said.json'}"
    one, other, mean, joined = (
        encoder(name, ITEMS)(ITEMS[:3], Images(tmp_path))
        for name in (seen, told, f"{seen}|{told}", f"colour+{seen}|{told}")
    )
    assert np.abs(one - other).max() > 0.01
    np.testing.assert_allclose(mean, (one + other) / 2, rtol=1e-6)
    np.testing.assert_array_equal(joined[:, 48:], mean)
    with pytest.raises(ConfigError, match=r"features to average; got colour: \(48,\), gabor: \(192,\); allowed"):
        encoder("colour|gabor", ITEMS)(ITEMS[:3], Images(tmp_path))


def test_every_kind_and_option_is_documented() -> None:
    text = (Path(registry.__file__).parent / "ENCODERS.md").read_text(encoding="utf-8")
    for name, kind in registry.KINDS.items():
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}{':' if kind.what else ''}"))
        for field in msgspec.structs.fields(kind.options):
            assert f"`{field.name}`" in row
    for level in (*KERNELS, "@vse", "@blur", "@sketch"):
        assert level in text
