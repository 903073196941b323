"""Image files <-> Pillow images and uint8 (H,W,C) arrays: the formats, decoding and encoding.

Decoding takes the first frame, scales 16-bit greys to 8 bits and applies the EXIF orientation. Colour profiles are
ignored, as in training programs.
"""

from __future__ import annotations

import io
import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError, features
from PIL.ImageFile import ImageFile

from ..errors import ImageError
from .limits import BLOCK, Deferred, TimedReader
from .png import png_without_extras

MAX_PIXELS = 100_000_000  # a larger image is refused before it is decoded
TRANSPARENT = ("LA", "La", "PA", "RGBA", "RGBa")  # modes
ROWS = 64  # that are scaled at a time
SCALES = {"L;2": 85, "L;4": 17}  # of greys of 2 and 4 bits to 8
NUMBERED = ("1", "L", "P", "I")  # modes of images that store one number per pixel, besides 16 bits
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's mode for each number of channels

Admit = Callable[[ImageFile], None]
Convert = Callable[[Image.Image], Image.Image]
File = str | os.PathLike[str] | BinaryIO  # the name of an image file, or one that is open


@dataclass(frozen=True, slots=True)
class Format:
    """One image format: Pillow's name, the suffixes, and Pillow's options to write it (None: it is only read).

    ``is_lossless`` says that reading gives back what was written, ``max_side`` how many pixels wide and high it may be,
    ``needs`` how to get what reads it, where that is not part of every installation.
    """

    name: str
    suffixes: tuple[str, ...]
    options: Mapping[str, Any] | None = None
    has_alpha: bool = True
    is_lossless: bool = True
    max_side: int = 1 << 30
    needs: str = ""

    @property
    def is_readable(self) -> bool:
        """Whether this installation reads the format."""
        if self.name == "HEIF":
            return find_spec("pillow_heif") is not None
        return not self.needs or bool(features.check(self.name.lower()))


# Pillow's other readers are never tried. PNGs are written fast rather than small: run lengths (compress_type 3) take
# a fraction of the default's time and make slightly larger files.
FORMATS = (
    Format("PNG", (".png",), {"compress_level": 1, "compress_type": 3}),
    Format("JPEG", (".jpg", ".jpeg", ".jfif", ".jpe"), {"quality": 95, "subsampling": 0}, False, False, 65500),
    Format("WEBP", (".webp",), {"quality": 95}, is_lossless=False, max_side=16383),
    Format("TIFF", (".tif", ".tiff"), {"compression": "tiff_lzw"}),
    Format("BMP", (".bmp",), {}, has_alpha=False),
    Format("GIF", (".gif",)),
    Format("PPM", (".ppm", ".pgm", ".pbm")),
    Format("AVIF", (".avif",), needs="install a Pillow with AVIF"),
    Format("HEIF", (".heic", ".heif"), needs="pip install 'pix2pix[heif]'"),
)
SUFFIXES = {suffix: kind for kind in FORMATS for suffix in kind.suffixes}
READERS = tuple(kind.name for kind in FORMATS if kind.is_readable)
READABLE = tuple(suffix for suffix, kind in SUFFIXES.items() if kind.name in READERS)
WRITABLE = {suffix: kind for kind in FORMATS if kind.options is not None for suffix in kind.suffixes}


def read(file: File, channels: int) -> np.ndarray:
    """Decode one image file at its own size: uint8 (H,W,channels). Raises ImageError as :func:`decoded` does."""
    with decoded(file) as image:
        return pixels_of(in_mode(image, MODES[channels]))


@contextmanager
def decoded(
    file: File,
    admit: Admit = lambda image: None,
    seconds: float = math.inf,
    convert: Convert | None = None,
) -> Iterator[Image.Image]:
    """An upright image of 8 bits per channel from a file, which is closed when the block is left, an open one too.

    ``admit`` gets the opened image before it is decoded, and may refuse it. ``convert`` takes the place of scaling to
    8 bits. Raises ImageError, and nothing else, for a file that is missing, damaged, truncated, of an unknown format,
    larger than MAX_PIXELS, of a kind without a known scale to 8 bits, or that takes more than ``seconds`` of processor
    time; and for whatever the block raises. It is a Deferred if memory ends.
    """
    try:
        with ExitStack() as stack:
            if isinstance(file, (str, os.PathLike)):
                if os.path.exists(file) and not os.path.isfile(file):  # opening a pipe would block for ever
                    raise ImageError("a directory, a pipe or a device, expected a file")
                file = io.FileIO(file)
            timed = stack.enter_context(TimedReader(file, seconds))
            image = stack.enter_context(_loaded(timed, admit))
            yield _upright(image, (convert or _eight_bit)(image))
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"more pixels than the limit of {MAX_PIXELS:,}") from None
    except UnidentifiedImageError:
        raise ImageError("damaged, or no image of a known format") from None
    except MemoryError:
        raise Deferred("not enough memory to decode it") from None
    except OSError as error:
        raise ImageError(error.strerror or str(error)) from None
    except Exception as error:  # on damaged files Pillow's readers raise almost anything
        raise ImageError(f"cannot be decoded ({type(error).__name__}: {error})") from None


def _loaded(file: BinaryIO, admit: Admit) -> Image.Image:
    """The image in an open file, with its pixels."""
    _register_heif()
    try:
        return _load(file, admit)
    except (ImageError, MemoryError):
        raise
    except Exception:
        if (sound := png_without_extras(file)) is None:
            raise
        return _load(sound, admit)


def _load(file: BinaryIO, admit: Admit) -> Image.Image:
    # Pillow gets an open file, not a name: what it maps into memory by name it does not turn rightly.
    image = Image.open(file, formats=READERS)
    if image.width * image.height > MAX_PIXELS:
        raise ImageError(f"{image.width}x{image.height} pixels, more than the limit of {MAX_PIXELS:,}")
    admit(image)
    if isinstance(file, TimedReader) and _is_plain(image):  # takes time in the square of a block's comments
        file.largest = BLOCK
    if "progressive" in image.info:  # a block can hold thousands of scans
        image.decodermaxblock = BLOCK
    raw = image.tile[0][3] if image.tile else None  # how pixels are stored
    image.load()
    if (transparent := image.info.get("transparency")) is not None:
        if raw in SCALES:  # Pillow scales greys of 2 and 4 bits, and leaves the transparent one as it is
            image.info["transparency"] = transparent * SCALES[raw]
        elif raw == "RGB;16B":  # of which Pillow keeps the upper bytes
            image.info["transparency"] = tuple(value >> 8 for value in transparent)
    return image


def format_of(file: BinaryIO) -> Format | None:
    """The format of an open image file by its content, None for an unknown one. The file is at its start again."""
    _register_heif()
    try:
        name = Image.open(file, formats=READERS).format
    except Exception:  # decoding says what is wrong
        name = None
    file.seek(0)
    name = "JPEG" if name == "MPO" else name  # several JPEGs in one file, of which the first is decoded
    return next((kind for kind in FORMATS if kind.name == name), None)


def decoding_bytes(image: ImageFile) -> int:
    """The most that each pixel of an opened image takes until it is in a mode of MODES, as measured for each format."""
    has_alpha = image.mode in TRANSPARENT or "transparency" in image.info
    if image.format in ("WEBP", "AVIF", "HEIF") or has_alpha or image.mode.startswith("I"):
        return 28
    return 16 if image.mode not in ("L", "RGB") or "progressive" in image.info or _is_plain(image) else 10


def _is_plain(image: ImageFile) -> bool:
    """Whether this is a PPM file of decimal numbers."""
    return bool(image.tile) and image.tile[0][0] == "ppm_plain"


@cache
def _register_heif() -> None:
    """Let Pillow read HEIF, if that is installed."""
    if "HEIF" in READERS:
        import pillow_heif

        pillow_heif.register_heif_opener()


def _eight_bit(image: Image.Image) -> Image.Image:
    """``image``, or its greys scaled to 8 bits: 0 stays 0, and 65535 becomes 255.

    TIFFs of 32-bit integers do not say their scale. Values up to 255, as in label maps, are taken as they are.
    """
    if image.mode == "F":
        raise ImageError("floating-point pixels have no known scale to 8 bits: convert it to 8 or 16 bits first")
    if not image.mode.startswith("I"):
        return image
    grey = np.asarray(image)
    if grey.min() < 0 or grey.max() > 65535:
        raise ImageError("32-bit pixels have no known scale to 8 bits: convert it to 8 or 16 bits first")
    is_scaled = image.mode == "I" and image.format == "TIFF" and grey.max() <= 255
    pixels = np.empty(grey.shape, np.uint8)
    for first in range(0, len(grey), ROWS):  # a few rows at a time: wide integers take much memory
        rows = grey[first : first + ROWS].astype(np.int32)
        pixels[first : first + ROWS] = rows if is_scaled else (rows + 128) // 257
    scaled = Image.fromarray(pixels)
    if (transparent := image.info.get("transparency")) is not None:
        scaled = Image.merge("LA", [scaled, Image.fromarray(np.where(grey == transparent, 0, 255).astype(np.uint8))])
    return scaled


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata is no reason to refuse sound pixels
        return 1


def _upright(image: Image.Image, converted: Image.Image) -> Image.Image:
    """What was converted from ``image``, turned and mirrored as the EXIF orientation of that says."""
    if (orientation := _orientation(image)) == 1:
        return converted
    converted.getexif()[ExifTags.Base.Orientation] = orientation
    return ImageOps.exif_transpose(converted)


def read_ids(file: File, admit: Admit, seconds: float) -> np.ndarray:
    """The numbers that a greyscale or palette image stores, int32 (H,W), neither scaled nor turned into colours.

    ``admit`` and ``seconds`` are those of :func:`decoded`. Raises ImageError as that does, and for images in colour.
    """
    scale = 1

    def opened(image: ImageFile) -> None:
        nonlocal scale
        scale = SCALES.get(str(image.tile[0][3]), 1) if image.tile else 1
        admit(image)

    with decoded(file, opened, seconds, _numbers) as image:
        return np.asarray(image) // scale


def _numbers(image: Image.Image) -> Image.Image:
    if image.mode not in NUMBERED and not image.mode.startswith("I;16"):
        raise ImageError(f"pixels of mode {image.mode}, expected greys or palette indices that are ids")
    return Image.fromarray(np.asarray(image).astype(np.int32))


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """``image`` in mode L, RGB or RGBA. Transparency is composited over white unless the mode is RGBA."""
    if image.mode == mode and "transparency" not in image.info:
        return image
    if image.mode in TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        if mode != "RGBA":
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
    elif image.mode in ("P", "LAB"):
        image = image.convert("RGB")
    return image.convert(mode)


def pixels_of(image: Image.Image) -> np.ndarray:
    """A Pillow image in mode L, RGB or RGBA -> uint8 (H,W,C)."""
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def image_of(pixels: np.ndarray) -> Image.Image:
    """uint8 (H,W,C), C 1, 3 or 4 -> a Pillow image."""
    return Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)


def check_writable(path: Path, channels: int) -> None:
    """Raise ValueError unless a file of the format that ``path`` ends in can hold images of so many channels."""
    kind = WRITABLE.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"cannot write {str(path)!r}: expected a name ending in {', '.join(WRITABLE)}")
    if channels == 4 and not kind.has_alpha:
        raise ValueError(
            f"cannot write {str(path)!r}: the generator makes RGBA images, and {kind.name} has no alpha; use PNG"
        )


def encode(pixels: np.ndarray, suffix: str) -> bytes:
    """uint8 (H,W,C), C 1, 3 or 4 -> the bytes of an image file of the format that ``suffix`` names.

    Raises ImageError if the format cannot hold an image of that size, MemoryError if memory ends.
    """
    kind = WRITABLE[suffix.lower()]
    height, width = pixels.shape[:2]
    if max(height, width) > kind.max_side:
        limit = f"{kind.name} takes up to {kind.max_side} pixels in width and height"
        raise ImageError(f"cannot write {width}x{height} pixels: {limit}; use PNG")
    buffer = io.BytesIO()
    try:
        image_of(pixels).save(buffer, kind.name, **(kind.options or {}))
    except MemoryError:
        raise
    except Exception as error:  # Pillow's writers, too, raise almost anything
        raise ImageError(f"cannot be written as {kind.name} ({type(error).__name__}: {error})") from None
    return buffer.getvalue()
