"""Which tasks are still to be done, which rank has which, and what comes back when a rank is lost.

Guided self-scheduling (Polychronopoulos and Kuck, IEEE Trans. Computers 36, 1987): a rank that asks gets a share of
what is left, so chunks are large while there is much to do and small at the end, when they decide who is last. Ranks
ask before they have nothing left to do; none gets more that way than its fair part of all that is left. Nothing in here
knows of MPI: :mod:`bench.mpi.scaling` simulates with the same class.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Collection, Iterable


class Handout:
    """Names of tasks, given to ranks in chunks of at most ``largest``. Thread-safe.

    A task is *left* until someone settles it: at first nobody's, then owed by the rank that took it.
    """

    def __init__(self, tasks: Iterable[str], ranks: int, largest: int) -> None:
        self._todo = deque(tasks)
        self._owed: dict[str, int] = {}  # task -> the rank that has it
        self._owes = Counter[int]()  # how many tasks each rank has
        self._ranks, self._largest = ranks, largest
        self._lock = threading.Lock()

    @property
    def left(self) -> int:
        """How many tasks are not settled."""
        with self._lock:
            return len(self._todo) + len(self._owed)

    @property
    def unclaimed(self) -> int:
        """How many tasks nobody has."""
        with self._lock:
            return len(self._todo)

    def take(self, rank: int) -> list[str]:
        """The next chunk for ``rank``. Empty if there is none for it now: it should finish what it has, then ask again
        until all is settled."""
        with self._lock:
            fair = -(-(len(self._todo) + len(self._owed)) // self._ranks)
            guided = max(1, len(self._todo) // (2 * self._ranks))
            size = min(self._largest, guided, fair - self._owes[rank], len(self._todo))
            chunk = [self._todo.popleft() for _ in range(size)]
            self._owed |= dict.fromkeys(chunk, rank)
            self._owes[rank] += len(chunk)
            return chunk

    def settle(self, task: str, rank: int) -> bool:
        """A task is dealt with by ``rank``; False if it isn't owed by it, because another one was given it."""
        with self._lock:
            if self._owed.get(task) != rank:
                return False
            del self._owed[task]
            self._owes[rank] -= 1
            return True

    def reconcile(self, rank: int, holds: Collection[str]) -> int:
        """What ``rank`` owes but doesn't hold is to be done again, first of all: it got lost. Returns how many."""
        with self._lock:
            missing = [task for task, owner in self._owed.items() if owner == rank and task not in holds]
            for task in missing:
                del self._owed[task]
            self._owes[rank] -= len(missing)
            self._todo.extendleft(reversed(missing))
            return len(missing)
