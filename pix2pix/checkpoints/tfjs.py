"""TensorFlow.js layers models: ``model.json`` (a Keras graph and a manifest of weights) and shards of raw numbers.

The shards of one group of the manifest, joined, are its weights one after another, little-endian. Kernels lie as this
project's canonical ones do. Weights may be quantised: to float16, or to uint8 or uint16 with w = q * scale + min.

Nothing outside the model's own folder is read, whatever the manifest says, and every length is compared with the
files' before anything is allocated.

Source: https://www.tensorflow.org/js/guide/save_load and the converter's documentation of weightsManifest.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ..errors import CheckpointError
from ..model.generator import Generator
from .common import inside, listing, read_bounded, read_json, shown
from .keras.config import entry
from .keras.graph import Stored, read_graph

MODEL = "model.json"
_MAX_JSON = 2 << 20  # a U-Net of 8 levels takes some 30,000 bytes
_MAX_SHARDS = 10_000
_START = re.compile(rb'\s*\{\s*"(?:format|modelTopology|weightsManifest|generatedBy|convertedBy|trainingConfig)"')
_STORED = {"float32": "<f4", "float16": "<f2", "uint8": "u1", "uint16": "<u2"}


class _Weight(NamedTuple):
    """One entry of the manifest: how many numbers of which type, and w = q * scale + minimum if quantised."""

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype
    scale: float | None
    minimum: float

    @property
    def size(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    def widened(self, data: np.ndarray) -> np.ndarray:
        """float32 numbers from this weight's bytes."""
        numbers = np.array(data.view(self.dtype), np.float32).reshape(self.shape)
        if self.scale is not None:
            numbers *= np.float32(self.scale)
            numbers += np.float32(self.minimum)
        return numbers


def looks_like(start: bytes) -> bool:
    """Whether a file that begins with these bytes is a model's description, and not other JSON."""
    return _START.match(start) is not None


def read(path: Path) -> tuple[Generator, dict[str, np.ndarray]]:
    """Read the model whose ``model.json`` is the file ``path``. Raises CheckpointError."""
    content = read_json(read_bounded(path, _MAX_JSON, "the description of a model"), path.name)
    topology = entry(content, "modelTopology", dict, path.name)
    if "node" in topology or content.get("format") == "graph-model":
        raise CheckpointError(
            "this is a TensorFlow.js graph model, in which the layers can no longer be told apart: convert the "
            "original Keras model to a layers model (--output_format=tfjs_layers_model)"
        )
    generator, stored = read_graph(topology.get("model_config", topology), "TensorFlow.js")
    found = _read_weights(entry(content, "weightsManifest", list, path.name), path.parent)
    return generator, _collected(stored, found)


def _collected(stored: Sequence[Stored], found: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Canonical weights, or CheckpointError that lists all that are missing, surplus or misshapen."""
    weights, problems = {}, []
    names = [f"{each.node.weights.rpartition('/')[2]}/{each.part}" for each in stored]
    for key, each in zip(names, stored, strict=True):
        if key not in found:
            problems.append(f"missing {shown(key)} {each.shape}")
        elif found[key].shape != each.shape:
            problems.append(f"{shown(key)} has shape {shown(found[key].shape)}, expected {each.shape}")
        else:
            weights[each.name] = found[key]
    problems += [f"surplus {shown(key)} {shown(array.shape)}" for key, array in found.items() if key not in names]
    if problems:
        raise CheckpointError(f"the weights don't fit the graph ({len(problems)} problems):{listing(problems)}")
    return weights


# -- the manifest ---------------------------------------------------------------------------------------------


def _read_weights(manifest: list[Any], folder: Path) -> dict[str, np.ndarray]:
    """All weights by "<layer>/<part>", float32."""
    weights: dict[str, np.ndarray] = {}
    seen: set[Path] = set()
    for group in manifest:
        entries = [_weight(each) for each in entry(group, "weights", list, "the manifest")]
        shards = [_shard(name, folder) for name in entry(group, "paths", list, "the manifest")]
        if len(seen) + len(shards) > _MAX_SHARDS or len({*seen, *shards}) < len(seen) + len(shards):
            raise CheckpointError(f"the manifest names a shard twice, or more than {_MAX_SHARDS} of them: damaged file")
        seen.update(shards)
        data = _joined(shards, sum(each.size for each in entries))
        position = 0
        for each in entries:
            if each.name in weights:
                raise CheckpointError(f"the manifest has two weights called {shown(each.name)}: unsupported")
            weights[each.name] = each.widened(data[position : position + each.size])
            position += each.size
    return weights


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


def _joined(shards: list[Path], size: int) -> np.ndarray:
    """The bytes of all shards one after another; CheckpointError unless they are exactly ``size``."""
    lengths = [shard.stat().st_size for shard in shards]
    if sum(lengths) != size:
        names = ", ".join(shard.name for shard in shards[:5])
        raise CheckpointError(
            f"shards {names} have {sum(lengths)} bytes, expected {size}: they are cut off or mixed up"
        )
    data = np.empty(size, np.uint8)
    position = 0
    for shard, length in zip(shards, lengths, strict=True):
        with shard.open("rb") as file:
            if file.readinto(data[position : position + length].data) != length:
                raise CheckpointError(f"shard {shard.name} changed while it was read: try again")
        position += length
    return data
