"""PNG files whose pixels are sound though other parts of them are not.

Source: PNG specification, third edition, https://www.w3.org/TR/png-3/, section 5.
"""

from __future__ import annotations

import io
import struct
import zlib
from typing import BinaryIO

SIGNATURE = b"\x89PNG\r\n\x1a\n"
LARGEST = 1 << 28  # bytes; a larger file is not copied
KEPT = (b"tRNS", b"eXIf", b"gAMA", b"sBIT", b"pHYs")  # ancillary chunks that are small; text and profiles are not


def png_without_extras(file: BinaryIO) -> BinaryIO | None:
    """A copy of an open PNG file without text, colour profiles, and ancillary chunks that are damaged.

    Programs put megabytes of text into images, which Pillow refuses. None for a file that is no PNG or has nothing to
    leave out.
    """
    file.seek(0)
    if file.read(len(SIGNATURE)) != SIGNATURE or file.seek(0, io.SEEK_END) > LARGEST:
        return None
    file.seek(len(SIGNATURE))
    parts, left_out = [SIGNATURE], 0
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        rest = file.read(length + 4)
        is_critical = kind[:1].isupper()
        is_sound = len(rest) == length + 4 and struct.pack(">I", zlib.crc32(kind + rest[:-4])) == rest[-4:]
        if is_critical or (kind in KEPT and is_sound):
            parts += [head, rest]
        else:
            left_out += 1
    return io.BytesIO(b"".join(parts)) if left_out else None
