"""The nodes of the config of a functional Keras model, Keras 2 or 3. Nested Sequential models are unrolled."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from ...errors import CheckpointError, NoGeneratorError
from ..text import entry, shown

_MAX_LAYERS = 1000
_MAX_NAME = 300
_OWN_MODULE = re.compile(r"(keras|tf_keras|tensorflow)(\.|$)")


@dataclass(frozen=True, slots=True)
class Node:
    """One layer of the graph: its class, the nodes that it reads, and the keyword arguments of its call.

    ``weights`` is the name of its weights in Keras 2 files: the layer's own, after that of the Sequential that contains
    it, if there is one. ``path`` is the group of its weights in Keras 3 files, which name layers by class and number:
    "layers/sequential/layers/conv2d_1". ``custom``: the file says that the class is not one of Keras' own.
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    reads: tuple[str, ...]
    arguments: Mapping[str, Any]
    weights: str
    path: str
    custom: bool = False

    @property
    def bare_kind(self) -> str:
        """The class without the package that it was registered in."""
        return self.kind.rpartition(">")[2]


class _Paths:
    """The paths of the layers of one container, which Keras 3 counts by class."""

    def __init__(self, container: str) -> None:
        self._container = container
        self._counts: dict[str, int] = {}

    def next(self, kind: str) -> str:
        """The path of the container's next layer of class ``kind``."""
        name = re.sub("(.)([A-Z][a-z]+)", r"\1_\2", re.sub(r"\W+", "", kind.rpartition(">")[2]))
        name = re.sub("([a-z])([A-Z])", r"\1_\2", name).lower()
        number = self._counts[name] = self._counts.get(name, -1) + 1
        return f"{self._container}/{name}_{number}" if number else f"{self._container}/{name}"


def read_nodes(model: Any) -> tuple[list[Node], str]:
    """All nodes of a functional model, ``{"class_name": ..., "config": {"layers": [...], ...}}``; the output's name.

    Raises CheckpointError.
    """
    kind, config = entry(model, "class_name", str, "the model"), entry(model, "config", dict, "the model")
    if kind == "Sequential":
        raise CheckpointError(f"the model is a {shown(kind)}, expected a functional Keras model, as generators are")
    if kind not in ("Model", "Functional"):
        raise CheckpointError(
            f"the model is of a class of its own, {shown(kind)} (a subclassed Keras model): what it computes is code, "
            f"which is not in the file. Save the functional model in it, e.g. model.generator.save('generator.keras')"
        )
    nodes: list[Node] = []
    paths = _Paths("layers")
    for layer in entry(config, "layers", list, "the model")[: _MAX_LAYERS + 1]:
        nodes += _nodes(layer, paths)
    if len(nodes) > _MAX_LAYERS:
        raise CheckpointError(f"the model has more than {_MAX_LAYERS} layers: no generator has so many")
    if len({node.name for node in nodes}) < len(nodes):
        raise CheckpointError("two layers of the model have the same name: the file is damaged")
    _explain(nodes)
    return nodes, _output(config)


def _explain(nodes: Sequence[Node]) -> None:
    """Raise CheckpointError that says what the model is, if its layers show that it is no generator."""
    kinds = [node.kind for node in nodes]
    convolutions = [node for node in nodes if node.kind == "Conv2D"]
    if "Lambda" in kinds:
        raise CheckpointError(
            f"layer {shown(nodes[kinds.index('Lambda')].name)} is a Lambda: it holds code, and code in a file is never "
            f"executed. Replace it by layers of Keras' own, or load its weights into a model without it, and save that"
        )
    if (
        not {"Conv2DTranspose", "UpSampling2D", "Add"}.intersection(kinds)
        and convolutions
        and convolutions[-1].config.get("filters") == 1
    ):
        raise NoGeneratorError(
            f"this is a discriminator ({len(convolutions)} convolutions, the last with 1 filter), which training needs "
            f"and translating does not: take the generator"
        )


def _output(config: Mapping[str, Any]) -> str:
    outputs = config.get("output_layers")
    if isinstance(outputs, list) and len(outputs) == 1 and isinstance(outputs[0], list):
        outputs = outputs[0]  # [[name, 0, 0]]; Keras 3 leaves the outer list out
    if not isinstance(outputs, list) or len(outputs) != 3 or not isinstance(outputs[0], str):
        raise CheckpointError("the model has no single output: expected one image to come out of it")
    return outputs[0]


class _Described(NamedTuple):
    """A layer apart from its place in the graph."""

    name: str
    kind: str
    config: Mapping[str, Any]
    path: str
    custom: bool

    def node(self, name: str, reads: tuple[str, ...], arguments: Mapping[str, Any], weights: str) -> Node:
        """The node of the layer."""
        return Node(name, self.kind, self.config, reads, arguments, weights, self.path, self.custom)


def _described(layer: Any, paths: _Paths) -> _Described:
    """What a layer's own entries say. Some classes save no name; then it is the last part of the path."""
    kind, config = entry(layer, "class_name", str, "a layer"), entry(layer, "config", dict, "a layer")
    registered, module = layer.get("registered_name"), layer.get("module", "keras")
    if isinstance(registered, str) and len(registered) < _MAX_NAME and registered.endswith(f">{kind}"):
        kind = registered
    custom = ">" in kind or not isinstance(module, str) or not _OWN_MODULE.match(module)
    path = paths.next(kind)
    name = layer.get("name", config.get("name", path.rpartition("/")[2]))
    if not isinstance(name, str) or len(name) > _MAX_NAME:
        raise CheckpointError(f"a layer of kind {shown(kind)} has no name, or an endless one: the file is damaged")
    return _Described(name, kind, config, path, custom)


def _nodes(layer: Any, paths: _Paths) -> Iterator[Node]:
    """The node of a layer, or those of a nested Sequential, whose last node has the name of the Sequential."""
    own = _described(layer, paths)
    name = own.name
    calls = entry(layer, "inbound_nodes", list, f"layer {shown(name)}")
    if len(calls) > 1:
        raise CheckpointError(f"layer {shown(name)} is called {len(calls)} times: shared layers are not supported")
    reads, arguments = _call(calls[0], name) if calls else ((), {})
    if own.kind != "Sequential":
        yield own.node(name, reads, arguments, name)
        return
    paths = _Paths(f"{own.path}/layers")
    steps = entry(own.config, "layers", list, f"layer {shown(name)}")[: _MAX_LAYERS + 1]
    inner = [step for step in (_described(each, paths) for each in steps) if step.kind != "InputLayer"]
    for position, step in enumerate(inner, 1):
        node_name = name if position == len(inner) else f"{name}/{step.name}"
        yield step.node(node_name, reads, arguments, f"{name}/{step.name}")
        reads = (node_name,)


def _call(call: Any, owner: str) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """(nodes read, keyword arguments) of one call.

    Keras 2 writes [[name, node, tensor, arguments], ...], Keras 3 {"args": [tensors], "kwargs": arguments}. Keras 2
    calls TensorFlow's functions by [name, node, tensor, arguments]; the arguments may be tensors, [name, node, tensor].
    """
    try:
        if isinstance(call, dict):
            listed = (each if isinstance(each, list) else [each] for each in call["args"])
            histories = [tensor["config"]["keras_history"] for tensors in listed for tensor in tensors]
            arguments = dict(call.get("kwargs", {}))
        else:
            read_first = call if isinstance(call[0], list) else [call]
            arguments = {name: value for read in read_first if len(read) > 3 for name, value in read[3].items()}
            histories = [*read_first, *(value for value in arguments.values() if _is_history(value))]
        # Every layer is called once, so the number of the call, which is 1 for a Sequential, can be ignored.
        known = all(isinstance(name, str) and tensor == 0 for name, _, tensor, *_ in histories)
        reads = tuple(history[0] for history in histories)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        known, reads, arguments = False, (), {}
    if not known:
        raise CheckpointError(f"the inputs of layer {shown(owner)} are described in a way that is not known")
    return reads, arguments


def _is_history(value: Any) -> bool:
    return isinstance(value, list) and [type(each) for each in value] == [str, int, int]
