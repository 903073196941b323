"""Threads of a simulated block that wait for each other, and the arrays that kernels get.

In Numba's simulator, the threads of a block are Python's. A warp's collective operation is done once, by the last of
its lanes to arrive, from what all lanes bring.
"""

from __future__ import annotations

import threading
from typing import Any

from numba.cuda.simulator.cudadrv.devicearray import FakeWithinKernelCUDAArray

from ..ptx.fragments import LANES

# Asynchronous copies may land at any time between their start and the wait for them. The simulator tries both ends:
# False: when they are waited for, so a kernel that forgets to wait reads what was there before. True: at once, so a
# kernel that copies over what is still being read computes with what came too early.
COPIES_ARE_EARLY = False
_collectives = threading.Lock()


def plain(array):
    """The NumPy array behind an array of a kernel."""
    return array._item._ary if isinstance(array, FakeWithinKernelCUDAArray) else array


def this_thread() -> Any:
    """The current thread, which has a `thread_id` within its block."""
    return threading.current_thread()


def block() -> dict[str, Any]:
    """The state of the current thread's block."""
    return this_thread()._manager.__dict__


class WaitQueue:
    """Where threads of a block wait for something to become true."""

    def __init__(self):
        self._condition = threading.Condition()

    def until(self, is_so):
        """Wait. Raises RuntimeError if nobody makes it so."""
        with self._condition:
            if not self._condition.wait_for(is_so, timeout=60):
                raise RuntimeError("some threads of a block wait for others, which don't come")

    def changed(self):
        """Wake the waiting threads, to look again."""
        with self._condition:
            self._condition.notify_all()


class Collective:
    """Where a group of threads wait for each other, and the last of them works for all."""

    def __init__(self, count):
        self._brought, self._count, self._rounds = {}, count, 0
        self._waiting = WaitQueue()

    def meet(self, lane, value, work):
        """Call ``work`` with the values of all threads, once."""
        with _collectives:
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


def collective(value, work, count=LANES):
    """``work`` on the values that all threads of this thread's warp, or other group of `count` threads, bring."""
    group, lane = divmod(this_thread().thread_id, count)
    with _collectives:
        groups = block().setdefault("groups", {})
        if (count, group) not in groups:
            groups[count, group] = Collective(count)
    groups[count, group].meet(lane, value, work)
