"""What the intrinsics of :mod:`pix2pix.gpu.ptx.simt` do in Numba's simulator; see there for their parameters."""

from __future__ import annotations

import functools

import numpy as np

from .threads import plain


def load4(array, index):
    """See pix2pix.gpu.ptx.simt."""
    return tuple(plain(array)[index : index + 4])


def store4(array, index, values):
    """See pix2pix.gpu.ptx.simt."""
    plain(array)[index : index + 4] = values


def quotient(a, b):
    """See pix2pix.gpu.ptx.simt."""
    return a // b


@functools.cache
def _indices(count, step, depth, pitch):
    return np.arange(depth)[:, None] * pitch + np.arange(count) // 4 * step + np.arange(count) % 4


def fma_tile(acc, a, a_at, b, b_at, tm, tn, depth, a_pitch, b_pitch, a_step, b_step):
    """See pix2pix.gpu.ptx.simt. One matrix product, as the simulator would take minutes for single FMAs.

    By einsum: what BLAS gives for a row may depend on the row's place.
    """
    left, right = a[a_at + _indices(tm, a_step, depth, a_pitch)], b[b_at + _indices(tn, b_step, depth, b_pitch)]
    acc += np.einsum("km,kn->mn", left, right).ravel()
