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


class _Thread(kernel.BlockThread):
    """A thread of a block: it runs when it is given the turn, and gives it back at barriers and at its end."""

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
        self._manager.given_back.release()
        self.turn.acquire()
        if self.abort:
            raise RuntimeError("another thread of the block has failed")


class Block:
    """In place of numba's BlockManager."""

    def __init__(self, function, grid, block, debug):
        self._grid_dim, self._block_dim, self._f = grid, block, function
        self.block_state = np.zeros(block, bool)
        self.given_back = threading.Semaphore(0)

    def run(self, place, *arguments):
        """Run all threads of the block at a place of the grid."""
        order = random.Random(hash(place))
        threads = [_Thread(lambda: self._f(*arguments), self, place, at) for at in np.ndindex(*self._block_dim)]
        for thread in threads:
            thread.start()
        running = list(threads)
        while running:
            order.shuffle(running)
            for thread in running:
                thread.turn.release()
                self.given_back.acquire()
                if thread.exception:
                    self._abort([t for t in running if not t.ended])
                    raise thread.exception[0].with_traceback(thread.exception[1])
            if len({thread.ended for thread in running}) > 1:
                self._abort([t for t in running if not t.ended])
                raise RuntimeError("some threads of a block wait for others that have ended")
            running = [thread for thread in running if not thread.ended]

    @staticmethod
    def _abort(threads):
        for thread in threads:
            thread.abort = True
            thread.turn.release()


kernel.BlockManager = Block
