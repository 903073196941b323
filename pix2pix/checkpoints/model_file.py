"""The files of a model: read within their length, inside the model's own folder, and paid for from a budget.

Files are read, never mapped: when another program cuts a mapped file short, the process dies of SIGBUS. Here that is
a CheckpointError.
"""

from __future__ import annotations

import io
import math
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..errors import CheckpointError
from .budget import Budget
from .text import shown

MAX_STRUCTURE = 8 << 20  # bytes of a description, a directory, a pickle: all that is not numbers of a tensor


@dataclass(frozen=True, slots=True)
class ModelFile:
    """``size`` bytes of an open file, from byte ``start`` on: all of it, or one member of an archive."""

    path: Path
    budget: Budget
    handle: io.FileIO
    start: int
    size: int

    def part(self, position: int, size: int) -> ModelFile:
        """``size`` bytes from ``position`` as a file of their own. Raises CheckpointError if there are fewer."""
        self._check(position, size)
        return ModelFile(self.path, self.budget, self.handle, self.start + position, size)

    def read(self, position: int = 0, size: int | None = None) -> bytes:
        """``size`` bytes of structure from ``position``; all by default.

        Raises CheckpointError if there are fewer, or more than MAX_STRUCTURE are wanted.
        """
        size = self.size - position if size is None else size
        self._check(position, size)
        if size > MAX_STRUCTURE:
            raise CheckpointError(
                f"{self.path.name} has {size} bytes in one place where a model has at most {MAX_STRUCTURE}, numbers of "
                f"tensors aside: it is no model, or was tampered with"
            )
        self.budget.spend_text(size)
        data = bytearray(size)
        self._fill(position, memoryview(data))
        return bytes(data)

    def numbers(self, position: int, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
        """An array of the little-endian numbers from byte ``position`` on. Raises CheckpointError if there are fewer.

        ``dtype`` names their type as :class:`.tensors.StoredTensor` does.
        """
        size = math.prod(shape) * item_size(dtype)
        self._check(position, size)
        self.budget.spend_tensor(size)
        array = np.empty(shape, _numpy(dtype))
        self._fill(position, array.reshape(-1).view(np.uint8).data)
        return array

    def _check(self, position: int, size: int) -> None:
        if not 0 <= size <= self.size - position or position < 0:
            raise CheckpointError(
                f"{self.path.name} is damaged or cut off ({shown(size)} bytes at byte {shown(position)} of "
                f"{self.size}): copy or download it again"
            )

    def _fill(self, position: int, buffer: memoryview) -> None:
        self.handle.seek(self.start + position)
        while buffer:
            count = self.handle.readinto(buffer)
            if not count:
                raise CheckpointError(f"{self.path.name} became shorter while it was read: try again")
            buffer = buffer[count:]


def item_size(dtype: str) -> int:
    """Bytes of one number of this type."""
    return _numpy(dtype).itemsize


def _numpy(dtype: str) -> np.dtype:
    return np.dtype({"bfloat16": "u2", "bool": "u1"}.get(dtype, dtype)).newbyteorder("<")


@contextmanager
def opened(path: Path, budget: Budget) -> Iterator[ModelFile]:
    """A whole file, open for the block. Raises OSError if it cannot be read."""
    with open(path, "rb", buffering=0) as handle:
        status = os.fstat(handle.fileno())
        budget.add_file(status)
        yield ModelFile(path, budget, handle, 0, status.st_size)


def read_beside(path: Path, budget: Budget) -> bytes:
    """The content of a small file that belongs to the model."""
    with opened(path, budget) as file:
        return file.read()


def inside(folder: Path, name: str) -> Path | None:
    """The regular file ``name`` of the model's folder, links followed; None if there is none that can be read.

    Raises CheckpointError if it lies elsewhere, whether it exists or not.
    """
    try:
        path = (folder / name).resolve()
        if path.is_relative_to(folder.resolve()):
            return path if stat.S_ISREG(path.stat().st_mode) else None
    except (OSError, RuntimeError, ValueError):
        return None
    raise CheckpointError(f"{shown(name)} leads elsewhere: only files inside the model's own folder are read")
