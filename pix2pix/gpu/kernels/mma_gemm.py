"""The matrix product on tensor cores that computes every convolution, with no matrix of patches in memory.

out = A @ W + bias, tile by tile, in float16, bfloat16 or tf32, with sums in float32. Rows of A are the pixels of a
grid, its columns the taps of the filter times the channels of the map, as in :mod:`pix2pix.gpu.kernels.float32_gemm`; here maps hold
what the layer reads, activated, so that chunks of 16 bytes go from them to shared memory by themselves (zeros for what
lies outside), some stages ahead of the product. A warp loads its fragments of both tiles from there, and multiplies.

Rows in shared memory are of four chunks, put in an order that changes every second row, so that the eight rows that are
loaded together lie in different banks.

Sources: the stages and the tiling by warps are those of NVIDIA's CUTLASS, "Efficient GEMM in CUDA"; implicit GEMM:
arXiv:1410.0759; combining the statistics of parts: Chan, Golub, LeVeque 1983.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import cuda, float32

from ..ptx.mma import (
    add8,
    commit_copies,
    copy_async,
    fill8,
    leaky8,
    load8,
    load_matrices,
    multiply8,
    multiply_fragments,
    put8,
    round8,
    store8,
    subtract8,
    take8,
    wait_for_copies,
)
from ..ptx.packed_words import RUN, RUN_WORDS
from .common import ALIGNMENT, inlined, int32, kernel, quotient, synchronise

CHUNK, CHUNKS = 4, 4  # words of a chunk, and chunks of a row of either tile in shared memory
ROW, HALF = 16, 8  # words of that row, of which one instruction multiplies a half
COLUMN_BITS = 16  # where those begin that say which columns of taps are inside a map
W_UNIT = 32  # columns that are kept in an order of their own, see order_of_columns
SUMS, MAPS, STATISTICS = range(3)  # what the product leaves behind


@dataclass(frozen=True, slots=True)
class TensorTile:
    """How a block of threads shares the bm x bn of out that it computes: each warp has wm x wn of it.

    ``stages`` tiles of A and W are in shared memory at a time. ``blocks`` are to fit a multiprocessor together: what
    their registers and their shared memory allow.
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

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a size that is given at the launch."""
        return 0


TENSOR_TILES = {
    "128x128": TensorTile(128, 128, 64, 64, stages=3, blocks=2),
    "128x64": TensorTile(128, 64, 64, 32, stages=4, blocks=3),
    "64x64": TensorTile(64, 64, 32, 32, stages=4, blocks=4),
}
SIMULATED_TENSOR_TILE = TensorTile(32, 32, 32, 32, stages=3, blocks=1)  # of every name, in the simulator


def order_of_columns(columns: int) -> np.ndarray:
    """Which column of W is where, padded: so that the columns of a thread, two of each fragment, become runs."""
    j, lane, e = np.meshgrid(range(4), range(4), range(2), indexing="ij")
    order = (RUN * lane + 2 * j + e).ravel()
    return (np.arange(-(-columns // W_UNIT))[:, None] * W_UNIT + order).ravel()


@inlined
def put_run(
    values, pixel, word, out, out_stride, out_first, out_slope, also, also_stride, also_first, also_slope, kind
):
    """8 channels of a pixel, rounded, to the maps of those who read them, each through its leaky ReLU."""
    values = round8(values, kind)
    put8(out, pixel * out_stride + out_first + word, leaky8(values, out_slope), kind)
    if also_stride:
        put8(also, pixel * also_stride + also_first + word, leaky8(values, also_slope), kind)


@inlined
def leave_statistics(
    acc,
    shared,
    part,
    parts,
    count,
    downs,
    left,
    groups,
    runs,
    rows,
    bias,
    first_column,
    columns,
    width,
    statistics,
    chunk,
    thread,
    threads,
):
    """Statistics of a tile of `rows` rows and `width` columns from `first_column` on: statistics (tiles, 2, columns).

    They are the mean, with the bias, and the sum of squared deviations from it. A thread has `count` rows, at most
    `downs`, 8 apart, of the columns of its runs, as take8 has them, and is one of the `parts` that have the others:
    the first row of part i is i // 8 * 8 * downs + i % 8. Each part sums up, and squares its distances from its own
    mean; that is combined in the order of parts. A thread beyond the last part has nothing, but must come along.
    """
    squares = parts * width  # where they lie in shared memory, behind the sums
    synchronise()  # nobody reads the tiles any more
    if part < parts and count > 0:
        for along in range(groups):
            total, square = fill8(float32(0)), fill8(float32(0))
            for down in range(downs):
                if down < count:
                    total = add8(total, take8(acc, down * groups + along, runs))
            mean = multiply8(total, fill8(float32(1) / float32(count)))
            for down in range(downs):
                if down < count:
                    values = subtract8(take8(acc, down * groups + along, runs), mean)
                    square = add8(square, multiply8(values, values))
            at = int32(part * width + left + int32(along) * 4 * RUN)
            store8(shared, at, total)
            store8(shared, int32(squares + at), square)
    synchronise()
    column = int32(thread)
    while column < width:
        if first_column + column < columns:
            total = float32(0)
            for i in range(parts):
                if int32(i // 8 * 8 * downs + i % 8) < rows:
                    total += shared[int32(i * width + column)]
            mean = total / float32(rows)
            square = float32(0)
            for i in range(parts):
                its = float32(min(downs, quotient(int32(max(0, rows - (i // 8 * 8 * downs + i % 8)) + 7), 8)))
                if its > 0:
                    distance = shared[int32(i * width + column)] / its - mean
                    square += shared[int32(squares + i * width + column)] + its * distance * distance
            at = np.int64(chunk) * 2 * columns + first_column + column
            statistics[at] = mean + bias[first_column + column]
            statistics[at + columns] = square
        column = int32(column + threads)


def make_tensor_gemm(tile: TensorTile, kind: int, leaves: int) -> Any:
    """The kernel for a tile and a kind of words, which leaves SUMS, MAPS or maps with their STATISTICS.

    Launch with a grid of (groups of rows * tiles of a group, column tiles, parities * splits).
    """
    BM, BN, KIND, THREADS = tile.bm, tile.bn, kind, tile.threads
    WM, WN, WARPS_M, WARPS_N = tile.wm, tile.wn, tile.bm // tile.wm, tile.bn // tile.wn
    MF, NF, NF2 = tile.wm // 16, tile.wn // 8, tile.wn // 16
    ACCUMULATORS, A_WORDS, B_WORDS = MF * NF * 4, MF * 4, NF * 2
    GROUPS = NF // 4  # runs of a thread in one row
    RUNS, RUN_SIZE = 2 * MF * GROUPS, RUN_WORDS[kind]
    STEP_ROWS = tile.threads // 4  # rows apart of the chunks that one thread copies
    A_COPIES, B_COPIES = BM // STEP_ROWS, BN // STEP_ROWS
    A_SIZE, STAGE = BM * ROW, (BM + BN) * ROW
    AHEAD, PENDING, SHARED = tile.stages - 1, tile.stages - 2, tile.stages * STAGE
    ZERO = float32(0)
    IS_SUMS, HAS_STATISTICS = leaves == SUMS, leaves == STATISTICS
    PARTS = WARPS_M * 8  # sums of each column that threads have

    @kernel(tile.threads, tile.blocks)
    def tensor_gemm(
        a,
        w,
        bias,
        out,
        also,
        statistics,
        h,
        wd,
        channels,
        side_y,
        side_x,
        zoom_y,
        zoom_x,
        origin,
        step,
        rows,
        tiles,
        grid_h,
        grid_w,
        columns,
        parities,
        splits,
        out_stride,
        out_first,
        out_slope,
        also_stride,
        also_first,
        also_slope,
    ):
        """out = A @ w + bias. All that is `words` is in the kind's; see :mod:`pix2pix.gpu.ptx.mma`.

        a: words of maps (N, h, wd, channels). w: words (parities, columns, side_y * side_x * channels), its columns
        padded to a multiple of W_UNIT and in the order of :func:`order_of_columns`. `channels` is in words, a multiple
        of CHUNK; `columns` counts elements, a multiple of RUN.
        Rows come in groups of `rows`, which `tiles` tiles share. Row r of all is pixel (y, x) of grid_h x grid_w of an
        image; tap (i, j) of side_y x side_x reads the map at (zoom_y * y + origin + py + step * i,
        zoom_x * x + origin + px + step * j), zeros outside.
        MAPS: out and also (unless its stride is 0) are words of maps (N, u * grid_h, u * grid_w, stride), written from
        word `first` at (u * y + py, u * x + px), where u = 2 for four parities (py, px), else 1, through leaky ReLUs.
        STATISTICS: and statistics (groups, parities * tiles, 2, columns), of each tile's rows: the mean, and the sum of
        squared deviations from it.
        SUMS: out (splits, parities, all rows, columns), float32, without bias.
        """
        shared = cuda.shared.array(SHARED, float32, ALIGNMENT)
        acc = cuda.local.array(ACCUMULATORS, float32)
        a_words = cuda.local.array(A_WORDS, np.uint32)
        b_words = cuda.local.array(B_WORDS, np.uint32)
        row_at = cuda.local.array(A_COPIES, np.int32)
        row_taps = cuda.local.array(A_COPIES, np.int32)
        thread = int32(cuda.threadIdx.x)
        group = quotient(cuda.blockIdx.x, tiles)
        first_row = int32((cuda.blockIdx.x - group * tiles) * BM)
        first_column = int32(cuda.blockIdx.y * BN)
        split = quotient(cuda.blockIdx.z, parities)
        parity = int32(cuda.blockIdx.z - split * parities)
        py, px = parity >> 1, parity & 1

        for i in range(ACCUMULATORS):
            acc[i] = ZERO
        words, chunks = int32(channels), int32(channels // CHUNK)
        copied, chunk = int32(thread // 4), int32(thread % 4)
        for copy in range(A_COPIES):
            row = int32(first_row + copied + copy * STEP_ROWS)
            pixel = int32(group * rows + row)
            line = quotient(pixel, grid_w)
            image = quotient(line, grid_h)
            y = int32(zoom_y * (line - image * grid_h) + origin + py)
            x = int32(zoom_x * (pixel - line * grid_w) + origin + px)
            row_at[copy] = ((image * h + y) * wd + x) * chunks  # the first tap's, in chunks, though it may be outside
            inside = int32(0)  # bits of the taps' rows that are inside, and of their columns
            if row < rows:
                for i in range(side_y):
                    inside |= int32(0 <= y + step * i and y + step * i < h) << i
                for i in range(side_x):
                    inside |= int32(0 <= x + step * i and x + step * i < wd) << (i + COLUMN_BITS)
            row_taps[copy] = inside

        taps = int32(side_y * side_x)
        w_rows = int32((columns + W_UNIT - 1) // W_UNIT * W_UNIT)
        w_row = int32(first_column + copied)
        w_at = int32((parity * w_rows + w_row) * taps * chunks)  # in chunks
        w_step = int32(STEP_ROWS * taps * chunks)
        w_inside = int32(0)  # bits of this thread's rows of W that there are
        for copy in range(B_COPIES):
            w_inside |= int32(w_row + copy * STEP_ROWS < w_rows) << copy
        steps = quotient(taps * words + ROW - 1, ROW)
        share = quotient(steps + splits - 1, splits)
        begin = int32(split * share)
        end = int32(min(begin + share, steps))
        at_chunk = int32(begin * CHUNKS + chunk)  # of a row of W, which this thread copies next
        tap = quotient(at_chunk, chunks)
        channel = int32(at_chunk - tap * chunks)
        tap_y = quotient(tap, side_x)
        tap_x = int32(tap - tap_y * side_x)
        step_y, step_x = int32(step * wd * chunks), int32(step * chunks)
        rows_of_taps, taps_of_row = int32(side_y), int32(side_x)
        w_at = int32(w_at + at_chunk)
        to = int32(copied * ROW + (chunk ^ (copied >> 1 & 3)) * CHUNK)

        warp, lane = thread // 32, thread % 32
        top, left = int32(warp // WARPS_N * WM), int32(warp % WARPS_N * WN)
        a_row, b_row = int32(top + lane % 16), int32(left + lane % 8 + lane // 16 * 8)
        a_at = int32(a_row * ROW + (lane // 16 ^ (a_row >> 1 & 3)) * CHUNK)
        b_at = int32(A_SIZE + b_row * ROW + (lane // 8 % 2 ^ (b_row >> 1 & 3)) * CHUNK)
        full, ready = int32(0), int32(0)  # the stages that are copied to, and multiplied, next
        # Everything in this loop is of 32 bits, which numba has to be told after each operation.
        for at in range(int32(begin - AHEAD), end):
            if at >= begin:
                wait_for_copies(PENDING)
                cuda.syncthreads()
            if int32(at + AHEAD) < end:  # the stage that was multiplied last is free
                offset = int32(tap_y * step_y + tap_x * step_x + channel)
                mask = int32(1 << tap_y | 1 << (tap_x + COLUMN_BITS))
                w_mask = w_inside if tap_y < rows_of_taps else int32(0)
                for copy in range(A_COPIES):
                    place = np.int64(int32(row_at[copy] + offset)) * CHUNK
                    is_there = int32(row_taps[copy] & mask) == mask
                    copy_async(shared, int32(full + to + copy * STEP_ROWS * ROW), a, place, is_there)
                for copy in range(B_COPIES):
                    place = np.int64(int32(w_at + copy * w_step)) * CHUNK
                    is_there = int32(w_mask & 1 << copy) != 0
                    copy_async(shared, int32(full + A_SIZE + to + copy * STEP_ROWS * ROW), w, place, is_there)
                w_at = int32(w_at + CHUNKS)
                channel = int32(channel + CHUNKS)
                while channel >= chunks:
                    channel = int32(channel - chunks)
                    tap_x = int32(tap_x + 1)
                    if tap_x == taps_of_row:
                        tap_x = int32(0)
                        tap_y = int32(tap_y + 1)
                full = int32(full + STAGE)
                if full == SHARED:
                    full = int32(0)
            commit_copies()
            if at >= begin:
                for half in range(2):  # two chunks of each row at a time
                    for j in range(NF2):
                        load_matrices(shared, int32(ready + (b_at ^ half * HALF) + j * 16 * ROW), b_words, 4 * j)
                    for i in range(MF):
                        load_matrices(shared, int32(ready + (a_at ^ half * HALF) + i * 16 * ROW), a_words, 4 * i)
                    multiply_fragments(acc, a_words, b_words, MF, NF, KIND)
                ready = int32(ready + STAGE)
                if ready == SHARED:
                    ready = int32(0)

        top, left = int32(top + lane // 4), int32(left + lane % 4 * RUN)
        unit = 2 if parities > 1 else 1
        all_rows = cuda.gridDim.x // tiles * rows
        for run in range(RUNS):
            row = int32(first_row + top + run // GROUPS * 8)
            column = int32(first_column + left + run % GROUPS * 4 * RUN)
            if row < rows and column < columns:
                values = take8(acc, run, RUNS)
                pixel = group * rows + row
                if IS_SUMS:
                    store8(out, ((split * parities + parity) * all_rows + pixel) * columns + column, values)
                else:
                    line = quotient(int32(pixel), grid_w)
                    pixel = ((line * unit + py) * grid_w + pixel - line * grid_w) * unit + px
                    values = add8(values, load8(bias, column))
                    word = column // RUN * RUN_SIZE
                    put_run(
                        values,
                        pixel,
                        word,
                        out,
                        out_stride,
                        out_first,
                        out_slope,
                        also,
                        also_stride,
                        also_first,
                        also_slope,
                        KIND,
                    )

        if HAS_STATISTICS:
            wait_for_copies(0)
            part = int32(warp // WARPS_N * 8 + lane // 4)
            chunk = (group * parities + parity) * tiles + quotient(first_row, BM)
            rows_here = int32(min(BM, rows - first_row))
            count = int32(min(2 * MF, quotient(int32(max(0, rows_here - top) + 7), 8)))
            leave_statistics(
                acc,
                shared,
                part,
                PARTS,
                count,
                2 * MF,
                left,
                GROUPS,
                RUNS,
                rows_here,
                bias,
                first_column,
                columns,
                BN,
                statistics,
                chunk,
                thread,
                THREADS,
            )

    return tensor_gemm
