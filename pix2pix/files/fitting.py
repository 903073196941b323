"""Images fitted to what a generator takes: cut in half, converted, resized or padded.

The steps, in this order: a side-by-side image is cut in half; colours are converted to the generator's channels (1:
luma; 3: RGB, with transparency composited over white; 4: RGBA); the image is resized with Pillow's bicubic filter, as
the PyTorch program does, or padded by reflection. Label maps (:mod:`.labels`) keep their ids: they are resized to the
nearest pixel, encoded and padded.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import get_args

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from ..errors import ImageError
from ..model.generator import Generator
from .codecs import MAX_PIXELS, MODES, File, decoded, decoding_bytes, in_mode, pixels_of, read_ids
from .labels import encode, shown
from .limits import DEFAULT, Deferred, Limits, Need
from .options import Fit, Pair

# Bytes that each byte of an image takes at most while it is with an engine, and its result until that is written, in
# floating point too (:func:`.outcome.is_finite`).
ENGINE_COPIES, RESULT_COPIES = 11, 10
ID_BYTES = 56  # that each pixel of a label map, and of its instances, takes at most until they are encoded


@dataclass(frozen=True, slots=True)
class FittedImage:
    """An image as a generator takes it.

    ``pixels`` is uint8 (H,W,Cin): the image in the first ``height`` rows and ``width`` columns, and padding. ``target``
    is uint8 (height,width,Cout): the other half of a side-by-side image, or None.
    """

    pixels: np.ndarray
    height: int
    width: int
    target: np.ndarray | None = None


@dataclass(frozen=True, slots=True)
class Fitting:
    """How images are fitted to a generator. Made by :meth:`of`, which checks it.

    ``labels`` is how many labels a map can have, where the generator takes label maps.
    """

    in_channels: int
    out_channels: int
    multiple: int
    fit: Fit
    size: tuple[int, int] | None
    pair: Pair | None
    limits: Limits = DEFAULT
    labels: int | None = None

    @classmethod
    def of(
        cls,
        generator: Generator,
        fit: Fit = "resize",
        size: tuple[int, int] | None = None,
        pair: Pair | None = None,
        limits: Limits = DEFAULT,
        with_instances: bool = False,
    ) -> Fitting:
        """The fitting for ``generator``.

        ``fit="resize"`` scales to ``size``, (H, W) in pixels, by default what the model was trained at.
        ``fit="pad"`` keeps an image's own size, or first scales to ``size`` if it is given, which then may be any.
        ``pair`` names the halves of side-by-side A|B images. ``limits`` are those of an image file. ``with_instances``
        says that the last channel of a generator that takes label maps is for the edges of instances.

        Raises ValueError for a generator whose channels no image file has, for a size that it cannot take, and for
        options that are not for its kind of input.
        """
        labels = _labels(generator, pair, with_instances)
        for role, channels in zip(("takes", "makes"), generator.channels, strict=True):
            if channels not in MODES and (role == "makes" or labels is None):
                raise ValueError(
                    f"this generator {role} images of {channels} channels, image files have 1, 3 or 4: "
                    f"translate arrays from Python, or a raw .rgb file"
                )
        if fit not in get_args(Fit):
            raise ValueError(f"got fit {fit!r}, expected resize or pad")
        if pair not in (None, *get_args(Pair)):
            raise ValueError(f"got pair {pair!r}, expected AtoB or BtoA")
        if fit == "resize":
            size = size or (generator.size, generator.size)
            generator.check_size(*size)
        if size and (min(size) < 1 or size[0] * size[1] > MAX_PIXELS):
            raise ValueError(f"got size {size[1]}x{size[0]}, expected 1 to {MAX_PIXELS} pixels in all")
        return cls(*generator.channels, generator.multiple, fit, size, pair, limits, labels)

    def read(
        self,
        file: File,
        admit: Callable[[Need], None] | None = None,
        instances: File | None = None,
    ) -> FittedImage:
        """Decode and fit one image file, which is closed. Raises ImageError as :func:`.codecs.decoded` does.

        ``admit`` is told what the image will take before it is decoded, and raises ImageError to refuse it.
        ``instances`` is the image of the instances in a label map.
        """

        def check(image: ImageFile) -> None:
            need = self.need(image)
            if need.pixels > MAX_PIXELS:
                raise ImageError(f"{need.pixels:,} pixels when padded, more than the limit of {MAX_PIXELS:,}")
            if admit is not None:
                admit(need)

        if self.labels is not None:
            return self._encoded(file, instances, check)
        with decoded(file, check, self.limits.seconds) as image:
            return self.apply(image)

    def need(self, image: ImageFile) -> Need:
        """What an image takes that is opened and not decoded: upper bounds."""
        width, height = image.size
        h, w = self.size or (height, width // 2 if self.pair else width)
        padded = (h + -h % self.multiple) * (w + -w % self.multiple) if self.fit == "pad" else h * w
        arrays = padded * self.in_channels + h * w * self.out_channels * (self.pair is not None)
        scaled = 4 * w * min(height, 100 * width) if self.size else 0  # the width first, but in thin images
        each = decoding_bytes(image) if self.labels is None else ID_BYTES
        decoding = width * height * each + 3 * arrays + scaled
        results = padded * (ENGINE_COPIES * self.in_channels + RESULT_COPIES * self.out_channels)
        return Need(width, height, decoding, arrays, results, padded)

    def apply(self, image: Image.Image) -> FittedImage:
        """Cut, convert and scale a decoded image. Raises ImageError for one that cannot be cut in two halves."""
        target = None
        if self.pair:
            image, half = halves(image)
            if self.pair == "BtoA":
                image, half = half, image
            target = self._array(half, self.out_channels)
        pixels = self._array(image, self.in_channels)
        height, width = pixels.shape[:2]
        return FittedImage(self._padded(pixels), height, width, target)

    def shown(self, image: FittedImage) -> np.ndarray:
        """A fitted image without its padding, for people: uint8 (height,width,C), C 1, 3 or 4."""
        pixels = image.pixels[: image.height, : image.width]
        return pixels if self.labels is None else shown(pixels, self.labels)

    def _padded(self, pixels: np.ndarray) -> np.ndarray:
        return pad(pixels, self.multiple) if self.fit == "pad" else pixels

    def _encoded(self, file: File, instances: File | None, admit: Callable[[ImageFile], None]) -> FittedImage:
        """A label map with, if the generator takes their edges, the instances in it."""
        assert self.labels is not None
        ids = read_ids(file, admit, self.limits.seconds)
        inside = None if instances is None else self._nearest(self._instances(instances, ids))
        pixels = encode(self._nearest(ids), self.labels, inside)
        height, width = pixels.shape[:2]
        return FittedImage(self._padded(pixels), height, width)

    def _instances(self, file: File, ids: np.ndarray) -> np.ndarray:
        """The instances in the label map ``ids`` (H,W)."""

        def refused(h: int, w: int) -> ImageError:
            return ImageError(f"{w}x{h} pixels, the label map has {ids.shape[1]}x{ids.shape[0]}")

        def admit(image: ImageFile) -> None:
            if image.height * image.width != ids.size:  # before it takes memory
                raise refused(image.height, image.width)

        try:
            found = read_ids(file, admit, self.limits.seconds)
            if found.shape != ids.shape:
                raise refused(found.shape[0], found.shape[1])
        except Deferred:
            raise
        except ImageError as error:
            named = f", {os.fspath(file)!r}" if isinstance(file, (str, os.PathLike)) else ""
            raise ImageError(f"the image of its instances{named}: {error}") from None
        return found

    def _nearest(self, ids: np.ndarray) -> np.ndarray:
        """``ids`` (H,W) scaled as that program's images are, each pixel to the nearest."""
        if self.size is None or ids.shape == self.size:
            return ids
        return np.asarray(Image.fromarray(ids).resize(self.size[::-1], Image.Resampling.NEAREST))

    def _array(self, image: Image.Image, channels: int) -> np.ndarray:
        image = in_mode(image, MODES[channels])
        if self.size and image.size != self.size[::-1]:
            image = image.resize(self.size[::-1], Image.Resampling.BICUBIC)
        return pixels_of(image)


def _labels(generator: Generator, pair: Pair | None, with_instances: bool) -> int | None:
    """How many labels a generator takes; None if it takes images. Raises ValueError for options of the other kind."""
    if generator.takes == "image":
        if with_instances:
            raise ValueError("this generator takes images: label maps alone can have images of instances")
        return None
    if pair is not None:
        raise ValueError(f"got pair {pair!r}, but this generator takes label maps: they are files of their own")
    labels = generator.in_channels - with_instances
    if labels < 1:
        raise ValueError("this generator takes one channel: edges of instances would leave none for labels")
    return labels


def halves(image: Image.Image) -> tuple[Image.Image, Image.Image]:
    """The left and the right half of a side-by-side image. Raises ImageError if its width is odd."""
    if image.width % 2:
        raise ImageError(f"{image.width} pixels wide, a side-by-side pair has an even width")
    middle = image.width // 2
    return image.crop((0, 0, middle, image.height)), image.crop((middle, 0, image.width, image.height))


def pad(pixels: np.ndarray, multiple: int) -> np.ndarray:
    """(H,W,C) -> the next multiples of ``multiple``, by reflection at the bottom and the right.

    Reflection repeats where an image is smaller than its padding; a side of 1 pixel is repeated.
    """
    for axis in (0, 1):
        length = pixels.shape[axis]
        if missing := -length % multiple:
            margins = [(0, missing) if i == axis else (0, 0) for i in range(3)]
            pixels = np.pad(pixels, margins, mode="reflect" if length > 1 else "edge")
    return pixels
