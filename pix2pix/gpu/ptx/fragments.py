"""Which lane of a warp holds which element: the layouts of ldmatrix, mma.sync and wgmma, as data.

Sizes are in words of 32 bits. A *chunk* is 16 bytes of a row: what cp.async copies, and one row of a matrix of ldmatrix
(8 elements of 16 bits, or 4 of tf32). A *vector* is 8 consecutive channels of a pixel: each thread of a product has
whole vectors of each of its rows. Tables have one row for each of the 32 lanes.

Source: NVIDIA's PTX ISA 8.7, "Warp-level matrix instructions" (ldmatrix, mma.m16n8k8 and m16n8k16) and "Asynchronous
warpgroup level matrix instructions" (wgmma, whose accumulators per warp are those of mma.m16n8, and 128-byte swizzle).
"""

from __future__ import annotations

import numpy as np

LANES = 32
CHUNK = 4  # words
VECTOR = 8  # channels
COLUMN_UNIT = 32  # columns of W that four lanes share as one vector each
WARPGROUP, WARPGROUP_ROWS = 128, 64  # threads of a warpgroup, and rows of its part of wgmma

_LANE = np.arange(LANES)[:, None]
# ldmatrix: the row and the word of each matrix that a lane receives.
MATRIX_ROW, MATRIX_WORD = _LANE[:, 0] // 4, _LANE[:, 0] % 4
# mma.sync: (lane, register) -> row of A and word of it, column of B and word of it, row and column of C.
A_ROW, A_WORD = _LANE // 4 + np.arange(4) % 2 * 8, _LANE % 4 + np.arange(4) // 2 * 4
B_COLUMN, B_WORD = _LANE // 4 + np.arange(2) * 0, _LANE % 4 + np.arange(2) * 4
C_ROW, C_COLUMN = _LANE // 4 + np.arange(4) // 2 * 8, _LANE % 4 * 2 + np.arange(4) % 2

# Shared memory that TMA writes and wgmma reads, swizzled: rows of 128 bytes; eight of them, from a multiple of 1024
# bytes on, are an atom. Chunk c of row r lies at chunk c ^ r % 8 of that row.
SWIZZLE_ROW = 32
SWIZZLE_CHUNKS = SWIZZLE_ROW // CHUNK
SWIZZLE_ATOM = 8 * SWIZZLE_ROW


def accumulator_index(nf: int, i: int, j: int, register: int) -> int:
    """Where a thread keeps a register of C's fragment (i, j), of `nf` fragments in a row: in the order of vectors.

    The columns that a thread has of four neighbouring fragments are one vector; see :func:`column_order`.
    """
    return ((2 * i + register // 2) * (nf // 4) + j // 4) * VECTOR + j % 4 * 2 + register % 2


def column_order(columns: int, lanes: int = 4, consecutive: int = 2) -> np.ndarray:
    """For each column of W in memory, which column it is; padded to a multiple of `lanes` vectors.

    A thread has `consecutive` columns in each of several groups that `lanes` threads share: the lanes of mma.sync and
    wgmma have two in each fragment. In this order, a thread's columns are the 8 of a vector.
    """
    group, lane, i = np.meshgrid(range(VECTOR // consecutive), range(lanes), range(consecutive), indexing="ij")
    order = (VECTOR * lane + consecutive * group + i).ravel()
    return (np.arange(-(-columns // order.size))[:, None] * order.size + order).ravel()


def swizzle(row: np.ndarray, chunk: np.ndarray) -> np.ndarray:
    """The chunk of a swizzled row at which its chunk number `chunk` lies."""
    return chunk ^ row % SWIZZLE_CHUNKS
