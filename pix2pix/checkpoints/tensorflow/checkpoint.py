"""TensorFlow's checkpoints as people have them: a folder, a prefix, or one of the files of that prefix.

A folder of training has a text file ``checkpoint`` that names the latest of its checkpoints, as they were called on
the machine that wrote them. Each checkpoint is a tensor bundle, see :mod:`.bundle`. TensorFlow 2 stores a graph of
Python objects with the tensors; TensorFlow 1 stores them under the names of its variables.
"""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

from ..budget import Budget
from ..containers.sstable import MAGIC
from ..model_file import ModelFile, inside, opened, read_beside
from ..sample import Sample
from ..tensors import Unread
from . import objects, tf1
from .bundle import SUFFIX, read_bundle, shards_of

_RECORD = "checkpoint"
_NAMED = re.compile(rb'^[ \t]*model_checkpoint_path[ \t]*:[ \t]*"([^"\n]*)"', re.MULTILINE)
_OF_PREFIX = re.compile(r"(.+)\.(?:meta|data-\d{5}-of-\d{5})$")


def recognises(sample: Sample) -> bool:
    """Whether this is an index; its name still tells when its end is cut off."""
    return sample.end.endswith(MAGIC) or sample.name.endswith(SUFFIX)


def locate(path: Path) -> Path | None:
    """The index of the checkpoint that a folder, a prefix or another of a checkpoint's files means; None if none."""
    if path.is_dir():
        return _latest(path)
    prefix = match[1] if (match := _OF_PREFIX.match(path.name)) else path.name
    index = path.with_name(prefix + SUFFIX)
    return index if prefix and index.is_file() else None


def files(index: Path) -> list[Path]:
    """The index, the shards and the options of a checkpoint."""
    with opened(index, Budget()) as file:
        shards = shards_of(file)
    options = inside(index.parent, tf1.OPTIONS)
    return [index, *shards, *([options] if options else [])]


def read(index: ModelFile, key: str | None) -> Unread:
    """Read the generator of the checkpoint with this index. Raises CheckpointError."""
    bundle = read_bundle(index)
    if objects.GRAPH in bundle.entries:
        generator, weights = objects.read(bundle, key, "TensorFlow 2 checkpoint")
        # the tutorials, which write such checkpoints, call their generators with training=True
        return dataclasses.replace(generator, statistics="image"), weights
    direction = tf1.check_options(index.path.parent, index.budget)
    origin = f"TensorFlow 1 checkpoint{', ' * bool(direction)}{direction}"
    return tf1.from_tensors(bundle.tensors(), key, origin)


def _latest(folder: Path) -> Path | None:
    """The index of the checkpoint that the folder's own record says is the latest, if both exist."""
    record = inside(folder, _RECORD)
    if record is None:
        return None
    named = _NAMED.search(read_beside(record, Budget()))
    if named is None:
        return None
    # Only the last part of the path counts: the folder may have been moved, and nothing outside of it is read.
    name = re.split(r"[/\\]+", named[1].decode("utf-8", "replace"))[-1]
    return inside(folder, name + SUFFIX)
