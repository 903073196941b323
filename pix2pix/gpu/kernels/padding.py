"""CUDA kernels that pad and enlarge maps for their readers, and add residuals: bound by memory.

Each pixel of a reader's map looks up the pixel that it repeats, or the four that it lies between, so that products read
borders and enlarged maps as they read anything else.
"""

from __future__ import annotations

from typing import Any

from numba import cuda, float32

from ..jit import ALIGNMENT, Array, int32, kernel
from ..ptx.fragments import VECTOR
from ..ptx.packed_words import VECTOR_WORDS
from ..ptx.simt import quotient
from ..ptx.vectors import add8, fill8, leaky_relu8, load8, multiply8, pack8, round8, unpack8
from .gather import inner
from .normalise import Share, write_scale_and_shift
from .parameters import Norm, Padding, Resizing

ZERO, ONE = float32(0), float32(1)


def make_pad_map(lanes: int, rows: int, kind: int, normalises: bool) -> Any:
    """What follows a product where a reader's map is padded or enlarged, or a residual is added.

    Launch as normalise_map.
    """
    KIND, LANES, ROWS, WORDS, NORMALISES = kind, lanes, rows, VECTOR_WORDS[kind], normalises
    COLUMNS = lanes * VECTOR
    SCALE, SHIFT, SHARED = rows * COLUMNS, rows * COLUMNS + COLUMNS, rows * COLUMNS + 2 * COLUMNS

    @kernel(lanes * rows)
    def pad_map(
        a: Array, statistics: Array, affine: Array, residual: Array, out: Array, shape: Norm, padding: Padding
    ) -> None:
        """out = leaky_relu(norm(a) + residual), padded and enlarged as padding.frame says.

        a: packed words (images, h, w, columns), without activation. residual: packed words (images, h + 2 * border, w +
        2 * border, stride). out: packed words (images, factor * h + 2 * border, factor * w + 2 * border, stride), or
        `a` itself in its own layout. The norm is by statistics, as in normalise_map, or else by gamma and beta alone.
        """
        shared = cuda.shared.array(SHARED, float32, ALIGNMENT)
        thread, first_column, image = cuda.threadIdx.x, cuda.blockIdx.x * COLUMNS, cuda.blockIdx.z
        if NORMALISES:
            share = Share(LANES, ROWS, thread, first_column, image)
            write_scale_and_shift(statistics, affine, shared, shape, share)
        frame, target, source = padding.frame, padding.target, padding.residual
        lane, row = thread % LANES, thread // LANES
        h, w, factor, border, columns = frame.h, frame.w, frame.factor, frame.border, shape.columns
        column = first_column + lane * VECTOR
        if column < columns:
            if NORMALISES:
                scale, shift = load8(shared, SCALE + lane * VECTOR), load8(shared, SHIFT + lane * VECTOR)
            else:
                scale, shift = load8(affine, columns + column), load8(affine, 2 * columns + column)
            word, stride = column // VECTOR * WORDS, columns // VECTOR * WORDS
            out_w, source_w = w * factor + 2 * border, w + 2 * source.border
            pixels, source_h = (h * factor + 2 * border) * out_w, h + 2 * source.border
            part = (pixels + cuda.gridDim.y - 1) // cuda.gridDim.y
            begin = cuda.blockIdx.y * part
            for pixel in range(begin + row, min(begin + part, pixels), ROWS):
                line = quotient(pixel, out_w)
                y = quotient(inner(int32(line - border), h * factor, frame.fill), factor)
                x = quotient(inner(int32(pixel - line * out_w - border), w * factor, frame.fill), factor)
                v = add8(multiply8(unpack8(a, ((image * h + y) * w + x) * stride + word, KIND), scale), shift)
                if source.stride:
                    at = ((image * source_h + y + source.border) * source_w + x + source.border) * source.stride
                    v = add8(v, unpack8(residual, at + source.first + word, KIND))
                v = leaky_relu8(round8(v, KIND), target.slope)
                pack8(out, (image * pixels + pixel) * target.stride + target.first + word, v, KIND)

    return pad_map


def make_resize_map(lanes: int, rows: int, kind: int) -> Any:
    """Bilinear upsampling. Launch as normalise_map."""
    KIND, LANES, ROWS, WORDS, COLUMNS = kind, lanes, rows, VECTOR_WORDS[kind], lanes * VECTOR

    @kernel(lanes * rows)
    def resize_map(a: Array, out: Array, resizing: Resizing) -> None:
        """out = leaky_relu(a) at places between a's pixels, padded as resizing.frame says.

        a: packed words (images, h, w, words), without activation. out: packed words (images, factor * h + 2 * border,
        factor * w + 2 * border, stride). y = (1 - s) * (row above) + s * (row below), and the same along rows.
        """
        frame, target, words = resizing.frame, resizing.target, resizing.words
        thread = cuda.threadIdx.x
        lane, row = thread % LANES, thread // LANES
        h, w, factor, border = frame.h, frame.w, frame.factor, frame.border
        word = (cuda.blockIdx.x * COLUMNS // VECTOR + lane) * WORDS
        image = cuda.blockIdx.z
        if word < words:
            out_w = w * factor + 2 * border
            pixels = (h * factor + 2 * border) * out_w
            part = (pixels + cuda.gridDim.y - 1) // cuda.gridDim.y
            begin = cuda.blockIdx.y * part
            for pixel in range(begin + row, min(begin + part, pixels), ROWS):
                line = quotient(pixel, out_w)
                y = inner(int32(line - border), h * factor, frame.fill)
                x = inner(int32(pixel - line * out_w - border), w * factor, frame.fill)
                at_y = max(float32(y) * resizing.step_y + resizing.offset, ZERO)
                at_x = max(float32(x) * resizing.step_x + resizing.offset, ZERO)
                top, left = int32(min(int32(at_y), h - 1)), int32(min(int32(at_x), w - 1))
                below, right = float32(at_y - float32(top)), float32(at_x - float32(left))
                total = fill8(ZERO)
                for corner in range(4):
                    i, j = corner // 2, corner % 2
                    share_y, share_x = below if i else ONE - below, right if j else ONE - right
                    from_y, from_x = min(top + i, h - 1), min(left + j, w - 1)
                    v = unpack8(a, ((image * h + from_y) * w + from_x) * words + word, KIND)
                    v = leaky_relu8(v, target.slope)
                    total = add8(total, multiply8(v, fill8(float32(share_y * share_x))))
                pack8(out, (image * pixels + pixel) * target.stride + target.first + word, total, KIND)

    return resize_map
