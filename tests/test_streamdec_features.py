"""Image features against formulas written out."""

from __future__ import annotations

import numpy as np
import pytest

from streamdec.errors import DataError
from streamdec.simulate import features


@pytest.fixture
def images():
    return np.random.default_rng(0).integers(0, 256, (5, 32, 48, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (features.pixels, features.PIXELS_SHAPE),
        (features.colour, features.COLOUR_SHAPE),
        (features.gabor, features.GABOR_SHAPE),
    ],
)
def test_shape_does_not_depend_on_the_image_size(function, shape, images):
    before = images.copy()
    for some in (images, images[:, :17, :23], images[:0]):
        out = function(some)
        assert out.shape == (len(some), np.prod(shape))
        assert out.dtype == np.float32
    np.testing.assert_array_equal(images, before)


@pytest.mark.parametrize("function", [features.pixels, features.colour, features.gabor])
def test_each_image_is_on_its_own(function, images):
    many = np.concatenate([images] * 30)  # more than one block
    np.testing.assert_allclose(function(many)[:5], np.concatenate([function(one[None]) for one in images]), atol=1e-6)


def test_pixels_are_area_averages(images):
    expected = images.reshape(5, 8, 4, 8, 6, 3).mean(axis=(2, 4)) / 255
    np.testing.assert_allclose(features.pixels(images).reshape(5, 8, 8, 3), expected, atol=1e-6)


def test_area_average_of_odd_sizes_keeps_the_mean():
    images = np.random.default_rng(1).integers(0, 256, (2, 37, 53, 3), dtype=np.uint8)
    small = features.pixels(images).reshape(2, 8, 8, 3)
    np.testing.assert_allclose(small.mean(axis=(1, 2)), images.mean(axis=(1, 2)) / 255, atol=1e-5)


def test_colour_of_plain_fields():
    plain = np.zeros((3, 16, 16, 3), np.uint8)
    plain[0] = 255
    plain[1, ..., 0] = 255
    plain[2, ..., 2] = 255
    luminance, red_green, blue_yellow = np.moveaxis(features.colour(plain).reshape(3, 3, 16), 1, 0)
    np.testing.assert_allclose(luminance[:, 0], [1.0, 0.2126, 0.0722], atol=1e-5)
    np.testing.assert_allclose(red_green[:, 0], [0.0, 0.5, 0.0], atol=1e-5)
    np.testing.assert_allclose(blue_yellow[:, 0], [0.0, -0.25, 0.5], atol=1e-5)


@pytest.mark.parametrize("orientation", range(4))
@pytest.mark.parametrize(("scale", "wavelength"), [(0, 4), (1, 8), (2, 16)])
def test_a_grating_drives_its_own_filter_most(orientation, scale, wavelength):
    y, x = np.mgrid[:64, :64]
    angle = np.pi * orientation / 4
    wave = np.cos(2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / wavelength)
    image = np.repeat(np.rint(127.5 + 100 * wave)[None, ..., None], 3, axis=3).astype(np.uint8)
    energy = features.gabor(image).reshape(features.GABOR_SHAPE).mean(axis=(2, 3))
    assert np.unravel_index(energy.argmax(), energy.shape) == (scale, orientation)


def test_gabor_is_local():
    image = np.full((1, 64, 64, 3), 128, np.uint8)
    image[0, 16:32, 48:, :] = 128 + 60 * (np.arange(16) // 2 % 2)[:, None, None]  # row 1, column 3 of the grid
    energy = features.gabor(image).reshape(features.GABOR_SHAPE)[0].max(axis=0)
    assert np.unravel_index(energy.argmax(), energy.shape) == (1, 3)


@pytest.mark.parametrize(
    "bad", [np.zeros((2, 8, 8), np.uint8), np.zeros((2, 8, 8, 4), np.uint8), np.zeros((2, 8, 8, 3))]
)
def test_other_arrays_are_refused(bad):
    with pytest.raises(DataError, match="uint8"):
        features.pixels(bad)
