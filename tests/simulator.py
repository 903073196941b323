"""numba's simulator of CUDA, made quick enough for whole networks.

As it comes, it polls the threads of a block while they run; here, one runs at a time, up to the next barrier. Their
order changes at every barrier, so that what one thread reads before another has written it, for want of a barrier, is
seen to be wrong.
"""

from __future__ import annotations

import random
import threading

import numpy as np
from numba.cuda.simulator import kernel

from pix2pix import _tensor_twins


class _Thread(kernel.BlockThread):
    """A thread of a block: it runs when it is given the turn, and gives it back where it waits and at its end."""

    def __init__(self, function, manager, block, thread):
        super().__init__(function, manager, block, thread, False)
        self.turn = threading.Semaphore(0)
        self.ended = False

    def run(self):
        self.turn.acquire()
        super().run()
        self.ended = True
        self._manager.given_back.release()

    def syncthreads(self):
        self._manager.at_barrier.append(self)
        self.pause()

    def pause(self):
        """Give the turn back until somebody makes this thread one of the manager's ``ready``."""
        self._manager.given_back.release()
        self.turn.acquire()
        if self.abort:
            raise RuntimeError("another thread of the block has failed")


class Gathering:
    """In place of the one of pix2pix._tensor_twins: lanes of a warp that wait for the others give their turn back."""

    def __init__(self):
        self._brought, self._waiting = {}, []

    def meet(self, lane, value, work):
        """Call ``work`` with what all lanes bring, when the last of them has come."""
        thread = threading.current_thread()
        self._brought[lane] = value
        if len(self._brought) < _tensor_twins.LANES:
            self._waiting.append(thread)
            thread.pause()
            return
        brought = [self._brought[i] for i in range(_tensor_twins.LANES)]
        self._brought = {}
        work(brought)
        thread._manager.ready.extend(self._waiting)
        self._waiting = []


class Block:
    """In place of numba's BlockManager."""

    def __init__(self, function, grid, block, debug):
        self._grid_dim, self._block_dim, self._f = grid, block, function
        self.block_state = np.zeros(block, bool)
        self.given_back = threading.Semaphore(0)
        self.ready, self.at_barrier = [], []

    def run(self, place, *arguments):
        """Run all threads of the block at a place of the grid."""
        order = random.Random(hash(place))
        threads = [_Thread(lambda: self._f(*arguments), self, place, at) for at in np.ndindex(*self._block_dim)]
        for thread in threads:
            thread.start()
        self.ready = list(threads)
        while self.ready:
            thread = self.ready.pop(order.randrange(len(self.ready)))
            thread.turn.release()
            self.given_back.acquire()
            if thread.exception:
                self._abort(threads)
                raise thread.exception[0].with_traceback(thread.exception[1])
            if self.ready:
                continue
            running = [thread for thread in threads if not thread.ended]
            if self.at_barrier and len(self.at_barrier) < len(threads):
                self._abort(running)
                raise RuntimeError("some threads of a block wait for others that have ended, or wait elsewhere")
            if running and not self.at_barrier:
                self._abort(running)
                raise RuntimeError("some lanes of a warp wait for others, which don't come")
            self.ready, self.at_barrier = self.at_barrier, []

    @staticmethod
    def _abort(threads):
        for thread in threads:
            if not thread.ended:
                thread.abort = True
                thread.turn.release()


kernel.BlockManager = Block
_tensor_twins.Gathering = Gathering
