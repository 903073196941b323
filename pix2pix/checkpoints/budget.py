"""A limit for the work of reading one model.

Model files are untrusted, and a small file can ask for endless work: values that contain themselves, records that
point at each other, a long name that is used a thousand times. Readers and containers therefore pay for every item
that they look at from one budget, which depends on the size of the files alone.
"""

from __future__ import annotations

import os

from ..errors import CheckpointError

_FREE_STEPS = 20_000  # for files of any size
_MAX_STEPS = 250_000  # some 0.5 s of Python; files of a U-Net with all that training keeps take up to 18,000
_FREE_TEXT = 4 << 20  # bytes
_TEXT_PER_BYTE = 8  # HDF5 files are read up to twice, because every path begins at the root
_MAX_TEXT = 32 << 20  # bytes, which can be four times as many in memory
_FREE_TENSORS = 16 << 20  # bytes that tensors may share


class Budget:
    """What the files of one model allow, and what has been spent of it.

    Steps are items: instructions of a pickle, records, fields, names. Each byte of the files allows one, up to a
    maximum. Text is bytes of names, descriptions and all other structure. Tensors may have as many bytes as the files.
    """

    def __init__(self) -> None:
        self._files: set[tuple[int, int]] = set()
        self._size = 0  # of the files, in bytes
        self._steps = 0
        self._text = 0
        self._tensors = 0

    def add_file(self, status: os.stat_result) -> None:
        """Allow the work on one more file; a file counts once, whatever its names."""
        identity = status.st_dev, status.st_ino
        if identity not in self._files:
            self._files.add(identity)
            self._size += status.st_size

    def spend(self, steps: int = 1) -> None:
        """Pay for some steps. All methods raise CheckpointError when nothing is left."""
        self._steps += steps
        if self._steps > min(_MAX_STEPS, _FREE_STEPS + self._size):
            raise _too_much("steps")

    def spend_text(self, size: int) -> None:
        """Pay for one step that reads or makes ``size`` bytes of text, before they are allocated."""
        self.spend()
        self._text += size
        if self._text > min(_MAX_TEXT, _FREE_TEXT + _TEXT_PER_BYTE * self._size):
            raise _too_much("memory")

    def spend_tensor(self, size: int) -> None:
        """Pay for ``size`` bytes of a tensor, before they are allocated."""
        self._tensors += size
        if self._tensors > self._size + _FREE_TENSORS:
            raise CheckpointError(
                f"the tensors take {self._tensors} bytes or more, the file has only {self._size}: they share their "
                f"numbers"
            )


def _too_much(what: str) -> CheckpointError:
    return CheckpointError(
        f"reading the file takes more {what} than any model of its size needs: it is damaged or was tampered with"
    )
