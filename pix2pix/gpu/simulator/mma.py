"""What the intrinsics of :mod:`pix2pix.gpu.ptx.mma` do in Numba's simulator; see there for their parameters."""

from __future__ import annotations

import functools

import numpy as np

from ..ptx.fragments import (
    A_ROW,
    A_WORD,
    B_COLUMN,
    B_WORD,
    C_COLUMN,
    C_ROW,
    CHUNK,
    MATRIX_ROW,
    MATRIX_WORD,
    VECTOR,
    accumulator_index,
)
from ..ptx.packed_words import floats_of
from . import threads
from .threads import collective, plain, this_thread

# -- copies -----------------------------------------------------------------------------------------------------------


def _groups():
    """This thread's groups of copies, of which the last is not committed yet."""
    return this_thread().__dict__.setdefault("copies", [[]])


def cp_async(shared, to, array, at, is_there):
    """See pix2pix.gpu.ptx.mma. When the copy lands: :data:`.threads.COPIES_ARE_EARLY`."""
    if to % CHUNK or at % CHUNK:
        raise ValueError(f"a copy from {at} to {to}, which are not both multiples of {CHUNK}")
    copy = shared, to, plain(array), at, is_there
    if threads.COPIES_ARE_EARLY:
        _copy(*copy)
    else:
        _groups()[-1].append(copy)


def _copy(shared, to, array, at, is_there):
    shared[to : to + CHUNK] = array[at : at + CHUNK] if is_there else 0


def cp_async_commit_group():
    """See pix2pix.gpu.ptx.mma."""
    _groups().append([])


def cp_async_wait_group(groups):
    """See pix2pix.gpu.ptx.mma."""
    in_flight = _groups()
    while len(in_flight) - 1 > groups:
        for copy in in_flight.pop(0):
            _copy(*copy)


# -- products ---------------------------------------------------------------------------------------------------------


def ldmatrix(shared, at, fragments, to):
    """See pix2pix.gpu.ptx.mma. Lanes don't wait: words are there at the warp's mma_sync, which loads them first."""
    if at % CHUNK:
        raise ValueError(f"a row of a matrix at {at}, expected a multiple of {CHUNK}")
    this_thread().__dict__.setdefault("loads", []).append((shared, at, fragments, to))


def _load(loads):
    """The loads of a warp's lanes, as many of each, in order."""
    for of_lanes in zip(*loads, strict=True):
        words = of_lanes[0][0].view(np.uint32)
        rows = np.array([at for _, at, _, _ in of_lanes])
        for matrix in range(4):
            found = words[rows[8 * matrix + MATRIX_ROW] + MATRIX_WORD]
            for lane, (_, _, fragments, to) in enumerate(of_lanes):
                fragments[to + matrix] = found[lane]


@functools.cache
def _places(mf, nf):
    """(rows, columns, indices): of the product (32, elements), and in each lane's accumulators (elements)."""
    fragments = [(i, j, register) for i in range(mf) for j in range(nf) for register in range(4)]
    rows = np.stack([16 * i + C_ROW[:, register] for i, _, register in fragments], axis=1)
    columns = np.stack([8 * j + C_COLUMN[:, register] for _, j, register in fragments], axis=1)
    return rows, columns, np.array([accumulator_index(nf, *fragment) for fragment in fragments])


def accumulate(sums, product, mf, nf):
    """Add a product of 16 * mf rows and 8 * nf columns to the accumulators of a warp's lanes."""
    rows, columns, places = _places(mf, nf)
    for lane, acc in enumerate(sums):
        acc[places] += product[rows[lane], columns[lane]]


def mma_sync(acc, a, b, mf, nf, kind):
    """See pix2pix.gpu.ptx.mma."""

    def work(brought):
        _load([loads for loads, _, _, _ in brought])
        left = np.empty((mf, 16, 8), np.uint32)
        right = np.empty((nf, 8, 8), np.uint32)
        for lane, (_, _, a_words, b_words) in enumerate(brought):
            left[:, A_ROW[lane], A_WORD[lane]] = np.reshape(a_words, (mf, 4))
            right[:, B_COLUMN[lane], B_WORD[lane]] = np.reshape(b_words, (nf, 2))
        rows, columns = floats_of(left, kind).reshape(16 * mf, -1), floats_of(right, kind).reshape(8 * nf, -1)
        product = np.einsum("mk,nk->mn", rows, columns)  # not by BLAS, as in fma_tile
        accumulate([sums for _, sums, _, _ in brought], product, mf, nf)

    loads = this_thread().__dict__.pop("loads", [])
    collective((loads, acc, a, b), work)


def select8(acc, vector, vectors):
    """See pix2pix.gpu.ptx.mma."""
    if not 0 <= vector < vectors:
        raise IndexError(f"vector {vector} of {vectors}")
    return acc[VECTOR * vector : VECTOR * (vector + 1)].copy()
