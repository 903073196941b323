"""SavedModel folders of TensorFlow 2: ``saved_model.pb`` with a graph of operations, and variables in a tensor bundle.

The weights and their order come from the graph of objects that is among the variables, see :mod:`.objects`; what is
done with them from the operations that the signature ``serving_default`` runs, see :mod:`.operations`.

Source: tensorflow/core/protobuf/saved_model.proto and meta_graph.proto of https://github.com/tensorflow/tensorflow.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from ...errors import CheckpointError
from ...model.generator import INPUT, Generator, Source
from ..common import inside, read_bounded
from ..containers.protobuf import Message
from . import objects, tf1
from .bundle import read_bundle
from .operations import Convolution, Function, convolutions

MODEL = "saved_model.pb"
_INDEX = "variables/variables.index"
_MAX_MODEL = 3 << 19  # that of the tutorial's generator takes up to 1 MB
_SIGNATURE = "serving_default"


def looks_like(start: bytes) -> bool:
    """Whether a file that begins with these bytes is a SavedModel's graph: its version, 1, then a message."""
    return start.startswith(b"\x08\x01\x12")


def read(model: Path, key: str | None) -> tuple[Generator, dict[str, np.ndarray]]:
    """Read the generator of the SavedModel whose ``saved_model.pb`` is ``model``. Raises CheckpointError."""
    index = inside(model.parent, _INDEX)
    if index is None:
        raise CheckpointError(f"{_INDEX}, which belongs to {MODEL}, is missing: copy the whole folder")
    tensors = read_bundle(index)
    if objects.GRAPH not in tensors:
        return tf1.from_tensors(tensors, key, "TensorFlow 1 SavedModel")
    generator, weights = objects.read(tensors, key, "TensorFlow SavedModel")
    function, size = _served(Message(read_bounded(model, _MAX_MODEL, "the graph of a pix2pix model"), MODEL))
    return _as_traced(generator, convolutions(function), size), weights


def _served(model: Message) -> tuple[Function, int]:
    """The function that the signature runs in the end, and the side in pixels of the pictures it takes, or 0."""
    graphs = [graph for graph in model.messages(2) if graph.parts(2)]
    signatures = [each for graph in graphs for each in graph.messages(5) if each.text(1) == _SIGNATURE]
    if len(graphs) != 1 or len(signatures) != 1:
        raise CheckpointError(f"{MODEL} has {len(signatures)} signatures {_SIGNATURE}: expected one, as Keras writes")
    signature = signatures[0].message(2)
    shapes = [[size.number(1) for size in each.message(2).message(3).messages(2)] for each in signature.messages(1)]
    results = [each.message(2).text(1) for each in signature.messages(2)]
    if len(shapes) != 1 or len(results) != 1:
        raise CheckpointError("the model takes or makes more than one picture: expected one input and one output")
    side = shapes[0][1] if len(shapes[0]) == 4 and shapes[0][1] == shapes[0][2] < 1 << 16 else 0
    graph = graphs[0].message(2)
    function = Function(graph, results[0])
    library = {Message(each, MODEL).message(1).text(1): each for each in graph.message(2).parts(1)}
    called = function.called()
    while called in library:
        definition = Message(library.pop(called), MODEL)  # which ends the search if functions call each other
        function = Function(definition, definition.message(4).text(2), nodes=3)
        called = function.called()
    if called is None:
        return function, side
    raise CheckpointError(f"the function behind the signature {_SIGNATURE} cannot be found: the file is damaged")


def _as_traced(generator: Generator, traced: list[Convolution], size: int) -> Generator:
    """The generator, whose layers are in order but joined as in the tutorial, joined and normalised as traced."""
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
    of_picture = {each.of_picture for each in traced if each.eps is not None}
    if len(of_picture) > 1:
        raise CheckpointError("some norms of the model use the picture's statistics, others stored ones: unsupported")
    known = size > 0 and size % generator.multiple == 0
    try:
        return Generator(
            tuple(layers),
            "running" if of_picture == {False} else "image",
            size if known else generator.size,
            origin=generator.origin,
            assumed=() if known else ("size",),
        )
    except ValueError as error:
        raise CheckpointError(f"the graph is no U-Net that can be run: {error}") from None
