"""CUDA kernels that normalise maps by each image's own statistics, and finish maps from partial sums.

Arithmetic is in float32. Statistics are combined in a fixed order, without atomic operations: each tile has its mean
and the sum of squared deviations from it, computed in two passes so that nothing cancels.

Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983, for the combination.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from numba import cuda, float32

from ..jit import ALIGNMENT, Array, inlined, int32, kernel, synchronise
from ..ptx.fragments import VECTOR
from ..ptx.packed_words import VECTOR_WORDS
from ..ptx.simt import quotient
from ..ptx.vectors import (
    add8,
    fill8,
    leaky_relu8,
    load8,
    multiply8,
    store8,
    subtract8,
    unpack8,
)
from .epilogue import LEAKY_STATISTICS, MAPS, NORMALISED, STATISTICS, write_vector
from .parameters import Norm, Sums, Targets

ZERO, ONE = float32(0), float32(1)


class Share(NamedTuple):
    """A thread of a block of lanes * rows, which has lanes * VECTOR channels of an image, from `first_column` on.

    `lanes` and `rows` are compile-time constants.
    """

    lanes: int
    rows: int
    thread: int
    first_column: int
    image: int


@inlined
def write_scale_and_shift(statistics: Array, affine: Array, shared: Array, shape: Norm, share: Share) -> None:
    """The norm of a block's channels as v * scale + shift, in shared memory: scales of lanes * VECTOR channels behind
    as many words for each row of threads, then shifts.

    Other arguments are those of normalise_map.
    """
    lanes, rows, thread, first_column, image = share
    lane, row = thread % lanes, thread // lanes
    width = lanes * VECTOR
    scales, shifts = rows * width, rows * width + width
    pixels, columns, parts = shape.pixels, shape.columns, shape.phases * shape.tiles
    column = first_column + lane * VECTOR
    for moment in range(2):
        total = fill8(ZERO)
        if column < columns:
            for part in range(row, parts, rows):
                count = float32(min(shape.tile, pixels // shape.phases - part % shape.tiles * shape.tile))
                at = (image * parts + part) * 2 * columns + column
                v = load8(statistics, at)
                if moment == 1:
                    v = subtract8(v, load8(shared, shifts + lane * VECTOR))
                    v = multiply8(v, v)
                v = multiply8(v, fill8(count))
                if moment == 1:
                    v = add8(v, load8(statistics, at + columns))
                total = add8(total, v)
        store8(shared, thread * VECTOR, total)
        synchronise()
        for c in range(thread, min(width, columns - first_column), lanes * rows):
            value = ZERO
            for r in range(rows):
                value += shared[r * width + c]
            value /= float32(pixels)
            if moment == 0:
                shared[shifts + c] = value
            else:
                scale = affine[columns + first_column + c] * (ONE / math.sqrt(value + shape.eps))
                shared[scales + c] = scale
                shared[shifts + c] = affine[2 * columns + first_column + c] - shared[shifts + c] * scale
        synchronise()


def make_normalise_map(lanes: int, rows: int, kind: int) -> Any:
    """Normalise maps in place by their tiles' statistics, and write them for their second reader.

    Launch blocks of lanes * rows in a grid of (channels / VECTOR / lanes, parts of the map, images).
    """
    KIND, LANES, ROWS, WORDS = kind, lanes, rows, VECTOR_WORDS[kind]
    COLUMNS = lanes * VECTOR
    SCALE, SHIFT, SHARED = rows * COLUMNS, rows * COLUMNS + COLUMNS, rows * COLUMNS + 2 * COLUMNS

    @kernel(lanes * rows)
    def normalise_map(statistics: Array, affine: Array, out: Array, out2: Array, shape: Norm, targets: Targets) -> None:
        """out = out2 = (out - mean) / sqrt(variance + eps) * gamma + beta, each through its leaky ReLU.

        out, out2: packed words (images, pixels, stride); out comes without activation. statistics (images, phases *
        tiles, 2, columns), float32: each tile's mean and sum of squared deviations from it. affine (3, columns),
        float32: bias, gamma, beta.
        """
        shared = cuda.shared.array(SHARED, float32, ALIGNMENT)
        thread, first_column, image = cuda.threadIdx.x, cuda.blockIdx.x * COLUMNS, cuda.blockIdx.z
        write_scale_and_shift(statistics, affine, shared, shape, Share(LANES, ROWS, thread, first_column, image))
        lane, row = thread % LANES, thread // LANES
        pixels, columns = shape.pixels, shape.columns
        column = first_column + lane * VECTOR
        if column < columns:
            scale, shift = load8(shared, SCALE + lane * VECTOR), load8(shared, SHIFT + lane * VECTOR)
            word = column // VECTOR * WORDS
            share = (pixels + cuda.gridDim.y - 1) // cuda.gridDim.y
            begin = cuda.blockIdx.y * share
            for pixel in range(begin + row, min(begin + share, pixels), ROWS):
                at = image * pixels + pixel
                v = unpack8(out, at * targets.out.stride + targets.out.first + word, KIND)
                write_vector(add8(multiply8(v, scale), shift), at, word, out, out2, targets, KIND)

    return normalise_map


def make_group_statistics(threads: int) -> Any:
    """The statistics of groups of channels."""

    @kernel(threads)
    def group_statistics(statistics: Array, shape: Norm, images: int, groups: int, width: int) -> None:
        """Of each tile, the mean of `width` neighbouring channels becomes that of all of them, and the sum of squared
        deviations from it the mean of theirs.

        statistics: as normalise_map has them. Other channels than groups * width keep their own.
        """
        columns, tiles = shape.columns, images * shape.phases * shape.tiles
        for i in range(cuda.grid(1), tiles * groups, cuda.gridsize(1)):
            tile = i // groups
            at = tile * 2 * columns + (i - tile * groups) * width
            count = float32(min(shape.tile, shape.pixels // shape.phases - tile % shape.tiles * shape.tile))
            mean, squares = ZERO, ZERO
            for c in range(width):
                mean += statistics[at + c]
            mean /= float32(width)
            for c in range(width):
                deviation = statistics[at + c] - mean
                squares += statistics[at + columns + c] + count * (deviation * deviation)
            squares /= float32(width)
            for c in range(width):
                statistics[at + c] = mean
                statistics[at + columns + c] = squares

    return group_statistics


def make_finish_map(lanes: int, rows: int, kind: int, epilogue: int) -> Any:
    """Maps from partial sums: MAPS, NORMALISED maps, or maps before their norm and their (LEAKY_)STATISTICS.

    Launch blocks of lanes * rows in a grid of (channels / VECTOR / lanes, parts of the map, images). NORMALISED maps
    have one part: a block sees all pixels of its channels.
    """
    KIND, LANES, ROWS, WORDS = kind, lanes, rows, VECTOR_WORDS[kind]
    THREADS, COLUMNS = lanes * rows, lanes * VECTOR
    MEAN, SHARED = THREADS * VECTOR, THREADS * VECTOR + COLUMNS
    NORMALISES, HAS_STATISTICS = epilogue == NORMALISED, epilogue in (STATISTICS, LEAKY_STATISTICS)
    IS_LEAKY = epilogue == LEAKY_STATISTICS
    MOMENTS = 0 if epilogue == MAPS else 2

    @kernel(lanes * rows, 3)
    def finish_map(
        partial: Array, affine: Array, out: Array, out2: Array, statistics: Array, sums: Sums, targets: Targets
    ) -> None:
        """out = out2 = norm(bias + sum over s of partial[s]), each through its leaky ReLU.

        With LEAKY_STATISTICS the norm is that of leaky_relu(bias + sum), by sums.slope.

        partial (splits, phases, images * h * w, columns), float32; its first split is overwritten. Parts are of
        sums.share pixels, in the order of partial. affine (3, columns), float32: bias, gamma, beta. out and out2:
        packed words of maps, as the product writes them. statistics (images, parts, 2, columns).
        """
        shared = cuda.shared.array(SHARED, float32, ALIGNMENT)
        phases, columns = sums.phases, sums.columns
        thread = int32(cuda.threadIdx.x)
        lane, row = thread % LANES, thread // LANES
        first_column = int32(cuda.blockIdx.x * COLUMNS)
        column = int32(first_column + lane * VECTOR)
        image, grid = int32(cuda.blockIdx.z), int32(sums.h * sums.w)
        every = int32(grid * cuda.gridDim.z)
        begin = int32(cuda.blockIdx.y * sums.share)
        end = int32(min(begin + sums.share, phases * grid))
        mean, scale = fill8(ZERO), fill8(ONE)
        if column < columns:
            for at in range(begin + row, end, ROWS):
                phase = quotient(at, grid)
                place = (phase * every + image * grid + at - phase * grid) * columns + column
                v = load8(affine, column)
                for split in range(sums.splits):
                    v = add8(v, load8(partial, split * phases * every * columns + place))
                store8(partial, place, leaky_relu8(v, sums.slope) if IS_LEAKY else v)
        for moment in range(MOMENTS):
            total = fill8(ZERO)
            if column < columns:
                for at in range(begin + row, end, ROWS):
                    phase = quotient(at, grid)
                    v = load8(partial, (phase * every + image * grid + at - phase * grid) * columns + column)
                    v = subtract8(v, mean)
                    if moment == 1:
                        v = multiply8(v, v)
                    total = add8(total, v)
            store8(shared, thread * VECTOR, total)
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
                    value = affine[int32(columns + first_column + c)] * (ONE / math.sqrt(value + sums.eps))
                shared[MEAN + c] = value
            cuda.syncthreads()
            if column < columns:
                if moment == 0:
                    mean = load8(shared, MEAN + lane * VECTOR)
                else:
                    scale = load8(shared, MEAN + lane * VECTOR)
        if column < columns:
            word = column // VECTOR * WORDS
            unit = 2 if phases > 1 else 1
            for at in range(begin + row, end, ROWS):
                phase = quotient(at, grid)
                r = int32(at - phase * grid)
                v = load8(partial, (phase * every + image * grid + r) * columns + column)
                if NORMALISES:
                    v = add8(multiply8(subtract8(v, mean), scale), load8(affine, int32(2 * columns + column)))
                y = quotient(r, sums.w)
                line = (image * sums.h + y) * unit + phase // 2
                pixel = (line * sums.w + r - y * sums.w) * unit + phase % 2
                write_vector(v, pixel, word, out, out2, targets, KIND)

    return finish_map
