"""TensorFlow's graphs and their functions: operations by name, and the numbers in them.

Source: tensorflow/core/framework/function.proto, node_def.proto, attr_value.proto and tensor.proto of
https://github.com/tensorflow/tensorflow.
"""

from __future__ import annotations

import math
import struct
from typing import NamedTuple

from ...errors import CheckpointError
from ..containers.protobuf import Message, varint
from ..text import shown

_MAX_CHAIN = 150  # operations that only pass a tensor on
_MAX_NUMBERS = 64  # of a constant that says how to pad, to reshape or what to multiply by
_CALLS = ("StatefulPartitionedCall", "PartitionedCall")
_PASSING = ("Identity", "Cast", "StopGradient")
_FLOAT, _INT32, _INT64 = 1, 3, 9  # number types


class Operation(NamedTuple):
    """A node: its kind, and the nodes that it reads, without those that it only waits for."""

    name: str
    kind: str
    reads: tuple[str, ...]
    node: Message

    def attribute(self, name: str) -> Message | None:
        """The value of an attribute; None if it is not in the file, as when it has its default."""
        return next((each.message(2) for each in self.node.messages(5) if each.text(1) == name), None)

    def text(self, name: str) -> str:
        """An attribute that is a string; empty if it is not in the file."""
        value = self.attribute(name)
        return value.text(2) if value else ""

    def number(self, name: str) -> int:
        """An attribute that is an integer; 0 if it is not in the file."""
        value = self.attribute(name)
        return value.number(3) if value else 0

    def flag(self, name: str, default: bool = False) -> bool:
        """An attribute that is a truth value."""
        value = self.attribute(name)
        return value.number(5) == 1 if value else default

    def real(self, name: str, default: float) -> float:
        """An attribute that is a float32."""
        value = self.attribute(name)
        return _rounded(struct.pack("<I", value.number(4) & 0xFFFFFFFF)) if value else default

    def small_integers(self, name: str) -> list[int]:
        """An attribute that is a list of integers below 128; empty if it is not in the file."""
        value = self.attribute(name)
        return list(value.message(1).part(3)) if value else []


class Function:
    """A graph, or one of its functions: operations by name, names of arguments, the operation that makes the result."""

    def __init__(self, definition: Message, result: str, nodes: int = 1) -> None:
        """``nodes`` is the field of ``definition`` that has the nodes: 1 of a graph, 3 of a function.

        Raises CheckpointError.
        """
        self.operations: dict[str, Operation] = {}
        for node in definition.messages(nodes):
            reads = tuple(str(name, "utf-8", "replace") for name in node.parts(3) if bytes(name[:1]) != b"^")
            operation = Operation(node.text(1), node.text(2), tuple(map(_owner, reads)), node)
            self.operations[operation.name] = operation
        signature = definition.message(1) if nodes == 3 else None
        self.arguments = [argument.text(1) for argument in signature.messages(2)] if signature else []
        self.result = _owner(result)

    def passed(self, name: str) -> str:
        """The name of the operation or argument whose tensor the operation ``name`` passes on, or its own."""
        for _ in range(_MAX_CHAIN):
            operation = self.operations.get(name)
            if operation is None or operation.kind not in _PASSING or not operation.reads:
                return name
            operation.node.budget.spend()
            name = operation.reads[0]
        raise CheckpointError(f"the graph goes in circles at {shown(name)}: the file is damaged")

    def at(self, name: str) -> Operation | None:
        """The operation of that name, or the one that it passes on; None for an argument of the function."""
        return self.operations.get(self.passed(name))

    def called(self) -> tuple[str, tuple[str, ...]] | None:
        """The name of the function that makes the result and what it is given, if it is another one."""
        operation = self.at(self.result)
        function = operation.attribute("f") if operation and operation.kind in _CALLS else None
        return (function.message(10).text(1), operation.reads) if operation and function else None


def constant(operation: Operation | None) -> tuple[tuple[int, ...], list[int] | list[float]] | None:
    """(shape, numbers) of a constant of a few int32, int64 or float32; None for anything else."""
    value = operation.attribute("value") if operation and operation.kind == "Const" else None
    if value is None:
        return None
    tensor = value.message(8)
    dtype, shape = tensor.number(1), tuple(size.number(1) for size in tensor.message(2).messages(2))
    count = math.prod(shape)
    if dtype not in (_FLOAT, _INT32, _INT64) or len(shape) > 2 or count > _MAX_NUMBERS:
        return None
    numbers: list[int] | list[float]
    if dtype == _FLOAT:
        data = bytes(tensor.part(4)) or bytes(tensor.part(5))
        numbers = [_rounded(data[at : at + 4]) for at in range(0, len(data) - 3, 4)]
    else:
        numbers = _integers(tensor, dtype)
    if 0 < len(numbers) < count:  # equal numbers at the end are written once
        numbers = [*numbers, *([numbers[-1]] * (count - len(numbers)))]
    # A number that is 0 may be left out; zero is what an absent number stands for.
    return (shape, numbers) if len(numbers) == count else (shape, [0] * count) if not numbers else None


def _integers(tensor: Message, dtype: int) -> list[int]:
    raw, packed = bytes(tensor.part(4)), bytes(tensor.part(7 if dtype == _INT32 else 10))
    if raw:
        size, code = (4, "<i") if dtype == _INT32 else (8, "<q")
        return [struct.unpack_from(code, raw, at)[0] for at in range(0, len(raw) - size + 1, size)]
    numbers: list[int] = []
    position = 0
    while position < len(packed) and len(numbers) < _MAX_NUMBERS:
        number, position = varint(packed, position, tensor.what)
        numbers.append(number - 2**64 if number >> 63 else number)
    return numbers


def _owner(name: str) -> str:
    """The operation that makes the tensor ``name``, such as "conv2d/Conv2D:output:0"."""
    return name.partition(":")[0]


def _rounded(data: bytes) -> float:
    """A float32, rounded to the seven digits that are exact."""
    (number,) = struct.unpack("<f", data)
    return float(f"{number:.7g}")
