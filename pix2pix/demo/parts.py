"""The parts of a facade, each drawn into the labels and into the picture. Boxes as in :mod:`.canvas`."""

from __future__ import annotations

import numpy as np

from .canvas import SCALE, SIZE, WALL_COLOURS, Canvas, bricks, noise, rough, stones

FRAME = (238, 236, 228)
IRON = (44, 44, 48)
SILL = (214, 208, 196)


def wall(canvas: Canvas, kind: str, x0: int, y0: int, x1: int, y1: int) -> None:
    """A wall of ``kind`` brick, plaster or stone."""
    canvas.label(kind, x0, y0, x1, y1)
    colour = WALL_COLOURS[kind]
    if kind == "brick":
        texture = bricks(canvas.rng, colour)
    elif kind == "stone":
        texture = stones(canvas.rng)
    else:
        texture = rough(canvas.rng, 16, 9)
    canvas.fill(x0, y0, x1, y1, colour, texture)


def glass(canvas: Canvas, x0: int, y0: int, x1: int, y1: int) -> None:
    """A pane that reflects the sky, with a bright band across."""
    if x1 - x0 < 2 or y1 - y0 < 2:
        return
    area = canvas.region(x0, y0, x1, y1)
    h, w = area.shape[:2]
    y, x = np.mgrid[:h, :w].astype(np.float32)
    blend = np.clip((y / h + 0.35 * x / w), 0, 1)[..., None]
    area[:] = (1 - blend) * np.array([158, 190, 214], np.float32) + blend * np.array([38, 52, 66], np.float32)
    area[((x / w + y / h) % 0.9) < 0.16] += 22


def window(canvas: Canvas, x0: int, y0: int, x1: int, y1: int) -> None:
    """A window with a cross frame, a sill and its shadow."""
    canvas.label("window", x0, y0, x1, y1)
    canvas.fill(x0, y0, x1, y1, (240, 238, 230))
    glass(canvas, x0 + 2, y0 + 2, x1 - 2, y1 - 2)
    middle = x0 + (x1 - x0) // 2
    canvas.fill(middle - 1, y0 + 2, middle + 1, y1 - 2, FRAME)
    if y1 - y0 > 22:
        bar = y0 + (y1 - y0) // 3
        canvas.fill(x0 + 2, bar, x1 - 2, bar + 2, FRAME)
    canvas.shade(x0 + 2, y0 + 2, x1 - 2, y0 + 5, 0.55, 1.0)
    canvas.shade(x0 + 2, y0 + 2, x0 + 4, y1 - 2, 0.7, 1.0, axis=1)
    canvas.fill(x0 - 2, y1, x1 + 2, y1 + 2, SILL)
    canvas.shade(x0 - 2, y1 + 2, x1 + 2, y1 + 6, 0.62, 1.0)


def door(canvas: Canvas, x0: int, y0: int, x1: int, y1: int) -> None:
    """A panelled wooden door with a pane on top and a brass knob."""
    canvas.label("door", x0, y0, x1, y1)
    canvas.fill(x0, y0, x1, y1, (92, 52, 26), rough(canvas.rng, 16, 3))
    w, h = x1 - x0, y1 - y0
    glass(canvas, x0 + 3, y0 + 3, x1 - 3, y0 + max(5, h // 5))
    for column in range(2):
        for row in range(2):
            left, top = x0 + 3 + column * (w - 4) // 2, y0 + h // 4 + 3 + row * (h * 3 // 8)
            _panel(canvas, left, top, left + (w - 4) // 2 - 3, top + h * 3 // 8 - 4)
    knob = y0 + h // 2
    canvas.fill(x1 - 5, knob, x1 - 3, knob + 2, (226, 190, 80))
    canvas.shade(x0, y0, x1, y0 + 4, 0.5, 1.0)


def _panel(canvas: Canvas, x0: int, y0: int, x1: int, y1: int) -> None:
    """A panel let into a door: dark at the top and left, lit at the bottom and right."""
    if x1 - x0 > 2 and y1 - y0 > 2:
        canvas.shade(x0, y0, x1, y0 + 2, 0.5)
        canvas.shade(x0, y0, x0 + 1, y1, 0.6)
        canvas.shade(x0, y1 - 1, x1, y1, 1.45)
        canvas.shade(x1 - 1, y0, x1, y1, 1.3)


def cornice(canvas: Canvas, x0: int, y0: int, x1: int, y1: int) -> None:
    """A moulding across the wall, with teeth if it is high enough, and its shadow."""
    canvas.label("cornice", x0, y0, x1, y1)
    h = y1 - y0
    canvas.fill(x0, y0, x1, y1, (222, 214, 198), rough(canvas.rng, 8, 5))
    canvas.shade(x0, y0, x1, y0 + 2, 1.12)
    canvas.shade(x0, y1 - max(2, h // 3), x1, y1, 0.78)
    if h >= 7:
        for x in range(x0 + 2, x1 - 3, 7):
            canvas.shade(x, y0 + h // 2, x + 3, y1, 0.7)
    canvas.shade(x0, y1, x1, y1 + 7, 0.55, 1.0)


def balcony(canvas: Canvas, x0: int, y0: int, x1: int, y1: int) -> None:
    """Iron railings in front of what is there already, on a slab that throws a shadow."""
    canvas.label("balcony", x0, y0, x1, y1)
    canvas.fill(x0, y0, x1, y0 + 2, (48, 48, 52))
    canvas.fill(x0, y1 - 3, x1, y1, (186, 180, 170))
    for x in range(x0, x1, 4):
        canvas.fill(x, y0, x + 1, y1 - 3, IRON)
    canvas.fill(x1 - 1, y0, x1, y1 - 3, IRON)
    canvas.shade(x0, y1, x1, y1 + 8, 0.5, 1.0)


def shutter(canvas: Canvas, x0: int, y0: int, x1: int, y1: int) -> None:
    """A green shutter with louvres."""
    canvas.label("shutter", x0, y0, x1, y1)
    canvas.fill(x0, y0, x1, y1, (52, 104, 78))
    for y in range(y0 + 1, y1 - 1, 3):
        canvas.shade(x0 + 1, y, x1 - 1, y + 1, 0.62)
    canvas.shade(x0, y0, x0 + 1, y1, 1.25)
    canvas.shade(x1 - 1, y0, x1, y1, 0.6)
    canvas.shade(x1, y0 + 1, x1 + 2, y1 + 1, 0.7, 1.0, axis=1)


def awning(canvas: Canvas, x0: int, y0: int, x1: int, y1: int) -> None:
    """A striped awning and its shadow."""
    canvas.label("awning", x0, y0, x1, y1)
    for stripe, x in enumerate(range(x0, x1, 6)):
        colour = (200, 52, 48) if stripe % 2 == 0 else (240, 234, 222)
        canvas.fill(x, y0, min(x1, x + 6), y1, colour)
    canvas.shade(x0, y0, x1, y1, 1.1, 0.78)
    canvas.shade(x0, y1, x1, y1 + 9, 0.45, 1.0)


def bush(canvas: Canvas, x0: int, y0: int, x1: int, y1: int) -> None:
    """An elliptic bush, lit from the upper left."""
    canvas.label_ellipse("bush", x0, y0, x1, y1)
    area = canvas.region(x0, y0, min(x1, SIZE), min(y1, SIZE))
    h, w = area.shape[:2]
    y, x = np.mgrid[:h, :w].astype(np.float32)
    radius = ((x / w - 0.5) ** 2 + (y / ((y1 - y0) * SCALE) - 0.5) ** 2) * 4
    light = (1.35 - 0.7 * (y / h * 0.6 + x / w * 0.4))[..., None]
    green = np.array([58, 110, 44], np.float32) * light + noise(canvas.rng, h, w, 3 * SCALE)[..., None] * 70
    inside = radius < 1
    area[inside] = green[inside]


def roof(canvas: Canvas, x0: int, y0: int, x1: int, y1: int) -> None:
    """A slated roof, drawn from ``y0`` even if that is above the picture (its texture then is not)."""
    canvas.label("roof", x0, y0, x1, y1)
    canvas.fill(x0, y0, x1, y1, (92, 72, 84), rough(canvas.rng, 12, 4))
    for course, y in enumerate(range(y0, y1, 4)):
        canvas.shade(x0, y + 3, x1, min(y1, y + 4), 0.62)
        for x in range(x0 + (course % 2) * 4, x1, 8):
            canvas.shade(x, y, x + 1, min(y1, y + 3), 0.7)
    canvas.shade(x0, y0, x1, y1, 1.18, 0.88)


def chimney(canvas: Canvas, x0: int, y0: int, x1: int, y1: int) -> None:
    """A brick chimney with a pale top; its right third lies in the shade."""
    colour = (140, 66, 50)
    canvas.label("chimney", x0, y0, x1, y1)
    y0 = max(0, y0)
    canvas.fill(x0, y0, x1, y1, colour, bricks(canvas.rng, colour))
    canvas.fill(x0 - 1, y0, x1 + 1, y0 + 2, (190, 180, 170))
    canvas.shade(x0 + (x1 - x0) * 2 // 3, y0, x1, y1, 0.72)
