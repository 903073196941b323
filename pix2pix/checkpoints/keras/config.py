"""The nodes of the config of a functional Keras model, Keras 2 or 3. Nested Sequential models are unrolled."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ...errors import CheckpointError, NoGeneratorError
from ..text import entry, shown

_MAX_LAYERS = 1000
_MAX_NAME = 300


@dataclass(frozen=True, slots=True)
class Node:
    """One layer of the graph: its class, the nodes that it reads, and the keyword arguments of its call.

    ``weights`` is the name of its weights in Keras 2 files: the layer's own, after that of the Sequential that contains
    it, if there is one. ``path`` is the group of its weights in Keras 3 files, which name layers by class and number:
    "layers/sequential/layers/conv2d_1".
    """

    name: str
    kind: str
    config: Mapping[str, Any]
    reads: tuple[str, ...]
    arguments: Mapping[str, Any]
    weights: str
    path: str


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
        raise CheckpointError(f"the model is a {shown(kind)}, expected a functional Keras model, as a U-Net is")
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
        raise CheckpointError(f"the model has more than {_MAX_LAYERS} layers: no U-Net has so many")
    if len({node.name for node in nodes}) < len(nodes):
        raise CheckpointError("two layers of the model have the same name: the file is damaged")
    _explain(nodes)
    return nodes, _output(config)


def _explain(nodes: Sequence[Node]) -> None:
    """Raise CheckpointError that says what the model is, if its layers show that it is no U-Net."""
    kinds = [node.kind for node in nodes]
    convolutions = [node for node in nodes if node.kind == "Conv2D"]
    if "Lambda" in kinds:
        raise CheckpointError(
            f"layer {shown(nodes[kinds.index('Lambda')].name)} is a Lambda: it holds code, and code in a file is never "
            f"executed. Replace it by layers of Keras' own, or load its weights into a model without it, and save that"
        )
    if "Add" in kinds and convolutions:
        raise CheckpointError("this is a ResNet generator, which is not supported yet: pix2pix runs U-Net generators")
    if "Conv2DTranspose" not in kinds and convolutions and convolutions[-1].config.get("filters") == 1:
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


def _described(layer: Any, paths: _Paths) -> tuple[str, str, Mapping[str, Any], str]:
    """(name, kind, config, path) of a layer. Some classes save no name; then it is the last part of the path."""
    kind, config = entry(layer, "class_name", str, "a layer"), entry(layer, "config", dict, "a layer")
    path = paths.next(kind)
    name = layer.get("name", config.get("name", path.rpartition("/")[2]))
    if not isinstance(name, str) or len(name) > _MAX_NAME:
        raise CheckpointError(f"a layer of kind {shown(kind)} has no name, or an endless one: the file is damaged")
    return name, kind, config, path


def _nodes(layer: Any, paths: _Paths) -> Iterator[Node]:
    """The node of a layer, or those of a nested Sequential, whose last node has the name of the Sequential."""
    name, kind, config, path = _described(layer, paths)
    calls = entry(layer, "inbound_nodes", list, f"layer {shown(name)}")
    if len(calls) > 1:
        raise CheckpointError(f"layer {shown(name)} is called {len(calls)} times: shared layers are not supported")
    reads, arguments = _call(calls[0], name) if calls else ((), {})
    if kind != "Sequential":
        yield Node(name, kind, config, reads, arguments, name, path)
        return
    paths = _Paths(f"{path}/layers")
    inner = [_described(y, paths) for y in entry(config, "layers", list, f"layer {shown(name)}")[: _MAX_LAYERS + 1]]
    inner = [y for y in inner if y[1] != "InputLayer"]
    for position, (inner_name, inner_kind, inner_config, path) in enumerate(inner, 1):
        node_name = name if position == len(inner) else f"{name}/{inner_name}"
        yield Node(node_name, inner_kind, inner_config, reads, arguments, f"{name}/{inner_name}", path)
        reads = (node_name,)


def _call(call: Any, owner: str) -> tuple[tuple[str, ...], Mapping[str, Any]]:
    """(nodes read, keyword arguments) of one call.

    Keras 2 writes [[name, node, tensor, arguments], ...], Keras 3 {"args": [tensors], "kwargs": arguments}.
    """
    try:
        if isinstance(call, dict):
            first = call["args"][0]
            tensors = first if isinstance(first, list) else [first]
            histories = [tensor["config"]["keras_history"] for tensor in tensors]
            arguments = dict(call.get("kwargs", {}))
        else:
            histories = call
            arguments = {name: value for read in call if len(read) > 3 for name, value in read[3].items()}
        # Every layer is called once, so the number of the call, which is 1 for a Sequential, can be ignored.
        known = all(isinstance(name, str) and tensor == 0 for name, _, tensor, *_ in histories)
        reads = tuple(history[0] for history in histories)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        known, reads, arguments = False, (), {}
    if not known:
        raise CheckpointError(f"the inputs of layer {shown(owner)} are described in a way that is not known")
    return reads, arguments
