"""Draws facades: pairs of labels and the picture that they stand for, from a seed.

The embedded model was trained on seeds 1000 to 3999; seeds below 1000 are pictures that it has never seen. The order
in which random numbers are taken is part of the format: another order would be other pictures.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from . import parts
from .canvas import SCALE, SIZE, WALL_COLOURS, Canvas, noise, rough

TRAINING_SEEDS = range(1000, 4000)


@dataclass(frozen=True, slots=True)
class House:
    """Where the house stands, in pixels, and what it is built of. ``roof`` is a height, 0 for a flat one."""

    left: int
    right: int
    top: int
    ground: int
    material: str
    roof: int


@dataclass(frozen=True, slots=True)
class Front:
    """How the wall is divided: floors and columns of windows, their sizes in pixels, and what goes with them."""

    floors: int
    columns: int
    floor_height: int
    column_width: int
    shop: bool
    string_courses: bool
    window_width: int
    window_height: int
    shutters: bool
    balconies: bool
    door_column: int
    cornice: int


def facade(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """The pair of a seed: (labels, picture), each uint8 (256, 256, 3)."""
    canvas = Canvas(np.random.default_rng(seed))
    _sky(canvas)
    ground = _street(canvas)
    house = _choose_house(canvas.rng, ground)
    if house.roof:
        _roof(canvas, house)
    parts.wall(canvas, house.material, house.left, house.top, house.right, house.ground)
    front = _divide(canvas, house)
    _cornices(canvas, house, front)
    for floor in range(front.floors):
        for column in range(front.columns):
            _bay(canvas, house, front, floor, column)
    _edges(canvas, house)
    _bushes(canvas, ground)
    return canvas.pair()


def _chance(rng: np.random.Generator, probability: float) -> bool:
    return bool(rng.random() < probability)


def _sky(canvas: Canvas) -> None:
    """Blue, paler towards the horizon, with clouds."""
    size = canvas.rgb.shape[0]
    height = np.linspace(0, 1, size, dtype=np.float32)[:, None, None]
    zenith, horizon = np.array([104, 158, 222], np.float32), np.array([222, 232, 240], np.float32)
    canvas.rgb[:] = (1 - height) * zenith + height * horizon
    large = noise(canvas.rng, size, size, 40 * SCALE)
    clouds = np.clip(large + 0.5 * noise(canvas.rng, size, size, 15 * SCALE), 0, 1)[..., None] * 1.3
    canvas.rgb += clouds * (250 - canvas.rgb)


def _street(canvas: Canvas) -> int:
    """The pavement; returns the row at which it starts."""
    rng = canvas.rng
    ground = int(rng.integers(226, 242))
    canvas.label("ground", 0, ground, SIZE, SIZE)
    canvas.fill(0, ground, SIZE, SIZE, (128, 126, 124), rough(rng, 18, 4))
    canvas.fill(0, ground, SIZE, ground + 4, (176, 172, 166))
    canvas.shade(0, ground + 4, SIZE, ground + 6, 0.6)
    return ground


def _choose_house(rng: np.random.Generator, ground: int) -> House:
    left = int(rng.integers(6, 40)) if _chance(rng, 0.8) else 0
    right = SIZE - (int(rng.integers(6, 40)) if _chance(rng, 0.8) else 0)
    top = int(rng.integers(30, 90))
    material = str(rng.choice(list(WALL_COLOURS)))
    roof = int(rng.integers(12, 34)) if _chance(rng, 0.75) else 0
    return House(left, right, top, ground, material, roof)


def _roof(canvas: Canvas, house: House) -> None:
    """Up to two chimneys, and the roof in front of them."""
    rng = canvas.rng
    ridge = house.top - house.roof
    for _ in range(int(rng.integers(0, 3))):
        x = int(rng.integers(house.left + 8, house.right - 20))
        height = int(rng.integers(8, 16))
        width = int(rng.integers(8, 15))
        parts.chimney(canvas, x, ridge - height, x + width, house.top)
    parts.roof(canvas, max(0, house.left - 3), ridge, min(SIZE, house.right + 3), house.top)


def _divide(canvas: Canvas, house: House) -> Front:
    """Choose the divisions of the wall. A ground floor of another material is drawn on the way."""
    rng = canvas.rng
    floors, columns = int(rng.integers(2, 5)), int(rng.integers(2, 6))
    shop = _chance(rng, 0.35)
    floor_height, column_width = (house.ground - house.top) // floors, (house.right - house.left) // columns
    base = house.material if _chance(rng, 0.5) else str(rng.choice(list(WALL_COLOURS)))
    if base != house.material:
        parts.wall(canvas, base, house.left, house.ground - floor_height, house.right, house.ground)
    string_courses = _chance(rng, 0.5)
    window_width = int(np.clip(column_width * rng.uniform(0.36, 0.6), 10, 44))
    window_height = int(np.clip(floor_height * rng.uniform(0.45, 0.68), 14, 60))
    return Front(
        floors,
        columns,
        floor_height,
        column_width,
        shop,
        string_courses,
        window_width,
        window_height,
        shutters=_chance(rng, 0.35) and column_width - window_width > 16,
        balconies=_chance(rng, 0.4),
        door_column=int(rng.integers(0, columns)),
        cornice=int(rng.integers(5, 11)),
    )


def _cornices(canvas: Canvas, house: House, front: Front) -> None:
    """The one below the roof, and those between floors."""
    left, right = max(0, house.left - 2), min(SIZE, house.right + 2)
    parts.cornice(canvas, left, house.top, right, house.top + front.cornice)
    for floor in range(1, front.floors):
        above_ground_floor = floor == front.floors - 1
        if front.string_courses or (above_ground_floor and _chance(canvas.rng, 0.7)):
            y = house.top + floor * front.floor_height - 2
            parts.cornice(canvas, house.left, y, house.right, y + int(canvas.rng.integers(4, 7)))


def _bay(canvas: Canvas, house: House, front: Front, floor: int, column: int) -> None:
    """What one column has on one floor; floors are counted from the top."""
    x = house.left + column * front.column_width + front.column_width // 2
    if floor == front.floors - 1:
        if column == front.door_column:
            half = int(np.clip(front.column_width * 0.45, 14, 34)) // 2
            height = int(np.clip(front.floor_height * 0.78, 24, 70))
            parts.door(canvas, x - half, house.ground - height, x + half, house.ground)
            return
        if front.shop:
            _shop_window(canvas, house, front, x)
            return
    if not _chance(canvas.rng, 0.06):
        _windows(canvas, house, front, floor, x)


def _shop_window(canvas: Canvas, house: House, front: Front, x: int) -> None:
    half = int(front.column_width * 0.8) // 2
    y = house.ground - int(front.floor_height * 0.68)
    parts.window(canvas, x - half, y + 8, x + half, house.ground - 8)
    parts.awning(canvas, x - half - 2, y, x + half + 2, y + 9)


def _windows(canvas: Canvas, house: House, front: Front, floor: int, x: int) -> None:
    """A window centred at ``x``, with its shutters and balcony, if there is room for one."""
    above = front.cornice if floor == 0 else 6
    height = min(front.window_height, front.floor_height - above - 8)
    if height < 12:
        return
    half = front.window_width // 2
    y0 = house.top + floor * front.floor_height + above + max(2, (front.floor_height - above - height) // 2 - 1)
    y1 = y0 + height
    parts.window(canvas, x - half, y0, x + half, y1)
    if front.shutters:
        width = min(9, (front.column_width - front.window_width) // 2 - 3)
        parts.shutter(canvas, x - half - width - 1, y0, x - half - 1, y1)
        parts.shutter(canvas, x + half + 1, y0, x + half + width + 1, y1)
    fits = y1 + 3 < house.top + (floor + 1) * front.floor_height
    if front.balconies and 0 < floor < front.floors - 1 and fits:
        parts.balcony(canvas, x - half - 5, y1 - 12, x + half + 5, y1 + 3)


def _edges(canvas: Canvas, house: House) -> None:
    """Light on the left edge of the wall, shade on the right one and on the pavement beside it."""
    canvas.shade(house.left, house.top, house.left + 2, house.ground, 1.08)
    canvas.shade(house.right - 3, house.top, house.right, house.ground, 1.0, 0.75, axis=1)
    if house.right < SIZE:
        canvas.shade(house.right, house.ground, min(SIZE, house.right + 20), house.ground + 4, 0.7)


def _bushes(canvas: Canvas, ground: int) -> None:
    rng = canvas.rng
    for _ in range(int(rng.integers(0, 4))):
        width = int(rng.integers(16, 40))
        height = int(width * rng.uniform(0.7, 1.1))
        x = int(rng.integers(0, SIZE - width))
        parts.bush(canvas, x, ground + 6 - height, x + width, ground + 6)
