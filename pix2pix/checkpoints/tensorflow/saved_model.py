"""SavedModel folders of TensorFlow 2: ``saved_model.pb`` with a graph of operations, and variables in a tensor bundle.

The weights and their order come from the graph of objects among the variables, see :mod:`.objects`. What is computed
with them comes from the operations that the signature ``serving_default`` runs, see :mod:`.operations`.

Source: tensorflow/core/protobuf/saved_model.proto and meta_graph.proto of https://github.com/tensorflow/tensorflow.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

from ...errors import CheckpointError
from ...model.generator import INPUT, Generator, Source
from ..budget import Budget
from ..containers.protobuf import Message
from ..model_file import ModelFile, inside, opened
from ..sample import Sample
from ..tensors import Unread
from . import objects, tf1
from .bundle import read_bundle, shards_of
from .operations import Convolution, Function, convolutions

_MODEL = "saved_model.pb"
_INDEX = "variables/variables.index"
_SIGNATURE = "serving_default"


def recognises(sample: Sample) -> bool:
    """Whether this is a SavedModel's graph: its version, 1, then a message."""
    return sample.start.startswith(b"\x08\x01\x12")


def locate(path: Path) -> Path | None:
    """The ``saved_model.pb`` of a folder; None if there is none."""
    return inside(path, _MODEL) if path.is_dir() else None


def files(model: Path) -> list[Path]:
    """The graph, and the index and the shards of the variables."""
    index = _index(model)
    with opened(index, Budget()) as file:
        return [model, index, *shards_of(file)]


def read(model: ModelFile, key: str | None) -> Unread:
    """Read the generator of the SavedModel whose ``saved_model.pb`` is ``model``. Raises CheckpointError."""
    with opened(_index(model.path), model.budget) as index:
        bundle = read_bundle(index)
    if objects.GRAPH not in bundle.entries:
        return tf1.from_tensors(bundle.tensors(), key, "TensorFlow 1 SavedModel")
    generator, weights = objects.read(bundle, key, "TensorFlow SavedModel")
    function, size = _served(Message(model.read(), _MODEL, model.budget))
    return _as_traced(generator, convolutions(function), size), weights


def _index(model: Path) -> Path:
    index = inside(model.parent, _INDEX)
    if index is None:
        raise CheckpointError(f"{_INDEX}, which belongs to {_MODEL}, is missing: copy the whole folder")
    return index


def _served(model: Message) -> tuple[Function, int]:
    """The function that the signature finally runs, and the side in pixels of the images that it takes, or 0."""
    graphs = [graph for graph in model.messages(2) if graph.parts(2)]
    signatures = [each for graph in graphs for each in graph.messages(5) if each.text(1) == _SIGNATURE]
    if len(graphs) != 1 or len(signatures) != 1:
        raise CheckpointError(f"{_MODEL} has {len(signatures)} signatures {_SIGNATURE}: expected one, as Keras writes")
    signature = signatures[0].message(2)
    shapes = [[size.number(1) for size in each.message(2).message(3).messages(2)] for each in signature.messages(1)]
    results = [each.message(2).text(1) for each in signature.messages(2)]
    if len(shapes) != 1 or len(results) != 1:
        raise CheckpointError("the model takes or makes more than one image: expected one input and one output")
    side = shapes[0][1] if len(shapes[0]) == 4 and shapes[0][1] == shapes[0][2] < 1 << 16 else 0
    graph = graphs[0].message(2)
    function = Function(graph, results[0])
    definitions = graph.message(2).parts(1)
    library = {Message(each, _MODEL, model.budget).message(1).text(1): each for each in definitions}
    called = function.called()
    while called in library:
        definition = Message(library.pop(called), _MODEL, model.budget)  # popped: each function is followed once
        function = Function(definition, definition.message(4).text(2), nodes=3)
        called = function.called()
    if called is None:
        return function, side
    raise CheckpointError(f"the function behind the signature {_SIGNATURE} cannot be found: the file is damaged")


def _as_traced(generator: Generator, traced: list[Convolution], size: int) -> Generator:
    """The generator, which has the layers in order, with the inputs and norms of the traced graph."""
    if [layer.transposed for layer in generator.layers] != [each.transposed for each in traced]:
        raise CheckpointError(
            f"the graph has {len(traced)} convolutions, in another order than the {len(generator.layers)} layers of a "
            f"U-Net: save the model as .keras"
        )
    names = [layer.name for layer in generator.layers]
    layers = []
    for layer, each in zip(generator.layers, traced, strict=True):
        if (layer.norm is None) is not (each.eps is None):
            raise CheckpointError(f"{layer.name} has a norm in the graph or in the variables, but not in both")
        norm = dataclasses.replace(layer.norm, eps=each.eps) if layer.norm and each.eps else None
        sources = (Source(names[read] if read >= 0 else INPUT, slope) for read, slope in each.sources)
        layers.append(dataclasses.replace(layer, inputs=tuple(sources), norm=norm))
    image_statistics = {each.image_statistics for each in traced if each.eps is not None}
    if len(image_statistics) > 1:
        raise CheckpointError("some norms of the model use the image's statistics, others stored ones: unsupported")
    known = size > 0 and size % generator.multiple == 0
    try:
        return Generator(
            tuple(layers),
            "running" if image_statistics == {False} else "image",
            size if known else generator.size,
            origin=generator.origin,
            assumed=() if known else ("size",),
        )
    except ValueError as error:
        raise CheckpointError(f"the graph is no U-Net that can be run: {error}") from None
