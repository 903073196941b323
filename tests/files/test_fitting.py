"""Images fitted to a generator: cut, resized and padded."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from pix2pix.errors import ImageError
from pix2pix.files.fitting import Fitting, pad
from pix2pix.model.unet import unet
from tests.files.samples import photo


def test_resizing_is_pillows_bicubic(tmp_path):
    Image.fromarray(photo(70, 90)).save(tmp_path / "x.png")
    expected = Image.fromarray(photo(70, 90)).resize((64, 32), Image.Resampling.BICUBIC)
    image = Fitting.of(unet(2, 5), size=(32, 64)).read(tmp_path / "x.png")
    np.testing.assert_array_equal(image.pixels, expected)
    assert (image.height, image.width, image.target) == (32, 64, None)


def test_the_size_is_that_of_training_unless_given(tmp_path):
    Image.fromarray(photo()).save(tmp_path / "x.png")
    assert Fitting.of(unet(2, 5, size=96)).read(tmp_path / "x.png").pixels.shape == (96, 96, 3)


@pytest.mark.parametrize("size", [(33, 32), (16, 16), (0, 32)])
def test_sizes_that_the_generator_cannot_take_are_refused(size):
    with pytest.raises(ValueError, match="multiples of 32"):
        Fitting.of(unet(2, 5), size=size)


def test_absurd_sizes_are_refused():
    with pytest.raises(ValueError, match="got size 100000x100000"):
        Fitting.of(unet(2, 5), "pad", (100_000, 100_000))


@pytest.mark.parametrize("channels", [(2, 3), (3, 5)])
def test_channels_that_no_image_file_has_are_refused(channels):
    with pytest.raises(ValueError, match="image files have 1, 3 or 4"):
        Fitting.of(unet(2, 5, *channels))


@pytest.mark.parametrize(("option", "value"), [("fit", "crop"), ("pair", "AB")])
def test_other_fits_and_pairs_are_refused(option, value):
    with pytest.raises(ValueError, match=value):
        Fitting.of(unet(2, 5), **{option: value})


@pytest.mark.parametrize("shape", [(40, 56), (32, 32), (5, 70), (2, 3), (1, 9), (1, 1), (33, 1)])
def test_padding_is_reflection_as_numpy_pads(shape):
    pixels = photo(*shape)
    padded = pad(pixels, 32)
    h, w = (-(-n // 32) * 32 for n in shape)
    assert padded.shape == (h, w, 3)
    for axis, length in enumerate(shape):
        margins = [(0, 0)] * 3
        margins[axis] = (0, padded.shape[axis] - length)
        pixels = np.pad(pixels, margins, mode="reflect" if length > 1 else "edge")
    np.testing.assert_array_equal(padded, pixels)
    np.testing.assert_array_equal(padded[: shape[0], : shape[1]], photo(*shape))


def test_padding_keeps_the_images_size_and_comes_after_resizing(tmp_path):
    Image.fromarray(photo(40, 56)).save(tmp_path / "x.png")
    image = Fitting.of(unet(2, 5), "pad").read(tmp_path / "x.png")
    assert (image.height, image.width) == (40, 56) and image.pixels.shape == (64, 64, 3)
    image = Fitting.of(unet(2, 5), "pad", (33, 10)).read(tmp_path / "x.png")
    assert (image.height, image.width) == (33, 10) and image.pixels.shape == (64, 32, 3)


@pytest.mark.parametrize("pair", ["AtoB", "BtoA"])
def test_pairs_are_cut_in_half(tmp_path, pair):
    both = photo(32, 64)
    Image.fromarray(both).save(tmp_path / "x.png")
    image = Fitting.of(unet(2, 5, 3, 1), pair=pair).read(tmp_path / "x.png")
    left, right = (both[:, :32], both[:, 32:]) if pair == "AtoB" else (both[:, 32:], both[:, :32])
    np.testing.assert_array_equal(image.pixels, left)
    np.testing.assert_array_equal(image.target[..., 0], Image.fromarray(right).convert("L"))


def test_a_pair_of_odd_width_is_refused(tmp_path):
    Image.fromarray(photo(32, 63)).save(tmp_path / "x.png")
    with pytest.raises(ImageError, match="63 pixels wide"):
        Fitting.of(unet(2, 5), pair="AtoB").read(tmp_path / "x.png")
