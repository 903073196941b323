"""mbarriers: barriers in shared memory that count arrivals and bytes, and the fences that publish them.

Source: PTX ISA 8.7, "Parallel Synchronization and Communication Instructions: mbarrier", "membar/fence".
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from .faults import Fault

MOST = 1 << 20  # arrivals, and bytes, that an mbarrier counts


@dataclass(slots=True)
class Barrier:
    """An mbarrier's phase, and what is missing to its end."""

    expected: int
    pending: int
    maker: tuple[int, int]  # by which lane, in which interval between barriers of the block
    is_fenced: bool = False
    bytes: int = 0
    phase: int = 0


class Mbarriers:
    """Part of the machine."""

    def start_mbarriers(self) -> None:
        """Before the first instruction."""
        self.barriers: dict[tuple[int, int], Barrier] = {}  # by block and address
        self.has_tried = np.zeros(self.lanes, bool)
        self.wanted: dict[int, tuple[int, int]] = {}  # lane -> the mbarrier it waits for

    def each(self, lanes: Any, *arrays: Any) -> Iterator[tuple[int, ...]]:
        """(block, lane, an element of each array) of each lane."""
        lanes = np.arange(self.lanes) if lanes is None else lanes
        columns = (np.broadcast_to(a, len(lanes)).tolist() for a in arrays)
        return zip(self.block_of[lanes].tolist(), lanes.tolist(), *columns, strict=True)

    def init_barrier(self, lanes: Any, addresses: np.ndarray, counts: np.ndarray) -> None:
        """mbarrier.init."""
        words = self.shared.places(addresses, 8, 8)
        for block, lane, address, count in self.each(lanes, addresses, counts):
            if (block, address) in self.barriers:
                raise Fault("mbarrier.init of what is an mbarrier already")
            if not 1 <= count < MOST:
                raise Fault(f"an mbarrier for {count} arrivals")
            self.barriers[block, address] = Barrier(count, count, (lane, int(self.shared.interval[block])))
        everybody = slice(None) if lanes is None else lanes
        rows = self.block_of[everybody]
        self.shared.check_write(rows, words, self.thread_of[everybody])
        self.shared.valid[rows[:, None], words] = False  # only instructions on mbarriers may read it

    def barrier_at(self, block: int, address: int, lane: int = -1) -> Barrier:
        """The mbarrier of an address. Raises Fault for a lane that cannot know of it yet."""
        if (block, address) not in self.barriers:
            raise Fault(f"no mbarrier at byte {address - self.shared.base} of shared memory")
        barrier = self.barriers[block, address]
        if lane not in (-1, barrier.maker[0]) and self.shared.interval[block] == barrier.maker[1]:
            raise Fault("race: an mbarrier is used by a thread that did not wait for the one that made it")
        return barrier

    def progress(self, block: int, address: int) -> None:
        """End the phase if nothing is missing, and wake up who waits."""
        barrier = self.barriers[block, address]
        if barrier.pending == 0 and barrier.bytes == 0:
            barrier.phase += 1
            barrier.pending = barrier.expected
            for lane in [lane for lane, wanted in self.wanted.items() if wanted == (block, address)]:
                del self.wanted[lane]
                self.wake(lane)

    def arrive(self, lanes: Any, addresses: np.ndarray, expected_bytes: Any) -> None:
        """mbarrier.arrive, and .expect_tx with bytes."""
        counts = 0 if expected_bytes is None else expected_bytes
        for block, lane, address, count in self.each(lanes, addresses, counts):
            barrier = self.barrier_at(block, address, lane)
            if barrier.pending == 0:
                raise Fault("more arrivals than an mbarrier expects in a phase")
            barrier.bytes += count
            if abs(barrier.bytes) >= MOST:
                raise Fault(f"an mbarrier's count of {barrier.bytes} bytes")
            barrier.pending -= 1
            self.progress(block, address)

    def try_wait(self, lanes: Any, addresses: np.ndarray, parities: np.ndarray) -> np.ndarray:
        """Whether the phase of that parity has ended. Lanes for whom it has not, wait.

        With the option `spurious`, they are told so once before they wait: try_wait may give up at any time.
        """
        found, waits = [], []
        for block, lane, address, parity in self.each(lanes, addresses, parities):
            if parity not in (0, 1):
                raise Fault(f"a parity of {parity}")
            has_ended = self.barrier_at(block, address, lane).phase % 2 != parity
            gives_up = self.options.spurious and not has_ended and not self.has_tried[lane]
            self.has_tried[lane] = gives_up
            found.append(has_ended)
            waits.append(not has_ended and not gives_up)
            if waits[-1]:
                self.wanted[lane] = (block, address)
        self.waiting = np.array(waits)
        return np.array(found)

    def fence_mbarrier_init(self, lanes: Any) -> None:
        """Make this thread's new mbarriers visible to the asynchronous proxy."""
        for barrier in self.barriers.values():
            if lanes is None or barrier.maker[0] in lanes:
                barrier.is_fenced = True

    def fence_proxy_async(self, lanes: Any) -> None:
        """What threads of the block wrote before is visible to the asynchronous proxy."""
        for block in np.unique(self.block_of if lanes is None else self.block_of[lanes]):
            self.shared.generic[block] = False
