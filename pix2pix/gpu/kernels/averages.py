"""CUDA kernel of averages that leave their padding out: bound by memory.

A product sums the taps of such a filter over a map padded with zeros. Each sum is then divided by the taps that lay
inside the map.
"""

from __future__ import annotations

from typing import Any

from numba import cuda, float32

from ..jit import Array, kernel
from ..ptx.simt import load4, store4
from .parameters import Gemm

ZERO, ONE = float32(0), float32(1)


def make_average_sums(threads: int) -> Any:
    """Partial sums of a depthwise filter, as if the padding were not there."""

    @kernel(threads)
    def average_sums(partial: Array, taps: Array, gemm: Gemm) -> None:
        """partial /= (sum of the taps inside along y) * (sum of those along x).

        partial (splits, grid.rows, columns), float32: sums for the pixels (h, w) of images. taps (window.y.taps),
        float32: those along either axis, over their sum. A tap is inside if it reads a pixel of the source.
        """
        source, window, grid = gemm.source, gemm.window, gemm.grid
        chunks = gemm.columns // 4
        for i in range(cuda.grid(1), gemm.splits * grid.rows * chunks, cuda.gridsize(1)):
            line = i // chunks // grid.w
            y = window.y.stride * (line % grid.h) + window.y.first
            x = window.x.stride * (i // chunks - line * grid.w) + window.x.first
            inside_y, inside_x = ZERO, ZERO
            for tap in range(window.y.taps):
                if 0 <= y + tap and y + tap < source.h:
                    inside_y += taps[tap]
                if 0 <= x + tap and x + tap < source.w:
                    inside_x += taps[tap]
            share = ONE / (inside_y * inside_x)
            a, b, c, d = load4(partial, i * 4)
            store4(partial, i * 4, (a * share, b * share, c * share, d * share))

    return average_sums
