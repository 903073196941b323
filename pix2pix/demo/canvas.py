"""The canvas that facades are drawn on, and the textures of their materials.

Every part of a facade is drawn twice: flat, in the colour of its kind, into the labels, and with texture, light and
shadow into the picture, which is drawn at twice its size and scaled down at the end. Textures take their randomness
from one generator, so the order of drawing decides what every part looks like: the embedded model was trained on
exactly these pictures.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

SIZE = 256  # height and width of a pair, in pixels
SCALE = 2  # the picture is drawn at SCALE times that

PALETTE = {  # label colours, far apart in RGB
    "sky": (170, 220, 255),
    "ground": (90, 90, 90),
    "brick": (190, 60, 40),
    "plaster": (245, 215, 130),
    "stone": (170, 170, 190),
    "roof": (110, 40, 110),
    "window": (0, 90, 230),
    "door": (120, 60, 0),
    "cornice": (255, 160, 0),
    "balcony": (0, 200, 200),
    "shutter": (0, 160, 60),
    "awning": (255, 0, 130),
    "bush": (120, 255, 60),
    "chimney": (255, 80, 80),
}
WALL_COLOURS = {"brick": (158, 74, 56), "plaster": (232, 208, 158), "stone": (176, 172, 164)}
MORTAR = (205, 195, 185)

Colour = tuple[int, int, int]
Texture = Callable[[int, int], np.ndarray]  # (height, width) in fine pixels -> (height, width, 1 or 3) to be added


class Canvas:
    """Labels and picture of one facade. Coordinates are label pixels; boxes are half open: x0 <= x < x1.

    ``labels`` is a SIZE x SIZE picture, ``rgb`` a float32 (SIZE * SCALE, SIZE * SCALE, 3) array in 0..255.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.labels = Image.new("RGB", (SIZE, SIZE), PALETTE["sky"])
        self._draw = ImageDraw.Draw(self.labels)
        self.rgb = np.zeros((SIZE * SCALE, SIZE * SCALE, 3), np.float32)

    def label(self, kind: str, x0: int, y0: int, x1: int, y1: int) -> None:
        """Colour a box of the labels."""
        self._draw.rectangle([x0, y0, x1 - 1, y1 - 1], fill=PALETTE[kind])

    def label_ellipse(self, kind: str, x0: int, y0: int, x1: int, y1: int) -> None:
        """Colour the ellipse inside a box of the labels."""
        self._draw.ellipse([x0, y0, x1 - 1, y1 - 1], fill=PALETTE[kind])

    def region(self, x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
        """A view of a box of the picture; empty for a box that starts outside, cut for one that ends there."""
        if x0 < 0 or y0 < 0:
            return self.rgb[:0, :0]
        return self.rgb[y0 * SCALE : y1 * SCALE, x0 * SCALE : x1 * SCALE]

    def fill(self, x0: int, y0: int, x1: int, y1: int, colour: Colour, texture: Texture | None = None) -> None:
        """Paint a box of the picture."""
        area = self.region(x0, y0, x1, y1)
        area[:] = np.asarray(colour, np.float32)
        if texture is not None and area.size:
            area += texture(area.shape[0], area.shape[1])

    def shade(self, x0: int, y0: int, x1: int, y1: int, start: float, end: float | None = None, axis: int = 0) -> None:
        """Multiply a box of the picture by a ramp from ``start`` to ``end`` (default: ``start``) along ``axis``.

        Boxes are cut at the edges of the picture; the ramp spans what is left.
        """
        area = self.region(max(0, x0), max(0, y0), min(SIZE, x1), min(SIZE, y1))
        if area.size:
            ramp = np.linspace(start, start if end is None else end, area.shape[axis], dtype=np.float32)
            area *= ramp[:, None, None] if axis == 0 else ramp[None, :, None]

    def pair(self) -> tuple[np.ndarray, np.ndarray]:
        """(labels, picture), each uint8 (SIZE, SIZE, 3)."""
        fine = Image.fromarray(np.clip(self.rgb, 0, 255).astype(np.uint8))
        return np.asarray(self.labels), np.asarray(fine.resize((SIZE, SIZE), Image.Resampling.LANCZOS))


def noise(rng: np.random.Generator, h: int, w: int, scale: int) -> np.ndarray:
    """Smooth noise in -0.5..0.5, float32 (h, w), with blots of about ``scale`` fine pixels."""
    coarse = rng.random((h // scale + 2, w // scale + 2)).astype(np.float32)
    size = (w + 2 * scale, h + 2 * scale)
    smooth = Image.fromarray((coarse * 255).astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    return np.asarray(smooth, np.float32)[:h, :w] / 255 - 0.5


def _courses(h: int, w: int, block_h: int, block_w: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Masonry in which every second course is shifted by half a block: (row, y in the course, shifted x)."""
    y, x = np.mgrid[:h, :w]
    row = y // block_h
    return row, y % block_h, x + (row % 2) * (block_w // 2)


def bricks(rng: np.random.Generator, colour: Colour) -> Texture:
    """Bricks of 14 x 6 pixels, each a little different, with light mortar; ``colour`` is what they are added to."""
    block_h, block_w = 6 * SCALE, 14 * SCALE

    def texture(h: int, w: int) -> np.ndarray:
        row, y, x = _courses(h, w, block_h, block_w)
        mortar = (y < SCALE) | (x % block_w < SCALE)
        shades = rng.normal(0, 9, (h // block_h + 1, w // block_w + 3)).astype(np.float32)
        result = shades[row, x // block_w][..., None] * np.array([1, 0.8, 0.7], np.float32)
        result = result + noise(rng, h, w, 3 * SCALE)[..., None] * 22
        result[mortar] = np.array(MORTAR, np.float32) - np.asarray(colour, np.float32)
        return result

    return texture


def stones(rng: np.random.Generator) -> Texture:
    """Blocks of 24 x 12 pixels, dark in the joints and light along their upper and left edges."""
    block_h, block_w = 12 * SCALE, 24 * SCALE

    def texture(h: int, w: int) -> np.ndarray:
        row, y, x = _courses(h, w, block_h, block_w)
        joint = (y < SCALE) | (x % block_w < SCALE)
        lit = (y < 2 * SCALE) | (x % block_w < 2 * SCALE)
        shades = rng.normal(0, 8, (h // block_h + 1, w // block_w + 3)).astype(np.float32)
        result = shades[row, x // block_w] + noise(rng, h, w, 4 * SCALE) * 16
        result[lit] += 14
        result[joint] -= 55
        return result[..., None]

    return texture


def rough(rng: np.random.Generator, amplitude: float, scale: int) -> Texture:
    """Plaster, wood or slate: noise at ``scale`` pixels, and a third of it at one pixel."""

    def texture(h: int, w: int) -> np.ndarray:
        coarse = noise(rng, h, w, scale * SCALE) * amplitude
        return (coarse + noise(rng, h, w, SCALE) * amplitude * 0.35)[..., None]

    return texture
