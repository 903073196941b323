"""Keras models inside TensorFlow 2 checkpoints, found by the graph of Python objects that tf.train.Checkpoint writes.

The graph is one more tensor of the bundle, a TrackableObjectGraph: objects that name their children by attribute or
by place in a list, down to variables, which name their tensors. Keras 2 calls a model's layers ``layer-0``,
``layer-1``, ..., Keras 3 keeps them in a list ``_operations`` or ``_layers``; layers call their variables ``kernel`` or
``_kernel``, ``gamma`` and so on. Classes are not named, so the order and the shapes have to tell what a model is.

Source: tensorflow/core/protobuf/trackable_object_graph.proto of https://github.com/tensorflow/tensorflow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from ...errors import CheckpointError
from ...model.generator import Generator
from ..common import FLOAT_TYPES, shown
from ..containers.protobuf import Message
from ..keras import weights as keras_weights
from .bundle import BundleTensor

GRAPH = "_CHECKPOINTABLE_OBJECT_GRAPH"
_MAX_GRAPH = 512 << 10  # that of the tutorial's training takes some 34,000 bytes, in a SavedModel 52,000
_MAX_OBJECTS = 10_000  # 443 of the tutorial's training, 1150 in a SavedModel
_MAX_MODELS = 100
_MAX_DEPTH = 20
_PARTS = ("kernel", "bias", "gamma", "beta", "moving_mean", "moving_variance", "scale", "offset")
_LAYER = re.compile(r"layer-(\d{1,4})")
# Of a model's own children, the first of these that it has lists its layers in order.
_LISTS = ("_functional", "_operations", "_layers")
_OTHERS = frozenset(("optimizer", "variables", "trainable_variables", "non_trainable_variables", "keras_api"))

Arrays = dict[str, BundleTensor]


class _Object(NamedTuple):
    """A node of the graph: its children's numbers by name, and the names of its variable and of that one's tensor."""

    children: Mapping[str, int]
    variable: str
    tensor: str


def read(tensors: Mapping[str, BundleTensor], key: str | None, origin: str) -> tuple[Generator, dict[str, np.ndarray]]:
    """The generator of a checkpoint or SavedModel. ``key`` picks one of several models. Raises CheckpointError."""
    objects = _objects(tensors[GRAPH])
    arrays = _chosen(_models(objects, tensors), key)
    return keras_weights.read(keras_weights.from_list(arrays), arrays, origin)


def _models(objects: list[_Object], tensors: Mapping[str, BundleTensor]) -> dict[str, Arrays]:
    """The weights of the models of a checkpoint by their names, or of the one without a name that the root is."""
    root = objects[0].children
    if root.keys() & {*_LISTS, "variables"} or any(_LAYER.fullmatch(name) for name in root):
        return {"": _arrays(objects, 0, tensors) or _listed(objects, tensors)}
    models = {name: _arrays(objects, number, tensors) for name, number in list(root.items())[:_MAX_MODELS]}
    models = {name: arrays for name, arrays in models.items() if _kernels(arrays)}
    return models or {"": _arrays(objects, 0, tensors)}


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


def _objects(graph: BundleTensor) -> list[_Object]:
    """The objects of the graph, the first of which is the root."""
    if graph.size > _MAX_GRAPH:
        raise CheckpointError(f"the graph of objects has {graph.size} bytes, too many for a pix2pix model")
    nodes = Message(graph.read_string(), "the graph of objects")
    if len(nodes.parts(1)) > _MAX_OBJECTS:
        raise CheckpointError(f"the graph has {len(nodes.parts(1))} objects, too many for a pix2pix model")
    objects = []
    for node in nodes.messages(1):
        children = {child.text(2): child.number(1) for child in node.messages(1)}
        named = [(value.text(2), value.text(3)) for value in node.messages(2) if value.text(1) == "VARIABLE_VALUE"]
        objects.append(_Object(children, *(named[0] if named else ("", ""))))
    if not objects or any(number >= len(objects) for each in objects for number in each.children.values()):
        raise CheckpointError("the graph of objects names some that it does not have: the checkpoint is damaged")
    return objects


def _arrays(objects: list[_Object], model: int, tensors: Mapping[str, BundleTensor]) -> Arrays:
    """The weights of a model in the order of its layers, by "<place of the layer>/<part>"."""
    arrays = {}
    for place, layer in _layers(objects, model):
        for part, variable in _variables(objects, layer):
            arrays[f"{place}/{part}"] = _tensor(variable, tensors)
    return arrays


def _variables(objects: list[_Object], layer: _Object) -> Iterator[tuple[str, _Object]]:
    """(part, variable) of the variables that a layer has itself."""
    for part in _PARTS:
        number = layer.children.get(part, layer.children.get(f"_{part}"))
        if number is not None and objects[number].tensor:
            yield part, objects[number]


def _layers(objects: list[_Object], model: int) -> Iterator[tuple[str, _Object]]:
    """(place, layer) of every layer of a model and of the models in it, in order, each once."""
    seen: set[int] = set()
    waiting = [("", model)]
    while waiting:
        place, number = waiting.pop()
        if number in seen or place.count("/") > _MAX_DEPTH:
            continue
        seen.add(number)
        layer = objects[number]
        if any(_variables(objects, layer)):
            yield place, layer
        else:
            inner = [(f"{place}/{name}".lstrip("/"), child) for name, child in _ordered(layer.children)]
            waiting += reversed(inner)


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


def _listed(objects: list[_Object], tensors: Mapping[str, BundleTensor]) -> Arrays:
    """The weights of a SavedModel that has no layers but a list of variables, in their order, which name their layers.

    So Keras 3 exports models. The variables of random numbers, which dropout has, are integers.
    """
    arrays = {}
    for _, number in _ordered(objects[objects[0].children.get("variables", 0)].children):
        if objects[number].tensor:
            tensor = _tensor(objects[number], tensors)
            if tensor.dtype in FLOAT_TYPES:
                arrays[objects[number].variable] = tensor
    return arrays


def _tensor(variable: _Object, tensors: Mapping[str, BundleTensor]) -> BundleTensor:
    if variable.tensor not in tensors:
        raise CheckpointError(f"the graph of objects names the tensor {shown(variable.tensor)}, which is not there")
    return tensors[variable.tensor]
