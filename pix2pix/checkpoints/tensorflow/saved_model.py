"""SavedModel folders of TensorFlow 2: ``saved_model.pb`` with a graph of operations, and variables in a tensor bundle.

What is computed comes from the operations that the signature ``serving_default`` runs, see :mod:`.trace`. Each function
lists which objects its last arguments are. The graph of objects among the variables, which has the same numbers, says
where their numbers are, see :mod:`.objects`.

Source: tensorflow/core/protobuf/saved_model.proto, meta_graph.proto and saved_object_graph.proto of https://github.com/tensorflow/tensorflow.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from ...errors import CheckpointError
from ...model.generator import INPUT, Generator
from ..budget import Budget
from ..containers.protobuf import Message, varint
from ..model_file import ModelFile, inside, opened
from ..sample import Sample
from ..tensors import MAX_CHANNELS, Unread, Wanted, matched
from ..text import one_generator, shown
from . import objects, tf1
from .bundle import read_bundle, shards_of
from .functions import Function
from .operations import RULES
from .trace import Trace

_MODEL = "saved_model.pb"
_INDEX = "variables/variables.index"
_SIGNATURE = "serving_default"
_MOVING = {"mean": "moving_mean", "variance": "moving_variance"}


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
    tensors = bundle.tensors()
    if objects.GRAPH not in bundle.entries:
        return tf1.from_tensors(tensors, key, "TensorFlow 1 SavedModel")
    one_generator(key)
    served = _served(Message(model.read(), _MODEL, model.budget), objects.variables(bundle))
    variables = {name: tensors[each.tensor] for name, each in served.variables.items() if each.tensor in tensors}
    trace = Trace(served.function, variables, served.image, RULES)
    output = trace.output(served.shape)
    height, width, _ = served.shape
    side = height if height == width else 0
    generator, names = trace.network.generator(output, side, "TensorFlow SavedModel", ())
    return generator, matched(_wanted(generator, names, trace, served), tensors, (), "its graph")


class _Served(NamedTuple):
    """The function that the signature runs: its image's argument and shape (height, width, 0 for any, and channels).

    ``variables`` are those of its other arguments. ``stored`` has the tensors of all variables by their own names.
    """

    function: Function
    image: str
    shape: tuple[int, int, int]
    variables: dict[str, objects.Variable]
    stored: dict[str, str]


def _wanted(generator: Generator, names: Mapping[str, str], trace: Trace, served: _Served) -> Wanted:
    """The tensors of the generator's weights."""
    wanted: dict[str, tuple[str, tuple[int, ...]]] = {}
    for traced, name in names.items():
        shapes = generator[name].tensors("running") if name != INPUT else {}
        for canonical, shape in shapes.items():
            part = canonical.rpartition(".")[2]
            argument, gamma = trace.parts.get(f"{traced}.{part}"), trace.parts.get(f"{traced}.gamma")
            if argument is not None:
                stored = served.variables[argument].tensor
            elif part in _MOVING and gamma is not None:  # a norm that uses the image's leaves its own unread
                owner = served.variables[gamma].name.rpartition("/")[0]
                stored = served.stored.get(f"{owner}/{_MOVING[part]}", "")
            else:
                continue
            if stored in wanted:
                raise CheckpointError(f"two layers share the tensor {shown(stored)}: shared layers are not supported")
            if stored:
                wanted[stored] = (canonical, shape)
    return wanted


def _index(model: Path) -> Path:
    index = inside(model.parent, _INDEX)
    if index is None:
        raise CheckpointError(f"{_INDEX}, which belongs to {_MODEL}, is missing: copy the whole folder")
    return index


def _served(model: Message, variables: list[objects.Variable]) -> _Served:
    """The function that the signature finally runs. ``variables`` are those of the objects, by their numbers."""
    graphs = [graph for graph in model.messages(2) if graph.parts(2)]
    signatures = [each for graph in graphs for each in graph.messages(5) if each.text(1) == _SIGNATURE]
    if len(graphs) != 1 or len(signatures) != 1:
        raise CheckpointError(f"{_MODEL} has {len(signatures)} signatures {_SIGNATURE}: expected one, as Keras writes")
    signature = signatures[0].message(2)
    shapes = [[size.number(1) for size in each.message(2).message(3).messages(2)] for each in signature.messages(1)]
    results = [each.message(2).text(1) for each in signature.messages(2)]
    if len(shapes) != 1 or len(results) != 1:
        raise CheckpointError("the model takes or makes more than one image: expected one input and one output")
    if len(shapes[0]) != 4 or not 0 < shapes[0][3] <= MAX_CHANNELS:
        raise CheckpointError("the model's input is no image whose channels are known: save it with its input's shape")
    height, width = (side if side < 1 << 16 else 0 for side in shapes[0][1:3])  # any side is written as -1
    graph = graphs[0].message(2)
    function = Function(graph, results[0])
    definitions = graph.message(2).parts(1)
    library = {Message(each, _MODEL, model.budget).message(1).text(1): each for each in definitions}
    bound, given = _bound(graphs[0].message(7), len(variables)), dict[str, int]()
    while (called := function.called()) is not None:
        name, operands = called
        if name not in library:
            raise CheckpointError(
                f"the function behind the signature {_SIGNATURE} cannot be found: the file is damaged"
            )
        definition = Message(library.pop(name), _MODEL, model.budget)  # popped: each function is followed once
        inner = Function(definition, definition.message(4).text(2), nodes=3)
        given = _given(inner.arguments, [given.get(function.passed(each)) for each in operands], bound.get(name))
        function = inner
    images = [name for name in function.arguments if name not in given]
    if len(images) != 1:
        raise CheckpointError(f"the function behind {_SIGNATURE} takes {len(images)} images, expected one")
    by_argument = {name: variables[number] for name, number in given.items()}
    stored = {each.name: each.tensor for each in reversed(variables) if each.tensor}  # of copies, the first
    return _Served(function, images[0], (height, width, shapes[0][3]), by_argument, stored)


def _bound(objects_of_graph: Message, count: int) -> dict[str, list[int]]:
    """The numbers of the objects that each function takes, after its other arguments."""
    if len(objects_of_graph.parts(1)) != count:
        raise CheckpointError("the graph and the variables have different objects: the files are of different models")
    found = {}
    for each in objects_of_graph.messages(2):
        numbers, data, position = [], each.message(2).part(2), 0
        while position < len(data):
            number, position = varint(data, position, _MODEL)
            each.budget.spend()
            if number >= count:
                raise CheckpointError("a function takes an object that is not there: the file is damaged")
            numbers.append(number)
        found[each.text(1)] = numbers
    return found


def _given(arguments: list[str], operands: list[int | None], bound: list[int] | None) -> dict[str, int]:
    """The number of the object that each of a function's arguments is; the image's has none."""
    if len(arguments) != len(operands) or len(bound or ()) > len(operands):
        raise CheckpointError(f"the function behind {_SIGNATURE} is called with other arguments than it takes: damaged")
    if bound:  # the last arguments, whatever the caller gives
        operands = [*operands[: len(operands) - len(bound)], *bound]
    return {name: number for name, number in zip(arguments, operands, strict=True) if number is not None}
