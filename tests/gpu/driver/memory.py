"""Memory of devices and pinned memory of the host: what is allocated, and what may still use it."""

from __future__ import annotations

import ctypes
import weakref
from bisect import bisect_right
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from .faults import Fault

if TYPE_CHECKING:
    from .timeline import Operation

ALIGNED = 512  # bytes: where allocations of a device begin, with a gap between them
FRESH = 0xFF  # what nobody has written


@dataclass(eq=False)
class Allocation:
    """Memory of a device, or pinned memory, which belongs to a device's context, too. ``bytes`` outlive it."""

    kind: str
    device: int
    address: int
    bytes: np.ndarray
    alive: bool = True
    uses: list[tuple[Operation, Span, bool]] = field(default_factory=list)  # the last says whether it is written

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.bytes)

    def check_alive(self, what: str) -> None:
        """Raise Fault if it was freed."""
        if not self.alive:
            raise Fault(f"{what} uses {self}, which was freed")

    def pending(self) -> list[str]:
        """What uses it and is not complete."""
        self.uses = [use for use in self.uses if not use[0].done]
        return [operation.what for operation, _, _ in self.uses]

    def __str__(self) -> str:
        return f"{self.size:,} bytes of {self.kind} memory of device {self.device}"


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes of an allocation."""

    allocation: Allocation
    begin: int
    end: int

    def overlaps(self, other: Span) -> bool:
        """Whether they share a byte; both are of one allocation."""
        return self.begin < other.end and other.begin < self.end

    @property
    def bytes(self) -> np.ndarray:
        """The bytes, not a copy."""
        return self.allocation.bytes[self.begin : self.end]


class Memory:
    """All allocations of a kind. Addresses are never used twice, so that what was freed is known for ever."""

    def __init__(self) -> None:
        self._addresses: list[int] = []  # in order
        self._allocations: dict[int, Allocation] = {}
        self._next = 0x7F00_0000_0000

    def allocate(self, device: int, size: int) -> Allocation:
        """Memory of a device."""
        allocation = Allocation("device", device, self._next, np.full(size, FRESH, np.uint8))
        self._next += -(-size // ALIGNED) * ALIGNED + ALIGNED
        return self._add(allocation)

    def allocate_pinned(self, device: int, size: int) -> Allocation:
        """Memory of the host, at its real address."""
        data = np.full(size, FRESH, np.uint8)
        return self._add(Allocation("pinned", device, data.ctypes.data, data))

    def _add(self, allocation: Allocation) -> Allocation:
        self._allocations[allocation.address] = allocation
        self._addresses.insert(bisect_right(self._addresses, allocation.address), allocation.address)
        return allocation

    def at(self, address: int) -> Allocation | None:
        """The allocation, dead or alive, that has an address, if there is one."""
        i = bisect_right(self._addresses, address) - 1
        found = self._allocations[self._addresses[i]] if i >= 0 else None
        return found if found and address < found.address + max(found.size, 1) else None

    def span(self, address: int, size: int, what: str) -> Span:
        """Memory of a device. Raises Fault unless it was allocated."""
        found = self.at(address)
        if found is None or found.kind != "device" or address + size > found.address + found.size:
            raise Fault(f"{what}: {size} bytes at {address:#x} are not within {found or 'any memory'}")
        return Span(found, address - found.address, address - found.address + size)

    def alive(self) -> list[Allocation]:
        """What has not been freed."""
        return [allocation for allocation in self._allocations.values() if allocation.alive]

    def used(self, device: int) -> int:
        """Bytes of a device's memory that are allocated."""
        return sum(a.size for a in self.alive() if a.kind == "device" and a.device == device)


class HostArray:
    """The array, pinned or pageable, that a copy reads or writes: is it still there, and unchanged?"""

    def __init__(self, array: np.ndarray, is_read: bool) -> None:
        owner: Any = array
        while isinstance(owner.base, np.ndarray):
            owner = owner.base
        self._owner, self._is_read = weakref.ref(owner), is_read
        self._address, self._size = array.ctypes.data, array.nbytes
        if not is_read:  # what is there until then is undefined
            self._bytes()[...] = FRESH
        self._before = self._bytes().tobytes()

    def bytes(self) -> np.ndarray:
        """The bytes, when the copy is done. Raises Fault if they are gone or changed."""
        if self._owner() is None:
            raise Fault("host memory was freed before its copy was complete")
        if self._bytes().tobytes() != self._before:
            raise Fault(f"host memory that is {'read' if self._is_read else 'written'} changed before its copy")
        return self._bytes()

    def _bytes(self) -> np.ndarray:
        return np.frombuffer((ctypes.c_uint8 * self._size).from_address(self._address), np.uint8)
