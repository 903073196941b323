"""CUDA kernels that move maps and pictures: no arithmetic to speak of, all bound by memory.

A map is float32 (N,H,W,stride) of which a layer has some channels, padded with zeros to a multiple of 8: a skip and
what it is concatenated with lie side by side in one map. All loops are over elements in steps of the grid.
"""

from __future__ import annotations

from typing import Any

from numba import cuda, float32

from ..jit import kernel
from ..ptx.simt import load4, store4

ZERO = float32(0)


def make_from_picture(threads: int) -> Any:
    """8-bit pictures -> maps."""

    @kernel(threads)
    def from_picture(b, out, pixels, channels, stride):
        """out (pixels, stride) = b (pixels, channels) / 255 * 2 - 1, zeros in the padding; as reference.to_float."""
        for pixel in range(cuda.grid(1), pixels, cuda.gridsize(1)):
            for c in range(stride):
                v = ZERO
                if c < channels:
                    v = float32(b[pixel * channels + c]) / float32(255) * float32(2) - float32(1)
                out[pixel * stride + c] = v

    return from_picture


def make_copy_channels(threads: int) -> Any:
    """Rows of channels from one array to another: given and asked-for layers, constants, skips."""

    @kernel(threads)
    def copy_channels(source, out, rows, period, channels, stride, first, width, out_stride, out_first):
        """out[r, out_first + c] = source[r % period, first + c] for r < rows, c < width; zeros from `channels` on.

        source (period, stride), out (rows, out_stride).
        """
        for i in range(cuda.grid(1), rows * width, cuda.gridsize(1)):
            row = i // width
            c = i - row * width
            v = ZERO
            if c < channels:
                v = source[row % period * stride + first + c]
            out[row * out_stride + out_first + c] = v

    return copy_channels


def make_add_splits(threads: int) -> Any:
    """What the blocks that shared a sum have added up, added in order, into a map."""

    @kernel(threads)
    def add_splits(partial, bias, out, rows, grid_w, columns, parities, splits, out_stride, out_first):
        """out = sum over s of partial[s] + bias. partial (splits, parities, rows, columns); out as gemm writes it."""
        unit = 2 if parities > 1 else 1
        runs = columns // 4
        for i in range(cuda.grid(1), parities * rows * runs, cuda.gridsize(1)):
            at = i // runs
            column = (i - at * runs) * 4
            total = load4(bias, column)
            for s in range(splits):
                v = load4(partial, (s * parities * rows + at) * columns + column)
                total = (total[0] + v[0], total[1] + v[1], total[2] + v[2], total[3] + v[3])
            parity = at // rows
            row = at - parity * rows
            line = row // grid_w
            pixel = ((line * unit + parity // 2) * grid_w + row - line * grid_w) * unit + parity % 2
            store4(out, pixel * out_stride + out_first + column, total)

    return add_splits


def make_insert_zeros(threads: int) -> Any:
    """The map whose plain convolution is a transposed one: zeros between pixels ("inside padding") and around them."""

    @kernel(threads)
    def insert_zeros(a, out, images, h, w, stride, first, channels, joined, slope_1, slope_2):
        """out (N, 2h+3, 2w+3, channels): a's pixel (y, x), activated, at (2y+2, 2x+2), zeros elsewhere."""
        runs, out_h, out_w = channels // 4, 2 * h + 3, 2 * w + 3
        for i in range(cuda.grid(1), images * out_h * out_w * runs, cuda.gridsize(1)):
            pixel = i // runs
            c = (i - pixel * runs) * 4
            line = pixel // out_w
            image = line // out_h
            y, x = line - image * out_h, pixel - line * out_w
            v = (ZERO, ZERO, ZERO, ZERO)
            if y % 2 == 0 and x % 2 == 0 and 2 <= y and y < 2 * h + 2 and 2 <= x and x < 2 * w + 2:
                v = load4(a, ((image * h + y // 2 - 1) * w + x // 2 - 1) * stride + first + c)
                s = slope_1 if c < joined else slope_2
                v = (max(v[0], v[0] * s), max(v[1], v[1] * s), max(v[2], v[2] * s), max(v[3], v[3] * s))
            store4(out, pixel * channels + c, v)

    return insert_zeros


def make_im2col(threads: int) -> Any:
    """Some rows of the matrix of patches, for the plan that builds it."""

    @kernel(threads)
    def im2col(
        a, out, first_row, rows, h, w, stride, first, channels, joined, slope_1, slope_2, zoom, origin, grid_h, grid_w
    ):
        """out (rows, 16 * channels): row r is the activated 4x4 patch of pixel first_row + r of grid_h x grid_w.

        The patch of pixel (y, x) begins at (zoom * y + origin, zoom * x + origin) of a (N, h, w, stride).
        """
        runs = channels // 4
        for i in range(cuda.grid(1), rows * 16 * runs, cuda.gridsize(1)):
            at = i // runs
            c = (i - at * runs) * 4
            tap, pixel = at % 16, first_row + at // 16
            line = pixel // grid_w
            image = line // grid_h
            y = zoom * (line - image * grid_h) + origin + tap // 4
            x = zoom * (pixel - line * grid_w) + origin + tap % 4
            v = (ZERO, ZERO, ZERO, ZERO)
            if 0 <= y and y < h and 0 <= x and x < w:
                v = load4(a, ((image * h + y) * w + x) * stride + first + c)
                s = slope_1 if c < joined else slope_2
                v = (max(v[0], v[0] * s), max(v[1], v[1] * s), max(v[2], v[2] * s), max(v[3], v[3] * s))
            store4(out, i * 4, v)

    return im2col
