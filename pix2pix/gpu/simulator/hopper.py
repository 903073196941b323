"""What the intrinsics of :mod:`pix2pix.gpu.ptx.hopper` do, for numba's simulator.

What hardware does by itself happens as late as it may: boxes come when somebody waits for them, and products are
computed when they are waited for, from what is in shared memory then. A kernel that forgets to wait computes with what
was there before; one that has a stage copied over too early, with what came too early
(:data:`pix2pix.gpu.simulator.mma.COPIES_ARE_EARLY` has boxes come as soon as they may).
"""

from __future__ import annotations

import functools
import threading

import numpy as np

from ..ptx.packed_words import floats_of
from . import mma as _tensor_twins
from .mma import LANES, accumulate, plain, together

ROW, PATTERN, GROUP, GROUP_ROWS = 32, 256, 128, 64
CHUNK, CHUNKS = 4, 8  # words of a chunk, and chunks of a row
FIRST = 96  # where the first pattern begins: not where shared memory does, so that nobody takes that for granted


# -- barriers ---------------------------------------------------------------------------------------------------------


class Barrier:
    """A barrier of copies: its phase, who and what that still waits for, and the boxes that have not come."""

    def __init__(self, arrivals):
        self._arrivals = self._missing = arrivals
        self._phase = self._words = 0
        self._begun, self._ended = [], []
        self._lock, self._waiting = threading.RLock(), _tensor_twins.Waiting()

    def arrive(self, words):
        """One thread less to wait for, and `words` more."""
        with self._lock:
            self._missing -= 1
            self._words += words
            self._end_phase()

    def begin(self, words, copy):
        """Words that are on their way."""
        with self._lock:
            self._words -= words
            if _tensor_twins.COPIES_ARE_EARLY:
                copy()
            else:
                self._begun.append(copy)
            self._end_phase()

    def _end_phase(self):
        if self._missing == 0 and self._words == 0:
            self._ended += self._begun
            self._begun, self._missing = [], self._arrivals
            self._phase += 1
            self._waiting.changed()

    def wait(self, parity):
        """Until the current phase is not of that parity; then what belongs to ended ones is there."""
        self._waiting.until(lambda: self._phase % 2 != parity)
        with self._lock:
            for copy in self._ended:
                copy()
            self._ended = []


def _barriers():
    return threading.current_thread()._manager.__dict__.setdefault("barriers", {})


def make_barrier(barriers, at, arrivals):
    """See pix2pix.gpu.ptx.hopper."""
    _barriers()[at] = Barrier(arrivals)


def publish_barriers():
    """See pix2pix.gpu.ptx.hopper."""


def arrive(barriers, at):
    """See pix2pix.gpu.ptx.hopper."""
    _barriers()[at].arrive(0)


def arrive_with_words(barriers, at, words):
    """See pix2pix.gpu.ptx.hopper."""
    _barriers()[at].arrive(words)


def wait_for_phase(barriers, at, parity):
    """See pix2pix.gpu.ptx.hopper."""
    _barriers()[at].wait(parity)


# -- copies -----------------------------------------------------------------------------------------------------------


def aligned_place(shared):
    """See pix2pix.gpu.ptx.hopper."""
    return FIRST


def acquire_boxes(boxes):
    """See pix2pix.gpu.ptx.hopper."""


@functools.cache
def _swizzled(at, rows):
    """(rows, words of a row): where the words of rows from place `at` on are."""
    if (at - FIRST) % PATTERN:
        raise ValueError(f"rows of a tile at {at}, where no pattern begins")
    row, chunk, word = np.meshgrid(range(rows), range(CHUNKS), range(CHUNK), indexing="ij")
    return (at + row * ROW + (chunk ^ row % CHUNKS) * CHUNK + word).reshape(rows, ROW)


def copy_box(shared, to, barriers, at, boxes, x0, x1, x2, x3, x4):
    """See pix2pix.gpu.ptx.hopper."""
    first = np.array([x4, x3, x2, x1, x0])
    rows = int(np.prod(boxes.box)) // ROW
    places = _swizzled(to, rows)

    def copy():
        index = np.ogrid[tuple(slice(start, start + size) for start, size in zip(first, boxes.box, strict=True))]
        inside, place = True, 0
        for at, size, stride in zip(index, boxes.sizes, boxes.strides, strict=True):
            inside = inside & (at >= 0) & (at < size)
            place = place + at * stride
        words = np.where(inside, plain(boxes.array)[np.where(inside, place, 0)], np.float32(0))
        shared[places] = words.reshape(rows, ROW)

    _barriers()[at].begin(rows * ROW, copy)


# -- products ---------------------------------------------------------------------------------------------------------


def _pending():
    """The products of this thread's warpgroup that have not been waited for."""
    thread = threading.current_thread()
    groups = thread._manager.__dict__.setdefault("products", {})
    return groups.setdefault(thread.thread_id // GROUP, [])


def multiply_rows(acc, shared, a, b, columns, kind):
    """See pix2pix.gpu.ptx.hopper."""
    pending = _pending()

    def work(brought):
        if len({operands for _, operands in brought}) > 1:
            raise ValueError("threads of a warpgroup multiply different rows")
        for before in pending:
            before()
        pending[:] = [lambda: product([sums for sums, _ in brought])]

    def product(sums):
        left = floats_of(shared[_swizzled(a, GROUP_ROWS)].view(np.uint32), kind)
        right = floats_of(shared[_swizzled(b, columns)].view(np.uint32), kind)
        result = left @ right.T
        for warp, rows in enumerate(np.split(result, GROUP_ROWS // 16)):
            accumulate(sums[LANES * warp : LANES * (warp + 1)], rows, 1, columns // 8)

    together((acc, (a, b)), work, GROUP)


def finish_products(acc, columns):
    """See pix2pix.gpu.ptx.hopper."""
    pending = _pending()

    def work(brought):
        for before in pending:
            before()
        pending.clear()

    together(acc, work, GROUP)
