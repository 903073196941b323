"""The wire format of protocol buffers: a message is a sequence of numbered fields.

Source: https://protobuf.dev/programming-guides/encoding.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import CheckpointError
from ..budget import Budget

_MAX_VARINT = 10  # bytes of 7 bits that hold 64
_FIXED_SIZES = {1: 8, 5: 4}  # bytes, by wire type
_BYTES = 2  # the wire type of strings, bytes and messages


class Message:
    """The fields of one message: integers, and the bytes of everything else.

    Raises CheckpointError for bytes that are no message. ``what`` names it there.
    """

    def __init__(self, data: bytes | memoryview, what: str, budget: Budget) -> None:
        self.what = what
        self.budget = budget
        self._numbers: dict[int, int] = {}
        self._parts: dict[int, list[memoryview]] = {}
        for number, value in _fields(memoryview(data), what):
            budget.spend()
            if isinstance(value, int):
                self._numbers[number] = value
            else:
                self._parts.setdefault(number, []).append(value)

    def number(self, field: int) -> int:
        """An integer field, as unsigned; 0 if it is missing."""
        return self._numbers.get(field, 0)

    def parts(self, field: int) -> list[memoryview]:
        """The values of a repeated field of bytes."""
        return self._parts.get(field, [])

    def part(self, field: int) -> memoryview:
        """The bytes of a single field, the last of them as the format says; none if it is missing."""
        return self.parts(field)[-1] if field in self._parts else memoryview(b"")

    def text(self, field: int) -> str:
        """A string field."""
        part = self.part(field)
        self.budget.spend_text(len(part))
        try:
            return str(part, "utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"{self.what} has a name that is not valid UTF-8: the file is damaged") from None

    def message(self, field: int) -> Message:
        """A message inside this one; empty if it is missing."""
        return Message(self.part(field), self.what, self.budget)

    def messages(self, field: int) -> list[Message]:
        """The messages of a repeated field."""
        return [Message(part, self.what, self.budget) for part in self.parts(field)]


def varint(data: bytes | memoryview, position: int, what: str) -> tuple[int, int]:
    """(the number of variable length at ``position``, the position after it). Raises CheckpointError."""
    if position < len(data) and data[position] < 0x80:  # the common case: one byte
        return data[position], position + 1
    value = 0
    for shift, byte in enumerate(data[position : position + _MAX_VARINT]):
        value |= (byte & 0x7F) << 7 * shift
        if byte < 0x80:
            return value & 0xFFFFFFFFFFFFFFFF, position + shift + 1
    raise _damaged(what)


def _fields(data: memoryview, what: str) -> Iterator[tuple[int, int | memoryview]]:
    position = 0
    while position < len(data):
        tag, position = varint(data, position, what)
        kind = tag & 7
        if kind == 0:
            value, position = varint(data, position, what)
            yield tag >> 3, value
            continue
        if kind == _BYTES:
            size, position = varint(data, position, what)
        elif kind in _FIXED_SIZES:
            size = _FIXED_SIZES[kind]
        else:  # groups, which nothing has written for many years
            raise _damaged(what)
        end = position + size
        if end > len(data):
            raise _damaged(what)
        part = data[position:end]
        yield tag >> 3, part if kind == _BYTES else int.from_bytes(part, "little")
        position = end


def _damaged(what: str) -> CheckpointError:
    return CheckpointError(f"{what} is no whole protocol buffer: the file is damaged or of another kind")
