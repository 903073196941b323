"""The part of the pickle language that state dicts need, interpreted without executing anything.

A pickle is a program for a stack machine, and Python's own machine calls whatever function the file names. Its C form
also allocates what hostile lengths ask for before it looks whether so many bytes are there, and recurses on what it
builds. This module therefore has a machine of its own, for the 40-odd instructions that torch.save uses (protocols 2
to 4 and the string instructions of Python 2). It is short enough to be checked by reading. Each step takes bounded time
and memory, and the only functions that it calls are the :class:`Constructor` values that its caller hands out. Objects
of other classes, which training programs save beside their tensors (options, losses, schedulers), become
:class:`Opaque`: nothing is kept of them but the class's name. Other instructions (INST, OBJ, EXT, ...) are refused.

The language: https://docs.python.org/3/library/pickletools.html
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError
from ..budget import Budget
from ..text import shown

_MAX_NAME = 200
_MAX_KEY = 2**60  # larger integers can have equal hashes, so that a dict of them takes quadratic time

_CONSTANTS: dict[int, Any] = {ord("N"): None, 0x88: True, 0x89: False, ord(")"): ()}
_NUMBERS = {ord("K"): "<B", ord("M"): "<H", ord("J"): "<i", ord("G"): ">d"}
_STRINGS = {ord("X"): "<I", 0x8C: "<B", 0x8D: "<Q", ord("T"): "<i", ord("U"): "<B"}
_BYTES = {ord("B"): "<I", ord("C"): "<B", 0x8E: "<Q"}
_TUPLES = {0x85: 1, 0x86: 2, 0x87: 3}
_PUTS = {ord("q"): "<B", ord("r"): "<I"}
_GETS = {ord("h"): "<B", ord("j"): "<I"}


@dataclass(frozen=True, slots=True)
class Constructor:
    """What a global of the file stands for: a name, and a function of ours that takes the tuple of arguments."""

    name: str
    make: Callable[[tuple[Any, ...]], Any]


@dataclass(frozen=True, slots=True)
class Opaque:
    """Stands for an object of the program that made the file. Only the name of its class is known."""

    name: str


class Attributes(dict[str | int, Any]):
    """Stands for an object of a compiled program: the values of its attributes, by their names."""


@dataclass(frozen=True, slots=True)
class World:
    """What a pickle can refer to.

    ``find_global(module, name)`` gives the value of a global, ``load_persistent(id)`` that of a persistent id. Both
    raise CheckpointError for what they don't know.
    """

    find_global: Callable[[str, str], Any]
    load_persistent: Callable[[Any], Any]


class _Mark:
    """The place on the stack where a list of operands begins."""


_MARK = _Mark()


class Machine:
    """Reads pickles out of ``data``, from ``position`` on; :attr:`position` is then where the last one ended."""

    def __init__(self, data: bytes, position: int, budget: Budget, world: World) -> None:
        self.position = position
        self._data = data
        self._budget = budget
        self._world = world
        self._stack: list[Any] = []
        self._memo: dict[int, Any] = {}

    def load(self) -> Any:
        """The value that the next pickle describes. Raises CheckpointError."""
        self._stack, self._memo = [], {}
        while True:
            self._budget.spend()
            opcode = self._take(1)[0]
            if opcode == ord("."):
                return self._pop()
            if opcode in _STEPS:
                _STEPS[opcode](self)
            else:
                self._simple(opcode)

    def _simple(self, opcode: int) -> None:
        """The instructions that only move one value."""
        if opcode in _CONSTANTS:
            self._stack.append(_CONSTANTS[opcode])
        elif opcode in _NUMBERS:
            self._stack.append(self._number(_NUMBERS[opcode]))
        elif opcode in _STRINGS:
            text = self._take(self._number(_STRINGS[opcode]))
            self._stack.append(text.decode("utf-8", "replace"))
        elif opcode in _BYTES:
            self._stack.append(self._take(self._number(_BYTES[opcode])))
        elif opcode in _TUPLES:
            values = [self._pop() for _ in range(_TUPLES[opcode])]
            self._stack.append(tuple(reversed(values)))
        elif opcode in _PUTS:
            self._memo[self._number(_PUTS[opcode])] = self._top()
        elif opcode in _GETS:
            index = self._number(_GETS[opcode])
            if index not in self._memo:
                raise self._damaged("reads a memo that was never written")
            self._stack.append(self._memo[index])
        else:
            raise self._damaged(f"has the instruction {opcode:#04x}, which torch.save does not write for a state dict")

    # -- reading ----------------------------------------------------------------------------------------------

    def _damaged(self, what: str) -> CheckpointError:
        return CheckpointError(f"the file's pickle {what} (at byte {self.position}): the file is damaged or no model")

    def _take(self, count: int) -> bytes:
        if not 0 <= count <= len(self._data) - self.position:
            raise self._damaged(f"claims {shown(count)} bytes, more than there are")
        self.position += count
        return self._data[self.position - count : self.position]

    def _number(self, form: str) -> Any:
        return struct.unpack(form, self._take(struct.calcsize(form)))[0]

    def _line(self) -> str:
        window = self._data[self.position : self.position + _MAX_NAME]
        name, newline, _ = window.partition(b"\n")
        if not newline:
            raise self._damaged(f"has a name of more than {_MAX_NAME} bytes")
        self.position += len(name) + 1
        return name.decode("utf-8", "replace")

    # -- the stack --------------------------------------------------------------------------------------------

    def _top(self) -> Any:
        if not self._stack or self._stack[-1] is _MARK:
            raise self._damaged("takes from an empty stack")
        return self._stack[-1]

    def _pop(self) -> Any:
        value = self._top()
        del self._stack[-1]
        return value

    def _pop_to_mark(self) -> list[Any]:
        values = []
        while self._stack and self._stack[-1] is not _MARK:
            values.append(self._stack.pop())
        if not self._stack:
            raise self._damaged("has operands without a mark")
        del self._stack[-1]
        values.reverse()
        return values

    # -- instructions -----------------------------------------------------------------------------------------

    def _proto(self) -> None:
        version = self._take(1)[0]
        if version > 5:
            raise self._damaged(f"is of protocol {version}, newer than 5")

    def _frame(self) -> None:
        if self._number("<Q") > len(self._data) - self.position:
            raise self._damaged("has a frame longer than the file")

    def _long(self) -> None:
        self._stack.append(int.from_bytes(self._take(self._take(1)[0]), "little", signed=True))

    def _push(self, value: Any) -> None:
        self._stack.append(value)

    def _memoize(self) -> None:
        self._memo[len(self._memo)] = self._top()

    def _append(self, values: list[Any]) -> None:
        target = self._top()
        if isinstance(target, list):
            target.extend(values)
        elif not isinstance(target, Opaque):
            raise self._damaged("appends to what is no list")

    def _set_item(self) -> None:
        value = self._pop()
        self._set_items([self._pop(), value])

    def _set_items(self, flat: list[Any]) -> None:
        target = self._top()
        if isinstance(target, Opaque):
            return
        if not isinstance(target, dict) or len(flat) % 2:
            raise self._damaged("sets items of what is no dict")
        target.update(checked_items(zip(flat[::2], flat[1::2], strict=True)))

    def _global(self) -> None:
        module = self._line()
        self._stack.append(self._world.find_global(module, self._line()))

    def _stack_global(self) -> None:
        names = self._pop(), self._pop()
        if not all(isinstance(name, str) and len(name) <= _MAX_NAME for name in names):
            raise self._damaged("names a global by what is no string, or an endless one")
        self._stack.append(self._world.find_global(names[1], names[0]))

    def _reduce(self) -> None:
        arguments, constructor = self._pop(), self._pop()
        if not isinstance(constructor, Constructor) or not isinstance(arguments, tuple):
            raise self._damaged("calls what is no known constructor")
        # A constructor may copy its arguments, which the memo could hand to it any number of times.
        self._budget.spend(sum(len(value) for value in arguments if isinstance(value, list | tuple | dict)))
        self._stack.append(constructor.make(arguments))

    def _build(self) -> None:
        attributes, target = self._pop(), self._top()
        if isinstance(target, Attributes):
            if not isinstance(attributes, dict):
                raise self._damaged("has attributes that are no dict")
            self._budget.spend(len(attributes))  # which the memo could hand out any number of times
            target.update(attributes)
        elif not isinstance(target, dict | Opaque):  # an OrderedDict's _metadata says nothing about the network
            raise self._damaged("sets attributes of what is no dict")

    def _persistent(self) -> None:
        self._stack.append(self._world.load_persistent(self._pop()))


_STEPS: dict[int, Callable[[Machine], Any]] = {
    0x80: Machine._proto,
    0x95: Machine._frame,
    ord("("): lambda machine: machine._push(_MARK),
    ord("}"): lambda machine: machine._push({}),
    ord("]"): lambda machine: machine._push([]),
    ord("t"): lambda machine: machine._push(tuple(machine._pop_to_mark())),
    ord("0"): Machine._pop,
    ord("1"): Machine._pop_to_mark,
    ord("2"): lambda machine: machine._push(machine._top()),
    0x8A: Machine._long,
    0x94: Machine._memoize,
    ord("a"): lambda machine: machine._append([machine._pop()]),
    ord("e"): lambda machine: machine._append(machine._pop_to_mark()),
    ord("s"): Machine._set_item,
    ord("u"): lambda machine: machine._set_items(machine._pop_to_mark()),
    ord("c"): Machine._global,
    0x93: Machine._stack_global,
    ord("R"): Machine._reduce,
    0x81: Machine._reduce,  # NEWOBJ, which makes an object of a class without calling its initialiser
    ord("b"): Machine._build,
    ord("Q"): Machine._persistent,
}


def checked_items(pairs: Any) -> dict[str | int, Any]:
    """A dict of (key, value) pairs whose keys are strings or integers, or CheckpointError.

    Other keys are refused because hashing a tuple recurses as deep as the file likes.
    """
    items: dict[str | int, Any] = {}
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not _is_key(pair[0]):
            raise CheckpointError(
                "a dict in the file has a key that is neither a string nor a number: not a state dict"
            )
        items[pair[0]] = pair[1]
    return items


def _is_key(value: Any) -> bool:
    return isinstance(value, str) or (isinstance(value, int) and abs(value) < _MAX_KEY)
