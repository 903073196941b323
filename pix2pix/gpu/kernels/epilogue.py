"""What products do with their accumulators: device functions that all products share.

A thread's accumulators are vectors of 8 columns, several for each of its rows.

Source: combining the statistics of parts: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import float32

from ..jit import Array, Vector, inlined, int32, synchronise
from ..ptx.fragments import VECTOR
from ..ptx.mma import select8
from ..ptx.simt import quotient
from ..ptx.vectors import add8, fill8, leaky_relu8, multiply8, pack8, round8, store8, subtract8
from .parameters import Targets

# A kernel's results: partial sums without bias; a map for each reader; the map before its norm, and its statistics;
# the normalised map for each reader; the same as the third after a leaky ReLU.
PARTIAL_SUMS, MAPS, STATISTICS, NORMALISED, LEAKY_STATISTICS = range(5)


class Layout(NamedTuple):
    """Compile-time constants: how the `threads` of a block share a tile of `width` columns.

    `parts` groups of threads have the rows. The rows of part i are `rows_apart` rows apart, at most `rows` of them,
    from row i // rows_apart * rows_apart * rows + i % rows_apart on. Each thread has `groups` vectors of each row, in
    steps of 4 vectors.
    """

    parts: int
    rows: int
    rows_apart: int
    groups: int
    width: int
    threads: int


class Place(NamedTuple):
    """A thread has `rows_of_thread` rows of part `part`, and columns from `left` on, in tile number `tile` of all.

    The tile has `rows` rows, of the product's columns from `first_column` on.
    """

    thread: int
    part: int
    rows_of_thread: int
    left: int
    tile: int
    rows: int
    first_column: int


@inlined
def write_vector(values: Vector, pixel: int, word: int, out: Array, out2: Array, targets: Targets, kind: int) -> None:
    """Write 8 channels of a pixel, rounded, into the maps of their readers, each through its leaky ReLU."""
    values = round8(values, kind)
    pack8(out, pixel * targets.out.stride + targets.out.first + word, leaky_relu8(values, targets.out.slope), kind)
    if targets.out2.stride:
        at = pixel * targets.out2.stride + targets.out2.first + word
        pack8(out2, at, leaky_relu8(values, targets.out2.slope), kind)


@inlined
def write_statistics(
    acc: Array, vectors: int, shared: Array, layout: Layout, place: Place, bias: Array, columns: int, statistics: Array
) -> None:
    """statistics (tiles, 2, columns) of a tile: the mean with bias, and the sum of squared deviations from it.

    Each part sums up its rows, and the squares of their distances from its own mean; these are combined in the order
    of parts. A thread beyond the last part only takes part in barriers. `vectors` is a compile-time constant: how many
    acc has.
    """
    squares = layout.parts * layout.width  # where they begin in shared memory, behind the sums
    synchronise()  # nobody reads the tiles of operands any more
    if place.part < layout.parts and place.rows_of_thread > 0:
        for group in range(layout.groups):
            total, square = fill8(float32(0)), fill8(float32(0))
            for row in range(layout.rows):
                if row < place.rows_of_thread:
                    total = add8(total, select8(acc, row * layout.groups + group, vectors))
            mean = multiply8(total, fill8(float32(1) / float32(place.rows_of_thread)))
            for row in range(layout.rows):
                if row < place.rows_of_thread:
                    values = subtract8(select8(acc, row * layout.groups + group, vectors), mean)
                    square = add8(square, multiply8(values, values))
            at = int32(place.part * layout.width + place.left + int32(group) * 4 * VECTOR)
            store8(shared, at, total)
            store8(shared, int32(squares + at), square)
    synchronise()
    column = int32(place.thread)
    while column < layout.width:
        if place.first_column + column < columns:
            total = float32(0)
            for i in range(layout.parts):
                if int32(i // layout.rows_apart * layout.rows_apart * layout.rows + i % layout.rows_apart) < place.rows:
                    total += shared[int32(i * layout.width + column)]
            mean = total / float32(place.rows)
            square = float32(0)
            for i in range(layout.parts):
                first = i // layout.rows_apart * layout.rows_apart * layout.rows + i % layout.rows_apart
                left = int32(max(0, place.rows - first) + layout.rows_apart - 1)
                count = float32(min(layout.rows, quotient(left, layout.rows_apart)))
                if count > 0:
                    distance = shared[int32(i * layout.width + column)] / count - mean
                    square += shared[int32(squares + i * layout.width + column)] + count * distance * distance
            at = np.int64(place.tile) * 2 * columns + place.first_column + column
            statistics[at] = mean + bias[place.first_column + column]
            statistics[at + columns] = square
        column = int32(column + layout.threads)
