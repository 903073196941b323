"""Image files: what becomes of every mode, of odd and of damaged files."""

from __future__ import annotations

import io
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pix2pix.errors import ImageError
from pix2pix.files.codecs import MODES, READABLE, check_writable, encode, read
from tests.files.samples import photo


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG file."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, depth: int, colour: int, rows: bytes, extra: bytes = b"") -> bytes:
    """A PNG file made by hand."""
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pixels = chunk(b"IDAT", zlib.compress(rows))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + pixels + chunk(b"IEND", b"")


def grey_tiff(values: np.ndarray) -> bytes:
    """A TIFF file made by hand, of integers (H,W)."""
    height, width = values.shape
    bits, kind = values.itemsize * 8, 2 if values.dtype.kind == "i" else 1
    short, long, data = 3, 4, values.tobytes()
    tags = [(256, short, width), (257, short, height), (258, short, bits), (259, short, 1), (262, short, 1)]
    tags += [(273, long, 8), (277, short, 1), (278, short, height), (279, long, len(data)), (339, short, kind)]
    directory = b"".join(struct.pack("<HHII", tag, of, 1, value) for tag, of, value in tags)
    return b"II*\0" + struct.pack("<I", 8 + len(data)) + data + struct.pack("<H", len(tags)) + directory + bytes(4)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "YCbCr"])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_every_mode_gives_the_channels_asked_for(tmp_path, mode, channels):
    shown = photo()
    image = Image.fromarray(shown).convert(mode) if mode != "I;16" else None
    if mode.startswith("I"):
        grey = np.asarray(Image.fromarray(shown).convert("L"))
        image = Image.fromarray(grey.astype(np.uint16 if mode == "I;16" else np.int32) * 257)
        assert image.mode == mode
    path = tmp_path / "image.tif"
    image.save(path)
    pixels = read(path, channels)
    assert pixels.shape == (40, 56, channels) and pixels.dtype == np.uint8
    # a colourful mode keeps its colours, a grey one its luma, up to the losses of the conversion itself
    expected = np.asarray(Image.fromarray(shown).convert("L" if mode in ("LA", "I", "I;16") else "RGB"))
    luma = np.asarray(Image.fromarray(expected).convert("L")).astype(float)
    got = np.asarray(Image.fromarray(pixels[..., 0] if channels == 1 else pixels[..., :3]).convert("L")).astype(float)
    tolerance = {"1": 25, "P": 20, "YCbCr": 2}.get(mode, 1)
    assert abs(got - luma).mean() <= tolerance if mode != "1" else set(np.unique(got)) <= {0, 255}
    if channels == 4:
        assert (pixels[..., 3] == 255).all()


def test_sixteen_bit_greys_are_scaled_and_not_cut_off(tmp_path):
    every = np.arange(65536, dtype=np.uint16).reshape(256, 256)
    expected = np.round(every.astype(np.float64) * 255 / 65535)
    for name in ("grey.png", "grey.tif"):
        Image.fromarray(every).save(tmp_path / name)
        np.testing.assert_array_equal(read(tmp_path / name, 1)[..., 0], expected)
    big_endian = Image.frombytes("I;16B", (256, 256), every.astype(">u2").tobytes())
    big_endian.save(tmp_path / "big.tif")
    np.testing.assert_array_equal(read(tmp_path / "big.tif", 1)[..., 0], expected)


def test_sixteen_bit_colours_are_scaled(tmp_path):
    deep = np.random.default_rng(1).integers(0, 65536, (5, 7, 3)).astype(">u2")
    rows = b"".join(b"\0" + row.tobytes() for row in deep)
    (tmp_path / "deep.png").write_bytes(png(7, 5, 16, 2, rows))
    assert abs(read(tmp_path / "deep.png", 3).astype(int) - deep.astype(float) / 257).max() <= 1


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int16])
def test_integers_that_fit_8_bits_are_taken_as_they_are(tmp_path, dtype):
    labels = np.arange(256).reshape(16, 16)
    (tmp_path / "labels.tif").write_bytes(grey_tiff(labels.astype(dtype)))
    np.testing.assert_array_equal(read(tmp_path / "labels.tif", 1)[..., 0], labels)


@pytest.mark.parametrize(("values", "word"), [(np.int32([[0, 70000]]), "32-bit"), (np.float32([[0, 1]]), "floating")])
def test_pixels_without_a_known_scale_are_refused(tmp_path, values, word):
    Image.fromarray(values).save(tmp_path / "odd.tif")
    with pytest.raises(ImageError, match=word):
        read(tmp_path / "odd.tif", 3)


def test_what_is_transparent_is_composited_over_white(tmp_path):
    rgba = np.array([[[255, 0, 0, 0], [255, 0, 0, 255], [0, 0, 0, 128]]], np.uint8)
    Image.fromarray(rgba).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read(tmp_path / "alpha.png", 3), [[[255] * 3, [255, 0, 0], [127] * 3]])
    np.testing.assert_array_equal(read(tmp_path / "alpha.png", 1)[..., 0], [[255, 76, 127]])
    np.testing.assert_array_equal(read(tmp_path / "alpha.png", 4), rgba)


def test_a_transparent_palette_entry_is_white(tmp_path):
    image = Image.fromarray(np.array([[0, 1]], np.uint8)).convert("P")
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.save(tmp_path / "palette.png", transparency=0)
    np.testing.assert_array_equal(read(tmp_path / "palette.png", 3), [[[255, 255, 255], [40, 50, 60]]])


@pytest.mark.parametrize("grey16", [False, True])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_exif_orientation_is_applied(tmp_path, orientation, grey16):
    upright = photo(4, 6, 1)[..., 0]
    turned = {  # how a camera that writes this orientation stores the image
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright.T[::-1, ::-1],
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = turned.astype(np.uint16) * 257 if grey16 else np.ascontiguousarray(turned)
    Image.fromarray(stored).save(tmp_path / "turned.png", exif=exif)
    np.testing.assert_array_equal(read(tmp_path / "turned.png", 1)[..., 0], upright)


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw"])
@pytest.mark.parametrize("mode", ["L", "RGB", "I;16"])
def test_tiff_files_are_turned_once(tmp_path, mode, compression):
    upright = photo(6, 9)
    image = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    if mode != "RGB":
        image = image.convert("L")
    if mode == "I;16":
        image = Image.fromarray(np.asarray(image).astype(np.uint16) * 257)
    image.save(tmp_path / "x.tif", tiffinfo={0x0112: 6}, compression=compression)
    expected = np.asarray(Image.fromarray(upright).convert("RGB" if mode == "RGB" else "L").convert("RGB"))
    np.testing.assert_array_equal(read(tmp_path / "x.tif", 3), expected)


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_white_whatever_its_depth(tmp_path, depth):
    largest = 2**depth - 1
    row = {1: b"\x80", 2: b"\xc0", 4: b"\xf0", 8: b"\xff\0", 16: b"\xff\xff\0\0"}[depth]  # the largest, then 0
    for transparent, expected in ((largest, [255, 0]), (0, [255, 255])):
        extra = chunk(b"tRNS", struct.pack(">H", transparent))
        (tmp_path / "x.png").write_bytes(png(2, 1, depth, 0, b"\0" + row, extra))
        assert read(tmp_path / "x.png", 1)[0, :, 0].tolist() == expected
        assert read(tmp_path / "x.png", 4)[0, :, 3].tolist() == ([0, 255] if transparent else [255, 0])


def test_a_transparent_colour_of_16_bits_is_white(tmp_path):
    extra = chunk(b"tRNS", b"\x12\x34" * 3)
    (tmp_path / "x.png").write_bytes(png(2, 1, 16, 2, b"\0" + b"\x12\x34" * 3 + b"\x80\0" * 3, extra))
    assert read(tmp_path / "x.png", 3)[0].tolist() == [[255] * 3, [128] * 3]


EXTRAS = {
    "text": lambda: chunk(b"zTXt", b"workflow\0\0" + zlib.compress(b"node " * 600_000)),
    "XMP": lambda: chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + zlib.compress(b"x" * 3_000_000)),
    "a profile": lambda: chunk(b"iCCP", b"icc\0\0" + zlib.compress(bytes(3_000_000))),
    "a wrong checksum": lambda: chunk(b"pHYs", bytes(9))[:-1] + b"\1",
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_what_is_beside_the_pixels_is_no_reason_to_refuse_them(tmp_path, extra):
    rows = b"".join(b"\0" + row.tobytes() for row in photo(5, 7))
    (tmp_path / "x.png").write_bytes(png(7, 5, 8, 2, rows, EXTRAS[extra]()))
    np.testing.assert_array_equal(read(tmp_path / "x.png", 3), photo(5, 7))
    (tmp_path / "x.png").write_bytes(png(7, 5, 8, 2, rows, EXTRAS[extra]())[:-30])
    with pytest.raises(ImageError):
        read(tmp_path / "x.png", 3)


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_damaged_metadata_is_no_reason_to_refuse_sound_pixels(tmp_path):
    shown = photo()
    Image.fromarray(shown).save(tmp_path / "x.png", exif=b"Exif\0\0MM\0*\0\0\xff\xff")
    np.testing.assert_array_equal(read(tmp_path / "x.png", 3), shown)


@pytest.mark.parametrize("kind", ["gif", "webp"])
def test_of_an_animation_the_first_frame_is_taken(tmp_path, kind):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / f"moving.{kind}", save_all=True, append_images=frames[1:], lossless=True)
    assert read(tmp_path / f"moving.{kind}", 3)[3, 3].tolist() == pytest.approx([255, 0, 0], abs=2)


@pytest.mark.parametrize("side", [10_001, 60_000])
def test_an_absurdly_large_image_is_refused_before_it_is_decoded(tmp_path, side):
    (tmp_path / "bomb.png").write_bytes(png(side, side, 8, 2, b"\0" * 100))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ImageError, match="limit of 100,000,000"):
            read(tmp_path / "bomb.png", 3)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"\x89PNG\r\n\x1a\n", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"\xff\xd8\xff"]
)
def test_what_is_no_image_is_refused(tmp_path, content):
    (tmp_path / "x.png").write_bytes(content)
    with pytest.raises(ImageError, match="damaged, or no image"):
        read(tmp_path / "x.png", 3)


def test_missing_files_and_folders_are_refused(tmp_path):
    with pytest.raises(ImageError, match="No such file"):
        read(tmp_path / "x.png", 3)
    with pytest.raises(ImageError, match="directory"):
        read(tmp_path, 3)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "x.png")
    with pytest.raises(ImageError, match="pipe"):
        read(tmp_path / "x.png", 3)


def test_lab_colours_are_converted_to_grey(tmp_path):
    Image.merge("LAB", [Image.new("L", (4, 4), value) for value in (200, 0, 0)]).save(tmp_path / "x.tif")
    assert len(np.unique(read(tmp_path / "x.tif", 1))) == 1


@pytest.mark.parametrize("kind", ["png", "jpg", "gif", "tif", "webp", "bmp"])
def test_damaged_files_raise_image_errors_only(tmp_path, kind):
    Image.fromarray(photo()).save(tmp_path / f"sound.{kind}")
    sound = (tmp_path / f"sound.{kind}").read_bytes()
    rng = np.random.default_rng(7)
    path, refused = tmp_path / f"damaged.{kind}", 0
    for trial in range(60):
        damaged = bytearray(sound)
        for position in rng.integers(0, len(sound), 8):
            damaged[position] = rng.integers(256)
        path.write_bytes(damaged[: rng.integers(1, len(sound))] if trial % 2 else damaged)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert read(path, 3).shape[2] == 3
        except ImageError as error:
            assert str(error)
            refused += 1
    assert refused >= 10


@pytest.mark.parametrize("kind", ["png", "jpg", "tif"])
def test_a_truncated_file_is_refused(tmp_path, kind):
    Image.fromarray(photo()).save(tmp_path / f"x.{kind}")
    content = (tmp_path / f"x.{kind}").read_bytes()
    (tmp_path / f"x.{kind}").write_bytes(content[: len(content) * 2 // 3])
    with pytest.raises(ImageError):
        read(tmp_path / f"x.{kind}", 3)


@pytest.mark.parametrize(
    ("suffix", "channels"),
    [(s, c) for s in (".png", ".PNG", ".tif", ".bmp") for c in (1, 3, 4) if (s, c) != (".bmp", 4)],
)
def test_lossless_files_give_back_what_was_written(tmp_path, suffix, channels):
    pixels = photo(channels=channels)
    path = tmp_path / f"x{suffix}"
    check_writable(path, channels)
    path.write_bytes(encode(pixels, suffix))
    with Image.open(path) as image:
        assert image.mode == MODES[channels]
    np.testing.assert_array_equal(read(path, channels), pixels)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (9, 1), (300, 200)])
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_png_files_of_all_shapes(shape, channels):
    """What is encoded comes back, from rows that are not contiguous too."""
    for pixels in (photo(*shape, channels), np.full((*shape, channels), 200, np.uint8), photo(400, 400, channels)):
        part = pixels[: shape[0], : shape[1]]  # not contiguous
        with Image.open(io.BytesIO(encode(part, ".png"))) as image:
            np.testing.assert_array_equal(np.asarray(image).reshape(part.shape), part)


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".webp"])
def test_lossy_files_are_close(suffix):
    with Image.open(io.BytesIO(encode(photo(), suffix))) as image:
        assert abs(np.asarray(image).astype(int) - photo()).mean() < 6


def test_files_that_cannot_hold_the_pixels_are_refused():
    for name in ("x.jpg", "x.bmp"):
        with pytest.raises(ValueError, match="no alpha"):
            check_writable(Path(name), 4)
    with pytest.raises(ValueError, match="expected a name ending in"):
        check_writable(Path("x.gif"), 3)


@pytest.mark.parametrize("suffix", [".avif", ".heic"])
def test_photos_of_phones_are_read(tmp_path, suffix):
    if suffix not in READABLE:
        pytest.skip(f"needs a package that reads {suffix}")
    with Image.open(io.BytesIO(encode(photo(), ".png"))) as image:
        if suffix == ".heic":
            pytest.importorskip("pillow_heif").register_heif_opener()
        image.save(tmp_path / f"x{suffix}", quality=95)
    assert abs(read(tmp_path / f"x{suffix}", 3).astype(int) - photo()).mean() < 8


@pytest.mark.parametrize(("suffix", "longest"), [(".webp", 16383), (".jpg", 65500)])
def test_sizes_that_a_format_cannot_hold_are_refused(suffix, longest):
    assert encode(np.zeros((1, longest, 3), np.uint8), suffix)
    with pytest.raises(ImageError, match=f"cannot write {longest + 1}x1 pixels: .* up to {longest} .*use PNG"):
        encode(np.zeros((1, longest + 1, 3), np.uint8), suffix)
