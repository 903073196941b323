"""Image files <-> Pillow images and uint8 (H,W,C) arrays: the formats, decoding and encoding.

Decoding takes the first frame, scales 16-bit greys to 8 bits and applies the EXIF orientation. Colour profiles are
ignored, as in training programs.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageOps, features

from ..errors import ImageError

MAX_PIXELS = 100_000_000  # a larger image is refused before it is decoded
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's mode for each number of channels


@dataclass(frozen=True, slots=True)
class Format:
    """One image format: Pillow's name, the suffixes, and Pillow's options to write it (None: it is only read).

    ``needs`` says how to get what reads it, where that is not part of every installation.
    """

    name: str
    suffixes: tuple[str, ...]
    options: Mapping[str, Any] | None = None
    has_alpha: bool = True
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
    Format("JPEG", (".jpg", ".jpeg", ".jfif", ".jpe"), {"quality": 95, "subsampling": 0}, has_alpha=False),
    Format("WEBP", (".webp",), {"quality": 95}),
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


def read(path: str | os.PathLike[str], channels: int) -> np.ndarray:
    """Decode one image file at its own size: uint8 (H,W,channels). Raises ImageError as :func:`decoded` does."""
    with decoded(path) as image:
        return pixels_of(in_mode(image, MODES[channels]))


@contextmanager
def decoded(path: str | os.PathLike[str]) -> Iterator[Image.Image]:
    """An upright image of 8 bits per channel from a file, which is closed when the block is left.

    Raises ImageError, and nothing else, for a file that is missing, damaged, truncated, of an unknown format, larger
    than MAX_PIXELS or of a kind without a known scale to 8 bits; and for whatever the block raises.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # opening a pipe would block for ever
        raise ImageError("a directory, a pipe or a device, expected a file")
    try:
        _register_heif()
        with Image.open(path, formats=READERS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{image.width}x{image.height} pixels, more than the limit of {MAX_PIXELS:,}")
            yield _upright(_eight_bit(image))
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"more pixels than the limit of {MAX_PIXELS:,}") from None
    except Image.UnidentifiedImageError:
        raise ImageError("damaged, or no image of a known format") from None
    except MemoryError:
        raise ImageError("not enough memory to decode it") from None
    except OSError as error:
        raise ImageError(error.strerror or str(error)) from None
    except Exception as error:  # on damaged files Pillow's readers raise almost anything
        raise ImageError(f"cannot be decoded ({type(error).__name__}: {error})") from None


@cache
def _register_heif() -> None:
    """Let Pillow read HEIF, if that is installed."""
    if "HEIF" in READERS:
        import pillow_heif

        pillow_heif.register_heif_opener()


def _eight_bit(image: Image.Image) -> Image.Image:
    """``image``, or its greys scaled from 16 bits to 8: 0 stays 0, and 65535 becomes 255."""
    if image.mode == "F":
        raise ImageError("floating-point pixels have no known scale to 8 bits: convert it to 8 or 16 bits first")
    if not image.mode.startswith("I"):
        return image
    orientation = _orientation(image)
    grey = np.asarray(image).astype(np.int64)
    if grey.min() < 0 or grey.max() > 65535:
        raise ImageError("32-bit pixels have no known scale to 8 bits: convert it to 8 or 16 bits first")
    scaled = Image.fromarray(((grey + 128) // 257).astype(np.uint8))
    scaled.getexif()[ExifTags.Base.Orientation] = orientation
    return scaled


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # damaged metadata is no reason to refuse sound pixels
        return 1


def _upright(image: Image.Image) -> Image.Image:
    """``image``, turned and mirrored as its EXIF orientation says."""
    return image if _orientation(image) == 1 else ImageOps.exif_transpose(image)


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """``image`` in mode L, RGB or RGBA. Transparency is composited over white unless the mode is RGBA."""
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
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
    """uint8 (H,W,C), C 1, 3 or 4 -> the bytes of an image file of the format that ``suffix`` names."""
    kind = WRITABLE[suffix.lower()]
    buffer = io.BytesIO()
    image_of(pixels).save(buffer, kind.name, **(kind.options or {}))
    return buffer.getvalue()
