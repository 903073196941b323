"""What a format is recognised by: the ends of a file, its length and its name."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from ..errors import CheckpointError

_START, _END = 512, 16  # bytes


class Sample(NamedTuple):
    """The first and the last bytes of a file, and its length in bytes."""

    start: bytes
    end: bytes
    size: int
    name: str

    @classmethod
    def of(cls, path: Path) -> Sample:
        """The sample of a file. Raises CheckpointError if it is empty, OSError if it cannot be read."""
        with path.open("rb") as file:
            start = file.read(_START)
            size = os.fstat(file.fileno()).st_size
            file.seek(-min(size, _END), os.SEEK_END)
            end = file.read()
        if not start:
            raise CheckpointError("the file is empty: the download or the copy failed")
        return cls(start, end, size, path.name)
