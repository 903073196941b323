"""The implicit GEMM of :mod:`pix2pix.gpu.kernels.mma_gemm` for Hopper: TMA loads, mbarriers and wgmma.

The rows of a tile are a box of pixels, so one TMA load copies what a tap reads of them, with zeros outside the source.
Warps are specialised: one thread of the producer warp starts the loads of both operands as soon as a stage is free, and
warpgroups multiply full stages straight from shared memory. Producer and consumers synchronise through mbarriers, never
block-wide, until the product is done. The kernel needs boxes that fill the grid of pixels (:meth:`HopperTile.box`) and
sources whose pixels fill rows of SWIZZLE_ROW words.

Sources: warp specialisation and pipeline: NVIDIA's CUTLASS, "Efficient GEMM in CUDA". A source that is read with stride
2 is a tensor of pairs of rows and columns: the polyphase split of signal processing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numba import cuda, float32

from ..jit import ALIGNMENT, Array, int32, kernel
from ..ptx.fragments import LANES, SWIZZLE_ATOM, SWIZZLE_ROW, VECTOR, WARPGROUP, WARPGROUP_ROWS
from ..ptx.hopper import (
    atom_offset,
    fence_mbarrier_init,
    fence_tensor_map,
    mbarrier_arrive,
    mbarrier_expect_tx,
    mbarrier_init,
    mbarrier_wait,
    tma_load,
    wgmma,
    wgmma_wait,
)
from ..ptx.mma import select8
from ..ptx.packed_words import VECTOR_WORDS
from ..ptx.simt import quotient
from ..ptx.vectors import add8, load8, store8
from .epilogue import PARTIAL_SUMS, STATISTICS, Layout, Place, write_statistics, write_vector
from .parameters import Gemm, Targets


class Box(NamedTuple):
    """The pixels of a tile, whose rows are in this order. All three are powers of two."""

    images: int
    h: int
    w: int


@dataclass(frozen=True, slots=True)
class HopperTile:
    """The bm x bn of out that a block computes: 64 rows for each consumer warpgroup, and a producer warp beside them.

    Shared memory holds `stages` stages of both operands. `blocks` blocks are to fit a multiprocessor together, as
    registers and shared memory allow.
    """

    bm: int
    bn: int
    stages: int
    blocks: int

    @property
    def threads(self) -> int:
        """Threads of a block."""
        return self.bm // WARPGROUP_ROWS * WARPGROUP + LANES

    @property
    def shared(self) -> int:
        """Bytes of dynamic shared memory: the stages, and what aligning them to a swizzle atom may take."""
        return 4 * (self.stages * (self.bm + self.bn) * SWIZZLE_ROW + SWIZZLE_ATOM)

    def box(self, h: int, w: int) -> Box | None:
        """The pixels of a tile on a grid of h x w: part of an image, or some whole images; None where neither fits."""
        box_w = math.gcd(w, self.bm)
        box_h = math.gcd(h, self.bm // box_w)
        images = self.bm // (box_w * box_h)
        return Box(images, box_h, box_w) if images == 1 or (box_h, box_w) == (h, w) else None


HOPPER_TILES = {
    (128, 256): HopperTile(128, 256, stages=4, blocks=1),
    (128, 128): HopperTile(128, 128, stages=6, blocks=1),
    (128, 64): HopperTile(128, 64, stages=4, blocks=2),
}
SIMULATED_HOPPER_TILE = HopperTile(64, 32, stages=3, blocks=1)  # for every size, in the simulator


def make_hopper_gemm(tile: HopperTile, kind: int, epilogue: int) -> Any:
    """The kernel for a tile, a kind of packed word and an epilogue: PARTIAL_SUMS, MAPS or STATISTICS.

    Launch with a grid of (tiles of all images, column tiles, phases * splits), and ``tile.shared``.
    """
    BM, BN, KIND, THREADS, STAGES = tile.bm, tile.bn, kind, tile.threads, tile.stages
    PRODUCER = tile.threads - LANES  # the one thread of the producer warp that works
    BARRIER_WORDS = 4 * tile.stages
    ACCUMULATORS, GROUPS, WORDS = tile.bn // 2, tile.bn // 32, VECTOR_WORDS[kind]
    VECTORS, WARPS, WARP = 2 * GROUPS, tile.bm // 16, LANES  # consumer warps
    A_SIZE, STAGE = tile.bm * SWIZZLE_ROW, (tile.bm + tile.bn) * SWIZZLE_ROW
    PARTS = WARPS * 8  # lanes that share a column
    ZERO = float32(0)
    IS_SUMS, HAS_STATISTICS = epilogue == PARTIAL_SUMS, epilogue == STATISTICS

    @kernel(tile.threads, tile.blocks)
    def hopper_gemm(
        a: Array, w: Array, bias: Array, out: Array, out2: Array, statistics: Array, gemm: Gemm, targets: Targets
    ) -> None:
        """out = A @ w + bias. All but the operands is as in :func:`pix2pix.gpu.kernels.mma_gemm.make_mma_gemm`.

        a: a tensor map of the source, (images, rows of pairs, 2, pairs, 2 * words) where the stride is 2, else
        (images, h, 1, w, words). w: a tensor map of the weights, (1, 1, 1, phases * padded columns, window.taps *
        words). source.words is a multiple of SWIZZLE_ROW; strides are 1 or 2 along both axes; the grid is a BoxGrid.
        """
        shared = cuda.shared.array(0, float32, ALIGNMENT)
        barriers = cuda.shared.array(BARRIER_WORDS, float32, ALIGNMENT)  # of full stages, then of free ones
        acc = cuda.local.array(ACCUMULATORS, float32)
        window, grid, words = gemm.window, gemm.grid, gemm.source.words
        columns, phases, splits = gemm.columns, gemm.phases, gemm.splits
        first = atom_offset(shared)
        thread = int32(cuda.threadIdx.x)
        box_h, box_w = int32(1 << grid.log_box_h), int32(1 << grid.log_box_w)
        tiles_x = int32(grid.w >> grid.log_box_w)
        tiles = int32(tiles_x * (grid.h >> grid.log_box_h))  # of an image, or of those that share one
        group = quotient(cuda.blockIdx.x, tiles)
        tile_of_image = int32(cuda.blockIdx.x - group * tiles)
        tile_y = quotient(tile_of_image, tiles_x)
        y0, x0 = int32(tile_y * box_h), int32((tile_of_image - tile_y * tiles_x) * box_w)
        image0 = int32(group * (BM >> (grid.log_box_h + grid.log_box_w)))
        first_column = int32(cuda.blockIdx.y * BN)
        split = quotient(cuda.blockIdx.z, phases)
        phase = int32(cuda.blockIdx.z - split * phases)
        py, px = phase >> 1, phase & 1

        if thread == 0:
            for stage in range(STAGES):
                mbarrier_init(barriers, stage, 1)
                mbarrier_init(barriers, STAGES + stage, WARPS)
            fence_mbarrier_init()
        for i in range(ACCUMULATORS):
            acc[i] = ZERO
        cuda.syncthreads()

        chunks = quotient(words, SWIZZLE_ROW)  # stages that a tap fills
        kernel_h = int32(window.y.taps2 if py else window.y.taps)
        kernel_w = int32(window.x.taps2 if px else window.x.taps)
        steps = int32(kernel_h * kernel_w * chunks)
        share = quotient(steps + splits - 1, splits)
        begin = int32(split * share)
        count = int32(min(share, steps - begin))
        lane = int32(thread % WARP)
        if thread == PRODUCER:
            fence_tensor_map(a)
            fence_tensor_map(w)
            w_row = int32(phase * ((columns + 31) // 32 * 32) + first_column)
            first_y = int32(window.y.first2 if py else window.y.first)
            first_x = int32(window.x.first2 if px else window.x.first)
            halves = int32(window.y.stride - 1)
            for i in range(count):
                i = int32(i)
                turn = quotient(i, STAGES)
                stage = int32(i - turn * STAGES)
                at = int32(begin + i)
                tap = quotient(at, chunks)
                channel = int32((at - tap * chunks) * SWIZZLE_ROW)
                tap_y = quotient(tap, kernel_w)
                y = int32(first_y + tap_y)
                x = int32(first_x + tap - tap_y * kernel_w)
                mbarrier_wait(barriers, STAGES + stage, (turn & 1) ^ 1)
                mbarrier_expect_tx(barriers, stage, STAGE)
                to = int32(first + stage * STAGE)
                x_of_pair, y_of_pair = int32((x & halves) * words + channel), int32(y & halves)
                pair, row = int32(x0 + (x >> halves)), int32(y0 + (y >> halves))
                image = int32(grid.first_image + image0)
                tma_load(shared, to, barriers, stage, a, x_of_pair, pair, y_of_pair, row, image)
                tma_load(shared, int32(to + A_SIZE), barriers, stage, w, int32(at * SWIZZLE_ROW), w_row, 0, 0, 0)
        if thread < PRODUCER:
            a_at = int32(first + thread // WARPGROUP * (WARPGROUP_ROWS * SWIZZLE_ROW))
            for i in range(count):
                i = int32(i)
                turn = quotient(i, STAGES)
                stage = int32(i - turn * STAGES)
                mbarrier_wait(barriers, stage, turn & 1)
                at = int32(stage * STAGE)
                wgmma(acc, shared, int32(a_at + at), int32(first + at + A_SIZE), BN, KIND)
                if i > 0 and lane == 0:  # the wgmma before this one has ended: its stage is free
                    mbarrier_arrive(barriers, STAGES + (stage if stage > 0 else STAGES) - 1)
            wgmma_wait(acc, BN)

        top, left = int32(thread // WARP * 16 + lane // 4), int32(lane % 4 * VECTOR)
        unit = 2 if phases > 1 else 1
        lines = int32(grid.images * grid.h)
        line0 = int32(image0 * grid.h + y0)
        for vector in range(VECTORS):
            row = int32(top + vector // GROUPS * 8)
            column = int32(first_column + left + vector % GROUPS * 4 * VECTOR)
            line = int32(row >> grid.log_box_w)
            image = int32(line >> grid.log_box_h)
            line = int32(line0 + image * grid.h + line - (image << grid.log_box_h))
            if row < BM and column < columns and line < lines:
                values = select8(acc, vector, VECTORS)
                x = int32(x0 + (row & (box_w - 1)))
                if IS_SUMS:
                    pixel = int32(((split * phases + phase) * lines + line) * grid.w + x)
                    store8(out, np.int64(pixel) * columns + column, values)
                else:
                    pixel = np.int64(int32(((line * unit + py) * grid.w + x) * unit + px))
                    values = add8(values, load8(bias, column))
                    write_vector(values, pixel, column // VECTOR * WORDS, out, out2, targets, KIND)

        if HAS_STATISTICS:
            part = int32(thread // WARP * 8 + lane // 4)
            tile_number = int32(cuda.blockIdx.x * phases + phase)
            layout = Layout(PARTS, 2, 8, GROUPS, BN, THREADS)
            place = Place(thread, part, 2, left, tile_number, BM, first_column)
            write_statistics(acc, VECTORS, shared, layout, place, bias, columns, statistics)

    return hopper_gemm
