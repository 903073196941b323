"""Frames <-> RGB against the equations of BT.601 and BT.709, and frames that are turned."""

from __future__ import annotations

import numpy as np
import pytest

pytest.importorskip("av", reason="pip install 'pix2pix[video]'")

import av

from pix2pix.video.colours import Colours, from_rgb, to_rgb, upright
from tests.video.clips import Clip, content, halved, make, planes, rgb

FORMATS = ["yuv420p", "yuv422p", "yuv444p", "yuv420p10le", "yuv422p10le", "yuv444p10le"]
SIZES = [(48, 64), (90, 120)]


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [1, 6])
@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_decoded_frames(folder, size, format, matrix, full):
    """Decoders say where chroma was sampled, which must not make a difference."""
    clip = Clip(pts=(0,), size=size, format=format, matrix=matrix, range=1 + full)
    (frame,) = content(make(clip, folder)).frames
    difference = np.abs(to_rgb(frame) - rgb(frame, matrix, full))
    assert difference.max() < 1.51
    assert difference.mean() < 0.5


@pytest.mark.parametrize("size", [(47, 63), (1, 1), (2, 5)], ids=str)
def test_odd_sizes(size):
    image = np.random.default_rng(0).integers(60, 180, (*size, 3), dtype=np.uint8)
    stored = av.VideoFrame.from_ndarray(image, format="rgb24").reformat(format="yuv420p", dst_color_range=1)
    h, w = size
    even = np.zeros((h + h % 2, w + w % 2, 3))
    luma, *chroma = (
        np.frombuffer(p, np.uint8).reshape(p.height, -1)[:, : p.width].astype(float) for p in stored.planes
    )
    u, v = ((c.repeat(2, 0).repeat(2, 1)[:h, :w] - 128) / 224 for c in chroma)
    y = (luma - 16) / 219
    even[:h, :w] = np.stack([y + 1.402 * v, y - 0.344136 * u - 0.714136 * v, y + 1.772 * u], axis=-1) * 255
    stored.color_range = 1
    assert np.abs(to_rgb(stored) - even[:h, :w].clip(0, 255)).max() < 1.51


@pytest.mark.parametrize("full", [False, True], ids=["limited", "full"])
@pytest.mark.parametrize("matrix", [1, 6])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_stored_frames(size, matrix, full):
    image = np.random.default_rng(1).integers(0, 256, (*size, 3), dtype=np.uint8)
    frame = from_rgb(image, "yuv420p", Colours(matrix, 1 + full, 2, 2))
    for stored, wanted in zip(planes(frame), halved(image, matrix, full), strict=True):
        assert np.abs(stored - wanted).max() <= 1


def test_an_unchanged_image_stays_what_it_is(folder):
    frame = content(make(Clip(pts=(0,), size=(90, 120)), folder)).frames[0]
    again = from_rgb(to_rgb(frame), "yuv420p", Colours.of(frame))
    for was, now in zip(planes(frame), planes(again), strict=True):
        assert np.abs(was - now).max() <= 1


def test_matrices_that_films_do_not_say():
    for height, matrix in ((576, 6), (720, 1)):
        frame = av.VideoFrame(16, height, "yuv420p")
        assert Colours.of(frame).matrix == matrix and Colours.of(frame).range == 1
    assert Colours.of(av.VideoFrame(16, 16, "yuvj420p")).range == 2
    assert Colours.of(av.VideoFrame(16, 16, "rgb24")).range == 1


def test_mirrored_and_turned():
    image = np.arange(6).reshape(2, 3, 1)
    one = 1 << 16
    assert (upright(image, (one, 0, 0, one)) == image).all()
    assert (upright(image, (-one, 0, 0, one)) == image[:, ::-1]).all()
    assert (upright(image, (one, 0, 0, -one)) == image[::-1]).all()
    assert (upright(image, (0, one, one, 0)) == image.swapaxes(0, 1)).all()
    assert (upright(image, (0, -one, one, 0)) == np.rot90(image)).all()
