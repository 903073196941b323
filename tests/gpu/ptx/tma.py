"""TMA: copies of boxes of a tensor, which a tensor map describes, to shared memory.

A box is written densely, its first dimension innermost, zeros outside the tensor, in the 128-byte swizzle: bits 4 to 6
of an address are xored with bits 7 to 9. It lands at once or, with the option `late`, when nothing else can go on (in
random order, at any time).

Source: PTX ISA 8.7, "cp.async.bulk.tensor", "Tensors"; the CUDA driver API, cuTensorMapEncodeTiled.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from .faults import Fault

MAGIC = 0x50414D52_4F534E54  # the first word of an encoded tensor map, before its number
MAP_BYTES = 128
ATOM = 1024  # bytes of the swizzle's pattern
LANDS_NOW = 0.2  # probability per step, in random order


@dataclass(slots=True)
class TensorMap:
    """What cuTensorMapEncodeTiled was given: the innermost dimension first, strides in bytes, elements of 4 bytes."""

    words: np.ndarray  # uint32, from the tensor's first word on
    sizes: tuple[int, ...]
    strides: tuple[int, ...]  # of all dimensions but the first
    box: tuple[int, ...]
    is_swizzled: bool


TENSOR_MAPS: list[TensorMap] = []  # encoded maps hold their number in this list


def encoded(tensor_map: TensorMap) -> np.ndarray:
    """A tensor map as uint64 (16), as it lies in memory. Hardware's format is not documented."""
    TENSOR_MAPS.append(tensor_map)
    return np.array([MAGIC, len(TENSOR_MAPS) - 1, *[0] * 14], np.uint64)


def swizzled(addresses: np.ndarray) -> np.ndarray:
    """Where the 128-byte swizzle puts what belongs at an address."""
    return addresses ^ ((addresses >> 7) & 7) << 4


@dataclass(slots=True)
class BoxCopy:
    """A copy that was begun and has not landed."""

    block: int
    target: int
    tensor_map: TensorMap
    start: tuple[int, ...]
    barrier: int


class Tma:
    """Part of the machine."""

    def start_tma(self) -> None:
        """Before the first instruction."""
        self.boxes: list[BoxCopy] = []
        self.acquired: set[tuple[int, int]] = set()  # lanes and addresses of the tensor maps they have fenced

    def acquire_map(self, lanes: Any, addresses: np.ndarray, size: int) -> None:
        """fence.proxy.tensormap::generic.acquire."""
        if size != MAP_BYTES or np.any(addresses & np.uint64(MAP_BYTES - 1)):
            raise Fault("fence.proxy.tensormap is for 128 bytes at a multiple of as many")
        self.acquired |= {(lane, address) for _, lane, address in self.each(lanes, addresses)}

    def copy_box(self, lanes: Any, to: np.ndarray, maps: np.ndarray, start: list, barriers: np.ndarray) -> None:
        """Begin to copy a box for each of the lanes."""
        for block, lane, target, at, barrier, *coordinates in self.each(lanes, to, maps, barriers, *start):
            if (lane, at) not in self.acquired:
                raise Fault("a tensor map is used without fence.proxy.tensormap")
            tensor_map = self._tensor_map(at)
            if len(tensor_map.sizes) != len(coordinates):
                raise Fault(f"{len(coordinates)} coordinates for {len(tensor_map.sizes)} dimensions")
            if target % (ATOM if tensor_map.is_swizzled else 128):
                raise Fault(f"misaligned: a box at byte {target} of shared memory, within the swizzle's pattern")
            if not self.barrier_at(block, barrier, lane).is_fenced:
                raise Fault("TMA uses an mbarrier without fence.mbarrier_init")
            self.boxes.append(BoxCopy(block, target, tensor_map, tuple(coordinates), barrier))
            if not self.options.late:
                self._land_box(self.boxes.pop())

    def _tensor_map(self, address: int) -> TensorMap:
        if address % 64:
            raise Fault("misaligned: a tensor map that is not at a multiple of 64 bytes")
        words = self.memory.load(np.array([address], np.uint64), 16, np.array([-2]))[0].view(np.uint64)
        if words[0] != MAGIC:
            raise Fault("no tensor map there")
        return TENSOR_MAPS[int(words[1])]

    def land_a_box(self) -> bool:
        """The next box that is under way, if there is one."""
        if not self.boxes:
            return False
        is_random = self.options.order == "random"
        self._land_box(self.boxes.pop(int(self.random.integers(len(self.boxes))) if is_random else 0))
        return True

    def _land_box(self, copy: BoxCopy) -> None:
        tensor_map = copy.tensor_map
        inside, offset = np.ones(1, bool), np.zeros(1, np.int64)  # of each word of the box, in words
        strides = (1, *(stride // 4 for stride in tensor_map.strides))
        for size, stride, count, first in zip(tensor_map.sizes, strides, tensor_map.box, copy.start, strict=True):
            at = first + np.arange(count, dtype=np.int64)
            inside = (((at >= 0) & (at < size))[:, None] & inside).ravel()
            offset = ((at * stride)[:, None] + offset).ravel()
        values = np.zeros(len(offset), np.uint32)
        values[inside] = tensor_map.words[offset[inside]]
        addresses = copy.target + 4 * np.arange(len(offset))
        if tensor_map.is_swizzled:
            addresses = swizzled(addresses)
        words = self.shared.places(addresses.astype(np.uint64), 4, 4)[:, 0]
        self.shared.words[copy.block, words] = values
        self.shared.valid[copy.block, words], self.shared.generic[copy.block, words] = True, False
        self.barrier_at(copy.block, copy.barrier).bytes -= 4 * len(offset)
        self.progress(copy.block, copy.barrier)
