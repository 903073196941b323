"""Keras models inside TensorFlow 2 checkpoints, found by the graph of Python objects that tf.train.Checkpoint writes.

The graph is one more tensor of the bundle, a TrackableObjectGraph. Its objects name their children by attribute or by
index in a list, down to variables, which name their tensors. Keras 2 calls a model's layers ``layer-0``, ``layer-1``,
...; Keras 3 keeps them in a list ``_operations`` or ``_layers``. Layers call their variables ``kernel`` or ``_kernel``,
``gamma`` and so on. Classes are not named, so what a model is has to be inferred from the order and the shapes.

Source: tensorflow/core/protobuf/trackable_object_graph.proto of https://github.com/tensorflow/tensorflow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import NamedTuple

from ...errors import CheckpointError
from ..budget import Budget
from ..containers.protobuf import Message
from ..keras import weights as keras_weights
from ..tensors import FLOAT_TYPES, Stored, StoredTensor, Unread
from ..text import shown
from .bundle import Bundle

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_MAX_MODELS = 100
_MAX_DEPTH = 20
_PARTS = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance", "scale", "offset")
_LAYER = re.compile(r"layer-(\d{1,4})")
# Of a model's own children, the first of these that it has lists its layers in order.
_LISTS = ("_functional", "_operations", "_layers")
_OTHERS = frozenset(("optimizer", "variables", "trainable_variables", "non_trainable_variables", "keras_api"))

Arrays = dict[str, StoredTensor]


class _Object(NamedTuple):
    """A node of the graph: its children's numbers by name, the name of its variable, and that of the tensor."""

    children: Mapping[str, int]
    variable: str
    tensor: str


def read(bundle: Bundle, key: str | None, origin: str) -> Unread:
    """The generator of a checkpoint or SavedModel. ``key`` picks one of several models. Raises CheckpointError."""
    graph = Message(bundle.string(GRAPH), "the graph of objects", bundle.budget)
    arrays = _chosen(_Graph(_objects(graph), bundle.tensors(), bundle.budget).models(), key)
    return keras_weights.read(keras_weights.from_list(arrays), arrays, origin)


class Variable(NamedTuple):
    """A variable of the graph: its own name and that of its tensor, both empty for any other object."""

    name: str
    tensor: str


def variables(bundle: Bundle) -> list[Variable]:
    """The variables of a SavedModel by the numbers of their objects. Raises CheckpointError."""
    graph = Message(bundle.string(GRAPH), "the graph of objects", bundle.budget)
    return [Variable(each.variable, each.tensor) for each in _objects(graph)]


def _chosen(models: Mapping[str, Arrays], key: str | None) -> Arrays:
    """The weights of the model that ``key`` names, or of the only one that may be a generator."""
    names = ", ".join(shown(name) for name in list(models)[:20] if name)
    if key is not None:
        if key not in models:
            raise CheckpointError(
                f"key {shown(key)} is none of the models in the checkpoint: {names or 'one, unnamed'}"
            )
        return models[key]
    likely = [name for name, arrays in models.items() if _may_be_generator(arrays)]
    if len(likely) > 1:
        names = ", ".join(shown(name) for name in likely[:20])
        raise CheckpointError(f"the checkpoint holds {len(likely)} generators: choose one with key (--key): {names}")
    return models[likely[0]] if likely else next(iter(models.values()))


def _kernels(arrays: Arrays) -> list[tuple[int, ...]]:
    return [tensor.shape for name, tensor in arrays.items() if name.endswith("/kernel")]


def _may_be_generator(arrays: Arrays) -> bool:
    """Whether there are as many convolutions up as down, and the last reads more than one map, as one up does."""
    kernels = _kernels(arrays)
    return len(kernels) >= 4 and len(kernels) % 2 == 0 and kernels[-1][3:] != (1,)


# -- the graph ------------------------------------------------------------------------------------------------


def _objects(graph: Message) -> list[_Object]:
    """The objects of the graph, the first of which is the root."""
    objects = []
    for node in graph.messages(1):
        children = {child.text(2): child.number(1) for child in node.messages(1)}
        named = [(value.text(2), value.text(3)) for value in node.messages(2) if value.text(1) == "VARIABLE_VALUE"]
        objects.append(_Object(children, *(named[0] if named else ("", ""))))
    if not objects or any(number >= len(objects) for each in objects for number in each.children.values()):
        raise CheckpointError("the graph of objects names some that it does not have: the checkpoint is damaged")
    return objects


@dataclass(frozen=True, slots=True)
class _Graph:
    """The objects of a checkpoint, the first of which is the root, and the tensors of their variables."""

    objects: list[_Object]
    tensors: Stored
    budget: Budget

    def models(self) -> dict[str, Arrays]:
        """The weights of the models of a checkpoint by their names, or of the unnamed one that the root is."""
        root = self.objects[0].children
        if root.keys() & {*_LISTS, "variables"} or any(_LAYER.fullmatch(name) for name in root):
            return {"": self._arrays(0) or self._listed()}
        models = {name: self._arrays(number) for name, number in list(root.items())[:_MAX_MODELS]}
        models = {name: arrays for name, arrays in models.items() if _kernels(arrays)}
        return models or {"": self._arrays(0)}

    def _arrays(self, model: int) -> Arrays:
        """The weights of a model in the order of its layers, by "<path of the layer>/<part>"."""
        return {
            f"{path}/{part}": self._tensor(variable)
            for path, layer in self._layers(model)
            for part, variable in self._variables(layer)
        }

    def _variables(self, layer: _Object) -> Iterator[tuple[str, _Object]]:
        """(part, variable) of the variables that a layer has itself."""
        for part in _PARTS:
            number = layer.children.get(part, layer.children.get(f"_{part}"))
            if number is not None and self.objects[number].tensor:
                yield part, self.objects[number]

    def _layers(self, model: int) -> Iterator[tuple[str, _Object]]:
        """(path, layer) of every layer of a model and of the models in it, in order, each once."""
        seen: set[int] = set()
        waiting = [("", model)]
        while waiting:
            path, number = waiting.pop()
            self.budget.spend_text(len(path))
            if number in seen or path.count("/") > _MAX_DEPTH:
                continue
            seen.add(number)
            layer = self.objects[number]
            if any(self._variables(layer)):
                yield path, layer
                continue
            for name, child in reversed(_ordered(layer.children)):
                self.budget.spend_text(len(path) + len(name))
                waiting.append((f"{path}/{name}".lstrip("/"), child))

    def _listed(self) -> Arrays:
        """The weights of a SavedModel that has no layers but a list of variables, in its order, by their names.

        Keras 3 exports models so. The variables of random numbers, which dropout has, are integers.
        """
        arrays = {}
        variables = self.objects[self.objects[0].children.get("variables", 0)]
        for _, number in _ordered(variables.children):
            if self.objects[number].tensor:
                tensor = self._tensor(self.objects[number])
                if tensor.dtype in FLOAT_TYPES:
                    arrays[self.objects[number].variable] = tensor
        return arrays

    def _tensor(self, variable: _Object) -> StoredTensor:
        if variable.tensor not in self.tensors:
            raise CheckpointError(f"the graph of objects names the tensor {shown(variable.tensor)}, which is not there")
        return self.tensors[variable.tensor]


def _ordered(children: Mapping[str, int]) -> list[tuple[str, int]]:
    """The children that may be or hold layers, in order."""
    for name in _LISTS:
        if name in children:
            return [(name, children[name])]
    numbered = [(int(match[1]), name) for name in children if (match := _LAYER.fullmatch(name))]
    numbered = numbered or [(int(name), name) for name in children if name.isdecimal() and len(name) < 6]
    if numbered:
        return [(name, children[name]) for _, name in sorted(numbered)]
    return [(name, number) for name, number in children.items() if name not in _OTHERS]  # in the order of assignment
