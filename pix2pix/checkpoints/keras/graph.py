"""From the graph of layers that Keras saves (the config of a functional model) to a Generator.

The conversion visits the nodes in the order of their dependencies and gives every tensor of the graph a
:class:`_Value`: which convolutions' outputs it joins, and the slope of the leaky ReLU that was applied to each of them
since. Convolutions make new layers. Norms and the final tanh become part of the convolution that they follow.
Activations multiply slopes, concatenations join values, and dropout is off. Whatever a Generator cannot express is
refused with the name of the layer.

Source: https://www.tensorflow.org/tutorials/generative/pix2pix, and the configs that Keras 2 and 3 write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ...errors import CheckpointError
from ...model.generator import INPUT, Generator, Layer, Norm, Source
from ...model.lowering import lower
from ..tensors import MAX_CHANNELS
from ..text import shown
from .config import Node, read_nodes

_DEFAULT_LEAKY_SLOPE = 0.3
_DEFAULT_EPS = 1e-3
_MOVING = {"mean": "moving_mean", "variance": "moving_variance"}
_MAX_JOINED = 64  # bounds graphs that double a value with each layer


@dataclass(frozen=True, slots=True)
class _Value:
    """A tensor of the graph: (layer of the generator, slope) of every map that it joins.

    ``fresh``: nothing has been applied since the convolution, or its norm. ``final``: the tanh has been applied.
    """

    parts: tuple[tuple[str, float], ...]
    fresh: bool = False
    final: bool = False


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
            if part in _MOVING and node.kind != "BatchNormalization":
                continue
            number = numbers[node.name] = numbers.get(node.name, -1) + 1
            yield KerasWeight(node, _MOVING.get(part, part), number, name, shape)


class KerasWeight(NamedTuple):
    """A weight of a Keras layer: its name and its number in that layer; its canonical name and shape."""

    node: Node
    part: str
    number: int
    name: str
    shape: tuple[int, ...]


@dataclass(slots=True)
class _Conversion:
    """What the graph has been converted to so far. Layers of the generator have their Keras names until the end.

    ``readers`` is the number of nodes that read each node. ``image_statistics`` holds, for every norm, whether it uses
    the statistics of the image.
    """

    readers: Mapping[str, int]
    values: dict[str, _Value] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    owners: dict[str, _Owners] = field(default_factory=dict)
    image_statistics: set[bool] = field(default_factory=set)
    channels: dict[str, int] = field(default_factory=dict)
    size: int = 0


def read_graph(model: Any, origin: str) -> tuple[Generator, list[KerasWeight]]:
    """The generator of a functional model's config, and which Keras weights are its own.

    Raises CheckpointError, which names the layer, for whatever is not a U-Net that a Generator can express.
    """
    nodes, output = read_nodes(model)
    readers = {output: 1}
    for node in nodes:
        for name in node.reads:
            readers[name] = readers.get(name, 0) + 1
    conversion, waiting = _Conversion(readers), nodes
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
    last = next(reversed(conversion.layers), "")
    if output not in conversion.values or conversion.values[output].parts != ((last, 1.0),):
        raise CheckpointError(f"the model's output {shown(output)} is not its last convolution, as in a U-Net")
    return _finished(conversion, origin)


def _finished(conversion: _Conversion, origin: str) -> tuple[Generator, list[KerasWeight]]:
    """The generator and its weights, with canonical names of layers."""
    names = _canonical_names(conversion)
    generator = _generator(conversion, names, origin)
    needed = {op.name for op in lower(generator).needed([generator.layers[-1].name])}
    unused = [name for name in conversion.layers if names[name] not in needed]
    if unused:
        raise CheckpointError(f"the output does not depend on layer {shown(min(unused, key=names.__getitem__))}")
    weights = [each for name in conversion.layers for each in conversion.owners[name].weights(generator[names[name]])]
    return generator, weights


def _canonical_names(conversion: _Conversion) -> dict[str, str]:
    """Keras name -> canonical name of every layer and of the input."""
    downs = [name for name, layer in conversion.layers.items() if not layer.transposed]
    ups = [name for name, layer in conversion.layers.items() if layer.transposed]
    depth = len(downs)
    if depth != len(ups) or depth < 2:
        raise CheckpointError(
            f"the model has {depth} convolutions and {len(ups)} transposed ones: expected as many of the one as of the "
            f"other, at least 2, as in a U-Net"
        )
    names = {INPUT: INPUT}
    names |= {name: f"encoder_{number}" for number, name in enumerate(downs, 1)}
    return names | {name: f"decoder_{depth - number}" for number, name in enumerate(ups)}


def _generator(conversion: _Conversion, names: Mapping[str, str], origin: str) -> Generator:
    """The generator of the layers, under their canonical names."""
    if len(conversion.image_statistics) > 1:
        raise CheckpointError("some norms of the model use the image's statistics, others stored ones: unsupported")
    layers = []
    for name, layer in conversion.layers.items():
        inputs = tuple(Source(names[source.layer], source.slope) for source in layer.inputs)
        layers.append(replace(layer, name=names[name], inputs=inputs))
    multiple, size = 2 ** (len(layers) // 2), conversion.size
    stored = conversion.image_statistics == {False}
    # Most graphs don't say whether the program calls the model with training=True, as the TensorFlow tutorial does.
    assumed = [name for name, unsaid in (("statistics", stored), ("size", not size or size % multiple)) if unsaid]
    try:
        return Generator(
            tuple(layers),
            "running" if stored else "image",
            multiple if "size" in assumed else size,
            origin=origin,
            assumed=tuple(assumed),
        )
    except ValueError as error:
        raise CheckpointError(f"the model is no U-Net that can be run: {error}") from None


# -- nodes ----------------------------------------------------------------------------------------------------


def _unsupported(node: Node, what: str) -> CheckpointError:
    return CheckpointError(
        f"layer {shown(node.name)} ({shown(node.kind)}) is not supported: {what}. A pix2pix U-Net is made of 4x4 "
        f"convolutions of stride 2, norms, ReLUs and concatenations"
    )


def _apply(conversion: _Conversion, node: Node) -> _Value:
    """The tensor that ``node`` computes."""
    reads = [conversion.values[name] for name in node.reads]
    if any(value.final for value in reads):
        raise _unsupported(node, "it follows the final tanh")
    if node.kind == "Concatenate":
        if node.config.get("axis") not in (3, -1) or len(reads) < 2:
            raise _unsupported(node, "expected a concatenation along the channels (axis 3 or -1)")
        if sum(len(value.parts) for value in reads) > _MAX_JOINED:
            raise _unsupported(node, f"it joins more than {_MAX_JOINED} maps")
        return _Value(tuple(part for value in reads for part in value.parts))
    if node.kind == "InputLayer":
        return _input(conversion, node)
    if len(reads) != 1:
        raise _unsupported(node, f"it reads {len(reads)} tensors, expected one")
    if node.kind not in _KINDS:
        raise _unsupported(node, "such layers are not known")
    return _KINDS[node.kind](conversion, node, reads[0])


def _input(conversion: _Conversion, node: Node) -> _Value:
    shape = node.config.get("batch_input_shape", node.config.get("batch_shape"))
    if not isinstance(shape, list) or len(shape) != 4 or not _is_count(shape[3]) or INPUT in conversion.channels:
        raise _unsupported(node, "expected one input of shape (None, height, width, channels)")
    conversion.channels[INPUT] = shape[3]
    conversion.size = shape[1] if shape[1] == shape[2] and _is_count(shape[1]) else 0
    return _Value(((INPUT, 1.0),))


def _convolution(conversion: _Conversion, node: Node, value: _Value) -> _Value:
    expected: dict[str, tuple[Any, ...]] = {
        "kernel_size": ([4, 4], 4),
        "strides": ([2, 2], 2),
        "padding": ("same",),
        "data_format": ("channels_last", None),
        "dilation_rate": ([1, 1], 1, None),
        "groups": (1, None),
        "output_padding": (None,),
    }
    for name, allowed in expected.items():
        if node.config.get(name) not in allowed:
            raise _unsupported(node, f"{name} is {shown(node.config.get(name))}, expected {shown(allowed[0])}")
    filters: Any = node.config.get("filters")
    bias: Any = node.config.get("use_bias", True)
    if not _is_count(filters) or not isinstance(bias, bool):
        raise _unsupported(node, f"filters is {shown(filters)}, use_bias {shown(bias)}")
    inputs = tuple(Source(*part) for part in value.parts)
    channels = sum(conversion.channels[source.layer] for source in inputs)
    transposed = node.kind == "Conv2DTranspose"
    conversion.layers[node.name] = Layer(node.name, inputs, channels, filters, transposed=transposed, bias=bias)
    conversion.owners[node.name] = _Owners(node)
    conversion.channels[node.name] = filters
    return _activated(conversion, node, node.name, _Value(((node.name, 1.0),), fresh=True), node.name)


def _batch_norm(conversion: _Conversion, node: Node, value: _Value) -> _Value:
    return _norm(conversion, node, value, image_statistics=node.arguments.get("training") in (1, True))


def _group_norm(conversion: _Conversion, node: Node, value: _Value) -> _Value:
    groups, channels = node.config.get("groups"), sum(conversion.channels[name] for name, _ in value.parts)
    if groups not in (-1, channels):
        raise _unsupported(node, f"groups is {shown(groups)}, expected {channels}: each channel by itself")
    return _norm(conversion, node, value, image_statistics=True)


def _instance_norm(conversion: _Conversion, node: Node, value: _Value) -> _Value:
    """The norm of the tutorial on CycleGAN, a class of its own."""
    if "epsilon" not in node.config:
        raise _unsupported(node, "its epsilon is not in the file")
    return _norm(conversion, node, value, image_statistics=True)


def _norm(conversion: _Conversion, node: Node, value: _Value, image_statistics: bool) -> _Value:
    name = _alone(conversion, node, value, node.reads[0])
    center, scale = node.config.get("center", True), node.config.get("scale", True)
    eps, axis = node.config.get("epsilon", _DEFAULT_EPS), node.config.get("axis", -1)
    if (
        conversion.layers[name].norm
        or axis not in (3, -1, [3], [-1])
        or type(center) is not bool
        or center is not scale
    ):
        raise _unsupported(node, "expected one norm over the channels, with both gamma and beta or neither")
    if type(eps) not in (int, float) or not 0 < eps <= 1:
        raise _unsupported(node, f"epsilon is {shown(eps)}, expected a small positive number")
    conversion.layers[name] = replace(conversion.layers[name], norm=Norm(float(eps), affine=scale))
    conversion.owners[name] = replace(conversion.owners[name], norm=node)
    conversion.image_statistics.add(image_statistics)
    return value


def _leaky_relu(conversion: _Conversion, node: Node, value: _Value) -> _Value:
    slope = node.config.get("alpha", node.config.get("negative_slope", _DEFAULT_LEAKY_SLOPE))
    return _sloped(node, value, slope)


def _relu(conversion: _Conversion, node: Node, value: _Value) -> _Value:
    if node.config.get("max_value") is not None or node.config.get("threshold", 0) not in (0, None):
        raise _unsupported(node, "expected a ReLU without maximum and threshold")
    return _sloped(node, value, node.config.get("negative_slope") or 0.0)


def _activation(conversion: _Conversion, node: Node, value: _Value) -> _Value:
    return _activated(conversion, node, node.reads[0], value, None)


def _dropout(conversion: _Conversion, node: Node, value: _Value) -> _Value:
    return replace(value, fresh=False)


_KINDS: dict[str, Callable[[_Conversion, Node, _Value], _Value]] = {
    "Conv2D": _convolution,
    "Conv2DTranspose": _convolution,
    "BatchNormalization": _batch_norm,
    "GroupNormalization": _group_norm,
    "InstanceNormalization": _instance_norm,
    "LeakyReLU": _leaky_relu,
    "ReLU": _relu,
    "Activation": _activation,
    "Dropout": _dropout,
}


def _activated(conversion: _Conversion, node: Node, read: str, value: _Value, own: str | None) -> _Value:
    """``value`` after the activation of ``node``; ``own``: the convolution's name if the activation is its own."""
    kind = node.config.get("activation")
    if kind in (None, "linear"):
        return value
    if kind == "relu":
        return _sloped(node, value, 0.0)
    if kind != "tanh":
        raise _unsupported(node, f"activation {shown(kind)}, expected linear, relu or tanh")
    name = own or _alone(conversion, node, value, read)
    conversion.layers[name] = replace(conversion.layers[name], activation="tanh")
    return replace(value, final=True)


def _sloped(node: Node, value: _Value, slope: Any) -> _Value:
    if type(slope) not in (int, float) or not 0 <= slope <= 1:
        raise _unsupported(node, f"its slope is {shown(slope)}, expected a number from 0 to 1")
    # Keras saves slopes as float32, 0.2 as 0.20000000298023224: seven digits are exact.
    slope = float(f"{slope:.7g}")
    return _Value(tuple((name, before * slope) for name, before in value.parts))


def _alone(conversion: _Conversion, node: Node, value: _Value, read: str) -> str:
    """The convolution that ``node`` becomes part of: it must directly follow it and be its only reader."""
    if not value.fresh or len(value.parts) != 1 or conversion.readers[read] != 1:
        raise _unsupported(node, "it must directly follow a convolution that nothing else reads")
    return value.parts[0][0]


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_CHANNELS
