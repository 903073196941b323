"""Whether a Matroska or WebM file is as long as it says: FFmpeg takes one that is cut off for one that ends.

RFC 8794 (EBML) and RFC 9559 (Matroska): a file is two elements, a header and a segment, each with its length.
"""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

EBML, SEGMENT = 0x1A45DFA3, 0x18538067


def missing_bytes(path: Path) -> int:
    """How many bytes a Matroska file lacks; 0 for files of other formats, and where the length is not said."""
    if not path.is_file():
        return 0
    with open(path, "rb") as file:
        for expected in (EBML, SEGMENT):
            element, length = _number(file, keep_marker=True), _number(file, keep_marker=False)
            if element != expected or length is None:
                return 0
            file.seek(length, 1)
        return max(0, file.tell() - path.stat().st_size)


def _number(file: BinaryIO, keep_marker: bool) -> int | None:
    """A number of variable length, with or without the bit that marks its length; None if it is unknown or cut off."""
    first = file.read(1)
    if not first or not first[0]:
        return None
    length = 9 - first[0].bit_length()
    rest = file.read(length - 1)
    if len(rest) < length - 1:
        return None
    number = int.from_bytes(first + rest)
    if keep_marker:
        return number
    ones = (1 << 7 * length) - 1
    return None if number & ones == ones else number & ones
