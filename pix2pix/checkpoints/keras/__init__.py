"""Models of Keras 2 and 3: ``.keras`` archives, whole ``.h5`` models, and ``.h5`` files of weights alone.

An archive is a zip of config.json (the graph of layers) and model.weights.h5, in which layers go by their class:
layers/sequential_1/layers/conv2d/vars/0. A whole ``.h5`` has the graph in the attribute model_config, and the weights
by the layers' own names: model_weights/conv2d_1/conv2d_1/kernel:0, listed in the attributes layer_names and
weight_names. Files of weights have either of these without a graph; :mod:`.weights` then infers the network.

Source: keras/src/saving/saving_lib.py and keras/src/legacy/saving/legacy_h5_format.py of https://github.com/keras-team.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from ...errors import CheckpointError, NoGeneratorError
from ..containers import hdf5, zips
from ..model_file import ModelFile
from ..sample import Sample
from ..tensors import FLOAT_TYPES, Stored, StoredTensor, Unread, matched
from ..text import one_generator, read_json, shown
from . import weights
from .graph import KerasWeight, read_graph
from .layers import is_own_norm

__all__ = ["read", "read_graph", "recognises", "weights"]

_CONFIG, _WEIGHTS = "config.json", "model.weights.h5"
_FIRST_MEMBERS = tuple(name.encode() for name in ("metadata.json", _CONFIG, _WEIGHTS))
_ORDER = (
    "the file does not name the weights of instance norms that the program defines: the first is taken to be the "
    "scale, the second the offset. In a .h5 file they have names"
)
_LAYERS, _LAYERS_2_13 = "layers", "_layer_checkpoint_dependencies"


def recognises(sample: Sample) -> bool:
    """Whether this is an HDF5 file, or a zip archive whose first member is one of Keras'."""
    is_archive = sample.start.startswith(zips.START) and sample.start[zips.NAME_AT :].startswith(_FIRST_MEMBERS)
    return is_archive or sample.start.startswith(hdf5.START)


def read(file: ModelFile, key: str | None) -> Unread:
    """Read a ``.keras`` or HDF5 file. Raises CheckpointError."""
    one_generator(key)
    if file.read(0, 2) == b"PK":
        return _read_archive(file)
    root = hdf5.open_root(file)
    config = root.text("model_config")
    if config is not None:
        generator, wanted = read_graph(read_json(config.encode(), "model_config"), "Keras, .h5")
        listed = _listed(root.group("model_weights"))
        return generator, _matched({each.stored_name(each.node.weights, listed): each for each in wanted}, listed)
    if root.texts("layer_names") is not None:
        arrays = _listed(root)
        return weights.read(weights.from_list(arrays), arrays, "Keras weights, .h5")
    if _LAYERS in root or _LAYERS_2_13 in root:
        arrays = _grouped(root)
        return weights.read(weights.from_groups(arrays), arrays, "Keras weights, .weights.h5")
    found = ", ".join(shown(name) for name in root.names()[:5])
    raise NoGeneratorError(
        f"the HDF5 file holds {found or 'nothing'}, and no Keras model or weights; if they are the weights of a class "
        f"of its own, save the functional model in it instead"
    )


def _read_archive(file: ModelFile) -> Unread:
    """The model in a ``.keras`` archive."""
    members = zips.members(file)
    for name in (_CONFIG, _WEIGHTS):
        if name not in members:
            raise CheckpointError(f"the archive has no {name}: expected a file that model.save('x.keras') wrote")
    generator, wanted = read_graph(read_json(members[_CONFIG].read(), _CONFIG), "Keras, .keras")
    if any(each.part == "gamma" and is_own_norm(each.node) for each in wanted):
        generator = replace(generator, remarks=(*generator.remarks, _ORDER))
    names = {f"{each.node.path}/vars/{each.number}": each for each in wanted}
    return generator, _matched(names, _grouped(hdf5.open_root(members[_WEIGHTS])))


def _matched(weights: Mapping[str, KerasWeight], arrays: Stored) -> dict[str, StoredTensor]:
    """The weights of a graph; the keys are their names in the file."""
    wanted = {name: (each.name, each.shape) for name, each in weights.items()}
    # Besides the weights the file has dropout's random state, which is integers.
    surplus = [name for name in arrays if name not in wanted and arrays[name].dtype in FLOAT_TYPES]
    return matched(wanted, arrays, surplus, "its graph")


# -- the arrays of HDF5 files ---------------------------------------------------------------------------------


def _grouped(root: hdf5.Group) -> dict[str, StoredTensor]:
    """The arrays of all layers by Keras 3's names, "layers/sequential_1/layers/conv2d/vars/0", whoever wrote them.

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
            root.file.budget.spend(1 + len(numbers[f"{parent}/{kind}"]) // 32)
            rank = sorted(numbers[f"{parent}/{kind}"]).index(number)
            steps.append(f"{_LAYERS}/{kind}_{rank}" if rank else f"{_LAYERS}/{kind}")
        renamed["/".join([*steps, *path.split("/")[-2:]])] = array
    return renamed


def _numbered(path: str) -> Iterator[tuple[str, str, int]]:
    """(what is before it, class, number) of every layer in a path."""
    *steps, _, _ = path.split("/")
    for at in range(1, len(steps), 2):
        kind, number = weights.numbered(steps[at])
        yield "/".join(steps[:at]), kind, number


def _listed(group: hdf5.Group) -> dict[str, StoredTensor]:
    """The arrays that the attributes of a group and its layers list, by "<layer>/<part>", in their order.

    A layer inside a Sequential goes by "<Sequential>/<layer>", however the file spells its names.
    """
    arrays: dict[str, StoredTensor] = {}
    for layer in group.texts("layer_names") or ():
        inside = group.group(layer)
        for listed in inside.texts("weight_names") or ():
            owner, _, part = listed.partition(":")[0].rpartition("/")
            own = owner.rpartition("/")[2]
            name = f"{layer}/{part}" if layer in (owner, own) else f"{layer}/{own}/{part}"
            group.file.budget.spend_text(len(name))
            array = inside.at(listed)
            if not isinstance(array, StoredTensor) or name in arrays:
                raise CheckpointError(f"weight {shown(listed)} of the file is missing or there twice: it is damaged")
            arrays[name] = array
    return arrays
