"""Convolution filters as the matrices of products: taps as rows of W, columns in the order that threads have them."""

from __future__ import annotations

import numpy as np

from ..model.sampling import Sampling

UNIT = 8  # channels: every map's are padded to a multiple of it


def padded(channels: int) -> int:
    """Channels that a map has in memory."""
    return -(-channels // UNIT) * UNIT


def plain_taps(kernel: np.ndarray) -> np.ndarray:
    """(kh, kw, in, out) -> (1, kh * kw * in, out): a convolution that is no transposed one."""
    return kernel.reshape(1, -1, kernel.shape[3])


def flipped_taps(kernel: np.ndarray) -> np.ndarray:
    """The same for the convolution that a transposed one is, over a map with zeros inserted."""
    return plain_taps(kernel[::-1, ::-1])


def phase_taps(kernel: np.ndarray, sampling: Sampling) -> np.ndarray:
    """(kh, kw, in, out) -> (phases, taps * in, out): those of every phase in order, then zeros up to the most taps."""
    depth, most = kernel.shape[2], max(len(phase.taps) for phase in sampling.phases)
    matrix = np.zeros((len(sampling.phases), most * depth, kernel.shape[3]), kernel.dtype)
    for rows, phase in zip(matrix, sampling.phases, strict=True):
        for i, tap in enumerate(phase.taps):
            rows[i * depth : (i + 1) * depth] = kernel[tap.ky, tap.kx]
    return matrix


def all_taps(kernel: np.ndarray) -> np.ndarray:
    """(kh, kw, in, out) -> (1, in, kh * kw * out): the products of a pixel with all taps."""
    return kernel.transpose(2, 0, 1, 3).reshape(1, kernel.shape[2], -1)


def columns_of_taps(kernel: np.ndarray) -> np.ndarray:
    """(kh, kw, in, out) -> (1, kh * in, kw * out): the products of a column of pixels with each column of taps."""
    kh, kw, depth, filters = kernel.shape
    return kernel.transpose(0, 2, 1, 3).reshape(1, kh * depth, kw * filters)


def reorder_columns(matrix: np.ndarray, order: np.ndarray) -> np.ndarray:
    """(..., columns) -> (..., len(order)): column i is number order[i] of `matrix`, zeros where there is none."""
    result = np.zeros((*matrix.shape[:-1], len(order)), matrix.dtype)
    real = order < matrix.shape[-1]
    result[..., real] = matrix[..., order[real]]
    return result
