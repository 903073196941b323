"""The matrix product of :mod:`pix2pix.gpu.kernels.mma_gemm` in the form that Hopper's tensor cores are fastest in.

The rows of a tile are a box of pixels, so that hardware copies what a tap reads of it: with one instruction, zeros for
what lies outside, of a map as the layer's input is. One thread has stages of both matrices copied, as soon as they are
free; the other warps, in groups of four, multiply what has come, straight from shared memory. They count on barriers
of their own, and nobody waits for the whole block before all is done. Boxes fill the grid of pixels, and taps begin at
rows of shared memory, or the layer is not one for this kernel: see :meth:`HopperTile.box`.

Sources: warps that specialise, and the stages, are those of NVIDIA's CUTLASS, "Efficient GEMM in CUDA"; the map of a
convolution of stride 2 as one of pairs of rows and columns is the polyphase split of signal processing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, float32

from ..ptx.hopper import (
    GROUP,
    GROUP_ROWS,
    PATTERN,
    ROW,
    acquire_boxes,
    aligned_place,
    arrive,
    arrive_with_words,
    copy_box,
    finish_products,
    make_barrier,
    multiply_rows,
    publish_barriers,
    wait_for_phase,
)
from ..ptx.mma import add8, load8, store8, take8
from ..ptx.packed_words import RUN, RUN_WORDS
from .common import ALIGNMENT, int32, kernel, quotient
from .mma_gemm import STATISTICS, SUMS, leave_statistics, put_run

WARP = 32


class Box(NamedTuple):
    """The pixels of a tile: rows of it are in this order. All three are powers of two."""

    images: int
    h: int
    w: int


@dataclass(frozen=True, slots=True)
class HopperTile:
    """The bm x bn of out that a block computes, 64 rows for each group of four warps; one more has copies made.

    ``stages`` tiles of A and W are in shared memory at a time. ``blocks`` are to fit a multiprocessor together: what
    their registers and their shared memory allow.
    """

    bm: int
    bn: int
    stages: int
    blocks: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.bm // GROUP_ROWS * GROUP + WARP

    @property
    def shared(self) -> int:
        """Bytes of shared memory of a size that is given at the launch, with what it takes to begin at a pattern."""
        return 4 * (self.stages * (self.bm + self.bn) * ROW + PATTERN)

    def box(self, h: int, w: int) -> Box | None:
        """The pixels of a tile on a grid of h x w: part of an image, or some whole ones; None where neither fits."""
        box_w = math.gcd(w, self.bm)
        box_h = math.gcd(h, self.bm // box_w)
        images = self.bm // (box_w * box_h)
        return Box(images, box_h, box_w) if images == 1 or (box_h, box_w) == (h, w) else None


HOPPER_TILES = {
    "128x256": HopperTile(128, 256, stages=4, blocks=1),
    "128x128": HopperTile(128, 128, stages=6, blocks=1),
    "128x64": HopperTile(128, 64, stages=4, blocks=2),
}
SIMULATED_HOPPER_TILE = HopperTile(64, 32, stages=3, blocks=1)  # of every name, in the simulator


def make_hopper_gemm(tile: HopperTile, kind: int, leaves: int) -> Any:
    """The kernel for a tile and a kind of words, which leaves SUMS, MAPS or maps with their STATISTICS.

    Launch with a grid of (tiles of all images, column tiles, parities * splits), and ``tile.shared``.
    """
    BM, BN, KIND, THREADS, STAGES = tile.bm, tile.bn, kind, tile.threads, tile.stages
    PRODUCER = tile.threads - WARP  # the thread that has copies made: of its warp the one that has something to do
    BARRIER_WORDS = 4 * tile.stages
    ACCUMULATORS, GROUPS, RUN_SIZE = tile.bn // 2, tile.bn // 32, RUN_WORDS[kind]
    RUNS, WARPS = 2 * GROUPS, tile.bm // 16  # warps that multiply
    A_SIZE, STAGE = tile.bm * ROW, (tile.bm + tile.bn) * ROW
    PARTS = WARPS * 8  # threads that have a column
    ZERO = float32(0)
    IS_SUMS, HAS_STATISTICS = leaves == SUMS, leaves == STATISTICS

    @kernel(tile.threads, tile.blocks)
    def hopper_gemm(
        a,
        w,
        bias,
        out,
        also,
        statistics,
        words,
        side,
        zoom,
        origin,
        step,
        first_image,
        images,
        log_box_h,
        log_box_w,
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
        """out = A @ w + bias, as :func:`pix2pix.gpu.kernels.mma_gemm.make_tensor_gemm` has it, but for what follows.

        a: boxes of maps, (images, rows of pairs, 2, pairs, 2 * words) where `zoom` is 2, else (images, h, 1, w, words).
        w: boxes of words (1, 1, 1, parities * padded columns, taps * words). `words`, of a pixel, is a multiple of ROW.
        Tap (i, j) of side x side reads the map at zoom * y + origin + py + step * i, and so on. Tiles are of pixels
        in boxes, (images, 2**log_box_h, 2**log_box_w), of `images` from `first_image` on; out, also and statistics
        begin with the first.
        """
        shared = cuda.shared.array(0, float32, ALIGNMENT)
        barriers = cuda.shared.array(BARRIER_WORDS, float32, ALIGNMENT)  # of stages that have come, then of free ones
        acc = cuda.local.array(ACCUMULATORS, float32)
        first = aligned_place(shared)
        thread = int32(cuda.threadIdx.x)
        box_h, box_w = int32(1 << log_box_h), int32(1 << log_box_w)
        tiles_x = int32(grid_w >> log_box_w)
        tiles = int32(tiles_x * (grid_h >> log_box_h))  # of an image, or of those that share one
        group = quotient(cuda.blockIdx.x, tiles)
        tile_of_image = int32(cuda.blockIdx.x - group * tiles)
        tile_y = quotient(tile_of_image, tiles_x)
        y0, x0 = int32(tile_y * box_h), int32((tile_of_image - tile_y * tiles_x) * box_w)
        image0 = int32(group * (BM >> (log_box_h + log_box_w)))
        first_column = int32(cuda.blockIdx.y * BN)
        split = quotient(cuda.blockIdx.z, parities)
        parity = int32(cuda.blockIdx.z - split * parities)
        py, px = parity >> 1, parity & 1

        if thread == 0:
            for stage in range(STAGES):
                make_barrier(barriers, stage, 1)
                make_barrier(barriers, STAGES + stage, WARPS)
            publish_barriers()
        for i in range(ACCUMULATORS):
            acc[i] = ZERO
        cuda.syncthreads()

        chunks = quotient(words, ROW)  # rows of shared memory that a tap fills
        steps = int32(side * side * chunks)
        share = quotient(steps + splits - 1, splits)
        begin = int32(split * share)
        count = int32(min(share, steps - begin))
        lane = int32(thread % WARP)
        if thread == PRODUCER:
            acquire_boxes(a)
            acquire_boxes(w)
            w_row = int32(parity * ((columns + 31) // 32 * 32) + first_column)
            halves = int32(zoom - 1)
            for i in range(count):
                i = int32(i)
                turn = quotient(i, STAGES)
                stage = int32(i - turn * STAGES)
                at = int32(begin + i)
                tap = quotient(at, chunks)
                channel = int32((at - tap * chunks) * ROW)
                tap_y = quotient(tap, side)
                y = int32(origin + py + step * tap_y)
                x = int32(origin + px + step * (tap - tap_y * side))
                wait_for_phase(barriers, STAGES + stage, (turn & 1) ^ 1)
                arrive_with_words(barriers, stage, STAGE)
                to = int32(first + stage * STAGE)
                copy_box(
                    shared,
                    to,
                    barriers,
                    stage,
                    a,
                    int32((x & halves) * words + channel),
                    int32(x0 + (x >> halves)),
                    int32(y & halves),
                    int32(y0 + (y >> halves)),
                    int32(first_image + image0),
                )
                copy_box(shared, int32(to + A_SIZE), barriers, stage, w, int32(at * ROW), w_row, 0, 0, 0)
        if thread < PRODUCER:
            a_at = int32(first + thread // GROUP * (GROUP_ROWS * ROW))
            for i in range(count):
                i = int32(i)
                turn = quotient(i, STAGES)
                stage = int32(i - turn * STAGES)
                wait_for_phase(barriers, stage, turn & 1)
                at = int32(stage * STAGE)
                multiply_rows(acc, shared, int32(a_at + at), int32(first + at + A_SIZE), BN, KIND)
                if i > 0 and lane == 0:  # the product before this one is done
                    arrive(barriers, STAGES + (stage if stage > 0 else STAGES) - 1)
            finish_products(acc, BN)

        top, left = int32(thread // WARP * 16 + lane // 4), int32(lane % 4 * RUN)
        unit = 2 if parities > 1 else 1
        lines = int32(images * grid_h)
        line0 = int32(image0 * grid_h + y0)
        for run in range(RUNS):
            row = int32(top + run // GROUPS * 8)
            column = int32(first_column + left + run % GROUPS * 4 * RUN)
            line = int32(row >> log_box_w)
            image = int32(line >> log_box_h)
            line = int32(line0 + image * grid_h + line - (image << log_box_h))
            if row < BM and column < columns and line < lines:
                values = take8(acc, run, RUNS)
                x = int32(x0 + (row & (box_w - 1)))
                if IS_SUMS:
                    pixel = int32(((split * parities + parity) * lines + line) * grid_w + x)
                    store8(out, np.int64(pixel) * columns + column, values)
                else:
                    pixel = np.int64(int32(((line * unit + py) * grid_w + x) * unit + px))
                    values = add8(values, load8(bias, column))
                    put_run(
                        values,
                        pixel,
                        column // RUN * RUN_SIZE,
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
            leave_statistics(
                acc,
                shared,
                int32(thread // WARP * 8 + lane // 4),
                PARTS,
                2,
                2,
                left,
                GROUPS,
                RUNS,
                BM,
                bias,
                first_column,
                columns,
                BN,
                statistics,
                int32(cuda.blockIdx.x * parities + parity),
                thread,
                THREADS,
            )

    return hopper_gemm
