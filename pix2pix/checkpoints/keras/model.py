"""Files of Keras 2 and 3: ``.keras`` archives, whole ``.h5`` models, and ``.h5`` files of weights alone.

An archive is a zip of config.json (the graph of layers) and model.weights.h5, in which layers go by their class:
layers/sequential_1/layers/conv2d/vars/0. A whole ``.h5`` has the graph in the attribute model_config, and the weights
by the layers' own names: model_weights/conv2d_1/conv2d_1/kernel:0, listed in the attributes layer_names and
weight_names. Files of weights have either of these without a graph; :mod:`.weights` then works out the network.

Source: keras/src/saving/saving_lib.py and keras/src/legacy/saving/legacy_h5_format.py of https://github.com/keras-team.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from ...errors import CheckpointError
from ...model.generator import Generator
from ..common import FLOAT_TYPES, matched, read_json, shown
from ..containers import hdf5, zips
from . import weights as keras_weights
from .graph import Stored, read_graph

MEMBERS = (b"metadata.json", b"config.json", b"model.weights.h5")  # one of them comes first in an archive
_MAX_JSON = 2 << 20  # a U-Net of 8 levels takes some 60,000 bytes
_LAYERS, _LAYERS_2_13 = "layers", "_layer_checkpoint_dependencies"

Model = tuple[Generator, dict[str, np.ndarray]]


def read(path: Path) -> Model:
    """Read a ``.keras`` or HDF5 file. Raises CheckpointError."""
    with path.open("rb") as file:
        data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    if data[:2] == b"PK":
        return _read_archive(data)
    root = hdf5.open_root(data)
    config = root.text("model_config")
    if config is not None:
        arrays = _listed(root.group("model_weights"))
        graph = read_json(config[:_MAX_JSON].encode(), "model_config")
        return _read_graph(graph, arrays, lambda each: f"{each.node.weights}/{each.part}", "Keras, .h5")
    if root.texts("layer_names") is not None:
        arrays = _listed(root)
        return keras_weights.read(keras_weights.from_list(arrays), arrays, "Keras weights, .h5")
    if _LAYERS in root or _LAYERS_2_13 in root:
        arrays = _grouped(root)
        return keras_weights.read(keras_weights.from_groups(arrays), arrays, "Keras weights, .weights.h5")
    names = ", ".join(shown(name) for name in root.names()[:5])
    raise CheckpointError(f"the HDF5 file holds {names or 'nothing'}, and no Keras model or weights")


def _read_archive(data: memoryview) -> Model:
    """The model in a ``.keras`` archive."""
    members = zips.members(data)
    for name in ("config.json", "model.weights.h5"):
        if name not in members:
            raise CheckpointError(f"the archive has no {name}: expected a file that model.save('x.keras') wrote")
    start, length = members["config.json"]
    if length > _MAX_JSON:
        raise CheckpointError(f"config.json has {length} bytes, too many for the description of a model")
    graph = read_json(bytes(data[start : start + length]), "config.json")
    start, length = members["model.weights.h5"]
    arrays = _grouped(hdf5.open_root(data[start : start + length]))
    return _read_graph(graph, arrays, lambda each: f"{each.node.path}/vars/{each.number}", "Keras, .keras")


def _read_graph(
    graph: object, arrays: Mapping[str, hdf5.Array], name_of: Callable[[Stored], str], origin: str
) -> Model:
    """The generator of a graph of layers, and its weights, which are in ``arrays`` by the names of ``name_of``."""
    generator, stored = read_graph(graph, origin)
    wanted = {name_of(each): (each.name, each.shape) for each in stored}
    # Beside the weights there are the integers of dropout's random numbers.
    surplus = [name for name in arrays if name not in wanted and arrays[name].dtype in FLOAT_TYPES]
    return generator, matched(wanted, arrays, surplus)


def _grouped(root: hdf5.Group) -> dict[str, hdf5.Array]:
    """The arrays of all layers, "layers/sequential_1/layers/conv2d/vars/0", whichever Keras wrote them.

    Keras 2.12 and 2.13 call the groups otherwise, and counted layers with weights twice: conv2d, conv2d_2, conv2d_4.
    """
    if _LAYERS in root:
        return root.arrays(_LAYERS)
    arrays = {path.replace(_LAYERS_2_13, _LAYERS): array for path, array in root.arrays(_LAYERS_2_13).items()}
    numbers: dict[str, set[int]] = {}  # of each class in each container
    for path in arrays:
        for parent, kind, number in _numbered(path):
            numbers.setdefault(f"{parent}/{kind}", set()).add(number)
    renamed = {}
    for path, array in arrays.items():
        steps = []
        for parent, kind, number in _numbered(path):
            rank = sorted(numbers[f"{parent}/{kind}"]).index(number)
            steps.append(f"{_LAYERS}/{kind}_{rank}" if rank else f"{_LAYERS}/{kind}")
        renamed["/".join([*steps, *path.split("/")[-2:]])] = array
    return renamed


def _numbered(path: str) -> Iterator[tuple[str, str, int]]:
    """(what is before it, class, number) of every layer in a path."""
    *steps, _, _ = path.split("/")
    for at in range(1, len(steps), 2):
        kind, number = keras_weights.numbered(steps[at])
        yield "/".join(steps[:at]), kind, number


def _listed(group: hdf5.Group) -> dict[str, hdf5.Array]:
    """The arrays that the attributes of a group and its layers list, by "<layer>/<part>", in their order.

    A layer inside a Sequential goes by "<Sequential>/<layer>", however the file's names are put together.
    """
    arrays: dict[str, hdf5.Array] = {}
    for layer in group.texts("layer_names") or ():
        inside = group.group(layer)
        for listed in inside.texts("weight_names") or ():
            owner, _, part = listed.partition(":")[0].rpartition("/")
            own = owner.rpartition("/")[2]
            name = f"{layer}/{part}" if layer in (owner, own) else f"{layer}/{own}/{part}"
            array = inside.at(listed)
            if not isinstance(array, hdf5.Array) or name in arrays:
                raise CheckpointError(f"weight {shown(listed)} of the file is missing or there twice: it is damaged")
            arrays[name] = array
    return arrays
