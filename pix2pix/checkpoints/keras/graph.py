"""From the graph of layers that Keras saves (the config of a functional model) to a Generator.

The walk gives every tensor of the graph a :class:`_Value`: which convolutions' outputs it joins, and the slope of the
leaky ReLU that was applied to each of them since. Convolutions make new layers; norms and the final tanh become part
of the convolution that they follow; activations multiply slopes; concatenations join values; dropout is off. Nested
Sequential models, of which the TensorFlow tutorial builds its network, are walked through. Whatever a Generator
cannot express is refused with the name of the layer.

Source: https://www.tensorflow.org/tutorials/generative/pix2pix, and the configs that Keras 2 and 3 write.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

from ...errors import CheckpointError
from ...model.generator import INPUT, Generator, Layer, Norm, Source
from ...model.lowering import lower
from ..common import MAX_CHANNELS, shown
from .config import Node, read_nodes

_DEFAULT_LEAKY_SLOPE = 0.3
_DEFAULT_EPS = 1e-3
_MOVING = {"mean": "moving_mean", "variance": "moving_variance"}
_MAX_JOINED = 64  # bounds graphs that double a value with each layer


@dataclass(frozen=True, slots=True)
class _Value:
    """A tensor of the graph: (layer of the generator, slope) of all that it joins.

    ``fresh`` if nothing came after the convolution, or its norm; ``final`` after the tanh.
    """

    parts: tuple[tuple[str, float], ...]
    fresh: bool = False
    final: bool = False


@dataclass(frozen=True, slots=True)
class Owners:
    """The Keras layers that hold one layer's kernel and its norm."""

    convolution: Node
    norm: Node | None = None

    def tensors(self, layer: Layer) -> Iterator[Stored]:
        """What the Keras layers keep of ``layer``."""
        numbers: dict[str, int] = {}
        for name, shape in layer.tensors("running").items():
            part = name.rpartition(".")[2]
            node = self.convolution if part in ("kernel", "bias") or not self.norm else self.norm
            if part in _MOVING and node.kind != "BatchNormalization":
                continue
            number = numbers[node.name] = numbers.get(node.name, -1) + 1
            yield Stored(node, _MOVING.get(part, part), number, name, shape)


class Stored(NamedTuple):
    """A weight that a Keras layer keeps: Keras' name for it and its number there; its canonical name and shape."""

    node: Node
    part: str
    number: int
    name: str
    shape: tuple[int, ...]


@dataclass(slots=True)
class _Walk:
    """What has been made of the graph so far. Layers of the generator go by their Keras name until the end."""

    readers: Mapping[str, int]
    values: dict[str, _Value] = field(default_factory=dict)
    layers: dict[str, Layer] = field(default_factory=dict)
    owners: dict[str, Owners] = field(default_factory=dict)
    of_picture: set[bool] = field(default_factory=set)  # whether norms use the statistics of the picture
    channels: dict[str, int] = field(default_factory=dict)
    size: int = 0


def read_graph(model: Any, origin: str) -> tuple[Generator, list[Stored]]:
    """The generator of a functional model's config, and where its weights are.

    Raises CheckpointError, which names the layer, for whatever is not a U-Net that a Generator can express.
    """
    nodes, output = read_nodes(model)
    readers = {output: 1}
    for node in nodes:
        for name in node.reads:
            readers[name] = readers.get(name, 0) + 1
    walk, waiting = _Walk(readers), nodes
    while waiting:
        later = []
        for node in waiting:
            if all(name in walk.values for name in node.reads):
                walk.values[node.name] = _apply(walk, node)
            else:
                later.append(node)
        if len(later) == len(waiting):
            raise CheckpointError(f"layer {shown(later[0].name)} reads what no layer makes: the file is damaged")
        waiting = later
    last = next(reversed(walk.layers), "")
    if output not in walk.values or walk.values[output].parts != ((last, 1.0),):
        raise CheckpointError(f"the model's output {shown(output)} is not its last convolution, as in a U-Net")
    return _finished(walk, origin)


def _finished(walk: _Walk, origin: str) -> tuple[Generator, list[Stored]]:
    """The generator and its weights, with canonical names of layers."""
    downs = [name for name, layer in walk.layers.items() if not layer.transposed]
    ups = [name for name, layer in walk.layers.items() if layer.transposed]
    depth = len(downs)
    if depth != len(ups) or depth < 2:
        raise CheckpointError(
            f"the model has {depth} convolutions and {len(ups)} transposed ones: expected as many of the one as of the "
            f"other, at least 2, as in a U-Net"
        )
    if len(walk.of_picture) > 1:
        raise CheckpointError("some norms of the model use the picture's statistics, others stored ones: unsupported")
    names = {INPUT: INPUT}
    names |= {name: f"encoder_{number}" for number, name in enumerate(downs, 1)}
    names |= {name: f"decoder_{depth - number}" for number, name in enumerate(ups)}
    layers = []
    for name, layer in walk.layers.items():
        inputs = tuple(Source(names[source.layer], source.slope) for source in layer.inputs)
        layers.append(replace(layer, name=names[name], inputs=inputs))
    sized = bool(walk.size) and walk.size % 2**depth == 0
    # Whether the model is to be called with training=True, as in the TensorFlow tutorial, most graphs don't say.
    assumed = (("statistics", walk.of_picture == {False}), ("size", not sized))
    try:
        generator = Generator(
            tuple(layers),
            "running" if walk.of_picture == {False} else "image",
            walk.size if sized else 2**depth,
            origin=origin,
            assumed=tuple(name for name, unsaid in assumed if unsaid),
        )
    except ValueError as error:
        raise CheckpointError(f"the model is no U-Net that can be run: {error}") from None
    needed = {op.name for op in lower(generator).needed([layers[-1].name])}
    unused = [layer.name for layer in layers if layer.name not in needed]
    if unused:
        back = {canonical: name for name, canonical in names.items()}
        raise CheckpointError(f"the output does not depend on layer {shown(back[min(unused)])}")
    stored = [each for name in walk.layers for each in walk.owners[name].tensors(generator[names[name]])]
    return generator, stored


# -- the walk -------------------------------------------------------------------------------------------------


def _unsupported(node: Node, what: str) -> CheckpointError:
    return CheckpointError(
        f"layer {shown(node.name)} ({shown(node.kind)}) is not supported: {what}. A pix2pix U-Net is made of 4x4 "
        f"convolutions of stride 2, norms, ReLUs and concatenations"
    )


def _apply(walk: _Walk, node: Node) -> _Value:
    """What ``node`` makes of what it reads."""
    reads = [walk.values[name] for name in node.reads]
    if any(value.final for value in reads):
        raise _unsupported(node, "it follows the final tanh")
    if node.kind == "Concatenate":
        if node.config.get("axis") not in (3, -1) or len(reads) < 2:
            raise _unsupported(node, "expected a concatenation along the channels (axis 3 or -1)")
        if sum(len(value.parts) for value in reads) > _MAX_JOINED:
            raise _unsupported(node, f"it joins more than {_MAX_JOINED} maps")
        return _Value(tuple(part for value in reads for part in value.parts))
    if node.kind == "InputLayer":
        return _input(walk, node)
    if len(reads) != 1:
        raise _unsupported(node, f"it reads {len(reads)} tensors, expected one")
    if node.kind not in _KINDS:
        raise _unsupported(node, "such layers are not known")
    return _KINDS[node.kind](walk, node, reads[0])


def _input(walk: _Walk, node: Node) -> _Value:
    shape = node.config.get("batch_input_shape", node.config.get("batch_shape"))
    if not isinstance(shape, list) or len(shape) != 4 or not _is_count(shape[3]) or INPUT in walk.channels:
        raise _unsupported(node, "expected one input of shape (None, height, width, channels)")
    walk.channels[INPUT] = shape[3]
    walk.size = shape[1] if shape[1] == shape[2] and _is_count(shape[1]) else 0
    return _Value(((INPUT, 1.0),))


def _convolution(walk: _Walk, node: Node, value: _Value) -> _Value:
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
    channels = sum(walk.channels[source.layer] for source in inputs)
    transposed = node.kind == "Conv2DTranspose"
    walk.layers[node.name] = Layer(node.name, inputs, channels, filters, transposed=transposed, bias=bias)
    walk.owners[node.name] = Owners(node)
    walk.channels[node.name] = filters
    return _activated(walk, node, node.name, _Value(((node.name, 1.0),), fresh=True), node.name)


def _batch_norm(walk: _Walk, node: Node, value: _Value) -> _Value:
    return _norm(walk, node, value, of_picture=node.arguments.get("training") in (1, True))


def _group_norm(walk: _Walk, node: Node, value: _Value) -> _Value:
    groups, channels = node.config.get("groups"), sum(walk.channels[name] for name, _ in value.parts)
    if groups not in (-1, channels):
        raise _unsupported(node, f"groups is {shown(groups)}, expected {channels}: each channel by itself")
    return _norm(walk, node, value, of_picture=True)


def _instance_norm(walk: _Walk, node: Node, value: _Value) -> _Value:
    """The norm of the tutorial on CycleGAN, a class of its own."""
    if "epsilon" not in node.config:
        raise _unsupported(node, "its epsilon is not in the file")
    return _norm(walk, node, value, of_picture=True)


def _norm(walk: _Walk, node: Node, value: _Value, of_picture: bool) -> _Value:
    name = _alone(walk, node, value, node.reads[0])
    center, scale = node.config.get("center", True), node.config.get("scale", True)
    eps, axis = node.config.get("epsilon", _DEFAULT_EPS), node.config.get("axis", -1)
    if walk.layers[name].norm or axis not in (3, -1, [3], [-1]) or type(center) is not bool or center is not scale:
        raise _unsupported(node, "expected one norm over the channels, with both gamma and beta or neither")
    if type(eps) not in (int, float) or not 0 < eps <= 1:
        raise _unsupported(node, f"epsilon is {shown(eps)}, expected a small positive number")
    walk.layers[name] = replace(walk.layers[name], norm=Norm(float(eps), affine=scale))
    walk.owners[name] = replace(walk.owners[name], norm=node)
    walk.of_picture.add(of_picture)
    return value


def _leaky_relu(walk: _Walk, node: Node, value: _Value) -> _Value:
    slope = node.config.get("alpha", node.config.get("negative_slope", _DEFAULT_LEAKY_SLOPE))
    return _sloped(node, value, slope)


def _relu(walk: _Walk, node: Node, value: _Value) -> _Value:
    if node.config.get("max_value") is not None or node.config.get("threshold", 0) not in (0, None):
        raise _unsupported(node, "expected a ReLU without maximum and threshold")
    return _sloped(node, value, node.config.get("negative_slope") or 0.0)


def _activation(walk: _Walk, node: Node, value: _Value) -> _Value:
    return _activated(walk, node, node.reads[0], value, None)


def _dropout(walk: _Walk, node: Node, value: _Value) -> _Value:
    return replace(value, fresh=False)


_KINDS: dict[str, Callable[[_Walk, Node, _Value], _Value]] = {
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


def _activated(walk: _Walk, node: Node, read: str, value: _Value, own: str | None) -> _Value:
    """``value`` after the activation that ``node`` names; ``own`` if it is that convolution's own activation."""
    kind = node.config.get("activation")
    if kind in (None, "linear"):
        return value
    if kind == "relu":
        return _sloped(node, value, 0.0)
    if kind != "tanh":
        raise _unsupported(node, f"activation {shown(kind)}, expected linear, relu or tanh")
    name = own or _alone(walk, node, value, read)
    walk.layers[name] = replace(walk.layers[name], activation="tanh")
    return replace(value, final=True)


def _sloped(node: Node, value: _Value, slope: Any) -> _Value:
    if type(slope) not in (int, float) or not 0 <= slope <= 1:
        raise _unsupported(node, f"its slope is {shown(slope)}, expected a number from 0 to 1")
    # alpha is a float32 in Keras, so 0.2 is saved as 0.20000000298023224; seven digits are all it ever had.
    slope = float(f"{slope:.7g}")
    return _Value(tuple((name, before * slope) for name, before in value.parts))


def _alone(walk: _Walk, node: Node, value: _Value, read: str) -> str:
    """The convolution that ``node`` becomes part of: it must directly follow it and be its only reader."""
    if not value.fresh or len(value.parts) != 1 or walk.readers[read] != 1:
        raise _unsupported(node, "it must directly follow a convolution that nothing else reads")
    return value.parts[0][0]


def _is_count(value: Any) -> bool:
    return type(value) is int and 1 <= value <= MAX_CHANNELS
