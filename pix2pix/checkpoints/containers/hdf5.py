"""The part of HDF5 that Keras writes: groups, their attributes, and arrays that lie in one piece.

h5py would do, were it not for hostile files: the C library behind it follows links to other files and unpacks bombs,
and where it crashes on damage, no Python code can catch that. Keras needs little of the format, all of it in the oldest
form, which h5py writes by default: superblock 0, object headers of version 1, groups that are symbol tables (a B-tree
of nodes, names in a local heap), attributes that are strings or lists of them, and contiguous arrays. Everything else
is refused by name.

The format: https://support.hdfgroup.org/documentation/hdf5/latest/_f_m_t3.html
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from ...errors import CheckpointError
from ..model_file import ModelFile
from ..tensors import StoredTensor
from ..text import shown

START = b"\x89HDF\r\n\x1a\n"
_MAX_RANK = 8
_MAX_DEPTH = 16
_MAX_ATTRIBUTE = 2 << 20  # bytes of all strings of one attribute
_MAX_NAME = 1000
_UNDEFINED = 2**64 - 1
_DATASPACE, _DATATYPE, _EXTERNAL, _LAYOUT, _FILTERS, _ATTRIBUTE = 1, 3, 7, 8, 11, 12
_CONTINUATION, _SYMBOL_TABLE = 16, 17
_LINK_INFO, _LINK = 2, 6  # of groups of the newer form, and of those with external links
# Little-endian IEEE numbers: class and bit fields, size, and where sign, exponent and mantissa lie.
_FLOATS = {
    bytes.fromhex("11201f00 04000000 00002000 17080017 7f000000"): "float32",
    bytes.fromhex("11203f00 08000000 00004000 340b0034 ff030000"): "float64",
    bytes.fromhex("11200f00 02000000 00001000 0a05000a 0f000000"): "float16",
}
_FIXED_STRING, _VARIABLE = 3, 9

Messages = list[tuple[int, bytes]]  # kind and content of the messages of an object header


@dataclass(slots=True)
class Group:
    """A group of the file: its attributes, and its groups and arrays by name."""

    file: ModelFile
    messages: Messages
    _children: dict[str, int] | None = field(default=None)

    def __contains__(self, name: str) -> bool:
        return name in self._links()

    def names(self) -> list[str]:
        """The names of all that is in the group."""
        return list(self._links())

    def group(self, name: str) -> Group:
        """The group of that name. Raises CheckpointError if there is none."""
        found = self.at(name)
        if not isinstance(found, Group):
            raise _damaged(f"{shown(name)} is no group of it")
        return found

    def at(self, path: str) -> Group | StoredTensor | None:
        """The group or the array at ``path`` in this group; None if there is nothing."""
        *folders, last = path.split("/")
        group = self
        for name in folders:
            found = group.at(name)
            if not isinstance(found, Group):
                return None
            group = found
        if last not in group:
            return None
        messages = _messages(self.file, group._links()[last])
        if any(kind in (_SYMBOL_TABLE, _LINK_INFO, _LINK) for kind, _ in messages):
            return Group(self.file, messages)
        return _array(self.file, messages, last)

    def arrays(self, path: str) -> dict[str, StoredTensor]:
        """All arrays in the group at ``path`` and in those below it, by their paths. Raises CheckpointError."""
        found: dict[str, StoredTensor] = {}
        waiting = [path]
        while waiting:
            path = waiting.pop()
            self.file.budget.spend_text(len(path))
            inside = self.at(path)
            if isinstance(inside, StoredTensor):
                found[path] = inside
            elif inside is None or path.count("/") > _MAX_DEPTH:
                raise _damaged(f"nothing at {shown(path)}, or groups inside groups without an end")
            else:
                waiting += [f"{path}/{name}" for name in inside.names()]
        return found

    def text(self, name: str) -> str | None:
        """The attribute ``name`` as one string; None if the group has none of that name."""
        values = self.texts(name)
        return values[0] if values else None

    def texts(self, name: str) -> list[str] | None:
        """The attribute ``name`` as a list of strings; None if the group has none of that name."""
        for kind, message in self.messages:
            if kind == _ATTRIBUTE:
                self.file.budget.spend()
                found, datatype, dataspace, value = _attribute(message)
                if found == name:
                    return _strings(self.file, datatype, math.prod(_shape(dataspace)), value)
        return None

    def _links(self) -> dict[str, int]:
        """The addresses of what is in the group."""
        if self._children is None:
            self._children = {}
            for kind, message in self.messages:
                if kind in (_LINK_INFO, _LINK):
                    raise _unsupported("links to other files, or groups of a newer form")
                if kind == _SYMBOL_TABLE:
                    tree, heap = _unpacked("2Q", message)
                    _, _, _, _, length, _, start = _record(self.file, heap, "4B3Q", b"HEAP")
                    self._children |= _symbols(self.file, tree, _take(self.file, start, length), None)
        return self._children


def open_root(file: ModelFile) -> Group:
    """The root group of an HDF5 file. Raises CheckpointError."""
    version, *_, offsets, lengths, _ = _record(file, 0, "8B", START)
    if version > 1:
        raise _unsupported("a newer form of the format (libver='latest')")
    if (offsets, lengths) != (8, 8):
        raise _unsupported(f"addresses of {offsets} and {lengths} bytes")
    base, _, end, _, _, header = _record(file, 24 + 4 * version, "6Q")
    if base or end > file.size:
        raise _damaged(f"it should have {shown(end)} bytes from byte {shown(base)}, and has {file.size}")
    return Group(file, _messages(file, header))


# -- records --------------------------------------------------------------------------------------------------


def _damaged(what: str) -> CheckpointError:
    return CheckpointError(f"the HDF5 file is damaged or cut off ({what}): copy or download it again")


def _unsupported(what: str) -> CheckpointError:
    return CheckpointError(f"the HDF5 file uses {what}, which Keras does not: save the model once more with Keras")


def _take(file: ModelFile, position: int, count: int) -> bytes:
    """``count`` bytes from ``position``. Raises CheckpointError if the file is shorter."""
    if not 0 <= count <= file.size - position:
        raise _damaged(f"{shown(count)} bytes at byte {shown(position)} of {file.size}")
    return file.read(position, count)


def _record(file: ModelFile, position: int, form: str, signature: bytes = b"") -> tuple[int, ...]:
    """The little-endian numbers of ``form`` that follow ``signature`` at ``position``."""
    content = _take(file, position, len(signature) + struct.calcsize("<" + form))
    if content[: len(signature)] != signature:
        raise _damaged(f"no {signature!r} at byte {position}")
    return struct.unpack_from("<" + form, content, len(signature))


def _unpacked(form: str, data: bytes, position: int = 0) -> tuple[Any, ...]:
    """The little-endian numbers of ``form`` at ``position`` of a message."""
    try:
        return struct.unpack_from("<" + form, data, position)
    except struct.error:
        raise _damaged("a message is too short") from None


def _messages(file: ModelFile, address: int) -> Messages:
    """(kind, content) of all messages of the object header at ``address``."""
    version, _, _, _, size = _record(file, address, "2BH2L")
    if version != 1:
        raise _unsupported("object headers of a newer form") if version == ord("O") else _damaged("an object header")
    messages: Messages = []
    waiting = [(address + 16, size)]
    while waiting:
        block = _take(file, *waiting.pop())
        position = 0
        while position + 8 <= len(block):
            file.budget.spend()
            kind, length, flags = _unpacked("2HB", block, position)
            content = block[position + 8 : position + 8 + length]
            position += 8 + length
            if len(content) < length:
                raise _damaged("a message is cut off")
            if kind == _CONTINUATION:
                waiting.append(_unpacked("2Q", content))
            elif kind and flags & 2:
                raise _unsupported("shared descriptions")
            elif kind:
                messages.append((kind, content))
    return messages


def _symbols(file: ModelFile, address: int, heap: bytes, level: int | None) -> dict[str, int]:
    """Names and addresses in the B-tree node at ``address``, which is at ``level`` (None: not known) of its tree."""
    kind, found, count, _, _ = _record(file, address, "2BH2Q", b"TREE")
    if kind or found != (found if level is None else level) or found > 8:
        raise _damaged(f"a node of a group at byte {address}")
    symbols: dict[str, int] = {}
    for number in range(count):
        (child,) = _record(file, address + 32 + 16 * number, "Q")
        inside = _symbols(file, child, heap, found - 1) if found else _entries(file, child, heap)
        if not symbols.keys().isdisjoint(inside):
            raise _damaged("a group has a name twice")
        symbols |= inside
    return symbols


def _entries(file: ModelFile, address: int, heap: bytes) -> dict[str, int]:
    """Names and addresses in one symbol table node."""
    _, _, count = _record(file, address, "2BH", b"SNOD")
    entries: dict[str, int] = {}
    for number in range(count):
        start, header, cached = _record(file, address + 8 + 40 * number, "2QL")
        name = heap[start : start + _MAX_NAME].split(b"\0")[0].decode("utf-8", "replace")
        if cached == 2:
            raise _unsupported(f"a link ({shown(name)} leads elsewhere)")
        if name in entries or not name:
            raise _damaged("a group has a name twice, or an empty one")
        entries[name] = header
    return entries


# -- attributes -----------------------------------------------------------------------------------------------


def _attribute(message: bytes) -> tuple[str, bytes, bytes, bytes]:
    """(name, datatype, dataspace, value) of an attribute."""
    version, flags, *sizes = _unpacked("2B3H", message)
    if version not in (1, 2, 3) or (version > 1 and flags):
        raise _unsupported("attributes of an unknown form")
    position, parts = 9 if version == 3 else 8, []
    for size in sizes:
        parts.append(message[position : position + size])
        position += size + (-size % 8 if version == 1 else 0)
    name = parts[0][:_MAX_NAME].split(b"\0")[0].decode("utf-8", "replace")
    return name, parts[1], parts[2], message[position:]


def _strings(file: ModelFile, datatype: bytes, count: int, value: bytes) -> list[str]:
    """``count`` strings, of fixed length or in the file's global heaps."""
    if not count:  # the type then says nothing: Keras writes an empty list as one of numbers
        return []
    kind, bits, size = _unpacked("2B2xL", datatype)
    if count * max(size, 1) > len(value):
        raise _damaged(f"an attribute of {shown(count)} strings")
    file.budget.spend(count)
    pieces = [value[size * i : size * (i + 1)] for i in range(count)]
    if kind & 15 == _VARIABLE and bits & 15 == 1 and size == 16:
        places = [_unpacked("LQL", piece) for piece in pieces]
        total = sum(length for length, _, _ in places)
        if total > _MAX_ATTRIBUTE:
            raise _damaged(f"an attribute of {total} bytes, more than the {_MAX_ATTRIBUTE} allowed")
        pieces = [_from_heap(file, *place) for place in places]
    elif kind & 15 != _FIXED_STRING:
        raise _damaged("an attribute is no string")
    return [piece.rstrip(b"\0").decode("utf-8", "replace") for piece in pieces]


def _from_heap(file: ModelFile, length: int, address: int, index: int) -> bytes:
    """The string of ``length`` bytes that is object ``index`` of the global heap at ``address``."""
    _, size = _record(file, address, "LQ", b"GCOL")
    position, end = address + 16, address + size
    while position + 16 <= end:
        found, _, size = _record(file, position, "HH4xQ")
        if found == index and size >= length:
            return _take(file, position + 16, length)
        position += 16 + size + -size % 8
    raise _damaged("a string is missing")


# -- arrays ---------------------------------------------------------------------------------------------------


def _shape(dataspace: bytes) -> tuple[int, ...]:
    """The sizes of an array; () for a single value."""
    version, rank, _, kind = _unpacked("4B", dataspace)
    if version not in (1, 2) or rank > _MAX_RANK or (version == 2 and kind == 2):
        raise _damaged("the shape of an array")
    return _unpacked(f"{rank}Q", dataspace, 8 if version == 1 else 4)


def _array(file: ModelFile, messages: Messages, name: str) -> StoredTensor:
    """The array whose object header has these messages."""
    by_kind = dict(messages)
    if not {_DATASPACE, _DATATYPE, _LAYOUT} <= by_kind.keys():
        raise _damaged(f"{shown(name)} is neither a group nor an array")
    if _EXTERNAL in by_kind:
        raise _unsupported("numbers in other files")
    if _FILTERS in by_kind:
        raise _unsupported("compressed arrays")
    datatype, shape = by_kind[_DATATYPE], _shape(by_kind[_DATASPACE])
    dtype = _FLOATS.get(datatype[:20], "unknown")
    (size,) = _unpacked("L", datatype, 4)
    length = math.prod(shape) * size
    if length > file.size:
        raise _damaged(f"{shown(name)} has {shown(length)} bytes: more than are there")
    version, kind = _unpacked("2B", by_kind[_LAYOUT])
    if version not in (3, 4) or kind > 1:
        raise _unsupported("arrays in pieces")
    if kind == 0:
        data = by_kind[_LAYOUT][4 : 4 + length]
        if len(data) != length:
            raise _damaged(f"{shown(name)} has {len(data)} bytes, expected {shown(length)}")
        return StoredTensor(shape, dtype, partial(_compact, data, dtype, shape))
    address, _ = _unpacked("2Q", by_kind[_LAYOUT], 2)
    if address == _UNDEFINED and length:
        raise _damaged(f"{shown(name)} has no numbers")
    if length and address > file.size - length:
        raise _damaged(f"{shown(name)} has {shown(length)} bytes at byte {shown(address)} of {file.size}")
    return StoredTensor(shape, dtype, partial(file.numbers, address if length else 0, dtype, shape))


def _compact(data: bytes, dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """The numbers of an array that is stored in its object header."""
    return np.frombuffer(data, np.dtype(dtype).newbyteorder("<")).reshape(shape).copy()
