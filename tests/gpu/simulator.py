"""Numba's simulator of CUDA, made quick enough for whole networks.

Numba polls the threads of a block while they run. Here one thread runs at a time, up to the next barrier. The order
of threads changes at every barrier, so a kernel that lacks one reads what was not written yet, and its test fails. The
order of blocks is random too.
"""

from __future__ import annotations

import random
import threading

import numpy as np
from numba import types
from numba.cuda.simulator import kernel, kernelapi

from pix2pix.gpu.simulator import threads


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


class WaitQueue:
    """In place of the one of pix2pix.gpu.simulator.threads: threads that wait give their turn back."""

    def __init__(self):
        self._threads = []

    def until(self, is_so):
        """Give the turn to others until it is so."""
        thread = threading.current_thread()
        while not is_so():
            self._threads.append(thread)
            thread.pause()

    def changed(self):
        """Have those who wait look again, when it is their turn."""
        threading.current_thread()._manager.ready.extend(self._threads)
        self._threads = []


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
                raise RuntimeError("some threads of a block wait for others, which don't come")
            self.ready, self.at_barrier = self.at_barrier, []

    @staticmethod
    def _abort(threads):
        for thread in threads:
            if not thread.ended:
                thread.abort = True
                thread.turn.release()


class Shuffled:
    """In place of numpy where numba goes over a grid: its blocks come in any order."""

    def __getattr__(self, name):
        return getattr(np, name)

    @staticmethod
    def ndindex(*grid):
        """Places of a grid, in an order that depends on its size alone."""
        places = list(np.ndindex(*grid))
        random.Random(hash(grid)).shuffle(places)
        return places


class Callers:
    """In place of traceback where numba tells shared arrays apart by the lines that make them: it asks the disk for the
    times of all sources on the stack."""

    @staticmethod
    def extract_stack(frame):
        """The caller of a frame and the frame, each as (file, line)."""
        return [(each.f_code.co_filename, each.f_lineno) for each in (frame.f_back, frame)]


def cast(kind, value):
    """In place of a call of a numba type, which looks for signatures too."""
    return getattr(np, kind.name)(value)


kernel.BlockManager = Block
types.Float.__call__ = cast
kernelapi.traceback = Callers
kernel.np = Shuffled()
threads.WaitQueue = WaitQueue
