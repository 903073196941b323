"""The directory of a zip archive as torch.save and Keras write it: where each member's bytes lie in the file.

Python's zipfile would do, were it not for hostile files: it makes objects for as many entries as the directory holds,
lets a name occur twice, and unpacks bombs. They store members uncompressed, so a table of (start, length) is
all that a reader needs, and nothing here is ever unpacked.

The format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, sections 4.3.6 to 4.3.16.
"""

from __future__ import annotations

import struct

from ...errors import CheckpointError
from ..common import shown

MAX_MEMBERS = 20_000
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LARGE = 0xFFFFFFFF  # the real number is in the zip64 field


def _damaged(what: str) -> CheckpointError:
    return CheckpointError(f"the zip archive is damaged or cut off ({what}): copy or download the file again")


def _unpack(form: struct.Struct, data: memoryview, position: int, signature: bytes) -> tuple[int, ...]:
    if not 0 <= position <= len(data) - form.size:
        raise _damaged(f"a record at byte {shown(position)} of {len(data)}")
    fields = form.unpack_from(data, position)
    if fields[0] != signature:
        raise _damaged(f"no record where one should be, at byte {position}")
    return fields


def members(data: memoryview) -> dict[str, tuple[int, int]]:
    """Name -> (start, length) in bytes of every member of the archive that fills ``data``.

    Raises CheckpointError for damage, compressed or encrypted members, a name that occurs twice, and too many members.
    """
    count, start, size = _directory(data)
    if count > MAX_MEMBERS:
        raise CheckpointError(f"the zip archive has {count} members, more than the {MAX_MEMBERS} allowed")
    found: dict[str, tuple[int, int]] = {}
    position = start
    for _ in range(count):
        name, extent, position = _entry(data, position)
        if name in found:
            raise CheckpointError(f"the zip archive has {shown(name)} twice: no program that saves models does that")
        found[name] = extent
    if position > start + size:
        raise _damaged("its directory is longer than it says")
    return found


def _directory(data: memoryview) -> tuple[int, int, int]:
    """(number of entries, start, length) of the central directory."""
    tail_start = max(0, len(data) - _END.size - 0xFFFF)
    at = bytes(data[tail_start:]).rfind(b"PK\x05\x06")
    if at < 0:
        raise _damaged("its end is missing")
    _, _, _, _, count, size, start, _ = _unpack(_END, data, tail_start + at, b"PK\x05\x06")
    locator = tail_start + at - _END64_LOCATOR.size
    if (count == 0xFFFF or _LARGE in (size, start)) and locator >= 0:
        _, _, end64, _ = _unpack(_END64_LOCATOR, data, locator, b"PK\x06\x07")
        _, _, _, _, _, _, _, count, size, start = _unpack(_END64, data, end64, b"PK\x06\x06")
    return count, start, size


def _entry(data: memoryview, position: int) -> tuple[str, tuple[int, int], int]:
    """The entry of the central directory at ``position``: its name, its (start, length), and where the next begins."""
    fields = _unpack(_ENTRY, data, position, b"PK\x01\x02")
    flags, method = fields[3], fields[4]
    packed, length, name_length, extra_length, comment_length = fields[8:13]
    local = fields[16]
    end = position + _ENTRY.size + name_length + extra_length + comment_length
    name_end = position + _ENTRY.size + name_length
    if end > len(data):
        raise _damaged("an entry of its directory is cut off")
    name = bytes(data[position + _ENTRY.size : name_end]).decode("utf-8", "replace")
    large = _large_numbers(data[name_end : name_end + extra_length])
    length, packed, local = (
        large.pop(0) if number == _LARGE and large else number for number in (length, packed, local)
    )
    if method != 0 or flags & 1:
        raise CheckpointError(
            f"member {shown(name)} of the zip archive is compressed or encrypted, and PyTorch and Keras store members "
            f"as they are: unpack what somebody packed again, or save the model once more"
        )
    local_fields = _unpack(_LOCAL, data, local, b"PK\x03\x04")
    start = local + _LOCAL.size + local_fields[9] + local_fields[10]
    if length != packed or start + length > len(data):
        raise _damaged(f"member {shown(name)} claims {length} bytes from byte {start}, the file has {len(data)}")
    return name, (start, length), end


def _large_numbers(extra: memoryview) -> list[int]:
    """The 64-bit numbers of the zip64 extra field: length, packed length, position, where the entry lacks them."""
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, position)
        position += 4
        if kind == 1 and position + size <= len(extra):
            return [n for (n,) in struct.iter_unpack("<Q", extra[position : position + size // 8 * 8])]
        position += size
    return []
