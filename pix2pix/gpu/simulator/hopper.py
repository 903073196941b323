"""What the intrinsics of :mod:`pix2pix.gpu.ptx.hopper` do in Numba's simulator; see there for their parameters.

Asynchronous operations end as late as they may: a TMA load when its mbarrier is waited for, a wgmma when it is waited
for, from what shared memory holds then. :data:`.threads.COPIES_ARE_EARLY` makes loads end as soon as they may.
"""

from __future__ import annotations

import functools
import threading

import numpy as np

from ..ptx.fragments import (
    CHUNK,
    LANES,
    SWIZZLE_ATOM,
    SWIZZLE_CHUNKS,
    SWIZZLE_ROW,
    WARPGROUP,
    WARPGROUP_ROWS,
    swizzle,
)
from ..ptx.packed_words import floats_of
from . import threads
from .mma import accumulate
from .threads import block, collective, plain, this_thread

OFFSET = 96  # of the first atom: not 0, so that no kernel relies on shared memory that begins at an atom


# -- mbarriers --------------------------------------------------------------------------------------------------------


class Mbarrier:
    """Its phase, the threads and words that the phase still waits for, and the loads that have not landed."""

    def __init__(self, arrivals):
        self._arrivals = self._missing = arrivals
        self._phase = self._words = 0
        self._begun, self._ended = [], []
        self._lock, self._waiting = threading.RLock(), threads.WaitQueue()

    def arrive(self, words):
        """One thread has arrived, and expects `words` more."""
        with self._lock:
            self._missing -= 1
            self._words += words
            self._end_phase()

    def begin(self, words, load):
        """`words` are on their way."""
        with self._lock:
            self._words -= words
            if threads.COPIES_ARE_EARLY:
                load()
            else:
                self._begun.append(load)
            self._end_phase()

    def _end_phase(self):
        if self._missing == 0 and self._words == 0:
            self._ended += self._begun
            self._begun, self._missing = [], self._arrivals
            self._phase += 1
            self._waiting.changed()

    def wait(self, parity):
        """Wait until the current phase is not of that parity; loads of ended phases have landed then."""
        self._waiting.until(lambda: self._phase % 2 != parity)
        with self._lock:
            for load in self._ended:
                load()
            self._ended = []


def _mbarriers():
    return block().setdefault("mbarriers", {})


def mbarrier_init(barriers, at, arrivals):
    """See pix2pix.gpu.ptx.hopper."""
    _mbarriers()[at] = Mbarrier(arrivals)


def fence_mbarrier_init():
    """See pix2pix.gpu.ptx.hopper."""


def mbarrier_arrive(barriers, at):
    """See pix2pix.gpu.ptx.hopper."""
    _mbarriers()[at].arrive(0)


def mbarrier_expect_tx(barriers, at, words):
    """See pix2pix.gpu.ptx.hopper."""
    _mbarriers()[at].arrive(words)


def mbarrier_wait(barriers, at, parity):
    """See pix2pix.gpu.ptx.hopper."""
    _mbarriers()[at].wait(parity)


# -- tensor maps ------------------------------------------------------------------------------------------------------


def atom_offset(shared):
    """See pix2pix.gpu.ptx.hopper."""
    return OFFSET


def fence_tensor_map(tensor_map):
    """See pix2pix.gpu.ptx.hopper."""


@functools.cache
def _swizzled(at, rows):
    """(rows, SWIZZLE_ROW): the indices of the words of swizzled rows from index `at` on."""
    if (at - OFFSET) % SWIZZLE_ATOM:
        raise ValueError(f"rows of a tile at {at}, where no swizzle atom begins")
    row, chunk, word = np.meshgrid(range(rows), range(SWIZZLE_CHUNKS), range(CHUNK), indexing="ij")
    return (at + row * SWIZZLE_ROW + swizzle(row, chunk) * CHUNK + word).reshape(rows, SWIZZLE_ROW)


def tma_load(shared, to, barriers, at, tensor_map, x0, x1, x2, x3, x4):
    """See pix2pix.gpu.ptx.hopper. The tensor map is a :class:`pix2pix.gpu.tensor_maps.TensorMap`."""
    first = np.array([x4, x3, x2, x1, x0])
    rows = int(np.prod(tensor_map.box)) // SWIZZLE_ROW
    places = _swizzled(to, rows)

    def load():
        box = zip(first, tensor_map.box, strict=True)
        index = np.ogrid[tuple(slice(start, start + size) for start, size in box)]
        inside, place = True, 0
        for i, size, stride in zip(index, tensor_map.sizes, tensor_map.strides, strict=True):
            inside = inside & (i >= 0) & (i < size)
            place = place + i * stride
        words = np.where(inside, plain(tensor_map.array)[np.where(inside, place, 0)], np.float32(0))
        shared[places] = words.reshape(rows, SWIZZLE_ROW)

    _mbarriers()[at].begin(rows * SWIZZLE_ROW, load)


# -- products ---------------------------------------------------------------------------------------------------------


def _pending():
    """The products of this thread's warpgroup that have not been waited for."""
    groups = block().setdefault("products", {})
    return groups.setdefault(this_thread().thread_id // WARPGROUP, [])


def wgmma(acc, shared, a, b, columns, kind):
    """See pix2pix.gpu.ptx.hopper."""
    pending = _pending()

    def work(brought):
        if len({operands for _, operands in brought}) > 1:
            raise ValueError("threads of a warpgroup multiply different rows")
        for before in pending:
            before()
        pending[:] = [lambda: product([sums for sums, _ in brought])]

    def product(sums):
        left = floats_of(shared[_swizzled(a, WARPGROUP_ROWS)].view(np.uint32), kind)
        right = floats_of(shared[_swizzled(b, columns)].view(np.uint32), kind)
        sums_of_rows = np.einsum("mk,nk->mn", left, right)  # not by BLAS, as in fma_tile
        for warp, rows in enumerate(np.split(sums_of_rows, WARPGROUP_ROWS // 16)):
            accumulate(sums[LANES * warp : LANES * (warp + 1)], rows, 1, columns // 8)

    collective((acc, (a, b)), work, WARPGROUP)


def wgmma_wait(acc, columns):
    """See pix2pix.gpu.ptx.hopper."""
    pending = _pending()

    def work(brought):
        for before in pending:
            before()
        pending.clear()

    collective(acc, work, WARPGROUP)
