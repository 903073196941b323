"""A graph of TensorFlow, traced back from its result: the network, and the variables of its layers.

    result = Tanh(BiasAdd(Conv2DBackpropInput(ConcatV2(Relu(FusedBatchNormV3(...)), LeakyRelu(...)))))

:class:`..network.Network` makes the layers. Norms may be written out in single operations, see :mod:`.algebra`. What
each kind of operation does is in :mod:`.operations`; any other is refused with its name.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from typing import NamedTuple

from ...errors import CheckpointError
from ...model.generator import Norm
from ..network import Network, NotExpressible, Value
from ..tensors import StoredTensor
from ..text import shown
from . import algebra
from .algebra import Factor, Sum
from .functions import Function, Operation
from .sizes import Length, Lengths, Sizes

_MAX_OPERATIONS = 20_000


class Rule(NamedTuple):
    """What a kind of operation does: ``make`` its tensor, once those that ``operands`` names are known."""

    make: Callable[[Trace, Operation], Sum | Value]
    operands: Callable[[Trace, Operation], tuple[str, ...]]
    least: int = 1  # tensors that it reads


@dataclass(slots=True)
class Trace:
    """The network that a function computes, as far as it has been traced.

    ``variables`` are the stored tensors by the function's arguments; ``image`` is the argument that is the image.
    ``sums`` has the tensors of operations, ``maps`` those that are maps of the network, ``parts`` the variable that
    holds each part of each layer, as "<layer>.<part>" -> argument.
    """

    function: Function
    variables: Mapping[str, StoredTensor]
    image: str
    rules: Mapping[str, Rule]
    sizes: Sizes = field(init=False)
    network: Network = field(default_factory=Network)
    sums: dict[str, Sum] = field(default_factory=dict)
    maps: dict[str, Value] = field(default_factory=dict)
    parts: dict[str, str] = field(default_factory=dict)

    def output(self, shape: tuple[int, int, int]) -> Value:
        """The result, for an image of that height and width (0: any) and so many channels.

        Raises CheckpointError for a graph that is no network of known operations that ends in a tanh.
        """
        self.sizes = Sizes(self.function, self.shape_of, shape[:2])
        self.maps[self.image] = self.network.input(shape[2])
        self.sums[self.image] = algebra.single(Factor("map", self.image))
        last = self.function.at(self.function.result)
        if last is None or last.kind != "Tanh" or not last.reads:
            raise _refused(last, "as its result, expected a tanh")
        waiting, opened = [last.name], set[str]()
        while waiting:
            name = self.function.passed(waiting[-1])
            operation = self.function.operations.get(name)
            missing = [read for read in self._operands(operation) if self.function.passed(read) not in self.sums]
            if name in self.sums or not missing:
                waiting.pop()
                if name not in self.sums:
                    self._make(name, operation)
                continue
            if name in opened or len(opened) > _MAX_OPERATIONS:
                raise CheckpointError(f"the graph goes in circles at {shown(name)}: the file is damaged")
            opened.add(name)
            waiting.extend(reversed(missing))
        return self.map_of(last.name)

    def map_of(self, name: str) -> Value:
        """The tensor of an operation, which must be a map of the network; a norm that is complete with it is made."""
        name = self.function.passed(name)
        if name not in self.maps:
            value = self.sums[name]
            factor = algebra.alone(value)
            if factor and factor.kind == "map":
                return self.maps[factor.of]
            norm = algebra.written_norm(value)
            if norm is None:
                raise NotExpressible("it reads what is neither a map nor a whole norm")
            self._set_map(name, self.normalised(norm))
        return self.maps[name]

    def normalised(self, norm: algebra.WrittenNorm) -> Value:
        """The map that a norm makes."""
        if (norm.gamma is None) is not (norm.beta is None):
            raise NotExpressible("a norm with only one of gamma and beta")
        affine, by_image = norm.gamma is not None, norm.mean is None
        value = self.network.normalise(self.maps[norm.of], Norm(norm.eps, affine, groups=norm.groups), by_image)
        variables = {"gamma": norm.gamma, "beta": norm.beta, "mean": norm.mean, "variance": norm.variance}
        self.own(value, variables)
        return value

    def variable(self, name: str) -> str | None:
        """The variable, by its argument, that an operation reads or reshapes; None for anything else."""
        factor = algebra.alone(self.sums.get(self.function.passed(name), {}))
        return factor.of if factor and factor.kind == "variable" else None

    def factor(self, name: str) -> Factor | None:
        """What an operation makes, if that is a single factor."""
        return algebra.alone(self.sums[self.function.passed(name)])

    def own(self, value: Value, parts: Mapping[str, str | None]) -> None:
        """Note the variables of the layer that ``value`` is."""
        for part, variable in parts.items():
            if variable is not None:
                self.parts[f"{value.parts[0].layer}.{part}"] = variable

    def shape_of(self, name: str) -> Lengths | None:
        """(images, height, width, channels) of the map, or ones, that an operation makes; None if it makes none."""
        factor = algebra.alone(self.sums.get(self.function.passed(name), {}))
        value = self.maps.get(factor.of) if factor and factor.kind in ("map", "rows", "ones") else None
        if factor is None or value is None or value.padding != (0, 0, 0, 0):
            return None
        side = value.upsample / self.network.pixels[value.parts[0].layer]
        rows = side * int(factor.number) if factor.kind == "rows" else side
        channels = sum(self.network.channels[source.layer] for source in value.parts)
        return [None, Length(rows), Length(side), Length(Fraction(0), channels)]

    # -- operations -------------------------------------------------------------------------------------------

    def _operands(self, operation: Operation | None) -> tuple[str, ...]:
        rule = self.rules.get(operation.kind) if operation else None
        return rule.operands(self, operation) if operation and rule and len(operation.reads) >= rule.least else ()

    def _make(self, name: str, operation: Operation | None) -> None:
        """The tensor of an operation whose operands are known."""
        if operation is None:
            if name not in self.variables:
                raise CheckpointError(f"the graph reads {shown(name)}, which is neither the image nor a variable")
            self.sums[name] = algebra.single(Factor("variable", name))
            return
        rule = self.rules.get(operation.kind)
        try:
            if rule is None or len(operation.reads) < rule.least:
                raise NotExpressible("such operations are not known")
            made = rule.make(self, operation)
        except NotExpressible as error:
            raise _refused(operation, f"in it, which is not supported: {error}") from None
        if isinstance(made, Value):
            self._set_map(name, made)
        else:
            self.sums[name] = made

    def _set_map(self, name: str, value: Value) -> None:
        self.maps[name] = value
        self.sums[name] = algebra.single(Factor("map", name))


def _refused(operation: Operation | None, what: str) -> CheckpointError:
    name = f"{shown(operation.name)} ({shown(operation.kind)})" if operation else "nothing"
    return CheckpointError(f"the graph has {name} {what}. If Keras made the model, save it as .keras")
