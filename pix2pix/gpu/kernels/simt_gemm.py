"""The implicit GEMM of :mod:`pix2pix.gpu.kernels.mma_gemm` in float32 on CUDA cores: out = A @ W + bias.

A block computes bm x bn of out, each thread tm x tn of them in registers. Two stages of both operands lie in shared
memory: while one is multiplied, the next is fetched into registers. The threads of a warp read neighbouring groups of 4
rows and of 4 columns from a stage, so banks do not conflict. W's columns are stored, and A's rows fetched, in such an
order that a thread's columns are one vector of out, and its rows are LY rows apart.

Sources: the tiling is that of NVIDIA's CUTLASS, "Efficient GEMM in CUDA"; implicit GEMM: arXiv:1410.0759.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda, float32

from ..jit import ALIGNMENT, Array, int32, kernel
from ..ptx.fragments import CHUNK, VECTOR
from ..ptx.mma import select8
from ..ptx.packed_words import FLOAT32
from ..ptx.simt import fma_tile, load4, quotient, store4
from ..ptx.vectors import add8, load8, store8
from .epilogue import PARTIAL_SUMS, STATISTICS, Layout, Place, write_statistics, write_vector
from .gather import COLUMN_BITS, taps_of
from .parameters import Gemm, Targets


@dataclass(frozen=True, slots=True)
class SimtTile:
    """How a block shares the bm x bn of out that it computes.

    Each step multiplies bm x bk of A by bk x bn of W, in loops whose bodies are `unrolled` columns of A long. Each
    thread has tm rows in groups of 4, and tn columns likewise; the ly x lx threads of a warp have neighbouring groups.
    `blocks` blocks are to fit a multiprocessor together, as registers allow.
    """

    bm: int
    bn: int
    blocks: int
    unrolled: int = 8
    bk: int = 8
    tm: int = 8
    tn: int = VECTOR
    ly: int = 4
    lx: int = 8

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.bm // self.tm * (self.bn // self.tn)


SIMT_TILES = {
    (128, 128): SimtTile(128, 128, 2, unrolled=2),
    (128, 64): SimtTile(128, 64, 3),
    (32, 128): SimtTile(32, 128, 6),
}
SIMULATED_SIMT_TILE = SimtTile(32, 16, 1, tm=16, ly=1, lx=2)  # for every size, in the simulator


def make_simt_gemm(tile: SimtTile, epilogue: int) -> Any:
    """The kernel for a tile and an epilogue: PARTIAL_SUMS, MAPS or STATISTICS. Launch as mma_gemm."""
    BM, BN, BK, TM, TN, LY, LX, THREADS = tile.bm, tile.bn, tile.bk, tile.tm, tile.tn, tile.ly, tile.lx, tile.threads
    WARP, WARPS_X, UNIT_M, UNIT_N = LY * LX, BN // (LX * TN), LY * TM, LX * TN
    A_CHUNKS, B_CHUNKS = BK // CHUNK, BN // CHUNK  # of a row of either operand in a stage
    A_LOADS, B_LOADS = BM * A_CHUNKS // THREADS, BK * B_CHUNKS // THREADS
    A_ROWS, B_ROWS = THREADS // A_CHUNKS, THREADS // B_CHUNKS  # rows apart of what one thread loads
    SA = BM + 4  # a row of A's transposed stage, skewed so that storing it has no bank conflicts
    A_SIZE, B_SIZE = BK * SA, BK * BN
    B_FIRST, SHARED = 2 * A_SIZE, 2 * A_SIZE + 2 * B_SIZE
    FETCHED_A, FETCHED_B, ACCUMULATORS = CHUNK * A_LOADS, CHUNK * B_LOADS, TM * TN
    UNROLLED, A_STEP, B_STEP = tile.unrolled, 4 * LY, 4 * LX  # from one group of a thread to the next
    PARTS, ZERO, KIND = BM // TM, float32(0), FLOAT32
    IS_SUMS, HAS_STATISTICS = epilogue == PARTIAL_SUMS, epilogue == STATISTICS

    @kernel(tile.threads, tile.blocks)
    def simt_gemm(
        a: Array, w: Array, bias: Array, out: Array, out2: Array, statistics: Array, gemm: Gemm, targets: Targets
    ) -> None:
        """out = A @ w + bias. All but w is as in :func:`pix2pix.gpu.kernels.mma_gemm.make_mma_gemm`, in float32.

        source.words is a multiple of BK. w: (phases, window.taps * source.words, columns), columns padded to a multiple
        of LX * TN and in the order of :func:`pix2pix.gpu.ptx.fragments.column_order` for LX lanes.
        """
        shared = cuda.shared.array(SHARED, float32, ALIGNMENT)
        acc = cuda.local.array(ACCUMULATORS, float32)
        fetched_a = cuda.local.array(FETCHED_A, float32)
        fetched_b = cuda.local.array(FETCHED_B, float32)
        row_at = cuda.local.array(A_LOADS, np.int32)
        row_taps = cuda.local.array(A_LOADS, np.int32)
        source, window, grid = gemm.source, gemm.window, gemm.grid
        columns, phases, splits = gemm.columns, gemm.phases, gemm.splits
        thread = int32(cuda.threadIdx.x)
        group = quotient(cuda.blockIdx.x, grid.tiles)
        first_row = int32((cuda.blockIdx.x - group * grid.tiles) * BM)
        first_column = int32(cuda.blockIdx.y * BN)
        split = quotient(cuda.blockIdx.z, phases)
        phase = int32(cuda.blockIdx.z - split * phases)
        py, px = phase >> 1, phase & 1

        for i in range(ACCUMULATORS):
            acc[i] = ZERO
        channels = int32(source.words // CHUNK)  # in chunks
        a_row, a_chunk = int32(thread // A_CHUNKS), int32(thread % A_CHUNKS)
        for load in range(A_LOADS):
            s = int32(a_row + load * A_ROWS)  # a row of the stage; in out it is:
            row = int32(
                first_row + s // UNIT_M * UNIT_M + s % (4 * LY) // 4 + LY * (s % UNIT_M // (4 * LY) * 4 + s % 4)
            )
            pixel = int32(group * grid.rows + row)
            first, row_taps[load] = taps_of(pixel, row < grid.rows, py, px, source, window, grid)
            row_at[load] = first * channels + a_chunk
        w_columns = int32((columns + UNIT_N - 1) // UNIT_N * UNIT_N)
        b_row, b_column = int32(thread // B_CHUNKS), int32(thread % B_CHUNKS * CHUNK)
        column_exists = first_column + b_column < w_columns

        kernel_h = int32(window.y.taps2 if py else window.y.taps)
        kernel_w = int32(window.x.taps2 if px else window.x.taps)
        steps = int32(kernel_h * kernel_w * source.words // BK)
        share = quotient(steps + splits - 1, splits)
        begin = int32(split * share)
        end = int32(min(begin + share, steps))
        tap = quotient(begin * A_CHUNKS, channels)
        channel = int32(begin * A_CHUNKS - tap * channels)
        tap_y = quotient(tap, kernel_w)
        tap_x = int32(tap - tap_y * kernel_w)
        step_y = int32(source.w * channels)
        w_row = int32(phase * window.taps * source.words + begin * BK + b_row)
        w_at = int32(w_row * w_columns + first_column + b_column)

        warp, lane = thread // WARP, thread % WARP
        top, left = int32(warp // WARPS_X * UNIT_M), int32(warp % WARPS_X * UNIT_N)
        for at in range(begin, int32(end + 1)):  # fetch stage `at` while multiplying the one before it
            if at < end:
                offset = int32(tap_y * step_y + tap_x * channels + channel)
                mask = int32(1 << tap_y | 1 << (tap_x + COLUMN_BITS))
                for load in range(A_LOADS):
                    v = (ZERO, ZERO, ZERO, ZERO)
                    if int32(row_taps[load] & mask) == mask:
                        v = load4(a, np.int64(int32(row_at[load] + offset)) * CHUNK)
                    fetched_a[load * 4], fetched_a[load * 4 + 1], fetched_a[load * 4 + 2], fetched_a[load * 4 + 3] = v
                for load in range(B_LOADS):
                    v = (ZERO, ZERO, ZERO, ZERO)
                    if column_exists:
                        v = load4(w, w_at + load * B_ROWS * w_columns)
                    fetched_b[load * 4], fetched_b[load * 4 + 1], fetched_b[load * 4 + 2], fetched_b[load * 4 + 3] = v
                w_at = int32(w_at + BK * w_columns)
                channel = int32(channel + A_CHUNKS)
                if channel == channels:
                    channel = int32(0)
                    tap_x = int32(tap_x + 1)
                    if tap_x == kernel_w:
                        tap_x = int32(0)
                        tap_y = int32(tap_y + 1)
            if at > begin:
                a_at = int32((at - 1 & 1) * A_SIZE + top + lane // LX * 4)
                b_at = int32(B_FIRST + (at - 1 & 1) * B_SIZE + left + lane % LX * 4)
                for _ in range(BK // UNROLLED):
                    fma_tile(acc, shared, a_at, shared, b_at, TM, TN, UNROLLED, SA, BN, A_STEP, B_STEP)
                    a_at, b_at = int32(a_at + UNROLLED * SA), int32(b_at + UNROLLED * BN)
            if at < end:
                for load in range(A_LOADS):
                    for i in range(4):
                        to = (at & 1) * A_SIZE + (a_chunk * CHUNK + i) * SA + a_row + load * A_ROWS
                        shared[to] = fetched_a[load * 4 + i]
                for load in range(B_LOADS):
                    v = (fetched_b[load * 4], fetched_b[load * 4 + 1], fetched_b[load * 4 + 2], fetched_b[load * 4 + 3])
                    store4(shared, B_FIRST + (at & 1) * B_SIZE + (b_row + load * B_ROWS) * BN + b_column, v)
            cuda.syncthreads()

        top, left = int32(top + lane // LX), int32(left + lane % LX * VECTOR)
        unit = 2 if phases > 1 else 1
        all_rows = cuda.gridDim.x // grid.tiles * grid.rows
        column = int32(first_column + left)
        for vector in range(TM):
            row = int32(first_row + top + vector * LY)
            if row < grid.rows and column < columns:
                values = select8(acc, vector, TM)
                from_row = group * grid.rows + row
                if IS_SUMS:
                    store8(out, ((split * phases + phase) * all_rows + from_row) * columns + column, values)
                else:
                    line = quotient(int32(from_row), grid.w)
                    to_pixel = ((line * unit + py) * grid.w + from_row - line * grid.w) * unit + px
                    write_vector(add8(values, load8(bias, column)), to_pixel, column, out, out2, targets, KIND)

        if HAS_STATISTICS:
            tile_number = (group * phases + phase) * grid.tiles + quotient(first_row, BM)
            rows = int32(min(BM, grid.rows - first_row))
            count = int32(min(TM, quotient(int32(max(0, rows - top) + LY - 1), LY)))
            layout = Layout(PARTS, TM, LY, 1, BN, THREADS)
            part = int32(warp // WARPS_X * LY + lane // LX)
            place = Place(thread, part, count, left, tile_number, rows, first_column)
            write_statistics(acc, TM, shared, layout, place, bias, columns, statistics)

    return simt_gemm
