"""The queue of tasks that ranks share.

Guided self-scheduling (Polychronopoulos and Kuck, IEEE Trans. Computers 36, 1987): a rank takes a share of the
remaining tasks, so chunks are large at first and small at the end, where they decide which rank is last. Ranks ask
before they have finished what they have, but get no more than an equal share of what remains. Nothing here depends on
MPI; :mod:`bench.mpi.scaling` simulates with this class.
"""

from __future__ import annotations

import threading
from collections import Counter, deque
from collections.abc import Collection, Iterable


class WorkQueue:
    """Names of tasks, taken by ranks in chunks of at most ``max_chunk``. Thread-safe.

    A task is queued, then taken by a rank until that rank completes it.
    """

    def __init__(self, tasks: Iterable[str], ranks: int, max_chunk: int) -> None:
        self._queue = deque(tasks)
        self._taken: dict[str, int] = {}  # task -> the rank that has it
        self._counts = Counter[int]()  # how many tasks each rank has
        self._ranks, self._max_chunk = ranks, max_chunk
        self._lock = threading.Lock()

    @property
    def unfinished(self) -> int:
        """How many tasks are not completed."""
        with self._lock:
            return len(self._queue) + len(self._taken)

    @property
    def queued(self) -> int:
        """How many tasks no rank has taken."""
        with self._lock:
            return len(self._queue)

    def take(self, rank: int) -> list[str]:
        """The next chunk for ``rank``. If it is empty, the rank finishes what it has and asks again, until all tasks
        are completed."""
        with self._lock:
            equal = -(-(len(self._queue) + len(self._taken)) // self._ranks)
            guided = max(1, len(self._queue) // (2 * self._ranks))
            size = min(self._max_chunk, guided, equal - self._counts[rank], len(self._queue))
            chunk = [self._queue.popleft() for _ in range(size)]
            self._taken |= dict.fromkeys(chunk, rank)
            self._counts[rank] += len(chunk)
            return chunk

    def complete(self, task: str, rank: int) -> bool:
        """Note that ``rank`` completed a task. False if it doesn't have the task, because another rank was given it."""
        with self._lock:
            if self._taken.get(task) != rank:
                return False
            del self._taken[task]
            self._counts[rank] -= 1
            return True

    def reclaim(self, rank: int, held: Collection[str] = ()) -> int:
        """Queue again, in front, what ``rank`` took and neither completed nor holds. Returns how many tasks."""
        with self._lock:
            missing = [task for task, taker in self._taken.items() if taker == rank and task not in held]
            for task in missing:
                del self._taken[task]
            self._counts[rank] -= len(missing)
            self._queue.extendleft(reversed(missing))
            return len(missing)
