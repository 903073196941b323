"""Convolutions as an implicit GEMM on tensor cores, by mma.sync: out = A @ W + bias, no im2col matrix in memory.

A's rows are the pixels of a grid, its columns the taps of the window times the channels of the source. Operands are
float16, bfloat16 or tf32; sums are float32. The source holds what the layer reads, activated, so cp.async copies chunks
of 16 bytes from it straight to shared memory, some stages ahead of the product. Each warp loads its fragments from
there by ldmatrix and multiplies them.

Rows of a stage in shared memory are four chunks long. Chunk c of row r lies at c ^ (r / 2 % 4), so that the eight rows
of a matrix of ldmatrix lie in different banks.

Sources: multistage pipeline and warp tiles: NVIDIA's CUTLASS, "Efficient GEMM in CUDA"; implicit GEMM: arXiv:1410.0759.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda, float32

from ..jit import ALIGNMENT, Array, int32, kernel
from ..ptx.fragments import CHUNK, COLUMN_UNIT, VECTOR
from ..ptx.mma import cp_async, cp_async_commit_group, cp_async_wait_group, ldmatrix, mma_sync, select8
from ..ptx.packed_words import VECTOR_WORDS
from ..ptx.simt import quotient
from ..ptx.vectors import add8, load8, store8
from .epilogue import PARTIAL_SUMS, STATISTICS, Layout, Place, write_statistics, write_vector
from .gather import COLUMN_BITS, taps_of
from .parameters import Gemm, Targets

CHUNKS = 4  # of a row of either operand in a stage
ROW, HALF = 16, 8  # words of that row, of which mma.sync takes half


@dataclass(frozen=True, slots=True)
class MmaTile:
    """How a block shares the bm x bn of out that it computes: each warp has wm x wn.

    Shared memory holds `stages` stages of both operands. `blocks` blocks are to fit a multiprocessor together, as
    registers and shared memory allow.
    """

    bm: int
    bn: int
    wm: int
    wn: int
    stages: int
    blocks: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.bm // self.wm * (self.bn // self.wn) * 32


MMA_TILES = {
    (128, 128): MmaTile(128, 128, 64, 64, stages=3, blocks=2),
    (128, 64): MmaTile(128, 64, 64, 32, stages=4, blocks=3),
    (64, 64): MmaTile(64, 64, 32, 32, stages=4, blocks=4),
}
SIMULATED_MMA_TILE = MmaTile(32, 32, 32, 32, stages=3, blocks=1)  # for every size, in the simulator


def make_mma_gemm(tile: MmaTile, kind: int, epilogue: int) -> Any:
    """The kernel for a tile, a kind of packed word and an epilogue: PARTIAL_SUMS, MAPS or STATISTICS.

    Launch with a grid of (groups of rows * tiles of a group, column tiles, phases * splits).
    """
    BM, BN, KIND, THREADS = tile.bm, tile.bn, kind, tile.threads
    WM, WN, WARPS_M, WARPS_N = tile.wm, tile.wn, tile.bm // tile.wm, tile.bn // tile.wn
    MF, NF, NF2 = tile.wm // 16, tile.wn // 8, tile.wn // 16
    ACCUMULATORS, A_WORDS, B_WORDS = MF * NF * 4, MF * 4, NF * 2
    GROUPS = NF // 4  # vectors of a thread in one row
    VECTORS, WORDS = 2 * MF * GROUPS, VECTOR_WORDS[kind]
    ROWS_APART = tile.threads // 4  # of the chunks that one thread copies
    A_COPIES, B_COPIES = BM // ROWS_APART, BN // ROWS_APART
    A_SIZE, STAGE = BM * ROW, (BM + BN) * ROW
    AHEAD, PENDING, SHARED = tile.stages - 1, tile.stages - 2, tile.stages * STAGE
    ZERO = float32(0)
    IS_SUMS, HAS_STATISTICS = epilogue == PARTIAL_SUMS, epilogue == STATISTICS
    PARTS, PART_ROWS = WARPS_M * 8, 2 * MF  # lanes that share a column, and the rows of each

    @kernel(tile.threads, tile.blocks)
    def mma_gemm(
        a: Array, w: Array, bias: Array, out: Array, out2: Array, statistics: Array, gemm: Gemm, targets: Targets
    ) -> None:
        """out = A @ w + bias.

        a: packed words of maps (N, source.h, source.w, source.words), words a multiple of CHUNK. w: packed words
        (phases, columns, window.taps * source.words), columns padded to a multiple of COLUMN_UNIT and in the order of
        :func:`pix2pix.gpu.ptx.fragments.column_order`. bias (columns), float32. columns is a multiple of VECTOR.
        Padding of the convolution: the kernel reads zeros outside the source.
        MAPS: out and out2 are packed words of maps (N, u * grid.h, u * grid.w, stride), written at (u * y + py,
        u * x + px), where u = 2 for four phases (py, px), else 1.
        STATISTICS: the same, and statistics (groups, phases * tiles, 2, columns) of each tile's rows.
        PARTIAL_SUMS: out (splits, phases, all rows, columns), float32, without bias.
        """
        shared = cuda.shared.array(SHARED, float32, ALIGNMENT)
        acc = cuda.local.array(ACCUMULATORS, float32)
        a_words = cuda.local.array(A_WORDS, np.uint32)
        b_words = cuda.local.array(B_WORDS, np.uint32)
        row_at = cuda.local.array(A_COPIES, np.int32)
        row_taps = cuda.local.array(A_COPIES, np.int32)
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
        words, chunks = int32(source.words), int32(source.words // CHUNK)
        copied, chunk = int32(thread // 4), int32(thread % 4)
        for copy in range(A_COPIES):
            row = int32(first_row + copied + copy * ROWS_APART)
            pixel = int32(group * grid.rows + row)
            first, row_taps[copy] = taps_of(pixel, row < grid.rows, py, px, source, window, grid)
            row_at[copy] = first * chunks  # of the first tap, in chunks

        kernel_h = int32(window.y.taps2 if py else window.y.taps)
        kernel_w = int32(window.x.taps2 if px else window.x.taps)
        taps = int32(window.taps)
        w_rows = int32((columns + COLUMN_UNIT - 1) // COLUMN_UNIT * COLUMN_UNIT)
        w_row = int32(first_column + copied)
        w_at = int32((phase * w_rows + w_row) * taps * chunks)  # in chunks
        w_step = int32(ROWS_APART * taps * chunks)
        w_inside = int32(0)  # bits of this thread's rows of W that exist
        for copy in range(B_COPIES):
            w_inside |= int32(w_row + copy * ROWS_APART < w_rows) << copy
        steps = quotient(kernel_h * kernel_w * words + ROW - 1, ROW)
        share = quotient(steps + splits - 1, splits)
        begin = int32(split * share)
        end = int32(min(begin + share, steps))
        at_chunk = int32(begin * CHUNKS + chunk)  # of a row of W, which this thread copies next
        tap = quotient(at_chunk, chunks)
        channel = int32(at_chunk - tap * chunks)
        tap_y = quotient(tap, kernel_w)
        tap_x = int32(tap - tap_y * kernel_w)
        step_y = int32(source.w * chunks)
        w_at = int32(w_at + at_chunk)
        to = int32(copied * ROW + (chunk ^ (copied >> 1 & 3)) * CHUNK)

        warp, lane = thread // 32, thread % 32
        top, left = int32(warp // WARPS_N * WM), int32(warp % WARPS_N * WN)
        a_row, b_row = int32(top + lane % 16), int32(left + lane % 8 + lane // 16 * 8)
        a_at = int32(a_row * ROW + (lane // 16 ^ (a_row >> 1 & 3)) * CHUNK)
        b_at = int32(A_SIZE + b_row * ROW + (lane // 8 % 2 ^ (b_row >> 1 & 3)) * CHUNK)
        full, ready = int32(0), int32(0)  # the stages that are copied to, and multiplied, next
        # Everything in this loop has 32 bits, which Numba must be told after each operation.
        for at in range(int32(begin - AHEAD), end):
            if at >= begin:
                cp_async_wait_group(PENDING)
                cuda.syncthreads()
            if int32(at + AHEAD) < end:  # the stage that was multiplied last is free
                offset = int32(tap_y * step_y + tap_x * chunks + channel)
                mask = int32(1 << tap_y | 1 << (tap_x + COLUMN_BITS))
                w_mask = w_inside if tap_y < kernel_h else int32(0)
                for copy in range(A_COPIES):
                    from_a = np.int64(int32(row_at[copy] + offset)) * CHUNK
                    is_there = int32(row_taps[copy] & mask) == mask
                    cp_async(shared, int32(full + to + copy * ROWS_APART * ROW), a, from_a, is_there)
                for copy in range(B_COPIES):
                    from_w = np.int64(int32(w_at + copy * w_step)) * CHUNK
                    is_there = int32(w_mask & 1 << copy) != 0
                    cp_async(shared, int32(full + A_SIZE + to + copy * ROWS_APART * ROW), w, from_w, is_there)
                w_at = int32(w_at + CHUNKS)
                channel = int32(channel + CHUNKS)
                while channel >= chunks:
                    channel = int32(channel - chunks)
                    tap_x = int32(tap_x + 1)
                    if tap_x == kernel_w:
                        tap_x = int32(0)
                        tap_y = int32(tap_y + 1)
                full = int32(full + STAGE)
                if full == SHARED:
                    full = int32(0)
            cp_async_commit_group()
            if at >= begin:
                for half in range(2):  # two chunks of each row at a time
                    for j in range(NF2):
                        ldmatrix(shared, int32(ready + (b_at ^ half * HALF) + j * 16 * ROW), b_words, 4 * j)
                    for i in range(MF):
                        ldmatrix(shared, int32(ready + (a_at ^ half * HALF) + i * 16 * ROW), a_words, 4 * i)
                    mma_sync(acc, a_words, b_words, MF, NF, KIND)
                ready = int32(ready + STAGE)
                if ready == SHARED:
                    ready = int32(0)

        top, left = int32(top + lane // 4), int32(left + lane % 4 * VECTOR)
        unit = 2 if phases > 1 else 1
        all_rows = cuda.gridDim.x // grid.tiles * grid.rows
        for vector in range(VECTORS):
            row = int32(first_row + top + vector // GROUPS * 8)
            column = int32(first_column + left + vector % GROUPS * 4 * VECTOR)
            if row < grid.rows and column < columns:
                values = select8(acc, vector, VECTORS)
                from_row = group * grid.rows + row
                if IS_SUMS:
                    store8(out, ((split * phases + phase) * all_rows + from_row) * columns + column, values)
                else:
                    line = quotient(int32(from_row), grid.w)
                    to_pixel = ((line * unit + py) * grid.w + from_row - line * grid.w) * unit + px
                    values = add8(values, load8(bias, column))
                    write_vector(values, to_pixel, column // VECTOR * WORDS, out, out2, targets, KIND)

        if HAS_STATISTICS:
            cp_async_wait_group(0)
            tile_number = (group * phases + phase) * grid.tiles + quotient(first_row, BM)
            rows = int32(min(BM, grid.rows - first_row))
            count = int32(min(PART_ROWS, quotient(int32(max(0, rows - top) + 7), 8)))
            part = int32(warp // WARPS_N * 8 + lane // 4)
            layout = Layout(PARTS, PART_ROWS, 8, GROUPS, BN, THREADS)
            place = Place(thread, part, count, left, tile_number, rows, first_column)
            write_statistics(acc, VECTORS, shared, layout, place, bias, columns, statistics)

    return mma_gemm
