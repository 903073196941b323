"""Which pixels of its source a row of an implicit GEMM reads: what products of rows share."""

from __future__ import annotations

from ..jit import inlined, int32
from ..ptx.simt import quotient
from .parameters import Grid, Source, Window

COLUMN_BITS = 16  # of a mask of taps: a bit for each row of taps below, for each column of taps from this bit on


@inlined
def taps_of(pixel: int, exists: bool, py: int, px: int, source: Source, window: Window, grid: Grid) -> tuple[int, int]:
    """What the grid's pixel number `pixel` reads in phase (py, px): (pixel of the first tap, mask of taps inside).

    The first tap may lie outside the source. The mask has the rows and columns of taps that lie inside; it is 0 unless
    the pixel `exists`.
    """
    line = quotient(pixel, grid.w)
    image = quotient(line, grid.h)
    y = int32(window.stride_h * (line - image * grid.h) - window.padding + py)
    x = int32(window.stride_w * (pixel - line * grid.w) - window.padding + px)
    first = (image * source.h + y) * source.w + x
    inside, dilation = int32(0), window.dilation
    if exists:
        for i in range(window.kernel_h):
            inside |= int32(0 <= y + dilation * i and y + dilation * i < source.h) << i
        for i in range(window.kernel_w):
            inside |= int32(0 <= x + dilation * i and x + dilation * i < source.w) << (i + COLUMN_BITS)
    return first, inside
