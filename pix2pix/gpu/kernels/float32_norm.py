"""CUDA kernels that normalise maps by each image's own statistics.

Mean and variance are those of the whole map, in two steps of fixed order, without atomic operations: each chunk of
pixels has its mean and the sum of squared deviations from it (in two passes, so that nothing cancels), and chunks are
then combined. How pixels are cut into chunks depends on the map's size alone.

Source: Chan, Golub, LeVeque, "Algorithms for computing the sample variance", 1983, for the combination.
"""

from __future__ import annotations

import math
from typing import Any

from numba import cuda, float32

from ..jit import ALIGNMENT, kernel
from ..ptx.simt import load4, store4

CHUNK, MAX_CHUNKS = 1024, 64


def chunk_size(pixels: int) -> int:
    """Pixels of a chunk, for maps of that many."""
    return max(CHUNK, -(-pixels // MAX_CHUNKS))


def make_chunk_statistics(lanes: int, rows: int) -> Any:
    """The statistics of each chunk. Launch blocks of lanes * rows in a grid of (channels / 4 / lanes, chunks, images).

    Each thread has 4 channels of every rows-th pixel; the sums of `rows` threads are added in order.
    """
    SHARED, LANES, ROWS, ZERO = lanes * rows * 4, lanes, rows, float32(0)

    @kernel(lanes * rows)
    def chunk_statistics(a, statistics, pixels, chunk, stride, first, channels):
        """statistics (images, chunks, 2, channels): the mean, and the sum of squared deviations from it.

        a (images, pixels, stride), `channels` of it (a multiple of 4) from `first`.
        """
        sums = cuda.shared.array(SHARED, float32, ALIGNMENT)
        thread = cuda.threadIdx.x
        lane, row = thread % LANES, thread // LANES
        channel = (cuda.blockIdx.x * LANES + lane) * 4
        image, chunks = cuda.blockIdx.z, cuda.gridDim.y
        begin = cuda.blockIdx.y * chunk
        end = min(begin + chunk, pixels)
        mean = (ZERO, ZERO, ZERO, ZERO)
        for moment in range(2):
            total = (ZERO, ZERO, ZERO, ZERO)
            if channel < channels:
                for pixel in range(begin + row, end, ROWS):
                    v = load4(a, (image * pixels + pixel) * stride + first + channel)
                    if moment == 1:
                        d = (v[0] - mean[0], v[1] - mean[1], v[2] - mean[2], v[3] - mean[3])
                        v = (d[0] * d[0], d[1] * d[1], d[2] * d[2], d[3] * d[3])
                    total = (total[0] + v[0], total[1] + v[1], total[2] + v[2], total[3] + v[3])
            store4(sums, thread * 4, total)
            cuda.syncthreads()
            total = (ZERO, ZERO, ZERO, ZERO)
            for r in range(ROWS):
                v = load4(sums, (r * LANES + lane) * 4)
                total = (total[0] + v[0], total[1] + v[1], total[2] + v[2], total[3] + v[3])
            if moment == 0:
                n = float32(end - begin)
                mean = (total[0] / n, total[1] / n, total[2] / n, total[3] / n)
                total = mean
            if row == 0 and channel < channels:
                at = ((image * chunks + cuda.blockIdx.y) * 2 + moment) * channels + channel
                store4(statistics, at, total)
            cuda.syncthreads()

    return chunk_statistics


def make_normalise(lanes: int, rows: int) -> Any:
    """a = (a - mean) / sqrt(variance + eps) * gamma + beta, in place. Launch as chunk_statistics."""
    SHARED, LANES, ROWS, ZERO, ONE = lanes * rows * 4, lanes, rows, float32(0), float32(1)

    @kernel(lanes * rows)
    def normalise(a, statistics, gamma, beta, pixels, chunk, stride, first, channels, eps):
        """a (images, pixels, stride), `channels` of it from `first`; statistics (images, chunks, 2, channels)."""
        sums = cuda.shared.array(SHARED, float32, ALIGNMENT)
        thread = cuda.threadIdx.x
        lane, row = thread % LANES, thread // LANES
        channel = (cuda.blockIdx.x * LANES + lane) * 4
        image, chunks = cuda.blockIdx.z, cuda.gridDim.y
        mean, total = (ZERO, ZERO, ZERO, ZERO), (ZERO, ZERO, ZERO, ZERO)
        for moment in range(2):
            total = (ZERO, ZERO, ZERO, ZERO)
            if channel < channels:
                for c in range(row, chunks, ROWS):
                    at = (image * chunks + c) * 2 * channels + channel
                    n = float32(min(chunk, pixels - c * chunk))
                    v = load4(statistics, at)
                    if moment == 0:
                        v = (v[0] * n, v[1] * n, v[2] * n, v[3] * n)
                    else:
                        d = (v[0] - mean[0], v[1] - mean[1], v[2] - mean[2], v[3] - mean[3])
                        v = load4(statistics, at + channels)
                        v = (
                            v[0] + n * d[0] * d[0],
                            v[1] + n * d[1] * d[1],
                            v[2] + n * d[2] * d[2],
                            v[3] + n * d[3] * d[3],
                        )
                    total = (total[0] + v[0], total[1] + v[1], total[2] + v[2], total[3] + v[3])
            store4(sums, thread * 4, total)
            cuda.syncthreads()
            total = (ZERO, ZERO, ZERO, ZERO)
            for r in range(ROWS):
                v = load4(sums, (r * LANES + lane) * 4)
                total = (total[0] + v[0], total[1] + v[1], total[2] + v[2], total[3] + v[3])
            n = float32(pixels)
            total = (total[0] / n, total[1] / n, total[2] / n, total[3] / n)
            if moment == 0:
                mean = total
            cuda.syncthreads()
        if channel < channels:
            g, b = load4(gamma, channel), load4(beta, channel)
            scale = (
                g[0] * (ONE / math.sqrt(total[0] + eps)),
                g[1] * (ONE / math.sqrt(total[1] + eps)),
                g[2] * (ONE / math.sqrt(total[2] + eps)),
                g[3] * (ONE / math.sqrt(total[3] + eps)),
            )
            begin = cuda.blockIdx.y * chunk
            for pixel in range(begin + row, min(begin + chunk, pixels), ROWS):
                at = (image * pixels + pixel) * stride + first + channel
                v = load4(a, at)
                v = (
                    (v[0] - mean[0]) * scale[0] + b[0],
                    (v[1] - mean[1]) * scale[1] + b[1],
                    (v[2] - mean[2]) * scale[2] + b[2],
                    (v[3] - mean[3]) * scale[3] + b[3],
                )
                store4(a, at, v)

    return normalise
