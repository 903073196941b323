"""TensorFlow's graphs of operations, traced back from the result: what each convolution of a network reads.

    result = Tanh(BiasAdd(Conv2DBackpropInput(ConcatV2(Relu(FusedBatchNormV3(...)), LeakyRelu(...)))))

Keras 2 normalises with FusedBatchNormV3, Keras 3 with x * (s * gamma) + (beta - mean * (s * gamma)) where
s = Rsqrt(variance + eps). Any other operation is refused with its name.

Source: tensorflow/core/framework/function.proto, node_def.proto and attr_value.proto of
https://github.com/tensorflow/tensorflow.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, field
from typing import NamedTuple

from ...errors import CheckpointError
from ..containers.protobuf import Message
from ..text import shown

_MAX_JOINED = 64  # bounds graphs that double a value with each operation
_MAX_CHAIN = 150  # operations from the result to the input; a U-Net of 8 levels has some 70
_CALLS = ("StatefulPartitionedCall", "PartitionedCall")
_CONVOLUTIONS = {"Conv2D": 0, "Conv2DBackpropInput": 2}  # and which input is the map
_STORED = "ReadVariableOp"


class _Operation(NamedTuple):
    """A node: its kind, and the nodes that it reads, without those that it only waits for."""

    name: str
    kind: str
    reads: tuple[str, ...]
    node: Message

    def attribute(self, name: str) -> Message | None:
        """The value of an attribute; None if it is not in the file, as when it has its default."""
        return next((each.message(2) for each in self.node.messages(5) if each.text(1) == name), None)


class _Value(NamedTuple):
    """A tensor of the graph: (number of a convolution, or -1 for the input, slope) of every map that it joins.

    ``fresh``: only biases and norms have been applied since the convolution.
    """

    parts: tuple[tuple[int, float], ...]
    fresh: bool = False


@dataclass(slots=True)
class Convolution:
    """A convolution of the graph: what it reads, as in _Value, and the epsilon of its norm if it has one.

    ``image_statistics``: the norm uses the statistics of the image.
    """

    transposed: bool
    sources: tuple[tuple[int, float], ...]
    eps: float | None = None
    image_statistics: bool = False


class Function:
    """A graph, or one of its functions: operations by name, and the name of the operation that makes the result."""

    def __init__(self, definition: Message, result: str, nodes: int = 1) -> None:
        """``nodes`` is the field of ``definition`` that has the nodes. Raises CheckpointError."""
        self.operations: dict[str, _Operation] = {}
        for node in definition.messages(nodes):
            reads = tuple(str(name, "utf-8", "replace") for name in node.parts(3) if bytes(name[:1]) != b"^")
            operation = _Operation(node.text(1), node.text(2), tuple(map(_owner, reads)), node)
            self.operations[operation.name] = operation
        self.result = _owner(result)

    def at(self, name: str) -> _Operation | None:
        """The operation of that name, or the one that it passes on; None for an argument of the function."""
        for _ in range(_MAX_CHAIN):
            operation = self.operations.get(name)
            if operation is None or operation.kind not in ("Identity", "Cast") or not operation.reads:
                return operation
            name = operation.reads[0]
        raise CheckpointError(f"the graph goes in circles at {shown(name)}: the file is damaged")

    def called(self) -> str | None:
        """The name of the function that makes the result, if it is another one."""
        operation = self.at(self.result)
        function = operation.attribute("f") if operation and operation.kind in _CALLS else None
        return function.message(10).text(1) if function else None


def convolutions(function: Function) -> list[Convolution]:
    """The convolutions of the network that a function computes, in the order of its operations.

    Raises CheckpointError for a graph that is no U-Net that ends in a tanh.
    """
    last = function.at(function.result)
    if last is None or last.kind != "Tanh":
        raise _unsupported(last, "as its result, expected a tanh")
    trace = _Trace(function)
    value = trace.value(last.reads[0] if last.reads else "")
    if not value.fresh or value.parts != ((len(trace.found) - 1, 1.0),):
        raise _unsupported(last, "before its end, expected the last convolution")
    return trace.found


@dataclass(slots=True)
class _Trace:
    """Values that are known, by the names of their operations, and the convolutions in the order of discovery."""

    function: Function
    found: list[Convolution] = field(default_factory=list)
    values: dict[str, _Value] = field(default_factory=dict)
    depth: int = 0

    def value(self, name: str) -> _Value:
        """The tensor that operation ``name`` makes; an argument of the function is the input image."""
        operation = self.function.at(name)
        if operation is None:
            return _Value(((-1, 1.0),))
        if operation.name not in self.values:
            self.depth += 1
            if self.depth > _MAX_CHAIN:
                raise CheckpointError("the graph is deeper than any U-Net, or goes in circles: the file is damaged")
            self.values[operation.name] = self._made(operation)
            self.depth -= 1
        return self.values[operation.name]

    def _made(self, operation: _Operation) -> _Value:
        kind, reads = operation.kind, operation.reads
        if kind in _CONVOLUTIONS and len(reads) > _CONVOLUTIONS[kind]:
            return self._convolved(operation)
        if kind == "ConcatV2" and len(reads) > 2:
            parts = tuple(part for name in reads[:-1] for part in self.value(name).parts)
            if len(parts) <= _MAX_JOINED:
                return _Value(parts)
        if kind in ("LeakyRelu", "Relu") and reads:
            slope = _float(operation, "alpha", 0.2) if kind == "LeakyRelu" else 0.0
            if 0 <= slope <= 1:
                return _Value(tuple((read, before * slope) for read, before in self.value(reads[0]).parts))
        if kind in ("BiasAdd", "AddV2") and len(reads) == 2 and self._is_variable(reads[1]):
            value = self.value(reads[0])
            if value.fresh and self.found[value.parts[0][0]].eps is None:
                return value
        if kind == "FusedBatchNormV3" and reads:
            training = operation.attribute("is_training")
            image_statistics = training is None or training.number(5) == 1
            return self._normed(operation, reads[0], _float(operation, "epsilon", 1e-4), image_statistics)
        if kind == "AddV2" and len(reads) == 2:
            return self._normed(operation, *self._written_out(operation))
        if kind == "SelectV2" and len(reads) == 3:
            return _Value(self.value(self._undropped(operation)).parts)
        raise _unsupported(operation, "in it")

    def _convolved(self, operation: _Operation) -> _Value:
        strides, padding = operation.attribute("strides"), operation.attribute("padding")
        steps = bytes(strides.message(1).part(3)) if strides else b""
        if steps != b"\1\2\2\1" or not padding or bytes(padding.part(2)) != b"SAME":
            raise _unsupported(operation, "with other strides than 2 or another padding than SAME in it")
        sources = self.value(operation.reads[_CONVOLUTIONS[operation.kind]]).parts
        self.found.append(Convolution(operation.kind != "Conv2D", sources))
        return _Value(((len(self.found) - 1, 1.0),), fresh=True)

    def _normed(self, operation: _Operation, read: str, eps: float, image_statistics: bool) -> _Value:
        value = self.value(read)
        if not value.fresh or self.found[value.parts[0][0]].eps is not None or not 0 < eps <= 1:
            raise _unsupported(operation, "that does not directly follow a convolution in it")
        convolution = self.found[value.parts[0][0]]
        convolution.eps, convolution.image_statistics = eps, image_statistics
        return value

    def _written_out(self, operation: _Operation) -> tuple[str, float, bool]:
        """(what is normalised, eps, whether by its own statistics) of a norm in single operations.

        operation = x * scale + (beta - mean * scale), scale = Rsqrt(variance + eps) * gamma.
        """
        product, shift = (self.function.at(name) for name in operation.reads)
        scale = self._operand(product, "Mul", 1)
        product_of_mean = self._operand(shift, "Sub", 1)
        variance_eps = self._operand(self._operand(scale, "Mul", 0), "Rsqrt", 0)
        variance, eps = self._operand(variance_eps, "AddV2", 0), self._operand(variance_eps, "AddV2", 1)
        mean = self._operand(product_of_mean, "Mul", 0)
        if (
            not (product and scale and variance and mean and eps)
            or scale is not self._operand(product_of_mean, "Mul", 1)
            or (variance.kind == _STORED) is not (mean.kind == _STORED)
            or eps.kind != "Const"
        ):
            raise _unsupported(operation, "that is no norm in it")
        return product.reads[0], _constant(eps), variance.kind != _STORED

    def _is_variable(self, name: str) -> bool:
        """Whether this is a variable, perhaps reshaped."""
        operation = self.function.at(name)
        for _ in range(_MAX_CHAIN):
            if operation is None or operation.kind not in ("Reshape", "Squeeze", "ExpandDims") or not operation.reads:
                break
            operation = self.function.at(operation.reads[0])
        return operation is not None and operation.kind == _STORED

    def _undropped(self, operation: _Operation) -> str:
        """The input of a dropout, SelectV2(random >= rate, x * 1/(1 - rate), 0): dropout is off."""
        chosen, kept, _ = (self.function.at(name) for name in operation.reads)
        if not chosen or chosen.kind != "GreaterEqual" or not kept or kept.kind != "Mul" or not kept.reads:
            raise _unsupported(operation, "that is no dropout in it")
        return kept.reads[0]

    def _operand(self, operation: _Operation | None, kind: str, number: int) -> _Operation | None:
        """The operation that makes an operand of ``operation``, if that is of this kind."""
        if operation is None or operation.kind != kind or number >= len(operation.reads):
            return None
        return self.function.at(operation.reads[number])


def _owner(name: str) -> str:
    """The operation that makes the tensor ``name``, such as "conv2d/Conv2D:output:0"."""
    return name.partition(":")[0]


def _float(operation: _Operation, name: str, default: float) -> float:
    """An attribute that is a float32."""
    value = operation.attribute(name)
    return _number(struct.pack("<I", value.number(4) & 0xFFFFFFFF)) if value else default


def _constant(operation: _Operation) -> float:
    """The one float32 of a constant."""
    value = operation.attribute("value")
    tensor = value.message(8) if value else None
    data = bytes(tensor.part(4)) or bytes(tensor.part(5)) if tensor else b""
    return _number(data) if len(data) == 4 else 0.0


def _number(data: bytes) -> float:
    """A float32, rounded to the seven digits that are exact."""
    (number,) = struct.unpack("<f", data)
    return float(f"{number:.7g}")


def _unsupported(operation: _Operation | None, what: str) -> CheckpointError:
    name = f"{shown(operation.name)} ({shown(operation.kind)})" if operation else "nothing"
    return CheckpointError(
        f"the graph has {name} {what}: only U-Nets of 4x4 convolutions, batch norms, ReLUs and concatenations can be "
        f"read from a SavedModel. If it is one, save the model as .keras"
    )
