"""Which pixels of its source a row of an implicit GEMM reads, and which a border repeats."""

from __future__ import annotations

from ..jit import inlined, int32
from ..ptx.simt import quotient
from .parameters import REFLECT, ZEROS, Grid, Source, Window

COLUMN_BITS = 16  # of a mask of taps: a bit for each row of taps below, for each column of taps from this bit on


@inlined
def taps_of(pixel: int, exists: bool, py: int, px: int, source: Source, window: Window, grid: Grid) -> tuple[int, int]:
    """What the grid's pixel number `pixel` reads in phase (py, px): (pixel of the first tap, mask of taps inside).

    The first tap may lie outside the source. The mask has the rows and columns of taps that lie inside; it is 0 unless
    the pixel `exists`.
    """
    line = quotient(pixel, grid.w)
    image = quotient(line, grid.h)
    y = int32(window.y.stride * (line - image * grid.h) + (window.y.first2 if py else window.y.first))
    x = int32(window.x.stride * (pixel - line * grid.w) + (window.x.first2 if px else window.x.first))
    first = (image * source.h + y) * source.w + x
    inside = int32(0)
    if exists:
        for i in range(window.y.taps2 if py else window.y.taps):
            inside |= int32(0 <= y + i and y + i < source.h) << i
        for i in range(window.x.taps2 if px else window.x.taps):
            inside |= int32(0 <= x + i and x + i < source.w) << (i + COLUMN_BITS)
    return first, inside


@inlined
def inner(at: int, size: int, fill: int) -> int:
    """The place within `size` pixels whose value the place `at`, in a border or within, has; `at` itself with ZEROS."""
    last = int32(size - 1)
    if fill == REFLECT:
        at = int32(min(int32(abs(at)), int32(2 * last - int32(abs(at)))))
    return int32(at if fill == ZEROS else int32(max(0, int32(min(at, last)))))
