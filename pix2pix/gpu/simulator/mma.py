"""What the intrinsics of :mod:`pix2pix.gpu.ptx.mma` do, for numba's simulator, where a block's threads are Python's.

Copies are queued until they are waited for, so that a kernel which forgets to wait computes with what was there before.
What a warp does together is done once, when the last of its lanes has come, from what all of them have brought.
"""

from __future__ import annotations

import functools
import threading

import numpy as np

from ..kernels.common import plain
from ..ptx.packed_words import RUN, TF32, floats_of, words_of

LANES, CHUNK = 32, 4
COPIES_ARE_EARLY = False  # whether copies come when they are begun, which is as likely as when they are waited for
LANE = np.arange(LANES)
_meeting = threading.Lock()


# -- threads that wait ------------------------------------------------------------------------------------------------


class Waiting:
    """Where threads of a block wait for something to become true."""

    def __init__(self):
        self._condition = threading.Condition()

    def until(self, is_so):
        """Wait. Raises RuntimeError if nobody makes it so."""
        with self._condition:
            if not self._condition.wait_for(is_so, timeout=60):
                raise RuntimeError("some threads of a block wait for others, which don't come")

    def changed(self):
        """Have those who wait look again."""
        with self._condition:
            self._condition.notify_all()


class Gathering:
    """Where some threads wait for each other, and the last of them works for all."""

    def __init__(self, count):
        self._brought, self._count, self._rounds = {}, count, 0
        self._waiting = Waiting()

    def meet(self, lane, value, work):
        """Call ``work`` with the values of all threads, once."""
        with _meeting:
            rounds = self._rounds
            self._brought[lane] = value
            is_last = len(self._brought) == self._count
        if not is_last:
            self._waiting.until(lambda: self._rounds > rounds)
            return
        brought, self._brought = [self._brought[i] for i in range(self._count)], {}
        work(brought)
        self._rounds += 1
        self._waiting.changed()


def together(value, work, count=LANES):
    """``work`` on what all threads of this thread's warp, or other group of `count` neighbours, bring."""
    thread = threading.current_thread()
    group, lane = divmod(thread.thread_id, count)
    with _meeting:
        groups = thread._manager.__dict__.setdefault("groups", {})
        if (count, group) not in groups:
            groups[count, group] = Gathering(count)
    groups[count, group].meet(lane, value, work)


# -- copies -----------------------------------------------------------------------------------------------------------


def _queue():
    """This thread's groups of copies, of which the last is not committed yet."""
    return threading.current_thread().__dict__.setdefault("copies", [[]])


def copy_async(shared, to, array, at, is_there):
    """See pix2pix.gpu.ptx.mma."""
    if to % CHUNK or at % CHUNK:
        raise ValueError(f"a copy from {at} to {to}, which are not both multiples of {CHUNK}")
    copy = shared, to, plain(array), at, is_there
    if COPIES_ARE_EARLY:
        _copy(*copy)
    else:
        _queue()[-1].append(copy)


def _copy(shared, to, array, at, is_there):
    shared[to : to + CHUNK] = array[at : at + CHUNK] if is_there else 0


def commit_copies():
    """See pix2pix.gpu.ptx.mma."""
    _queue().append([])


def wait_for_copies(groups):
    """See pix2pix.gpu.ptx.mma."""
    queue = _queue()
    while len(queue) - 1 > groups:
        for copy in queue.pop(0):
            _copy(*copy)


# -- the product ------------------------------------------------------------------------------------------------------


def load_matrices(shared, at, fragments, to):
    """See pix2pix.gpu.ptx.mma. Lanes go on at once: the words are there when the warp multiplies, for which they wait."""
    if at % CHUNK:
        raise ValueError(f"a row of a matrix at {at}, expected a multiple of {CHUNK}")
    threading.current_thread().__dict__.setdefault("loads", []).append((shared, at, fragments, to))


def _load(loads):
    """What a warp's lanes have asked for, in the order in which they did: as many loads each."""
    for together in zip(*loads, strict=True):
        words = together[0][0].view(np.uint32)
        places = np.array([at for _, at, _, _ in together])
        for matrix in range(4):
            found = words[places[8 * matrix + LANE // 4] + LANE % 4]
            for lane, (_, _, fragments, to) in enumerate(together):
                fragments[to + matrix] = found[lane]


@functools.cache
def _places(mf, nf):
    """(rows, columns, places), each (32, elements): of the product, and in each lane's sums."""
    i, j, e = (index.ravel() for index in np.meshgrid(range(mf), range(nf), range(4), indexing="ij"))
    rows = 16 * i + 8 * (e // 2) + LANE[:, None] // 4
    columns = 8 * j + LANE[:, None] % 4 * 2 + e % 2
    places = ((2 * i + e // 2) * (nf // 4) + j // 4) * RUN + j % 4 * 2 + e % 2
    return rows, columns, places


def accumulate(sums, product, mf, nf):
    """Add a product of 16 * mf rows and 8 * nf columns to the sums of a warp's lanes."""
    rows, columns, places = _places(mf, nf)
    for lane, acc in enumerate(sums):
        acc[places] += product[rows[lane], columns[lane]]


def multiply_fragments(acc, a, b, mf, nf, kind):
    """See pix2pix.gpu.ptx.mma."""

    def work(brought):
        _load([loads for loads, _, _, _ in brought])
        left = np.empty((mf, 16, 8), np.uint32)
        right = np.empty((nf, 8, 8), np.uint32)
        for lane, (_, _, a_words, b_words) in enumerate(brought):
            row, column = divmod(lane, 4)
            for part in range(4):
                left[:, row + part % 2 * 8, column + part // 2 * 4] = a_words[part::4]
            for part in range(2):
                right[:, row, column + part * 4] = b_words[part::2]
        product = floats_of(left, kind).reshape(16 * mf, -1) @ floats_of(right, kind).reshape(8 * nf, -1).T
        accumulate([sums for _, sums, _, _ in brought], product, mf, nf)

    loads = threading.current_thread().__dict__.pop("loads", [])
    together((loads, acc, a, b), work)


def take8(acc, run, runs):
    """See pix2pix.gpu.ptx.mma."""
    if not 0 <= run < runs:
        raise IndexError(f"run {run} of {runs}")
    return acc[RUN * run : RUN * (run + 1)].copy()


# -- conversions ------------------------------------------------------------------------------------------------------


def fill8(value):
    """See pix2pix.gpu.ptx.mma."""
    return np.full(RUN, value, np.float32)


def load8(array, at):
    """See pix2pix.gpu.ptx.mma."""
    return plain(array)[at : at + RUN].copy()


def store8(array, at, run):
    """See pix2pix.gpu.ptx.mma."""
    plain(array)[at : at + RUN] = run


def unpack8(array, at, kind):
    """See pix2pix.gpu.ptx.mma."""
    words = plain(array)[at : at + (RUN if kind == TF32 else RUN // 2)].view(np.uint32)
    return words.view(np.float32).copy() if kind == TF32 else floats_of(words, kind)


def round8(run, kind):
    """See pix2pix.gpu.ptx.mma."""
    return floats_of(words_of(run, kind), kind)


def put8(array, at, run, kind):
    """See pix2pix.gpu.ptx.mma."""
    words = words_of(run, kind).view(np.float32)
    plain(array)[at : at + len(words)] = words


def add8(a, b):
    """See pix2pix.gpu.ptx.mma."""
    return a + b


def subtract8(a, b):
    """See pix2pix.gpu.ptx.mma."""
    return a - b


def multiply8(a, b):
    """See pix2pix.gpu.ptx.mma."""
    return a * b


def leaky8(run, slope):
    """See pix2pix.gpu.ptx.mma."""
    return np.maximum(run, run * slope)


def pack(low, high, kind):
    """See pix2pix.gpu.ptx.mma."""
    return words_of([low] if kind == TF32 else [low, high], kind)[0]


def unpack(word, kind):
    """See pix2pix.gpu.ptx.mma."""
    if kind == TF32:
        return (np.uint32(word).view(np.float32),) * 2
    return tuple(floats_of(np.array([word], np.uint32), kind))


def load_word(array, at):
    """See pix2pix.gpu.ptx.mma."""
    return plain(array)[at : at + 1].view(np.uint32)[0]


def store_word(array, at, word):
    """See pix2pix.gpu.ptx.mma."""
    plain(array)[at : at + 1] = np.array([word], np.uint32).view(np.float32)
