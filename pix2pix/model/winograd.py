"""Winograd's minimal filtering F(m x m, r x r) as matrices (Lavin and Gray, "Fast Algorithms for Convolutional Neural
Networks", arXiv:1509.09308).

A tile of m x m outputs y of a convolution of d with r x r taps k takes t^2 multiplications, t = m + r - 1, instead of
m^2 r^2:

    y = A^T [(G k G^T) * (B^T d B)] A        * element by element

The polynomials are evaluated at t points, the last of which is infinity. The CPU's kernels have A and B as sums of
vectors, in pix2pix/cpu/kernels/winograd_transforms.pxi; B depends on t alone.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from .sampling import Sampling

# The finite points by t. Among multiples of 1/8, those of t > 4 have the least rounding errors: for t = 5, less than
# half of those of 0, 1, -1 and 2.
POINTS = {3: (0, 1), 4: (0, 1, -1), 5: (1.25, -1.25, 0.375, -0.375), 6: (0, 1.5, -1.5, 0.625, -0.625)}


def _others(t: int) -> Iterator[tuple[float, ...]]:
    """For each point, the finite ones but it."""
    points = POINTS[t]
    yield from (points[:i] + points[i + 1 :] for i in range(t - 1))
    yield points


def _distances(t: int) -> list[float]:
    """For each finite point, the product of its distances from the others."""
    return [float(np.prod(np.subtract(p, others))) for p, others in zip(POINTS[t], _others(t), strict=False)]


def kernel_transform(r: int, t: int) -> np.ndarray:
    """G (t, r) in float64: the powers of each finite point, times a weight, and a row for infinity: the last tap.

    A point's weight is 1 over the product of its distances from the others; for t < 5, without its sign, which the
    input's transform has instead.
    """
    weights = [1 / (abs(distance) if t < 5 else distance) for distance in _distances(t)]
    rows = [[weight * point**a for a in range(r)] for point, weight in zip(POINTS[t], weights, strict=True)]
    return np.array([*rows, [0] * (r - 1) + [1]], np.float64)


def input_transform(t: int) -> np.ndarray:
    """B^T (t, t) in float64: the coefficients of the polynomials that are 0 at all finite points but one, or at all."""
    rows = np.zeros((t, t))
    for row, others in zip(rows, _others(t), strict=True):
        row[: len(others) + 1] = np.poly(others)[::-1]
    if t < 5:
        rows[:-1] *= np.sign(_distances(t))[:, None]
    return rows


def output_transform(m: int, t: int) -> np.ndarray:
    """A^T (m, t) in float64: the powers of each finite point, and for infinity the last output."""
    columns = [[point**a for a in range(m)] for point in POINTS[t]]
    return np.array([*columns, [0] * (m - 1) + [1]], np.float64).T


def single_stride(sampling: Sampling, kernel: np.ndarray) -> np.ndarray:
    """A layer's kernel as that of a convolution of stride 1: (r, r, K, N).

    A convolution of stride 2 reads the phases of its input, by row, then column: K is all channels of each. A
    transposed one writes the phases of its output, of which each has its filters in N.
    """
    if sampling.transposed:
        parts = []
        for phase in sampling.phases:
            rows, columns = ([*dict.fromkeys(each)] for each in zip(*((t.ky, t.kx) for t in phase.taps), strict=True))
            parts.append(kernel[np.ix_(rows, columns)].swapaxes(2, 3))
        return np.concatenate(parts, 3)
    step = sampling.stride
    return np.concatenate([kernel[p::step, q::step] for p in range(step) for q in range(step)], 2)


def transformed_kernel(kernel: np.ndarray, m: int) -> Iterator[np.ndarray]:
    """G k G^T of a kernel (r, r, K, N), in float64: for each point (K, N)."""
    g = kernel_transform(len(kernel), m + len(kernel) - 1)
    for of_rows in g:
        row = np.tensordot(of_rows, kernel, 1)
        yield from (np.tensordot(of_columns, row, 1) for of_columns in g)
