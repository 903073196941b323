"""TensorFlow.js layers models: ``model.json`` (a Keras graph and a manifest of weights) and shards of raw numbers.

The shards of one group of the manifest, joined, are its weights one after another, little-endian. Kernels lie as this
project's canonical ones do. Weights may be quantised: to float16, or to uint8 or uint16 with w = q * scale + min.

Source: https://www.tensorflow.org/js/guide/save_load and the converter's documentation of weightsManifest.
"""

from __future__ import annotations

import math
import re
from bisect import bisect_right
from functools import partial
from itertools import accumulate
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ..errors import CheckpointError
from .budget import Budget
from .keras import read_graph
from .model_file import ModelFile, inside, opened, read_beside
from .sample import Sample
from .tensors import StoredTensor, Unread, matched
from .text import entry, one_generator, read_json, shown

_MODEL = "model.json"
_STEPS_OF_A_SHARD = 10
_START = re.compile(rb'\s*\{\s*"(?:format|modelTopology|weightsManifest|generatedBy|convertedBy|trainingConfig)"')
_STORED = {"float32": "<f4", "float16": "<f2", "uint8": "u1", "uint16": "<u2"}


def recognises(sample: Sample) -> bool:
    """Whether a file is a model's description, and not other JSON."""
    return _START.match(sample.start) is not None


def locate(path: Path) -> Path | None:
    """The ``model.json`` of a folder; None if there is none."""
    return inside(path, _MODEL) if path.is_dir() else None


def files(path: Path) -> list[Path]:
    """The description and all shards of the model whose ``model.json`` is the file ``path``."""
    budget = Budget()
    manifest = _manifest(read_json(read_beside(path, budget), path.name), path)
    return [path, *(shard for group in manifest for shard in _shards(group, path.parent, budget))]


def read(file: ModelFile, key: str | None) -> Unread:
    """Read the model whose ``model.json`` is ``file``. Raises CheckpointError."""
    one_generator(key)
    name = file.path.name
    content = read_json(file.read(), name)
    topology = entry(content, "modelTopology", dict, name)
    if "node" in topology or content.get("format") == "graph-model":
        raise CheckpointError(
            "this is a TensorFlow.js graph model, in which the layers can no longer be told apart: convert the "
            "original Keras model to a layers model (--output_format=tfjs_layers_model)"
        )
    generator, stored = read_graph(topology.get("model_config", topology), "TensorFlow.js")
    found = _weights(_manifest(content, file.path), file)
    wanted = {each.stored_name(each.node.weights.rpartition("/")[2], found): (each.name, each.shape) for each in stored}
    return generator, matched(wanted, found, [name for name in found if name not in wanted], "its graph")


# -- the manifest ---------------------------------------------------------------------------------------------


class _Weight(NamedTuple):
    """One entry of the manifest: how many numbers of which type, and w = q * scale + minimum if quantised."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    scale: float | None
    minimum: float

    @property
    def size(self) -> int:
        """Its bytes in the shards."""
        return math.prod(self.shape) * self.dtype.itemsize

    def widened(self, data: np.ndarray) -> np.ndarray:
        """float32 numbers from this weight's bytes."""
        numbers = np.array(data.view(self.dtype), np.float32).reshape(self.shape)
        if self.scale is not None:
            numbers *= np.float32(self.scale)
            numbers += np.float32(self.minimum)
        return numbers


class _Group(NamedTuple):
    """The shards of a group, and where each of them ends in the bytes of the group."""

    shards: list[Path]
    ends: list[int]
    budget: Budget

    def load(self, weight: _Weight, position: int) -> np.ndarray:
        """The float32 numbers of the weight that begins at byte ``position`` of the group."""
        data = np.empty(weight.size, np.uint8)
        filled = 0
        number = bisect_right(self.ends, position)
        while filled < weight.size:
            begin = self.ends[number - 1] if number else 0
            at = position + filled - begin
            count = min(weight.size - filled, self.ends[number] - begin - at)
            with opened(self.shards[number], self.budget) as shard:
                data[filled : filled + count] = shard.numbers(at, "uint8", (count,))
            filled += count
            number += 1
        return weight.widened(data)


def _manifest(content: Any, path: Path) -> list[Any]:
    manifest: list[Any] = entry(content, "weightsManifest", list, path.name)
    return manifest


def _weights(manifest: list[Any], file: ModelFile) -> dict[str, StoredTensor]:
    """All weights by "<layer>/<part>"."""
    weights: dict[str, StoredTensor] = {}
    seen: set[Path] = set()
    for described in manifest:
        entries = [_weight(each) for each in entry(described, "weights", list, "the manifest")]
        shards = _shards(described, file.path.parent, file.budget)
        if len(set(shards)) < len(shards) or not seen.isdisjoint(shards):
            raise CheckpointError("the manifest names a shard twice: damaged file")
        seen.update(shards)
        group = _Group(shards, list(accumulate(shard.stat().st_size for shard in shards)), file.budget)
        _check_size(group, sum(each.size for each in entries))
        position = 0
        for each in entries:
            if each.name in weights:
                raise CheckpointError(f"the manifest has two weights called {shown(each.name)}: unsupported")
            weights[each.name] = StoredTensor(each.shape, "float32", partial(group.load, each, position))
            position += each.size
    return weights


def _check_size(group: _Group, size: int) -> None:
    """Raise CheckpointError unless the shards have exactly ``size`` bytes."""
    found = group.ends[-1] if group.ends else 0
    if found != size:
        names = ", ".join(shard.name for shard in group.shards[:5])
        raise CheckpointError(f"shards {names} have {found} bytes, expected {size}: they are cut off or mixed up")


def _weight(described: Any) -> _Weight:
    name = entry(described, "name", str, "a weight of the manifest")
    shape = entry(described, "shape", list, f"weight {shown(name)}")
    if len(shape) > 4 or not all(type(n) is int and 1 <= n < 2**31 for n in shape):
        raise CheckpointError(f"weight {shown(name)} has shape {shown(shape)}, expected up to 4 positive numbers")
    quantised = described.get("quantization") or {}
    if not isinstance(quantised, dict):
        raise CheckpointError(f"weight {shown(name)} has a quantization that is no dict: the file is damaged")
    dtype = quantised.get("dtype", described.get("dtype"))
    scale: Any = None
    minimum: Any = 0.0
    linear = True
    if dtype in ("uint8", "uint16"):
        scale, minimum = quantised.get("scale"), quantised.get("min")
        linear = all(type(n) in (int, float) and abs(n) < 1e30 for n in (scale, minimum))
    if described.get("dtype") != "float32" or not isinstance(dtype, str) or dtype not in _STORED or not linear:
        raise CheckpointError(
            f"weight {shown(name)} has dtype {shown(described.get('dtype'))}, stored as {shown(dtype)}: expected "
            f"float32, stored as it is or quantised to float16, uint8 or uint16 with a scale and a minimum"
        )
    # Nested layers have longer names: the last two components are those of the layer and the part.
    return _Weight("/".join(name.split("/")[-2:]), tuple(shape), np.dtype(_STORED[dtype]), scale, minimum)


def _shards(group: Any, folder: Path, budget: Budget) -> list[Path]:
    names = entry(group, "paths", list, "the manifest")
    budget.spend(_STEPS_OF_A_SHARD * len(names))
    return [_shard(name, folder) for name in names]


def _shard(name: Any, folder: Path) -> Path:
    """The file of a shard, which must lie inside the model's own folder, links followed."""
    refused = CheckpointError(
        f"the manifest names {shown(name)} as a shard: only files inside the model's own folder are read"
    )
    if not isinstance(name, str) or not 0 < len(name) < 1000 or "\\" in name or ":" in name or "\0" in name:
        raise refused
    parts = PurePosixPath(name).parts
    if not parts or parts[0] == "/" or ".." in parts:
        raise refused
    path = inside(folder, name)
    if path is None:
        raise CheckpointError(f"shard {shown(name)} is missing or cannot be read: copy the whole folder")
    return path
