"""What a warp does together since sm_80: ldmatrix, mma.sync, and cp.async, whose copies go on by themselves.

With g = lane / 4 and t = lane % 4, registers hold: of A (16 x 16), register r: row g + 8 * (r % 2), columns 2 * t + 8 *
(r / 2) and the next; of B (16 x 8), register r: rows 2 * t + 8 * r and the next, column g; of C and D, element c: row g
+ 8 * (c / 2), column 2 * t + c % 2. In tf32, A is 16 x 8, and register r has row g + 8 * (r % 2), column t + 4 * (r /
2); B's register r has row t + 4 * r. Products are exact, and summed in float64 before they are rounded to float32:
tensor cores are less exact than that.

Source: PTX ISA 8.7, "Matrix Fragments for mma.m16n8k16" and "m16n8k8", "ldmatrix", "cp.async"; CuTe has the same as
MMA_Traits<SM80_16x8x16_F32F16F16F32_TN> and <SM80_16x8x8_F32TF32TF32F32_TN>.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from . import scalar
from .faults import Fault
from .shared_memory import MANY

LANE = np.arange(32)
G, T = LANE // 4, LANE % 4
CHUNK = 16  # bytes that cp.async.cg copies
UNDEFINED_TF32 = 1 << 13  # the last 13 bits of a tf32


def _order(rows: int, columns: int, row: np.ndarray, column: np.ndarray) -> np.ndarray:
    """Where in a flat fragment each element of a matrix is, given each fragment element's row and column."""
    order = np.full(rows * columns, -1)
    order[(row * columns + column).ravel()] = np.arange(row.size)
    assert (order >= 0).all()
    return order


def _grid(*sizes: int) -> tuple[np.ndarray, ...]:
    return np.meshgrid(*(np.arange(size) for size in sizes), indexing="ij")


_l, _r, _e = _grid(32, 4, 2)
A_16_BITS = _order(16, 16, G[_l] + 8 * (_r % 2), 2 * T[_l] + 8 * (_r // 2) + _e)
_l, _r, _e = _grid(32, 2, 2)
B_16_BITS = _order(16, 8, 2 * T[_l] + 8 * _r + _e, G[_l])
_l, _r = _grid(32, 4)
A_TF32 = _order(16, 8, G[_l] + 8 * (_r % 2), T[_l] + 4 * (_r // 2))
C_FLOAT32 = _order(16, 8, G[_l] + 8 * (_r // 2), 2 * T[_l] + _r % 2)
_l, _r = _grid(32, 2)
B_TF32 = _order(8, 8, T[_l] + 4 * _r, G[_l])


class Copies(NamedTuple):
    """Copies of 16 bytes that were begun and have not landed, one for each lane."""

    lanes: np.ndarray
    words: np.ndarray  # (n, 4) of shared memory
    source: np.ndarray
    sizes: np.ndarray
    groups: np.ndarray

    def chosen(self, which: np.ndarray) -> Copies:
        """Some of them."""
        return Copies(*(part[which] for part in self))


def numbers(words: np.ndarray, kind: str) -> np.ndarray:
    """(..., n) uint32 -> (..., n * elements of a word) float64, as tensor cores read them.

    Whether they look at the last 13 bits of a tf32 is undefined ("Alternate floating-point data formats"). Here they
    do, so that a program that leaves anything there shows it.
    """
    words = np.ascontiguousarray(words)
    if kind == "f16":
        return words.view(np.float16).astype(np.float64)
    if kind == "bf16":
        return (words.view(np.uint16).astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    if kind == "tf32":
        return words.view(np.float32).astype(np.float64)
    raise Fault(f"operands of {kind}: not known")


class TensorCores:
    """Part of the machine."""

    def start_tensor_cores(self) -> None:
        """Before the first instruction."""
        self.copies: list[Copies] = []
        self.groups = np.zeros(self.lanes, np.int32)  # that each lane has committed

    def warps(self, lanes: np.ndarray | None) -> np.ndarray:
        """Lanes (warps, 32); the machine has made sure that they are whole."""
        return (np.arange(self.lanes) if lanes is None else lanes).reshape(-1, 32)

    def to_tf32(self, values: np.ndarray) -> np.ndarray:
        """cvt.rna.tf32.f32. The last 13 bits are undefined, so they are random."""
        bits = scalar.tf32(values)
        return np.where(np.isfinite(values), bits | self.random.integers(0, UNDEFINED_TF32, len(bits), np.uint32), bits)

    # -- ldmatrix, mma ----------------------------------------------------------------------------------------

    def ldmatrix(self, lanes: np.ndarray | None, addresses: Any, count: int, transposed: bool) -> list[np.ndarray]:
        """Registers of all lanes, for `count` matrices of 8 rows of 16 bytes.

        Lane 8 * j + i says where row i of matrix j is. Register j of lane l is word l % 4 of row l / 4 of matrix j;
        transposed, rows 2 * (l % 4) and the next of column l / 4.
        """
        warps = self.warps(lanes)
        given = np.broadcast_to(addresses, warps.size).reshape(-1, 32)[:, : 8 * count]
        readers = warps[:, : 8 * count]
        rows, threads = self.block_of[readers].ravel(), self.thread_of[readers].ravel()
        words = self.shared.places(given.ravel(), CHUNK, CHUNK)
        self.shared.check_read(rows, words, threads)
        self.shared.reader[rows[:, None], words] = MANY  # all lanes of the warp read it
        found = self.shared.words[rows[:, None], words].reshape(len(warps), count, 8, 4)
        if transposed:
            elements = found.view(np.uint16).reshape(len(warps), count, 8, 8).transpose(0, 1, 3, 2)
            found = np.ascontiguousarray(elements).view(np.uint32)
        return [np.ascontiguousarray(found[:, j].reshape(-1)) for j in range(count)]

    def mma(self, lanes: Any, shape: str, kind: str, a: list, b: list, c: list) -> list[np.ndarray]:
        """d = a @ b + c."""
        expected = {"f16": "m16n8k16", "bf16": "m16n8k16", "tf32": "m16n8k8"}
        if shape != expected.get(kind) or (len(a), len(b), len(c)) != (4, 2, 4):
            raise Fault(f"mma of {shape} {kind}: not known")
        is_tf32 = kind == "tf32"
        depth = 8 if is_tf32 else 16

        def matrix(registers: list, order: np.ndarray, rows: int, columns: int, of: str) -> np.ndarray:
            words = np.stack(registers, axis=-1).reshape(-1, 32 * len(registers))
            values = words.astype(np.float64) if of == "f32" else numbers(words, of)
            return values[:, order].reshape(-1, rows, columns)

        left = matrix(a, A_TF32 if is_tf32 else A_16_BITS, 16, depth, kind)
        right = matrix(b, B_TF32 if is_tf32 else B_16_BITS, depth, 8, kind)
        sums = (left @ right + matrix(c, C_FLOAT32, 16, 8, "f32")).astype(np.float32).reshape(-1, 128)
        spread = np.empty_like(sums)
        spread[:, C_FLOAT32] = sums
        return [np.ascontiguousarray(spread.reshape(-1, 4)[:, i]) for i in range(4)]

    # -- copies -----------------------------------------------------------------------------------------------

    def copy_async(self, lanes: Any, to: np.ndarray, source: np.ndarray, size: int, sizes: Any) -> None:
        """Begin copies of 16 bytes, of which those beyond `sizes` are zeros."""
        if size != CHUNK:
            raise Fault("cp.async.cg copies 16 bytes")
        lanes = np.arange(self.lanes) if lanes is None else lanes
        sizes = np.full(len(lanes), size, np.uint32) if sizes is None else sizes
        if np.any((sizes != 0) & (sizes != size)):
            raise Fault("cp.async of a part of 16 bytes: not known")
        if np.any(source & np.uint64(CHUNK - 1)):
            raise Fault("misaligned: cp.async from what is no multiple of 16")
        words = self.shared.places(to, CHUNK, CHUNK)
        self.shared.check_write(self.block_of[lanes], words, self.thread_of[lanes], lands=False)
        exists = np.flatnonzero(sizes)
        if len(exists):
            self.memory.find(source[exists], size)  # a wrong address is an error at once
        copies = Copies(lanes, words, source.copy(), sizes.copy(), self.groups[lanes].copy())  # registers may change
        if self.options.late:
            self.shared.valid[self.block_of[lanes][:, None], words] = False
            self.copies.append(copies)
        else:
            self._land(copies)

    def _land(self, copies: Copies) -> None:
        values = np.zeros((len(copies.lanes), 4), np.uint32)
        exists = np.flatnonzero(copies.sizes)
        if len(exists):
            values[exists] = self.memory.load(copies.source[exists], CHUNK, self.number_of[copies.lanes[exists]])
        rows = self.block_of[copies.lanes]
        self.shared.check_write(rows, copies.words, self.thread_of[copies.lanes])
        self.shared.words[rows[:, None], copies.words] = values

    def commit_copies(self, lanes: Any) -> None:
        """End a group of copies."""
        self.groups[slice(None) if lanes is None else lanes] += 1

    def wait_copies(self, lanes: Any, latest: int) -> None:
        """Land all groups of these lanes but the latest."""
        mine = np.zeros(self.lanes, bool)
        mine[slice(None) if lanes is None else lanes] = True
        left = []
        for copies in self.copies:
            done = mine[copies.lanes] & (copies.groups < self.groups[copies.lanes] - latest)
            if done.any():
                self._land(copies.chosen(done))
            if not done.all():
                left.append(copies.chosen(~done))
        self.copies = left
