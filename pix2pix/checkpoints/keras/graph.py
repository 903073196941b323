"""From the graph of layers that Keras saves (the config of a functional model) to a Generator.

The nodes are visited in the order of their dependencies; :class:`..network.Network` makes layers of them, and
:mod:`.layers` reads their configs. Whatever a Generator cannot express is refused with the name of the Keras layer.

Source: https://www.tensorflow.org/tutorials/generative/pix2pix, https://keras.io/examples/generative/cyclegan, and the
configs that Keras 2 and 3 write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ...errors import CheckpointError
from ...model.generator import Generator, Layer
from ..network import Network, NotExpressible, Value
from ..tensors import Stored
from ..text import shown
from . import layers
from .config import Node, read_nodes

# What Keras, or a layer of a program's own, calls a part of a layer.
_PARTS = {
    "kernel": ("kernel",), "bias": ("bias",), "gamma": ("gamma", "scale"), "beta": ("beta", "offset"),
    "mean": ("moving_mean",), "variance": ("moving_variance",),
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Owners:
    """The Keras layers that hold one layer's kernel and its norm."""

    convolution: Node
    norm: Node | None = None

    def weights(self, layer: Layer) -> Iterator[KerasWeight]:
        """The weights of ``layer`` that the Keras layers hold."""
        numbers: dict[str, int] = {}
        for name, shape in layer.tensors("running").items():
            part = name.rpartition(".")[2]
            node = self.convolution if part in ("kernel", "bias") or not self.norm else self.norm
            if part in ("mean", "variance") and node.kind != "BatchNormalization":
                continue
            number = numbers[node.name] = numbers.get(node.name, -1) + 1
            yield KerasWeight(node, part, number, name, shape)


class KerasWeight(NamedTuple):
    """A weight of a Keras layer: its part and its number in that layer; its canonical name and shape."""

    node: Node
    part: str
    number: int
    name: str
    shape: tuple[int, ...]

    def stored_name(self, layer: str, found: Stored) -> str:
        """The name, "<layer>/<part>", by which a file that has ``found`` calls it, or would if it had it."""
        names = [f"{layer}/{part}" for part in _PARTS[self.part]]
        return next((name for name in names if name in found), names[0])


@dataclass(slots=True)
class _Conversion:
    """What the graph has been converted to so far. Layers of the network have their Keras names until the end.

    ``unsaid`` has what the file does not say.
    """

    network: Network = field(default_factory=Network)
    values: dict[str, Value] = field(default_factory=dict)
    owners: dict[str, _Owners] = field(default_factory=dict)
    unsaid: set[str] = field(default_factory=set)
    size: int = 0


def read_graph(model: Any, origin: str) -> tuple[Generator, list[KerasWeight]]:
    """The generator of a functional model's config, and which Keras weights are its own.

    Raises CheckpointError, which names the layer, for whatever a Generator cannot express.
    """
    nodes, output = read_nodes(model)
    conversion, waiting = _Conversion(), nodes
    while waiting:
        later = []
        for node in waiting:
            if all(name in conversion.values for name in node.reads):
                conversion.values[node.name] = _apply(conversion, node)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise CheckpointError(f"layer {shown(later[0].name)} reads what no layer makes: the file is damaged")
        waiting = later
    if output not in conversion.values:
        raise CheckpointError(f"the model's output {shown(output)} is none of its layers: the file is damaged")
    # Most graphs don't say whether the program calls the model with training=True, as the TensorFlow tutorial does.
    statistics = {"statistics"} if conversion.network.statistics == {False} else set()
    unsaid = sorted(conversion.unsaid | statistics)
    network = conversion.network
    generator, names = network.generator(conversion.values[output], conversion.size, origin, unsaid)
    weights = [each for name in network.layers for each in conversion.owners[name].weights(generator[names[name]])]
    return generator, weights


def _apply(conversion: _Conversion, node: Node) -> Value:
    """The tensor that ``node`` computes."""
    reads = [conversion.values[name] for name in node.reads]
    try:
        if node.kind in _JOINS and not node.custom:
            return _JOINS[node.kind](conversion, node, reads)
        operation = _operation(node)
        if len(reads) != 1:
            raise NotExpressible(f"it reads {len(reads)} tensors, expected one")
        return operation(conversion, node, reads[0])
    except NotExpressible as error:
        raise CheckpointError(f"layer {shown(node.name)} ({shown(node.kind)}) is not supported: {error}") from None


# -- nodes ----------------------------------------------------------------------------------------------------


def _input(conversion: _Conversion, node: Node, reads: list[Value]) -> Value:
    channels, side = layers.input_shape(node)
    if reads or conversion.network.channels:
        raise NotExpressible("expected one input of shape (None, height, width, channels)")
    conversion.size = side
    return conversion.network.input(channels)


def _concatenate(conversion: _Conversion, node: Node, reads: list[Value]) -> Value:
    if node.config.get("axis") not in (3, -1) or len(reads) < 2:
        raise NotExpressible("expected a concatenation along the channels (axis 3 or -1)")
    return conversion.network.concatenate(reads)


def _add(conversion: _Conversion, node: Node, reads: list[Value]) -> Value:
    return conversion.network.add(reads)


def _tensorflow(conversion: _Conversion, node: Node, reads: list[Value]) -> Value:
    """A function of TensorFlow that the program called between layers."""
    function = node.config.get("function")
    if function in ("math.add", "__operators__.add"):
        return conversion.network.add(reads)
    if function in ("pad", "compat.v1.pad") and len(reads) == 1:
        return conversion.network.pad(reads[0], *layers.padding_by_axes(node.arguments))
    raise NotExpressible(f"TensorFlow's function {shown(function)} is not known")


def _convolution(conversion: _Conversion, node: Node, value: Value) -> Value:
    result = conversion.network.convolve(value, layers.convolution(node))
    conversion.owners[node.name] = _Owners(node)
    return _activation(conversion, node, result)


def _norm(conversion: _Conversion, node: Node, value: Value) -> Value:
    channels = sum(conversion.network.channels[source.layer] for source in value.parts)
    norm, image_statistics, eps_is_assumed = layers.norm(node, channels)
    result = conversion.network.normalise(value, norm, image_statistics)
    name = result.parts[0].layer
    conversion.owners[name] = replace(conversion.owners[name], norm=node)
    conversion.unsaid |= {"eps"} if eps_is_assumed else set()
    return result


def _activation(conversion: _Conversion, node: Node, value: Value) -> Value:
    kind = node.config.get("activation")
    if kind in (None, "linear"):
        return value
    if kind == "relu":
        return conversion.network.activate(value, 0.0)
    if kind != "tanh":
        raise NotExpressible(f"activation {shown(kind)}, expected linear, relu or tanh")
    return conversion.network.tanh(value)


def _sloped(conversion: _Conversion, node: Node, value: Value) -> Value:
    return conversion.network.activate(value, layers.slope(node))


def _padded(conversion: _Conversion, node: Node, value: Value) -> Value:
    return conversion.network.pad(value, *layers.padding(node))


def _upsampled(conversion: _Conversion, node: Node, value: Value) -> Value:
    return conversion.network.upsample(value, *layers.upsampling(node))


def _dropout(conversion: _Conversion, node: Node, value: Value) -> Value:
    return value


_Operation = Callable[[_Conversion, Node, Value], Value]
_JOINS: Mapping[str, Callable[[_Conversion, Node, list[Value]], Value]] = {
    "InputLayer": _input,
    "Concatenate": _concatenate,
    "Add": _add,
    "TFOpLambda": _tensorflow,
}
_KINDS: Mapping[str, _Operation] = {
    "Conv2D": _convolution,
    "Conv2DTranspose": _convolution,
    "BatchNormalization": _norm,
    "GroupNormalization": _norm,
    "LeakyReLU": _sloped,
    "ReLU": _sloped,
    "Activation": _activation,
    "Dropout": _dropout,
    "SpatialDropout2D": _dropout,
    "ZeroPadding2D": _padded,
    "Pad": _padded,
    "UpSampling2D": _upsampled,
}


def _operation(node: Node) -> _Operation:
    """What a node does, by its class: one of Keras' own, or one that many programs define alike."""
    if node.kind in _KINDS and not node.custom:
        return _KINDS[node.kind]
    if layers.is_padding(node):
        return _padded
    if layers.is_instance_norm(node) or node.kind == layers.ADDONS_GROUP_NORM:
        return _norm
    if node.custom:
        raise NotExpressible(
            "what a class of the program's own computes is code, which is not in the file. Known by their names are "
            "reflection paddings (ReflectionPadding2D) and instance norms (InstanceNormalization)"
        )
    raise NotExpressible("such layers are not known")
