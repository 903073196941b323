"""CUDA kernels around the product on tensor cores: maps in words of a lower precision, normalised and activated.

A map holds a layer's value as another layer reads it: activated, in the words of a kind (:mod:`pix2pix.gpu.ptx.mma`), side
by side with what it is concatenated with. Arithmetic is in float32; a value is rounded before it is activated, and
again after it, so that it is the same whether it comes from here or was given. Statistics have a fixed order.

Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983, for the combination.
"""

from __future__ import annotations

import math
from typing import Any

from numba import cuda, float32

from ..ptx.mma import (
    add8,
    fill8,
    leaky8,
    load8,
    load_word,
    multiply8,
    pack,
    put8,
    round8,
    store8,
    store_word,
    subtract8,
    unpack,
    unpack8,
)
from ..ptx.packed_words import ELEMENTS, RUN, RUN_WORDS
from .common import ALIGNMENT, int32, kernel, quotient

ZERO, ONE = float32(0), float32(1)
MAPS, NORMALISED, STATISTICS = range(3)  # what a kernel leaves behind


def make_write_map(threads: int, kind: int, as_bytes: bool) -> Any:
    """A layer's value, or pictures of bytes, into a map."""
    PER_WORD = ELEMENTS[kind]

    @kernel(threads)
    def write_map(value, out, images, period, h, w, channels, border, width, stride, first, slope):
        """out's words [first, first + width) of every pixel = leaky(value), zeros from `channels` on and in the border.

        value (period, h, w, channels), float32 or pictures' bytes: image i is value[i % period]. out: words (images,
        h + 2 * border, w + 2 * border, stride).
        """
        out_h, out_w = h + 2 * border, w + 2 * border
        for i in range(cuda.grid(1), images * out_h * out_w * width, cuda.gridsize(1)):
            pixel = i // width
            c = (i - pixel * width) * PER_WORD
            line = pixel // out_w
            image = line // out_h
            y, x = line - image * out_h - border, pixel - line * out_w - border
            low, high = ZERO, ZERO
            if 0 <= y and y < h and 0 <= x and x < w:
                at = ((image % period * h + y) * w + x) * channels + c
                if c < channels:
                    low = float32(value[at])
                    if as_bytes:
                        low = low / float32(255) * float32(2) - ONE
                if PER_WORD == 2 and c + 1 < channels:
                    high = float32(value[at + 1])
                    if as_bytes:
                        high = high / float32(255) * float32(2) - ONE
            word = pack(max(low, low * slope), max(high, high * slope), kind)
            store_word(out, pixel * stride + first + i - pixel * width, word)

    return write_map


def make_read_map(threads: int, kind: int) -> Any:
    """A map's words as float32."""
    PER_WORD = ELEMENTS[kind]

    @kernel(threads)
    def read_map(a, out, pixels, channels, stride, first):
        """out (pixels, channels), float32 = `channels` elements of a's words (pixels, stride), from word `first` on."""
        width = (channels + PER_WORD - 1) // PER_WORD
        for i in range(cuda.grid(1), pixels * width, cuda.gridsize(1)):
            pixel = i // width
            word = i - pixel * width
            low, high = unpack(load_word(a, pixel * stride + first + word), kind)
            c = word * PER_WORD
            out[pixel * channels + c] = low
            if PER_WORD == 2 and c + 1 < channels:
                out[pixel * channels + c + 1] = high

    return read_map


def make_normalise_map(lanes: int, rows: int, kind: int) -> Any:
    """Normalise maps whose tiles' statistics there are, and write them for those who read them.

    Launch blocks of lanes * rows in a grid of (channels / RUN / lanes, parts of the map, images).
    """
    KIND, LANES, ROWS, RUN_SIZE = kind, lanes, rows, RUN_WORDS[kind]
    THREADS, COLUMNS = lanes * rows, lanes * RUN
    SCALE, SHIFT, SHARED = THREADS * RUN, THREADS * RUN + COLUMNS, THREADS * RUN + 2 * COLUMNS

    @kernel(lanes * rows)
    def normalise_map(
        statistics,
        gamma,
        beta,
        out,
        also,
        pixels,
        parities,
        tiles,
        tile,
        columns,
        eps,
        out_stride,
        out_first,
        out_slope,
        also_stride,
        also_first,
        also_slope,
    ):
        """out = also = (out - mean) / sqrt(variance + eps) * gamma + beta, through leaky ReLUs of their own.

        out, also: words (images, pixels, stride) from word `first`; `also` only if its stride isn't 0. statistics
        (images, parities * tiles, 2, columns): of each tile of `tile` pixels, the last of a parity's has what is left,
        the mean and the sum of squared deviations from it.
        """
        shared = cuda.shared.array(SHARED, float32, ALIGNMENT)
        thread = cuda.threadIdx.x
        lane, row = thread % LANES, thread // LANES
        first_column = cuda.blockIdx.x * COLUMNS
        column = first_column + lane * RUN
        image, parts = cuda.blockIdx.z, parities * tiles
        for moment in range(2):
            total = fill8(ZERO)
            if column < columns:
                for part in range(row, parts, ROWS):
                    count = float32(min(tile, pixels // parities - part % tiles * tile))
                    at = (image * parts + part) * 2 * columns + column
                    v = load8(statistics, at)
                    if moment == 1:
                        v = subtract8(v, load8(shared, SHIFT + lane * RUN))
                        v = multiply8(v, v)
                    v = multiply8(v, fill8(count))
                    if moment == 1:
                        v = add8(v, load8(statistics, at + columns))
                    total = add8(total, v)
            store8(shared, thread * RUN, total)
            cuda.syncthreads()
            for c in range(thread, min(COLUMNS, columns - first_column), THREADS):
                value = ZERO
                for r in range(ROWS):
                    value += shared[r * COLUMNS + c]
                value /= float32(pixels)
                if moment == 0:
                    shared[SHIFT + c] = value
                else:
                    scale = gamma[first_column + c] * (ONE / math.sqrt(value + eps))
                    shared[SCALE + c] = scale
                    shared[SHIFT + c] = beta[first_column + c] - shared[SHIFT + c] * scale
            cuda.syncthreads()
        if column < columns:
            scale, shift = load8(shared, SCALE + lane * RUN), load8(shared, SHIFT + lane * RUN)
            word = column // RUN * RUN_SIZE
            share = (pixels + cuda.gridDim.y - 1) // cuda.gridDim.y
            begin = cuda.blockIdx.y * share
            for pixel in range(begin + row, min(begin + share, pixels), ROWS):
                at = image * pixels + pixel
                v = unpack8(out, at * out_stride + out_first + word, KIND)
                v = round8(add8(multiply8(v, scale), shift), KIND)
                put8(out, at * out_stride + out_first + word, leaky8(v, out_slope), KIND)
                if also_stride:
                    put8(also, at * also_stride + also_first + word, leaky8(v, also_slope), KIND)

    return normalise_map


def make_finish_map(lanes: int, rows: int, kind: int, leaves: int) -> Any:
    """Maps from sums that blocks of the product have shared, which leaves MAPS, NORMALISED ones or STATISTICS too.

    Launch blocks of lanes * rows in a grid of (channels / RUN / lanes, parts of the map, images); for NORMALISED maps,
    which are those of one part, one block sees the whole of its channels.
    """
    KIND, LANES, ROWS, RUN_SIZE = kind, lanes, rows, RUN_WORDS[kind]
    THREADS, COLUMNS = lanes * rows, lanes * RUN
    MEAN, SHARED = THREADS * RUN, THREADS * RUN + COLUMNS
    NORMALISES, HAS_STATISTICS = leaves == NORMALISED, leaves == STATISTICS
    MOMENTS = 0 if leaves == MAPS else 2

    @kernel(lanes * rows)
    def finish_map(
        partial,
        bias,
        gamma,
        beta,
        out,
        also,
        statistics,
        grid_h,
        grid_w,
        parities,
        splits,
        columns,
        share,
        eps,
        out_stride,
        out_first,
        out_slope,
        also_stride,
        also_first,
        also_slope,
    ):
        """out = also = norm(bias + sum over s of partial[s]), through leaky ReLUs of their own.

        partial (splits, parities, images * grid_h * grid_w, columns), float32; its first split is overwritten. Parts
        are of `share` pixels, in the order of partial. out, also and statistics (images, parts, 2, columns): as the
        product leaves them.
        """
        shared = cuda.shared.array(SHARED, float32, ALIGNMENT)
        thread = int32(cuda.threadIdx.x)
        lane, row = thread % LANES, thread // LANES
        first_column = int32(cuda.blockIdx.x * COLUMNS)
        column = int32(first_column + lane * RUN)
        image, grid = int32(cuda.blockIdx.z), int32(grid_h * grid_w)
        every = int32(grid * cuda.gridDim.z)
        begin = int32(cuda.blockIdx.y * share)
        end = int32(min(begin + share, parities * grid))
        mean, scale = fill8(ZERO), fill8(ONE)
        if column < columns:
            for at in range(begin + row, end, ROWS):
                parity = quotient(at, grid)
                place = (parity * every + image * grid + at - parity * grid) * columns + column
                v = load8(bias, column)
                for split in range(splits):
                    v = add8(v, load8(partial, split * parities * every * columns + place))
                store8(partial, place, v)
        for moment in range(MOMENTS):
            total = fill8(ZERO)
            if column < columns:
                for at in range(begin + row, end, ROWS):
                    parity = quotient(at, grid)
                    v = load8(partial, (parity * every + image * grid + at - parity * grid) * columns + column)
                    v = subtract8(v, mean)
                    if moment == 1:
                        v = multiply8(v, v)
                    total = add8(total, v)
            store8(shared, thread * RUN, total)
            cuda.syncthreads()
            for c in range(thread, min(COLUMNS, columns - first_column), THREADS):
                value = ZERO
                for r in range(ROWS):
                    value += shared[r * COLUMNS + c]
                if moment == 0 or NORMALISES:
                    value /= float32(end - begin)
                if HAS_STATISTICS:
                    part = image * cuda.gridDim.y + cuda.blockIdx.y
                    statistics[(part * 2 + moment) * columns + first_column + c] = value
                if moment == 1:
                    value = gamma[first_column + c] * (ONE / math.sqrt(value + eps))
                shared[MEAN + c] = value
            cuda.syncthreads()
            if moment == 0:
                mean = load8(shared, MEAN + lane * RUN)
            else:
                scale = load8(shared, MEAN + lane * RUN)
        if column < columns:
            word = column // RUN * RUN_SIZE
            unit = 2 if parities > 1 else 1
            for at in range(begin + row, end, ROWS):
                parity = quotient(at, grid)
                r = int32(at - parity * grid)
                v = load8(partial, (parity * every + image * grid + r) * columns + column)
                if NORMALISES:
                    v = add8(multiply8(subtract8(v, mean), scale), load8(beta, column))
                v = round8(v, KIND)
                y = quotient(r, grid_w)
                line = (image * grid_h + y) * unit + parity // 2
                pixel = (line * grid_w + r - y * grid_w) * unit + parity % 2
                put8(out, pixel * out_stride + out_first + word, leaky8(v, out_slope), KIND)
                if also_stride:
                    put8(also, pixel * also_stride + also_first + word, leaky8(v, also_slope), KIND)

    return finish_map
