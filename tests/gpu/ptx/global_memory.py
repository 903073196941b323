"""Global memory: every array argument of a launch is a region of its own, far from all others.

What lies outside a region does not exist, whatever array it is a slice of. Each launch records which block has written
and which has read each word, so that blocks that depend on each other's order are found out.
"""

from __future__ import annotations

import mmap
from dataclasses import dataclass

import numpy as np

from .faults import Fault

NOBODY, MANY = 0, -9  # of blocks, counted from 1: arrays of zeros say nobody
REGION_BITS, MARGIN = 40, 1 << 20
LARGE = 1 << 31  # bytes from which memory is virtual: zeros that take no space until they are touched
U32, U64 = np.uint32, np.uint64


def zeros(size: int, kind: type) -> np.ndarray:
    """Zeros; large arrays take memory only where they are touched."""
    if size * np.dtype(kind).itemsize < LARGE:
        return np.zeros(size, kind)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000)
    return np.frombuffer(mmap.mmap(-1, size * np.dtype(kind).itemsize, flags=flags), kind)


class Allocation:
    """A piece of device memory, filled with ones: NaN in every format of floats. Large ones are zeros."""

    def __init__(self, size: int, address: int) -> None:
        self.size, self.address = size, address
        whole = -(-size // 16) * 16
        self.bytes = np.full(whole, 0xFF, np.uint8) if whole < LARGE else zeros(whole, np.uint8)

    def begin_launch(self) -> None:
        """Forget which blocks have used the words."""
        words = len(self.bytes) // 4
        self.written, self.read = zeros(words, np.int32), zeros(words, np.int32)


@dataclass(slots=True)
class Region:
    """Bytes [offset, offset + size) of an allocation, at an address of one launch."""

    allocation: Allocation
    offset: int
    size: int
    name: str
    base: int


class GlobalMemory:
    """The regions of a launch."""

    def __init__(self) -> None:
        self.regions: dict[int, Region] = {}

    def add(self, allocation: Allocation, offset: int, size: int, name: str) -> int:
        """A new region's address, aligned as the allocation's bytes are."""
        number = len(self.regions) + 1
        base = (number << REGION_BITS) + MARGIN + (allocation.address + offset) % 512
        self.regions[number] = Region(allocation, offset, size, name, base)
        allocation.begin_launch()
        return base

    def find(self, addresses: np.ndarray, width: int) -> list[tuple[Region, np.ndarray | None, np.ndarray]]:
        """(region, which of the addresses, places in its allocation) of aligned accesses of `width` bytes."""
        if np.any(addresses & U64(width - 1)):
            raise Fault(f"misaligned: {int(addresses[addresses % U64(width) != 0][0]):#x} is no multiple of {width}")
        numbers = addresses >> U64(REGION_BITS)
        first, found = int(numbers[0]), []
        several = None if np.all(numbers == first) else np.unique(numbers)
        for number in [first] if several is None else several:
            which = None if several is None else np.flatnonzero(numbers == number)
            region = self.regions.get(int(number))
            part = addresses if which is None else addresses[which]
            if region is None:
                raise Fault(f"no array at address {int(part[0]):#x}")
            at = part.astype(np.int64) - region.base
            low, high = int(at.min()), int(at.max())
            if low < 0 or high + width > region.size:
                raise Fault(f"out of bounds, {region.name}: bytes {low} to {high + width} of {region.size}")
            found.append((region, which, at + region.offset))
        return found

    def load(self, addresses: np.ndarray, width: int, blocks: np.ndarray) -> np.ndarray:
        """`width` bytes from each address: (n, words) uint32, or (n, 1) of a smaller type."""
        unit = min(width, 4)
        result = np.empty((len(addresses), width // unit), {1: np.uint8, 2: np.uint16, 4: U32}[unit])
        for region, which, at in self.find(addresses, width):
            memory = region.allocation
            places = (at // unit)[:, None] + np.arange(width // unit)
            self._note_read(memory, places * unit // 4, blocks if which is None else blocks[which])
            values = memory.bytes.view(result.dtype)[places]
            if which is None:
                return values
            result[which] = values
        return result

    def store(self, addresses: np.ndarray, values: np.ndarray, blocks: np.ndarray) -> None:
        """Store values (n, words), or (n, 1) of a smaller type."""
        unit = values.dtype.itemsize
        for region, which, at in self.find(addresses, unit * values.shape[1]):
            memory = region.allocation
            places = (at // unit)[:, None] + np.arange(values.shape[1])
            mine = blocks if which is None else blocks[which]
            self._note_write(memory, places * unit // 4, mine, bytewise=unit < 4)
            memory.bytes.view(values.dtype)[places] = values if which is None else values[which]

    @staticmethod
    def _note_read(memory: Allocation, words: np.ndarray, blocks: np.ndarray) -> None:
        mine = np.broadcast_to(blocks[:, None] + 1, words.shape)
        _refuse(memory.written[words], mine, "read")
        last = memory.read[words]
        memory.read[words] = np.where((last == NOBODY) | (last == mine), mine, MANY)
        if not np.array_equal(memory.read[words], mine):  # several blocks read it at once, or have read it before
            memory.read[words[memory.read[words] != mine]] = MANY

    @staticmethod
    def _note_write(memory: Allocation, words: np.ndarray, blocks: np.ndarray, bytewise: bool) -> None:
        """Blocks may share a word of which they write different bytes."""
        mine = np.broadcast_to(blocks[:, None] + 1, words.shape)
        _refuse(memory.read[words], mine, "wrote")
        if not bytewise:
            _refuse(memory.written[words], mine, "wrote")
        memory.written[words] = mine
        if not bytewise and (not np.array_equal(memory.written[words], mine) or np.unique(words).size < words.size):
            raise Fault("race: two threads write one word of global memory with one instruction")


def _refuse(before: np.ndarray, mine: np.ndarray, did: str) -> None:
    """Raise Fault where another block has used a word before."""
    clash = (before != NOBODY) & (before != mine)
    if clash.any():
        raise Fault(f"race: block {mine[clash][0] - 1} {did} a word of global memory that another block has used")
