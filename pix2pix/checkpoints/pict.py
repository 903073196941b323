"""``.pict`` files, which the web demos of affinelayer/pix2pix-tensorflow and ml5.js load.

Three sections, each a big-endian 32-bit length and as many bytes: JSON with the names and shapes of the variables of a
TensorFlow 1 generator, without moving statistics; a codebook of 256 little-endian float32; and one byte for each
weight, its place in the codebook.

Source: server/tools/export-checkpoint.py of https://github.com/affinelayer/pix2pix-tensorflow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..model.generator import Generator
from .common import read_json, shown
from .keras.config import entry
from .tensorflow import tf1

_MAX_JSON = 1 << 20  # a U-Net of 8 levels takes some 5,000 bytes
_CODES = 256
_OUTPUT_SCALE = 255.0  # the demos write to a canvas


@dataclass(frozen=True, slots=True)
class _Coded:
    """A tensor of uint8 ``codes``, each standing for a number of ``codebook``."""

    shape: tuple[int, ...]
    codes: np.ndarray
    codebook: np.ndarray
    dtype: str = "float32"

    def read(self) -> np.ndarray:
        """The numbers as a float32 array of the tensor's shape."""
        return self.codebook[self.codes].reshape(self.shape)


def looks_like(start: bytes) -> bool:
    """Whether a file that begins with these bytes is a .pict file: a length, then JSON about variables."""
    return int.from_bytes(start[:4]) <= _MAX_JSON and start[4:5] == b"[" and b'"name"' in start and b'"shape"' in start


def read(path: Path) -> tuple[Generator, dict[str, np.ndarray]]:
    """Read a .pict file. Raises CheckpointError."""
    described, codebook, codes = _sections(np.fromfile(path, np.uint8))
    variables = read_json(described.tobytes(), "the description of the weights")
    if codebook.size != 4 * _CODES or not isinstance(variables, list):
        raise CheckpointError(f"the codebook has {codebook.size} bytes, expected {4 * _CODES}: the file is damaged")
    values = codebook.copy().view("<f4").astype(np.float32, copy=False)
    tensors: dict[str, _Coded] = {}
    position = 0
    for variable in variables:
        name, shape = _described(variable)
        size = math.prod(shape)
        if name in tensors or position + size > codes.size:
            raise CheckpointError(f"{shown(name)} is there twice, or its {size} weights are not: the file is damaged")
        tensors[name] = _Coded(shape, codes[position : position + size], values)
        position += size
    if position != codes.size:
        raise CheckpointError(f"the file has {codes.size} weights, {position} are described: it is damaged")
    return tf1.from_tensors(tensors, None, "pix2pix-tensorflow .pict", _OUTPUT_SCALE)


def _sections(data: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The bytes of the three sections."""
    sections = []
    position = 0
    for _ in range(3):
        size = int.from_bytes(data[position : position + 4].tobytes())
        position += 4
        sections.append(data[position : position + size])
        position += size
    if position != data.size or sections[0].size > _MAX_JSON:
        raise CheckpointError(f"the sections take {position} bytes, the file has {data.size}: it is cut off or damaged")
    return sections[0], sections[1], sections[2]


def _described(variable: Any) -> tuple[str, tuple[int, ...]]:
    """(name, shape) of one entry of the description."""
    name = entry(variable, "name", str, "a weight")
    shape = entry(variable, "shape", list, f"weight {shown(name)}")
    if len(shape) > 4 or not all(type(n) is int and 1 <= n < 2**31 for n in shape):
        raise CheckpointError(f"weight {shown(name)} has shape {shown(shape)}, expected up to 4 positive numbers")
    return name, tuple(shape)
