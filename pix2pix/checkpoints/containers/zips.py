"""Zip archives with uncompressed members: where the bytes of each member are in the file.

Python's zipfile would do, were it not for hostile files: it makes objects for as many entries as the directory holds,
lets a name occur twice, and unpacks bombs. Programs that save models store members uncompressed, so nothing is ever
unpacked here.

The format: https://pkware.cachefly.net/webdocs/casestudies/APPNOTE.TXT, sections 4.3.6 to 4.3.16.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from ...errors import CheckpointError
from ..model_file import ModelFile
from ..text import shown

START = b"PK\x03\x04"
NAME_AT = 30  # where the name of the first member begins in the file
_STEPS = 10  # of the budget for one entry
_MAX_NAME = 1000  # bytes
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_ENTRY = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_LARGE = 0xFFFFFFFF  # the real number is in the zip64 field


class PackedError(CheckpointError):
    """A member is compressed or encrypted; ``member`` is its name."""

    def __init__(self, member: str) -> None:
        self.member = member
        super().__init__(
            f"member {shown(member)} of the zip archive is compressed or encrypted, and PyTorch and Keras store "
            f"members as they are: unpack what somebody packed again, or save the model once more"
        )


def members(file: ModelFile, unread: str = "") -> dict[str, ModelFile]:
    """The members of an archive by name, without those with ``unread`` in their name.

    Raises PackedError for compressed or encrypted members, CheckpointError for damage, a name that occurs twice, and
    too many members.
    """
    count, start, size = _directory(file)
    if count * _ENTRY.size > size:
        raise _damaged(f"a directory of {count} entries in {size} bytes")
    if not 0 <= start <= start + size <= file.size:
        raise _damaged("its directory is outside of it")
    directory = file.read(start, size)
    found: dict[str, ModelFile] = {}
    position = 0
    for _ in range(count):
        file.budget.spend(_STEPS)
        entry, position = _entry(directory, position)
        if unread and unread in entry.name:
            continue
        name, member = entry.name, _member(file, entry)
        if name in found:
            raise CheckpointError(f"the zip archive has {shown(name)} twice: no program that saves models does that")
        found[name] = member
    return found


def _damaged(what: str) -> CheckpointError:
    return CheckpointError(f"the zip archive is damaged or cut off ({what}): copy or download the file again")


def _unpack(form: struct.Struct, data: bytes, position: int, signature: bytes) -> tuple[int, ...]:
    if not 0 <= position <= len(data) - form.size:
        raise _damaged(f"a record at byte {shown(position)} of {len(data)}")
    fields = form.unpack_from(data, position)
    if fields[0] != signature:
        raise _damaged(f"no record where one should be, at byte {position}")
    return fields


def _record(file: ModelFile, form: struct.Struct, position: int, signature: bytes) -> tuple[int, ...]:
    if not 0 <= position <= file.size - form.size:
        raise _damaged(f"a record at byte {shown(position)} of {file.size}")
    return _unpack(form, file.read(position, form.size), 0, signature)


def _directory(file: ModelFile) -> tuple[int, int, int]:
    """(number of entries, start, length) of the central directory."""
    tail_start = max(0, file.size - _END.size - 0xFFFF)
    at = file.read(tail_start).rfind(b"PK\x05\x06")
    if at < 0:
        raise _damaged("its end is missing")
    _, _, _, _, count, size, start, _ = _record(file, _END, tail_start + at, b"PK\x05\x06")
    locator = tail_start + at - _END64_LOCATOR.size
    if (count == 0xFFFF or _LARGE in (size, start)) and locator >= 0:
        _, _, end64, _ = _record(file, _END64_LOCATOR, locator, b"PK\x06\x07")
        _, _, _, _, _, _, _, count, size, start = _record(file, _END64, end64, b"PK\x06\x06")
    return count, start, size


class _Entry(NamedTuple):
    """What the directory says of a member: where its own record is, and how many bytes it has, packed or not."""

    name: str
    is_packed: bool
    length: int
    packed: int
    local: int


def _entry(directory: bytes, position: int) -> tuple[_Entry, int]:
    """The entry of the central directory at ``position``, and where the next one begins."""
    fields = _unpack(_ENTRY, directory, position, b"PK\x01\x02")
    flags, method = fields[3], fields[4]
    packed, length, name_length, extra_length, comment_length = fields[8:13]
    local = fields[16]
    name_end = position + _ENTRY.size + name_length
    end = name_end + extra_length + comment_length
    if end > len(directory) or name_length > _MAX_NAME:
        raise _damaged("an entry of its directory is cut off or has an endless name")
    name = directory[position + _ENTRY.size : name_end].decode("utf-8", "replace")
    large = _large_numbers(directory[name_end : name_end + extra_length])
    length, packed, local = (
        large.pop(0) if number == _LARGE and large else number for number in (length, packed, local)
    )
    return _Entry(name, method != 0 or bool(flags & 1), length, packed, local), end


def _member(file: ModelFile, entry: _Entry) -> ModelFile:
    """The bytes of a member."""
    if entry.is_packed:
        raise PackedError(entry.name)
    local_fields = _record(file, _LOCAL, entry.local, START)
    start = entry.local + _LOCAL.size + local_fields[9] + local_fields[10]
    if entry.length != entry.packed or start + entry.length > file.size:
        raise _damaged(
            f"member {shown(entry.name)} claims {entry.length} bytes from byte {start}, the file has {file.size}"
        )
    return file.part(start, entry.length)


def _large_numbers(extra: bytes) -> list[int]:
    """The 64-bit numbers of the zip64 extra field: length, packed length, position, where the entry lacks them."""
    position = 0
    while position + 4 <= len(extra):
        kind, size = struct.unpack_from("<2H", extra, position)
        position += 4
        if kind == 1 and position + size <= len(extra):
            return [n for (n,) in struct.iter_unpack("<Q", extra[position : position + size // 8 * 8])]
        position += size
    return []
