"""Target features: the encoders, and their store that goes on after a kill."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import tiny_store

from offline.data.store import Item
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


def test_open_clip_by_name_with_a_weights_file(tmp_path) -> None:
    open_clip = pytest.importorskip("open_clip", reason="open_clip comes with the train extra")
    safetensors = pytest.importorskip("safetensors.torch", reason="torch comes with the train extra")
    image = pytest.importorskip("PIL.Image", reason="Pillow comes with the train extra")
    import torch

    torch.manual_seed(0)
    model, _, transform = open_clip.create_model_and_transforms("ViT-S-32-alt", pretrained=None)
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    safetensors.save_file(weights, tmp_path / "weights.safetensors")
    picture = np.random.default_rng(0).integers(0, 256, (90, 70, 3), dtype=np.uint8)
    image.fromarray(picture).save(tmp_path / "0.png")
    made = encoder(f"open_clip:ViT-S-32-alt/{tmp_path / 'weights.safetensors'}", ITEMS)
    with torch.inference_mode():
        expected = model.eval().encode_image(transform(image.fromarray(picture))[None]).numpy()
    np.testing.assert_allclose(made(ITEMS[:1], Images(tmp_path)), expected, rtol=1e-4, atol=1e-5)
    assert made.provenance["weights"].startswith("sha256:")
    with pytest.raises(ConfigError, match="MODEL/WEIGHTS"):
        encoder("open_clip:ViT-B-32", ITEMS)
    with pytest.raises(ConfigError, match="open_clip model"):
        encoder("open_clip:no-such-model/openai", ITEMS)
    with pytest.raises(ConfigError, match="laion2b_s34b_b79k"):
        encoder("open_clip:ViT-B-32/no-such-weights", ITEMS)
