"""What is done to images before an encoder sees them: NeuroAlign's saliency, UBP's blur, the middle square."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.signal import convolve2d

from offline.targets.blur import KERNELS, Blur, foveal, gaussian
from offline.targets.images import resize
from offline.targets.saliency import Saliency, attention, saliency, weighted
from offline.targets.sketch import Sketch, sketch
from streamdec.errors import ConfigError

PICTURE = np.random.default_rng(0).integers(0, 256, (37, 50, 3), dtype=np.uint8)


def convolved(image: np.ndarray, kernel: np.ndarray) -> np.ndarray:
    """Two dimensions at once, mirrored without repeating the border."""
    rows, columns = (size // 2 for size in kernel.shape)
    return convolve2d(np.pad(image, ((rows, rows), (columns, columns)), mode="reflect"), kernel, "valid")


def bell(sigma: float, radius: int) -> np.ndarray:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    kernel = np.exp(-(x**2 + y**2) / (2 * sigma**2)) / (2 * np.pi * sigma**2)
    return kernel / kernel.sum()


def unit(values: np.ndarray) -> np.ndarray:
    return (values - values.min()) / (values.max() - values.min())


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def expected_maps(picture: np.ndarray, gate=0.5, surround_weight=0.5, exponent=1.2, scales=(1, 2, 4)):
    """NeuroAlign's equations 1, 2, 10-13 as they stand, with the Sobel kernels of 7 taps written out."""
    image = picture.astype(float) / 255
    gray = 0.299 * image[..., 0] + 0.587 * image[..., 1] + 0.114 * image[..., 2]
    smooth, slope = np.array([1, 6, 15, 20, 15, 6, 1.0]), np.array([-1, -4, -5, 0, 5, 4, 1.0])
    edges = np.sqrt(convolved(gray, np.outer(smooth, slope)) ** 2 + convolved(gray, np.outer(slope, smooth)) ** 2)
    colour = sum(np.abs(image[..., i] - image[..., j]) for i in range(3) for j in range(3) if i != j)
    exogenous = (np.abs(gray - gray.mean()) + np.abs(gray - gray.std()) + colour) / 3
    attended = sigmoid(unit(edges)) - sigmoid(unit(exogenous)) + gate
    response = np.zeros_like(gray)
    for scale in scales:
        centre = convolved(attended, bell(1.0 * scale, 3 * scale))
        surround = convolved(attended, bell(2.0 * scale, 6 * scale))
        response += (centre - surround_weight * surround) / len(scales)
    return attended, unit(np.abs(response) ** exponent)


def test_saliency_is_the_papers() -> None:
    attended, salient = expected_maps(PICTURE)
    np.testing.assert_allclose(attention(PICTURE), attended, atol=1e-6)
    np.testing.assert_allclose(saliency(PICTURE), salient, atol=1e-5)
    assert np.array_equal(weighted(PICTURE), np.rint(PICTURE * saliency(PICTURE)[..., None]).astype(np.uint8))
    changed = Saliency(gate=1.0, surround_weight=0.9, exponent=1.0, scales=(1.0, 2.0))
    expected = expected_maps(PICTURE, gate=1.0, surround_weight=0.9, exponent=1.0, scales=(1, 2))[1]
    np.testing.assert_allclose(saliency(PICTURE, changed), expected, atol=1e-5)


def test_an_even_image_has_no_saliency() -> None:
    even = np.full((30, 40, 3), 77, np.uint8)
    assert not saliency(even).any()
    assert not weighted(even).any()
    np.testing.assert_allclose(attention(even), 0.5)


def test_an_object_stands_out() -> None:
    scene = np.full((60, 60, 3), 90, np.uint8)
    scene[25:35, 25:35] = (220, 40, 30)
    found = saliency(scene)
    assert found[25:35, 25:35].std() > 5 * found[:10, :10].std()
    assert scene[0, 0, 0] == 90  # not written to


@pytest.mark.parametrize(("kernel", "sigma"), [(45, 7.1), (51, 8.0), (57, 8.9), (9, 1.7)])
def test_blur_has_opencvs_sigma(kernel: int, sigma: float, rng: np.random.Generator) -> None:
    image = rng.random((70, 80, 3))
    found = gaussian(image, kernel)
    for channel in range(3):
        np.testing.assert_allclose(
            found[..., channel], convolved(image[..., channel], bell(sigma, kernel // 2)), atol=1e-9
        )


def test_foveal_blur_is_half_sharp_in_the_centre(rng: np.random.Generator) -> None:
    square = rng.integers(0, 256, (225, 225, 3), dtype=np.uint8)
    settings = Blur(kernel=51, size=225)
    blurred = gaussian(square.astype(float), 51)
    found = foveal(square, settings)
    assert np.abs(found[112, 112] - (0.5 * square[112, 112] + 0.5 * blurred[112, 112])).max() <= 0.5
    corner = 0.5 * np.exp(-3)
    assert np.abs(found[0, 0] - (corner * square[0, 0] + (1 - corner) * blurred[0, 0])).max() <= 0.5
    beside = 0.5 * np.exp(-3 * 40 / np.hypot(112, 112))
    assert np.abs(found[112, 152] - (beside * square[112, 152] + (1 - beside) * blurred[112, 152])).max() <= 0.5
    assert foveal(PICTURE).shape == (224, 224, 3)
    assert (foveal(np.full((50, 50, 3), 99, np.uint8)) == 99).all()


def test_blur_levels() -> None:
    assert [KERNELS[level] for level in ("low", "medium", "high")] == [45, 51, 57]
    assert [KERNELS[f"reference_{level}"] for level in ("low", "medium", "high")] == [45, 45, 51]
    with pytest.raises(ConfigError, match="odd"):
        Blur(kernel=50)


@pytest.mark.parametrize("shape", [(37, 50), (50, 37), (64, 64), (10, 300)])
def test_resize_is_torchvisions(shape: tuple[int, int], rng: np.random.Generator) -> None:
    transforms = pytest.importorskip("torchvision.transforms", reason="torchvision comes with the train extra")
    image = pytest.importorskip("PIL.Image", reason="Pillow comes with the train extra")
    picture = rng.integers(0, 256, (*shape, 3), dtype=np.uint8)
    bicubic = transforms.InterpolationMode.BICUBIC
    both = transforms.Compose([transforms.Resize(32, bicubic), transforms.CenterCrop(32)])
    found = resize(picture, 32)
    assert found.shape == (32, 32, 3)
    np.testing.assert_array_equal(found, np.asarray(both(image.fromarray(picture))))


def test_a_sketch_is_the_outline_of_what_is_there() -> None:
    """A disc on a plain ground: every edge pixel lies on its rim, all round, and nothing within or without."""
    pytest.importorskip("skimage", reason="scikit-image comes with the judge extra")
    y, x = np.mgrid[:200, :200] - 99.5
    picture = np.where((np.hypot(x, y) < 60)[..., None], (250, 240, 200), (10, 20, 40)).astype(np.uint8)
    edges = sketch(picture, Sketch(size=200))
    assert edges.shape == (200, 200, 3)
    assert set(np.unique(edges)) == {0, 255}
    assert np.array_equal(edges[..., 0], edges[..., 2])
    rows, columns = np.nonzero(edges[..., 0])
    assert np.all(np.abs(np.hypot(rows - 99.5, columns - 99.5) - 60) < 2)
    turns = np.histogram(np.arctan2(rows - 99.5, columns - 99.5), bins=36, range=(-np.pi, np.pi))[0]
    assert turns.min() > 0
    assert not sketch(np.full((50, 50, 3), 7, np.uint8), Sketch(size=48)).any()


@pytest.mark.parametrize("wrong", [{"sigma": 0.0}, {"size": 8}])
def test_sketch_settings(wrong) -> None:
    with pytest.raises(ConfigError, match="sketch; got"):
        Sketch(**wrong)
