"""wgmma: products of a warpgroup, straight from shared memory, that go on by themselves.

A matrix descriptor's matrix has 128-byte rows in the 128-byte swizzle: 16-byte unit k of row i begins at start + i / 8
* stride + i % 8 * 128 + 16 * k, swizzled. Accumulator v of lane l of warp w has row 16 * w + l / 4 + 8 * (v / 2 % 2),
column 8 * (v / 4) + 2 * (l % 4) + v % 2. A product is complete when it is waited for. What it reads must be the same
then as when it began; until then nobody may touch its accumulators.

Source: PTX ISA 8.7, "Asynchronous Warpgroup Level Matrix Instructions"; CuTe's GmmaDescriptor, make_gmma_desc<Major::K>
and CLayout_64xN.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .faults import Fault
from .tensor_cores import numbers
from .tma import swizzled

SWIZZLE_128B = 1  # a descriptor's layout
KNOWN_BITS = 0x3FFF | 0x3FFF << 16 | 0x3FFF << 32 | 7 << 49 | 3 << 62


@dataclass(eq=False, slots=True)
class Product:
    """A wgmma that was begun."""

    lanes: np.ndarray
    columns: int
    kind: str
    slots: list[int]  # registers of its accumulators
    operands: list[tuple[np.ndarray, np.ndarray]]  # of A and of B: words of shared memory, and what they held
    accumulates: bool
    is_done: np.ndarray = field(default_factory=lambda: np.zeros(4, bool))  # for which of the warps


@dataclass(slots=True)
class Queue:
    """Products of a warp."""

    begun: list[Product] = field(default_factory=list)
    committed: list[list[Product]] = field(default_factory=list)
    is_fenced: bool = False


class Wgmma:
    """Part of the machine."""

    def start_wgmma(self) -> None:
        """Before the first instruction."""
        self.queues: dict[tuple[int, int], Queue] = {}
        self.in_flight: list[Product] = []
        self.products_of = np.zeros(self.lanes, np.int32)  # how many are in flight for each lane

    def _queues(self, lanes: Any) -> list[tuple[Queue, np.ndarray]]:
        """The queue of each warp, with its lanes."""
        keys = ((int(self.block_of[warp[0]]), int(self.thread_of[warp[0]]), warp) for warp in self.warps(lanes))
        return [(self.queues.setdefault((block, thread), Queue()), warp) for block, thread, warp in keys]

    def _operand(self, block: int, descriptor: int, rows: int) -> tuple[np.ndarray, np.ndarray]:
        """32 bytes of each row of a matrix: words (rows, 8) of shared memory, and what they hold."""
        start, stride = (descriptor & 0x3FFF) << 4, (descriptor >> 32 & 0x3FFF) << 4
        if descriptor >> 62 != SWIZZLE_128B or descriptor >> 49 & 7:
            raise Fault(f"matrix descriptor {descriptor:#x}: another swizzle, or a base offset: not known")
        if descriptor & ~KNOWN_BITS:
            raise Fault(f"matrix descriptor {descriptor:#x} has reserved bits")
        row, word = np.arange(rows)[:, None], np.arange(8)
        addresses = swizzled(start + row // 8 * stride + row % 8 * 128 + 4 * word)
        words = self.shared.places(addresses.ravel().astype(np.uint64), 4, 4).reshape(rows, 8)
        if not self.shared.valid[block, words].all():
            raise Fault("uninitialised: wgmma reads shared memory that nobody wrote")
        if self.shared.generic[block, words].any():
            raise Fault("wgmma reads what threads wrote without fence.proxy.async")
        return words, self.shared.words[block, words].copy()

    def wgmma_fence(self, lanes: Any) -> None:
        """Order accesses to registers before the products that follow."""
        for queue, _ in self._queues(lanes):
            queue.is_fenced = True

    def wgmma(
        self, lanes: Any, shape: str, kind: str, slots: list[int], a: Any, b: Any, scale: np.ndarray, immediates: list
    ) -> None:
        """Begin a product for each warpgroup: accumulators += A @ B', or = where `scale` is false."""
        columns = int(shape[4 : shape.index("k")])
        depth = {"f16": 16, "bf16": 16, "tf32": 8}.get(kind)
        if shape != f"m64n{columns}k{depth}" or len(slots) != columns // 2 or columns % 8 or not 8 <= columns <= 256:
            raise Fault(f"wgmma of {shape} {kind} with {len(slots)} accumulators")
        if immediates not in ([1, 1], [1, 1, 0, 0]):
            raise Fault(f"wgmma with {immediates}: not known")
        lanes = np.arange(self.lanes) if lanes is None else lanes
        parts = (np.broadcast_to(array, len(lanes)).reshape(-1, 128) for array in (lanes, a, b, scale))
        for group, left, right, accumulates in zip(*parts, strict=True):
            if any(len(np.unique(values)) > 1 for values in (left, right, accumulates)):
                raise Fault("lanes of a warpgroup give different descriptors")
            queues = [queue for queue, _ in self._queues(group)]
            if not all(queue.is_fenced for queue in queues):
                raise Fault("no wgmma.fence between what set the accumulators and wgmma")
            block = int(self.block_of[group[0]])
            operands = [self._operand(block, int(left[0]), 64), self._operand(block, int(right[0]), columns)]
            product = Product(group, columns, kind, slots, operands, bool(accumulates[0]))
            for other in self.in_flight:
                is_alike = other.slots == slots or not {*other.slots} & {*slots}
                if not is_alike and np.intersect1d(other.lanes, group).size:
                    raise Fault("a product's accumulators are those of one in flight, in another order")
            for queue in queues:
                queue.begun.append(product)
            self.in_flight.append(product)
            self.products_of[group] += 1

    def wgmma_commit_group(self, lanes: Any) -> None:
        """Make a group of the products begun since the last one."""
        for queue, _ in self._queues(lanes):
            queue.committed.append(queue.begun)
            queue.begun = []

    def wgmma_wait(self, lanes: Any, latest: int) -> None:
        """Complete all groups but the latest."""
        for queue, warp in self._queues(lanes):
            while len(queue.committed) > latest:
                for product in queue.committed.pop(0):
                    self._complete(product, warp)
            queue.is_fenced = False

    def _complete(self, product: Product, warp: np.ndarray) -> None:
        """For one warp, which has 16 rows of A."""
        number = int(np.flatnonzero(product.lanes == warp[0])[0]) // 32
        mine = slice(16 * number, 16 * number + 16)
        (a_words, a_held), (b_words, b_held) = product.operands
        shared = self.shared.words[int(self.block_of[warp[0]])]
        if not (np.array_equal(shared[a_words[mine]], a_held[mine]) and np.array_equal(shared[b_words], b_held)):
            raise Fault("race: what wgmma reads was overwritten before it was complete")
        lane, v = np.arange(32), np.arange(product.columns // 2)[:, None]
        result = numbers(a_held[mine], product.kind) @ numbers(b_held, product.kind).T
        sums = result[lane // 4 + 8 * (v // 2 % 2), 8 * (v // 4) + 2 * (lane % 4) + v % 2]
        for slot, values in zip(product.slots, sums, strict=True):
            register = self.registers[slot]
            register[warp] = (values + register[warp] if product.accumulates else values).astype(np.float32)
        self.products_of[warp] -= 1
        product.is_done[number] = True
        if product.is_done.all():
            self.in_flight.remove(product)

    def check_accumulators(self, lanes: Any, slots: list[int]) -> None:
        """Another instruction touches registers that wgmma accumulates in."""
        is_busy = np.any(self.products_of if lanes is None else self.products_of[lanes])
        for product in self.in_flight if is_busy else ():
            unfinished = product.lanes[~np.repeat(product.is_done, 32)]
            if {*slots} & {*product.slots} and (lanes is None or np.intersect1d(unfinished, lanes).size):
                raise Fault("race: accumulators of a product in flight are touched")
        if any(queue.is_fenced for queue in self.queues.values()):
            for queue, _ in self._queues(self._whole_warps(lanes)):
                queue.is_fenced = False

    def _whole_warps(self, lanes: Any) -> Any:
        """All lanes of the warps that these are of."""
        if lanes is None:
            return None
        starts = np.unique(lanes - self.thread_of[lanes] % 32)
        return (starts[:, None] + np.arange(32)).ravel()
