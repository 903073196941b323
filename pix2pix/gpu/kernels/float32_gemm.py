"""The float32 matrix product that computes every convolution, without a matrix of patches in memory (implicit GEMM).

out = A @ W + bias, tile by tile: a block of threads computes BM x BN of out, each thread TM x TN of them in registers.
A's rows are the pixels of a grid, its columns the taps of the filter times the channels of the map, gathered from the
map when a tile of A is loaded. Two tiles are kept in shared memory: while one is multiplied, the next is fetched.

A transposed convolution of stride 2 is four convolutions with 2x2 taps, one for each parity of the output's row and
column, so that no zero is multiplied. Where the grid is small, several blocks share a sum, each of them adding up some
of A's columns (a split); :func:`pix2pix.gpu.kernels.float32_maps.make_add_splits` adds up those sums in order.

Sources: the tiling is that of NVIDIA's CUTLASS, "Efficient GEMM in CUDA"; implicit GEMM: arXiv:1410.0759.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda, float32

from ..jit import ALIGNMENT, int32, kernel
from ..ptx.simt import fma_tile, load4, quotient, store4

OUTSIDE = -(1 << 24)  # the row of a pixel that is not there: no tap reaches the map from it


@dataclass(frozen=True, slots=True)
class Tile:
    """How a block of threads shares the bm x bn of out that it computes.

    Each step multiplies bm x bk of A by bk x bn of W, in loops whose bodies are `unrolled` columns of A long. Each
    thread has tm rows in runs of 4, and tn columns likewise; ly x lx neighbours (a warp) have neighbouring runs, so
    that they read shared memory without conflicts. `blocks` are to fit a multiprocessor together: what their registers
    allow, so that no sum is kept anywhere else.
    """

    bm: int
    bn: int
    blocks: int
    unrolled: int = 8
    bk: int = 8
    tm: int = 8
    tn: int = 8
    ly: int = 4
    lx: int = 8

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.bm // self.tm * (self.bn // self.tn)


TILES = {"128x128": Tile(128, 128, 2, unrolled=2), "128x64": Tile(128, 64, 3), "32x128": Tile(32, 128, 6)}
SIMULATED_TILE = Tile(32, 16, 1, tm=16, ly=1, lx=2)  # of every name, in the simulator


def make_gemm(tile: Tile) -> Any:
    """The kernel for a tile. Launch with a grid of (row tiles, column tiles, parities * splits)."""
    BM, BN, BK, TM, TN, LY, LX = tile.bm, tile.bn, tile.bk, tile.tm, tile.tn, tile.ly, tile.lx
    THREADS = tile.threads
    WARP, WARPS_X = LY * LX, BN // (LX * TN)
    A_RUNS, B_RUNS = BK // 4, BN // 4  # runs of 4 elements in a row of either tile
    A_LOADS, B_LOADS = BM * A_RUNS // THREADS, BK * B_RUNS // THREADS
    A_ROWS, B_ROWS = THREADS // A_RUNS, THREADS // B_RUNS  # rows apart of what one thread loads
    SA = BM + 4  # a row of A's transposed tile, skewed so that storing it has no conflicts
    A_SIZE, B_SIZE = BK * SA, BK * BN
    SHARED_A, SHARED_B, FETCHED_A, FETCHED_B, ACCUMULATORS = 2 * A_SIZE, 2 * B_SIZE, 4 * A_LOADS, 4 * B_LOADS, TM * TN
    TN4, NONE = TN // 4, OUTSIDE
    ZERO = float32(0)
    UNROLLED, A_NEXT, B_NEXT = tile.unrolled, 4 * LY, 4 * LX  # from one run of a thread to the next

    @kernel(tile.threads, tile.blocks)
    def gemm(
        a,
        w,
        bias,
        out,
        h,
        wd,
        a_stride,
        a_first,
        channels,
        joined,
        slope_1,
        slope_2,
        side,
        zoom,
        origin,
        step,
        rows,
        grid_h,
        grid_w,
        columns,
        parities,
        splits,
        out_stride,
        out_first,
    ):
        """out = activated(A) @ w + bias.

        a: maps (N, h, wd, a_stride), of which `channels` from a_first are read: those below `joined` through a leaky
        ReLU of slope_1, the others of slope_2. w (parities, side * side * channels, columns). Numbers of channels and
        of columns are multiples of BK; padding is zeros in w, and finite in a.
        Row r of A is pixel (y, x) of grid_h x grid_w of an image; tap (i, j) of side x side reads the map at
        (zoom * y + origin + py + step * i, zoom * x + origin + px + step * j), zeros outside.
        splits 1: out is maps (N, u * grid_h, u * grid_w, out_stride), written from channel out_first at
        (u * y + py, u * x + px), where u = 2 for four parities (py, px), else 1, and bias (columns) is added.
        splits > 1: out (splits, parities, rows, columns), partial sums.
        """
        a_tiles = cuda.shared.array(SHARED_A, float32, ALIGNMENT)
        b_tiles = cuda.shared.array(SHARED_B, float32, ALIGNMENT)
        acc = cuda.local.array(ACCUMULATORS, float32)
        fetched_a = cuda.local.array(FETCHED_A, float32)
        fetched_b = cuda.local.array(FETCHED_B, float32)
        row_y = cuda.local.array(A_LOADS, np.int32)
        row_x = cuda.local.array(A_LOADS, np.int32)
        row_at = cuda.local.array(A_LOADS, np.int32)
        thread = int32(cuda.threadIdx.x)
        first_row, first_column = int32(cuda.blockIdx.x * BM), int32(cuda.blockIdx.y * BN)
        split = quotient(cuda.blockIdx.z, parities)
        parity = int32(cuda.blockIdx.z - split * parities)
        py, px = parity >> 1, parity & 1
        depth = int32(side * side * channels)

        for i in range(ACCUMULATORS):
            acc[i] = ZERO
        a_row, a_k = int32(thread // A_RUNS), int32(thread % A_RUNS * 4)
        for load in range(A_LOADS):
            row = int32(first_row + a_row + load * A_ROWS)
            line = quotient(row, grid_w)
            image = quotient(line, grid_h)
            row_y[load] = zoom * (line - image * grid_h) + origin + py if row < rows else NONE
            row_x[load] = zoom * (row - line * grid_w) + origin + px
            row_at[load] = (image * h * wd * a_stride + a_first + a_k) // 4
        b_row, b_column = int32(thread // B_RUNS), int32(thread % B_RUNS * 4)
        column_exists = first_column + b_column < columns

        steps = int32(depth // BK)
        share = quotient(steps + splits - 1, splits)
        begin = int32(split * share)
        end = int32(min(begin + share, steps))
        tap = quotient(begin * BK, channels)
        channel = int32(begin * BK - tap * channels)
        tap_y = quotient(tap, side)
        tap_x = int32(tap - tap_y * side)
        w_at = int32((parity * depth + begin * BK + b_row) * columns + first_column + b_column)
        slope = slope_1

        warp, lane = thread // WARP, thread % WARP
        top = int32(warp // WARPS_X * LY * TM + lane // LX * 4)
        left = int32(warp % WARPS_X * LX * TN + lane % LX * 4)
        for at in range(begin, int32(end + 1)):  # fetch tile `at` while multiplying the one before it
            if at < end:
                for load in range(A_LOADS):
                    y, x = int32(row_y[load] + step * tap_y), int32(row_x[load] + step * tap_x)
                    v = (ZERO, ZERO, ZERO, ZERO)
                    if 0 <= y and y < h and 0 <= x and x < wd:
                        v = load4(a, (row_at[load] + int32(((y * wd + x) * a_stride + channel) // 4)) * 4)
                    fetched_a[load * 4], fetched_a[load * 4 + 1], fetched_a[load * 4 + 2], fetched_a[load * 4 + 3] = v
                for load in range(B_LOADS):
                    v = (ZERO, ZERO, ZERO, ZERO)
                    if column_exists:
                        v = load4(w, w_at + load * B_ROWS * columns)
                    fetched_b[load * 4], fetched_b[load * 4 + 1], fetched_b[load * 4 + 2], fetched_b[load * 4 + 3] = v
                slope = slope_1 if channel < joined else slope_2
                w_at = int32(w_at + BK * columns)
                channel = int32(channel + BK)
                if channel == channels:
                    channel = int32(0)
                    tap_x = int32(tap_x + 1)
                    if tap_x == side:
                        tap_x = int32(0)
                        tap_y = int32(tap_y + 1)
            if at > begin:
                a_at, b_at = int32((at - 1 & 1) * A_SIZE + top), int32((at - 1 & 1) * B_SIZE + left)
                for _ in range(BK // UNROLLED):
                    fma_tile(acc, a_tiles, a_at, b_tiles, b_at, TM, TN, UNROLLED, SA, BN, A_NEXT, B_NEXT)
                    a_at, b_at = int32(a_at + UNROLLED * SA), int32(b_at + UNROLLED * BN)
            if at < end:
                for load in range(A_LOADS):
                    for i in range(4):
                        v = fetched_a[load * 4 + i]
                        a_tiles[(at & 1) * A_SIZE + (a_k + i) * SA + a_row + load * A_ROWS] = max(v, v * slope)
                for load in range(B_LOADS):
                    v = (fetched_b[load * 4], fetched_b[load * 4 + 1], fetched_b[load * 4 + 2], fetched_b[load * 4 + 3])
                    store4(b_tiles, (at & 1) * B_SIZE + (b_row + load * B_ROWS) * BN + b_column, v)
            cuda.syncthreads()

        unit = 2 if parities > 1 else 1
        for i in range(TM):
            row = int32(first_row + top + i // 4 * LY * 4 + i % 4)
            if row < rows:
                if splits > 1:
                    to = ((split * parities + parity) * rows + row) * columns
                else:
                    line = quotient(row, grid_w)
                    to = ((line * unit + py) * grid_w + row - line * grid_w) * unit + px
                    to = to * out_stride + out_first
                for j in range(TN4):
                    column = first_column + left + j * LX * 4
                    if column < columns:
                        b = (ZERO, ZERO, ZERO, ZERO)
                        if splits == 1:
                            b = load4(bias, column)
                        p = i * TN + j * 4
                        v = (acc[p] + b[0], acc[p + 1] + b[1], acc[p + 2] + b[2], acc[p + 3] + b[3])
                        store4(out, to + column, v)

    return gemm
