"""Picture files <-> uint8 (H,W,C) arrays, fitted to the sizes and channels that a generator takes.

What becomes of a file's pixels, in this order: the first frame is taken; 16-bit greys are scaled to 8 bits; the EXIF
orientation is applied; a side-by-side picture is cut in half; colours are converted to what the generator has (1
channel: luma; 3: RGB, with transparency composited over white; 4: RGBA); the picture is resized with Pillow's bicubic
filter, as the PyTorch program does, or padded by reflection. Colour profiles are ignored, as in training programs.
"""

from __future__ import annotations

import errno
import io
import os
import platform
import re
import time
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image, ImageOps

from ..errors import ImageError
from ..model.generator import Generator

Fit = Literal["resize", "pad"]
Pair = Literal["AtoB", "BtoA"]

READERS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM")  # Pillow's other readers are never tried
SECONDS_OF_A_WRITE = 60.0  # a file that another host has begun and not changed for so long is given up
MAX_PIXELS = 100_000_000  # a larger picture is refused before it is decoded
MODES = {1: "L", 3: "RGB", 4: "RGBA"}  # Pillow's mode for each number of channels
# Suffix -> (Pillow's name of the kind, options). PNG fast rather than small: run lengths (compress_type 3) take a
# fraction of the default's time, for files a little larger.
WRITERS: dict[str, tuple[str, dict[str, Any]]] = {
    ".png": ("PNG", {"compress_level": 1, "compress_type": 3}),
    ".jpg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".jpeg": ("JPEG", {"quality": 95, "subsampling": 0}),
    ".webp": ("WEBP", {"quality": 95}),
    ".tif": ("TIFF", {"compression": "tiff_lzw"}),
    ".tiff": ("TIFF", {"compression": "tiff_lzw"}),
    ".bmp": ("BMP", {}),
}
READABLE = (*WRITERS, ".gif", ".ppm", ".pgm", ".pbm")  # suffixes, in lower case


@dataclass(frozen=True, slots=True)
class Picture:
    """A decoded picture: ``pixels`` (H,W,Cin) that the generator takes, of which the first ``height`` rows and
    ``width`` columns are the picture and the rest is padding; ``target`` (height,width,Cout), or None."""

    pixels: np.ndarray
    height: int
    width: int
    target: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Fitting:
    """How pictures are fitted to a generator. Made by :meth:`of`, which checks it."""

    in_channels: int
    out_channels: int
    multiple: int
    fit: Fit
    size: tuple[int, int] | None
    pair: Pair | None

    @classmethod
    def of(
        cls, generator: Generator, fit: Fit = "resize", size: tuple[int, int] | None = None, pair: Pair | None = None
    ) -> Fitting:
        """The fitting for ``generator``.

        ``fit="resize"`` scales to ``size``, (H, W) in pixels, by default what the model was trained at.
        ``fit="pad"`` keeps a picture's own size, or first scales to ``size`` if it is given, which then may be any.
        ``pair`` names the halves of side-by-side A|B pictures.

        Raises ValueError for a generator whose channels no picture file has, and for a size that it cannot take.
        """
        for role, channels in zip(("takes", "makes"), generator.channels, strict=True):
            if channels not in MODES:
                raise ValueError(
                    f"this generator {role} pictures of {channels} channels, picture files have 1, 3 or 4: "
                    f"translate arrays from Python, or a raw .rgb file"
                )
        if fit not in ("resize", "pad"):
            raise ValueError(f"got fit {fit!r}, expected resize or pad")
        if pair not in (None, "AtoB", "BtoA"):
            raise ValueError(f"got pair {pair!r}, expected AtoB or BtoA")
        if fit == "resize":
            size = size or (generator.size, generator.size)
            generator.check_size(*size)
        if size and (min(size) < 1 or size[0] * size[1] > MAX_PIXELS):
            raise ValueError(f"got size {size[1]}x{size[0]}, expected 1 to {MAX_PIXELS} pixels in all")
        return cls(*generator.channels, generator.multiple, fit, size, pair)

    def apply(self, image: Image.Image) -> Picture:
        """Cut, convert and scale a decoded image. Raises ImageError for one that cannot be cut in two halves."""
        target = None
        if self.pair:
            image, half = halves(image)
            if self.pair == "BtoA":
                image, half = half, image
            target = self._array(half, self.out_channels)
        pixels = self._array(image, self.in_channels)
        height, width = pixels.shape[:2]
        if self.fit == "pad":
            pixels = pad(pixels, self.multiple)
        return Picture(pixels, height, width, target)

    def _array(self, image: Image.Image, channels: int) -> np.ndarray:
        image = in_mode(image, MODES[channels])
        if self.size and image.size != self.size[::-1]:
            image = image.resize(self.size[::-1], Image.Resampling.BICUBIC)
        pixels = np.asarray(image)
        return pixels[..., None] if channels == 1 else pixels


def read_plain(path: str | os.PathLike[str], channels: int) -> np.ndarray:
    """Decode one picture file at its own size: uint8 (H,W,channels). Raises ImageError as :func:`read` does."""
    return read(path, Fitting(channels, channels, 1, "pad", None, None)).pixels


def read(path: str | os.PathLike[str], fitting: Fitting) -> Picture:
    """Decode and fit one picture file.

    Raises ImageError, and nothing else, for a file that is missing, damaged, truncated, of an unknown format, larger
    than MAX_PIXELS or of a kind without a known scale to 8 bits.
    """
    if os.path.exists(path) and not os.path.isfile(path):  # a pipe would be waited for without end
        raise ImageError("a directory, a pipe or a device, expected a file")
    try:
        with Image.open(path, formats=READERS) as image:
            if image.width * image.height > MAX_PIXELS:
                raise ImageError(f"{image.width}x{image.height} pixels, more than the limit of {MAX_PIXELS:,}")
            return fitting.apply(_upright(_eight_bit(image)))
    except ImageError:
        raise
    except Image.DecompressionBombError:
        raise ImageError(f"more pixels than the limit of {MAX_PIXELS:,}") from None
    except Image.UnidentifiedImageError:
        raise ImageError("damaged, or no picture of a known format") from None
    except MemoryError:
        raise ImageError("not enough memory to decode it") from None
    except OSError as error:
        raise ImageError(error.strerror or str(error)) from None
    except Exception as error:  # on damaged files Pillow's readers raise almost anything
        raise ImageError(f"cannot be decoded ({type(error).__name__}: {error})") from None


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


def halves(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """The left and the right half of a side-by-side picture. Raises ImageError if its width is odd."""
    if image.width % 2:
        raise ImageError(f"{image.width} pixels wide, a side-by-side pair has an even width")
    middle = image.width // 2
    return image.crop((0, 0, middle, image.height)), image.crop((middle, 0, image.width, image.height))


def in_mode(image: Image.Image, mode: str) -> Image.Image:
    """``image`` in mode L, RGB or RGBA; what is transparent is composited over white unless the mode is RGBA."""
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        if mode != "RGBA":
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
    elif image.mode in ("P", "LAB"):
        image = image.convert("RGB")
    return image.convert(mode)


def pad(pixels: np.ndarray, multiple: int) -> np.ndarray:
    """(H,W,C) -> the next multiples of ``multiple``, by reflection at the bottom and the right.

    Reflection repeats where a picture is smaller than its padding; a side of 1 pixel is repeated.
    """
    for axis in (0, 1):
        length = pixels.shape[axis]
        if missing := -length % multiple:
            margins = [(0, missing) if i == axis else (0, 0) for i in range(3)]
            pixels = np.pad(pixels, margins, mode="reflect" if length > 1 else "edge")
    return pixels


def check_writable(path: Path, channels: int) -> None:
    """Raise ValueError unless a file of the kind that ``path`` ends in can hold pictures of so many channels."""
    kind = WRITERS.get(path.suffix.lower())
    if kind is None:
        raise ValueError(f"cannot write {str(path)!r}: expected a name ending in {', '.join(WRITERS)}")
    if kind[0] in ("JPEG", "BMP") and channels == 4:
        raise ValueError(
            f"cannot write {str(path)!r}: the generator makes RGBA pictures, and {kind[0]} has no alpha; use PNG"
        )


def encode(pixels: np.ndarray, suffix: str) -> bytes:
    """uint8 (H,W,C), C 1, 3 or 4 -> the bytes of a picture file of the kind that ``suffix`` names."""
    kind, options = WRITERS[suffix.lower()]
    image = Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels)
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def write(path: Path, data: bytes) -> None:
    """Write a file so that it is whole or not there: to a hidden name beside it, which is then renamed.

    The hidden name is this process's own: another run into the same folder has others. Makes the folder if need be.
    Raises OSError; see :func:`is_fatal`.
    """
    partial = path.with_name(f".{path.name}.{writer()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(data)
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def writer() -> str:
    """What tells this process from others in the names that :func:`write` gives."""
    return f"{os.getpid()}@{platform.node()}"


def remove_abandoned(paths: Iterable[Path], dead: Collection[str] = ()) -> None:
    """Remove what processes that were killed had begun to :func:`write` to ``paths``.

    ``dead`` are writers that are known to be no more. Whether other hosts' processes live is not known: what has
    changed in the last minute is left to them.
    """
    paths = list(paths)
    names = {path.name for path in paths}
    for folder in {path.parent for path in paths}:
        for partial in folder.glob(".*.partial"):
            found = re.fullmatch(r"\.(.+)\.((\d+)@([^@]+))\.partial", partial.name)
            if found is None or found[1] not in names:
                continue
            with suppress(FileNotFoundError):  # it was renamed: its process lives
                if found[2] in dead or not _may_live(int(found[3]), found[4], partial):
                    partial.unlink()


def _may_live(pid: int, host: str, partial: Path) -> bool:
    """Whether the process that has begun a file may be there."""
    if host != platform.node():
        return time.time() - partial.stat().st_mtime < SECONDS_OF_A_WRITE
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        pass
    return True


def is_fatal(error: OSError) -> bool:
    """Whether no further file can be written either: the disk is full, over quota or read-only."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
