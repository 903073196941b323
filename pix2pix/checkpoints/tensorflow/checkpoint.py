"""TensorFlow's checkpoints as people have them: a folder, a prefix, or one of the files of that prefix.

A folder of training has a text file ``checkpoint`` that names the latest of its checkpoints, as they were called on
the machine that wrote them; each is a tensor bundle, see :mod:`.bundle`. TensorFlow 2 stores a graph of Python objects
with the tensors, TensorFlow 1 gives them the names of its variables.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import numpy as np

from ...model.generator import Generator
from ..common import inside, read_bounded
from . import objects, tf1
from .bundle import SUFFIX, read_bundle

_STATE = "checkpoint"
_MAX_STATE = 1 << 20
_NAMED = re.compile(rb'^\s*model_checkpoint_path\s*:\s*"([^"\n]*)"', re.MULTILINE)
_OF_PREFIX = re.compile(r"(.+)\.(?:meta|data-\d{5}-of-\d{5})$")


def index_of(path: Path) -> Path | None:
    """The index of the checkpoint that ``path`` is the prefix or another file of; None if it is no such thing."""
    prefix = match[1] if (match := _OF_PREFIX.match(path.name)) else path.name
    index = path.with_name(prefix + SUFFIX)
    return index if prefix and index.is_file() and not path.is_dir() else None


def latest(folder: Path) -> Path | None:
    """The index of the checkpoint that the folder's own record says is the latest, if both are there."""
    record = inside(folder, _STATE)
    if record is None:
        return None
    named = _NAMED.search(read_bounded(record, _MAX_STATE, "the record of a folder's checkpoints"))
    if named is None:
        return None
    # only the last part of the path counts: the folder may have been moved, and nothing outside of it is read
    name = re.split(r"[/\\]+", named[1].decode("utf-8", "replace"))[-1]
    return inside(folder, name + SUFFIX)


def read(index: Path, key: str | None) -> tuple[Generator, dict[str, np.ndarray]]:
    """Read the generator of the checkpoint with this index. Raises CheckpointError."""
    tensors = read_bundle(index)
    if objects.GRAPH in tensors:
        generator, weights = objects.read(tensors, key, "TensorFlow 2 checkpoint")
        # the tutorials, which write such checkpoints, call their generators with training=True
        return dataclasses.replace(generator, statistics="image"), weights
    direction = tf1.check_options(index.parent)
    origin = f"TensorFlow 1 checkpoint{', ' * bool(direction)}{direction}"
    return tf1.from_tensors(tensors, key, origin)
