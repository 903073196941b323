"""CUDA kernels of the readable route: zero insertion for transposed convolutions, and the im2col matrix.

The course's route: a transposed convolution becomes a convolution of a map with zeros inserted; a convolution becomes
a plain product with the matrix of its patches.
"""

from __future__ import annotations

from typing import Any

from numba import cuda, float32

from ..jit import Array, kernel
from ..ptx.simt import load4, store4
from .parameters import Grid, Inserted, Source, Window

ZERO = float32(0)


def make_insert_zeros(threads: int) -> Any:
    """The map whose convolution of stride 1 without padding is a transposed convolution."""

    @kernel(threads)
    def insert_zeros(a: Array, out: Array, images: int, source: Source, inserted: Inserted) -> None:
        """out (images, inserted.h, inserted.w, words) = a's pixels where `inserted` says, zeros elsewhere.

        a: maps (images, h, w, words), float32.
        """
        h, w, words = source.h, source.w, source.words
        stride, chunks, out_h, out_w = inserted.stride, words // 4, inserted.h, inserted.w
        for i in range(cuda.grid(1), images * out_h * out_w * chunks, cuda.gridsize(1)):
            pixel = i // chunks
            c = (i - pixel * chunks) * 4
            line = pixel // out_w
            image = line // out_h
            y, x = line - image * out_h - inserted.top, pixel - line * out_w - inserted.left
            i, j = y // stride, x // stride
            v = (ZERO, ZERO, ZERO, ZERO)
            if i * stride == y and j * stride == x and 0 <= i and i < h and 0 <= j and j < w:
                v = load4(a, ((image * h + i) * w + j) * words + c)
            store4(out, pixel * words + c, v)

    return insert_zeros


def make_im2col(threads: int) -> Any:
    """Some rows of the im2col matrix."""

    @kernel(threads)
    def im2col(a: Array, out: Array, first_row: int, rows: int, source: Source, window: Window, grid: Grid) -> None:
        """out (rows, taps * words): row r holds what the window reads for pixel first_row + r of the grid.

        a: maps (images, h, w, words), float32. The kernel writes zeros for what lies outside.
        """
        words, taps, kernel_w = source.words, window.y.taps * window.x.taps, window.x.taps
        chunks = words // 4
        for i in range(cuda.grid(1), rows * taps * chunks, cuda.gridsize(1)):
            at = i // chunks
            c = (i - at * chunks) * 4
            tap, pixel = at % taps, first_row + at // taps
            line = pixel // grid.w
            image = line // grid.h
            y = window.y.stride * (line - image * grid.h) + window.y.first + tap // kernel_w
            x = window.x.stride * (pixel - line * grid.w) + window.x.first + tap % kernel_w
            v = (ZERO, ZERO, ZERO, ZERO)
            if 0 <= y and y < source.h and 0 <= x and x < source.w:
                v = load4(a, ((image * source.h + y) * source.w + x) * words + c)
            store4(out, i * 4, v)

    return im2col
