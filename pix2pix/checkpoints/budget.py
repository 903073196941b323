"""A limit for the work of reading one model.

Model files are untrusted, and a small file can ask for endless work: values that contain themselves, records that
point at each other, a long name that is used a thousand times. Readers and containers therefore pay for every item
that they look at from one budget, which depends on the size of the files alone.
"""

from __future__ import annotations

import os

from ..errors import CheckpointError

_FREE_STEPS = 20_000  # for files of any size
_MAX_STEPS = 250_000  # some 0.5 s of Python; a whole training checkpoint of a U-Net takes 15,000, a SavedModel 20,000
_FREE_BYTES = 16 << 20  # tensors may share this many bytes of the file
_TEXT_PER_STEP = 1024  # bytes


class Budget:
    """What is left of the steps and of the bytes of tensors that the files of one model allow.

    A step is one item: an instruction of a pickle, a record, a field, a name. Each byte of the files is worth a step,
    up to a maximum. Tensors may have as many bytes as the files.
    """

    def __init__(self) -> None:
        self._files: set[tuple[int, int]] = set()
        self._size = 0  # of the files, in bytes
        self._steps = 0
        self._tensor_bytes = 0

    def add_file(self, status: os.stat_result) -> None:
        """Allow the work on one more file; a file counts once, whatever its names."""
        identity = status.st_dev, status.st_ino
        if identity not in self._files:
            self._files.add(identity)
            self._size += status.st_size

    def spend(self, steps: int = 1) -> None:
        """Pay for some steps. Raises CheckpointError when none are left."""
        self._steps += steps
        if self._steps > min(_MAX_STEPS, _FREE_STEPS + self._size):
            raise CheckpointError(
                "reading the file takes more steps than any model of its size needs: it is damaged or was tampered with"
            )

    def spend_text(self, size: int) -> None:
        """Pay for ``size`` bytes of names, descriptions and other structure."""
        self.spend(1 + size // _TEXT_PER_STEP)

    def spend_tensor(self, size: int) -> None:
        """Pay for ``size`` bytes of a tensor, before they are allocated. Raises CheckpointError if that is too much."""
        self._tensor_bytes += size
        if self._tensor_bytes > self._size + _FREE_BYTES:
            raise CheckpointError(
                f"the tensors take {self._tensor_bytes} bytes or more, the file has only {self._size}: they share "
                f"their numbers"
            )
