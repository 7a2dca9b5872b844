"""Figures of pictures against their definitions, spelt out; what is said where weights are not here."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import gaussian_filter
from scipy.spatial.distance import correlation
from torchvision import models
from torchvision.transforms import InterpolationMode, Resize

from offline.judge import networks, pictures
from streamdec.errors import ConfigError


def noise(n: int, side: int = 32, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return np.stack([gaussian_filter(rng.uniform(0, 255, (side, side, 3)), (2, 2, 0)) for _ in range(n)]).astype(
        np.uint8
    )


def test_two_way_counts_who_is_farther_than_the_own() -> None:
    # Correlations by hand: rows (1, -1, 0, 0)-like patterns on four features.
    real = np.array([[1, -1, 0, 0], [0, 0, 1, -1], [1, 1, -1, -1]], np.float32)
    made = np.array([[1, -1, 0, 0], [1, -1, 0, 0], [1, 0, 0, -1]], np.float32)
    # made 0: 1 with its own, 0 and 0 with the others: both lose. made 1: 0 with its own, 1 with the first, and 0 with
    # the third, a tie: nobody loses. made 2: 1 / sqrt(2) with its own, 1/2 and 1/2 with the others: both lose.
    assert pictures.two_way(real, made).tolist() == [1.0, 0.0, 1.0]


@given(st.integers(2, 7), st.integers(3, 9), st.integers(0, 10_000))
def test_two_way_is_the_naive_count(n: int, dim: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    real, made = rng.standard_normal((2, n, dim)).astype(np.float32)
    r = np.corrcoef(real, made)[:n, n:]
    naive = [sum(r[i, j] < r[j, j] for i in range(n) if i != j) / (n - 1) for j in range(n)]
    assert pictures.two_way(real, made).tolist() == naive


def test_one_picture_for_all_is_at_chance() -> None:
    real = np.random.default_rng(0).standard_normal((9, 50)).astype(np.float32)
    assert pictures.two_way(real, np.repeat(real[:1] + 1, 9, axis=0)).mean() == pytest.approx(0.5)


def test_correlations_in_parts_are_numpys(monkeypatch) -> None:
    monkeypatch.setattr(pictures, "_AT_ONCE", 40)
    one, other = (np.random.default_rng(i).normal(3, 1, (4 + i, 57)).astype(np.float32) for i in (0, 1))
    assert pictures.correlations(one, other) == pytest.approx(np.corrcoef(one, other)[:4, 4:], abs=1e-9)
    one[2] = 0.3
    assert np.all(pictures.correlations(one, other)[2] == 0)


def test_pix_corr_and_distance() -> None:
    real, made = noise(3), noise(3, seed=1)
    for one, other, r in zip(real, made, pictures.pix_corr(real, made), strict=True):
        big = [
            Resize(425, InterpolationMode.BILINEAR, antialias=True)(torch.from_numpy(x).permute(2, 0, 1).float() / 255)
            for x in (one, other)
        ]
        assert r == pytest.approx(np.corrcoef(*(x.numpy().ravel() for x in big))[0, 1], abs=1e-6)
    assert pictures.pix_corr(real, real) == pytest.approx(1)
    assert pictures.pix_corr(real, 255 - real) == pytest.approx(-1, abs=1e-6)
    grey = np.full_like(real, 77)
    assert pictures.pix_corr(real, grey).tolist() == [0, 0, 0]
    a, b = np.random.default_rng(0).standard_normal((2, 5, 40)).astype(np.float32)
    expected = [correlation(x, y) for x, y in zip(a, b, strict=True)]
    assert pictures.correlation_distance(a, b) == pytest.approx(expected, abs=1e-6)


def test_ssim_is_the_published_formula() -> None:
    real, made = noise(1), noise(1, seed=1)
    grey = [
        np.tensordot([0.2125, 0.7154, 0.0721], pictures.scaled(x, 425)[0].astype(np.float64), 1) for x in (real, made)
    ]

    def blur(x: np.ndarray) -> np.ndarray:
        return gaussian_filter(x, 1.5, truncate=3.5)

    x, y = grey
    mean_x, mean_y = blur(x), blur(y)
    var_x, var_y, cov = blur(x * x) - mean_x**2, blur(y * y) - mean_y**2, blur(x * y) - mean_x * mean_y
    c1, c2 = 0.01**2, 0.03**2
    field = ((2 * mean_x * mean_y + c1) * (2 * cov + c2)) / ((mean_x**2 + mean_y**2 + c1) * (var_x + var_y + c2))
    assert pictures.ssim(real, made)[0] == pytest.approx(field[5:-5, 5:-5].mean(), abs=1e-4)
    assert pictures.ssim(real, real) == pytest.approx(1)


@pytest.mark.parametrize("size", [20, 32, 50])
def test_scaled_is_torchvisions_resize(size: int) -> None:
    wide = noise(2, 32)[:, :24]
    expected = Resize(size, InterpolationMode.BILINEAR, antialias=True)(
        torch.from_numpy(wide).permute(0, 3, 1, 2).float() / 255
    )
    found = pictures.scaled(wide, size)
    assert found.shape == tuple(expected.shape)
    assert found == pytest.approx(expected.numpy(), abs=1e-6)


@pytest.fixture
def published(tmp_path: Path, monkeypatch) -> networks.Weights:
    """A SqueezeNet of no training, in a file named as torchvision names its own."""
    torch.manual_seed(0)
    whole = tmp_path / "whole.pth"
    torch.save(models.squeezenet1_1(weights=None).state_dict(), whole)
    digest = hashlib.sha256(whole.read_bytes()).hexdigest()
    whole.rename(tmp_path / f"squeezenet1_1-{digest[:8]}.pth")
    weights = networks.Weights("squeezenet1_1", f"https://example.invalid/squeezenet1_1-{digest[:8]}.pth")
    monkeypatch.setitem(networks.TORCHVISION, "squeezenet", weights)
    monkeypatch.setitem(networks.LAYERS, "low", networks.Layer("squeezenet", "features.1", 64, "two_way"))
    monkeypatch.setitem(networks.LAYERS, "high", networks.Layer("squeezenet", "features.12.cat", 64, "distance"))
    return weights


def test_layers_are_what_the_network_computes_there(published: networks.Weights, tmp_path: Path) -> None:
    shown = noise(3)
    low, high = networks.opened(("low", "high"), tmp_path)(shown)
    network = models.squeezenet1_1(weights=None)
    network.load_state_dict(torch.load(tmp_path / published.file, weights_only=True))
    network.eval()
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = torch.from_numpy(pictures.scaled(shown, 64))
    with torch.no_grad():
        inner = [(pixels - mean[:, None, None]) / std[:, None, None]]
        for layer in network.features:
            inner.append(layer(inner[-1]))
    assert low == pytest.approx(inner[2].flatten(1).numpy(), abs=1e-5)
    assert high == pytest.approx(inner[13].flatten(1).numpy(), abs=1e-5)


def test_weights_that_are_not_here(published: networks.Weights, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=rf"weights {published.file}; got none in .*empty; .*fetch https://example"):
        networks.opened(("low",), tmp_path / "empty")
    with pytest.raises(ConfigError, match=re.escape(networks.CLIP_FILE)):
        networks.opened(("CLIP",), tmp_path / "empty")

    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no network")

    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", unreachable)
    for figure, file in [
        ("AlexNet(2)", "alexnet-owt-7be5be79.pth"),
        ("Inception", "inception_v3_google-0cc3c7bd.pth"),
        ("EfficientNet", "efficientnet_b1-c27df63c.pth"),
        ("SwAV", "swav_800ep_pretrain.pth.tar"),
    ]:
        with pytest.raises(ConfigError, match=rf"weights {file}; got none in .*hub/checkpoints, and no network; .*put"):
            networks.opened((figure,))
    with pytest.raises(ConfigError, match="CLIP ViT-L/14; got none here"):
        networks.opened(("CLIP",))


def test_other_weights_under_the_name(published: networks.Weights, tmp_path: Path) -> None:
    file = tmp_path / published.file
    state = torch.load(file, weights_only=True)
    torch.save({key: value + 1 for key, value in state.items()}, file)
    with pytest.raises(ConfigError, match="another file under this name"):
        networks.opened(("low",), tmp_path)
    unnamed = networks.Weights("squeezenet1_1", "https://example.invalid/unnamed.pth.tar")
    (tmp_path / "unnamed.pth.tar").write_bytes(b"no weights")
    with pytest.raises(ConfigError, match=r"weights .*unnamed.pth.tar; got .*Weights only load failed.*; .*fetch"):
        networks.torchvision_network(unnamed, tmp_path)
    torch.save({"module.classifier.1.weight": torch.zeros(1)}, tmp_path / "unnamed.pth.tar")
    with pytest.raises(ConfigError, match=r"got none for features\.0\.weight"):
        networks.torchvision_network(unnamed, tmp_path)


@pytest.mark.parametrize("name", sorted(networks.TORCHVISION))
def test_the_published_networks_have_the_nodes(name: str) -> None:
    weights = networks.TORCHVISION[name]
    with torch.device("meta"):
        network = getattr(models, weights.architecture)(weights=None, **weights.settings).eval()
    nodes = [layer.node for layer in networks.LAYERS.values() if layer.network == name]
    size = next(layer.size for layer in networks.LAYERS.values() if layer.network == name)
    whole = networks.extractor(network, nodes)
    shapes = [tuple(out.flatten(1).shape) for out in whole(torch.empty(1, 3, size, size, device="meta"))]
    wanted = {"alexnet": [(1, 192 * 31 * 31), (1, 256 * 15 * 15)], "inception_v3": [(1, 2048)]}
    wanted |= {"efficientnet_b1": [(1, 1280)], "swav": [(1, 2048)]}
    assert shapes == wanted[name]
