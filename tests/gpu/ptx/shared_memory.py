"""The shared memory of the blocks that run together.

Variables lie apart, with gaps that nobody may touch. Each word knows whether it has been written, by which thread and
in which interval between two barriers, and who has read it.
"""

from __future__ import annotations

import numpy as np

from .faults import Fault
from .parse import SharedVariable

NOBODY, MANY = -1, -9  # of threads
GAP = 256  # bytes between variables
U32 = np.uint32


class SharedMemory:
    """Bytes (blocks, size) from address ``base`` on."""

    def __init__(self, variables: list[SharedVariable], dynamic: int, blocks: int, base: int, shift: int) -> None:
        """`dynamic` bytes for variables without a size, which begin `shift` bytes late: nobody may count on more
        alignment than was asked for."""
        self.base, self.static, self.address = base, 0, {}
        self.size, spans = 0, []
        for variable in sorted(variables, key=lambda v: v.size is None):
            size, align = dynamic if variable.size is None else variable.size, max(variable.align, 16)
            self.static += variable.size or 0
            place = -(-self.size // align) * align + (shift // align * align if variable.size is None else 0)
            self.address[variable.name] = base + place
            spans.append((place, size))
            self.size = place + -(-size // 16) * 16 + GAP
        shape = blocks, -(-self.size // 16) * 4
        self.words = np.full(shape, 0xFFFFFFFF, U32)
        self.allowed = np.zeros(shape[1], bool)
        for at, size in spans:
            self.allowed[at // 4 : (at + size) // 4] = True
        self.valid = np.zeros(shape, bool)
        self.generic = np.zeros(shape, bool)  # written by a thread, and not fenced since for the asynchronous proxy
        self.writer, self.reader = np.full(shape, NOBODY, np.int32), np.full(shape, NOBODY, np.int32)
        self.written_in, self.read_in = np.full(shape, -1, np.int32), np.full(shape, -1, np.int32)
        self.interval = np.zeros(blocks, np.int32)  # barriers that a block has passed

    def places(self, addresses: np.ndarray, width: int, align: int) -> np.ndarray:
        """Numbers of words (n, width / 4). Raises Fault for what is not aligned or no variable."""
        at = addresses.astype(np.int64) - self.base
        if np.any(at & (align - 1)):
            raise Fault(f"misaligned in shared memory: byte {int(at[at % align != 0][0])} is no multiple of {align}")
        if at.min() < 0 or at.max() + width > self.size:
            raise Fault(f"outside shared memory: bytes {int(at.min())} to {int(at.max()) + width} of {self.size}")
        words = (at // 4)[:, None] + np.arange(max(1, width // 4))
        if not self.allowed[words].all():
            raise Fault(f"outside the variables in shared memory: byte {words[~self.allowed[words]][0] * 4}")
        return words

    def check_read(self, rows: np.ndarray, words: np.ndarray, threads: np.ndarray) -> None:
        """Threads (n) read words (n, k) of their blocks (rows)."""
        rows, threads = rows[:, None], np.broadcast_to(threads[:, None], words.shape)
        if not self.valid[rows, words].all():
            byte = int(words[~self.valid[rows, words]][0]) * 4
            raise Fault(f"uninitialised: reads byte {byte} of shared memory, which nobody wrote")
        now = np.broadcast_to(self.interval[rows], words.shape)
        clash = (self.written_in[rows, words] == now) & (self.writer[rows, words] != threads)
        if clash.any():
            _race("reads", words[clash][0], threads[clash][0], self.writer[rows, words][clash][0], "wrote")
        is_first = self.read_in[rows, words] != now
        before = self.reader[rows, words]
        self.reader[rows, words] = np.where(is_first | (before == threads), threads, MANY)
        self.read_in[rows, words] = now
        mixed = self.reader[rows, words] != threads
        if mixed.any():
            self.reader[np.broadcast_to(rows, words.shape)[mixed], words[mixed]] = MANY

    def check_write(self, rows: np.ndarray, words: np.ndarray, threads: np.ndarray, lands: bool = True) -> None:
        """Threads write words, or will: a copy that `lands` later only must not be in anybody's way."""
        rows, threads = rows[:, None], np.broadcast_to(threads[:, None], words.shape)
        now = np.broadcast_to(self.interval[rows], words.shape)
        for when, who, did in ((self.written_in, self.writer, "wrote"), (self.read_in, self.reader, "read")):
            clash = (when[rows, words] == now) & (who[rows, words] != threads)
            if clash.any():
                _race("writes", words[clash][0], threads[clash][0], who[rows, words][clash][0], did)
        if not lands:
            return
        self.writer[rows, words], self.written_in[rows, words] = threads, now
        if not np.array_equal(self.writer[rows, words], threads):
            raise Fault("race: two threads write one word of shared memory with one instruction")
        self.valid[rows, words] = self.generic[rows, words] = True

    def load(self, rows: np.ndarray, addresses: np.ndarray, width: int, threads: np.ndarray) -> np.ndarray:
        """(n, words) uint32."""
        words = self.places(addresses, width, width)
        self.check_read(rows, words, threads)
        return self.words[rows[:, None], words]

    def store(self, rows: np.ndarray, addresses: np.ndarray, values: np.ndarray, threads: np.ndarray) -> None:
        """Store values (n, words) uint32."""
        words = self.places(addresses, 4 * values.shape[1], 4 * values.shape[1])
        self.check_write(rows, words, threads)
        self.words[rows[:, None], words] = values


def _race(does: str, word: int, thread: int, other: int, did: str) -> None:
    who = "several threads" if other == MANY else f"thread {other}"
    raise Fault(f"race: thread {thread} {does} byte {word * 4} of shared memory, which {who} {did} in this interval")
