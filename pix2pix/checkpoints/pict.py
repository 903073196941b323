"""``.pict`` files, which the web demos of affinelayer/pix2pix-tensorflow and ml5.js load.

Three sections, each a big-endian 32-bit length and as many bytes: JSON with the names and shapes of the variables of a
TensorFlow 1 generator, without moving statistics; a codebook of 256 little-endian float32; and one byte for each
weight, its index in the codebook.

Source: server/tools/export-checkpoint.py of https://github.com/affinelayer/pix2pix-tensorflow.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np

from ..errors import CheckpointError
from .model_file import ModelFile
from .sample import Sample
from .tensorflow import tf1
from .tensors import StoredTensor, Unread
from .text import entry, one_generator, read_json, shown

_MAX_JSON = 1 << 20  # bytes; a U-Net of 8 levels takes some 5,000
_CODES = 256
_OUTPUT_SCALE = 255.0  # the demos write to a canvas


def recognises(sample: Sample) -> bool:
    """Whether a file begins with a length, then JSON about variables."""
    start = sample.start
    return int.from_bytes(start[:4]) <= _MAX_JSON and start[4:5] == b"[" and b'"name"' in start and b'"shape"' in start


def read(file: ModelFile, key: str | None) -> Unread:
    """Read a .pict file. Raises CheckpointError."""
    one_generator(key)
    described, codebook, codes = _sections(file)
    variables = read_json(described.read(), "the description of the weights")
    if codebook.size != 4 * _CODES or not isinstance(variables, list):
        raise CheckpointError(f"the codebook has {codebook.size} bytes, expected {4 * _CODES}: the file is damaged")
    values = codebook.numbers(0, "float32", (_CODES,)).astype(np.float32, copy=False)
    tensors: dict[str, StoredTensor] = {}
    position = 0
    for variable in variables:
        file.budget.spend()
        name, shape = _described(variable)
        size = math.prod(shape)
        if name in tensors or position + size > codes.size:
            raise CheckpointError(f"{shown(name)} is there twice, or its {size} weights are not: the file is damaged")
        tensors[name] = StoredTensor(shape, "float32", partial(_decoded, codes, position, shape, values))
        position += size
    if position != codes.size:
        raise CheckpointError(f"the file has {codes.size} weights, {position} are described: it is damaged")
    return tf1.from_tensors(tensors, None, "pix2pix-tensorflow .pict", _OUTPUT_SCALE)


def _decoded(codes: ModelFile, position: int, shape: tuple[int, ...], codebook: np.ndarray) -> np.ndarray:
    """The float32 numbers that the codes from byte ``position`` on stand for."""
    numbers: np.ndarray = codebook[codes.numbers(position, "uint8", shape)]
    return numbers


def _sections(file: ModelFile) -> tuple[ModelFile, ModelFile, ModelFile]:
    """The three sections."""
    sections: list[ModelFile] = []
    position = 0
    for _ in range(3):
        if position + 4 > file.size:
            raise CheckpointError(f"the file ends after {len(sections)} of 3 sections: it is cut off or damaged")
        size = int.from_bytes(file.read(position, 4))
        sections.append(file.part(position + 4, min(size, file.size - position - 4)))
        position += 4 + size
    if position != file.size or sections[0].size > _MAX_JSON:
        raise CheckpointError(f"the sections take {position} bytes, the file has {file.size}: it is cut off or damaged")
    return sections[0], sections[1], sections[2]


def _described(variable: Any) -> tuple[str, tuple[int, ...]]:
    """(name, shape) of one entry of the description."""
    name = entry(variable, "name", str, "a weight")
    shape = entry(variable, "shape", list, f"weight {shown(name)}")
    if len(shape) > 4 or not all(type(n) is int and 1 <= n < 2**31 for n in shape):
        raise CheckpointError(f"weight {shown(name)} has shape {shown(shape)}, expected up to 4 positive numbers")
    return name, tuple(shape)
