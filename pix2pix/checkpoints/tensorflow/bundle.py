"""TensorFlow's checkpoints of version 2, tensor bundles: ``PREFIX.index`` and ``PREFIX.data-NNNNN-of-NNNNN``.

The index is a sorted table: name of a tensor -> type, shape, shard, offset, size and checksum. The shards are the
tensors' raw numbers. All checksums of what is read are verified.

Source: tensorflow/core/util/tensor_bundle/ and tensorflow/core/protobuf/tensor_bundle.proto of
https://github.com/tensorflow/tensorflow.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np

from ...errors import CheckpointError
from ..budget import Budget
from ..containers.crc32c import crc32c, unmasked
from ..containers.protobuf import Message, varint
from ..containers.sstable import read_table
from ..model_file import MAX_STRUCTURE, ModelFile, inside, item_size, opened
from ..tensors import StoredTensor
from ..text import shown

SUFFIX = ".index"
_MAX_SHARDS = 1000
_MAX_RANK = 8
_BIG_ENDIAN = 1
_STRING = 7
_DTYPES = {1: "float32", 2: "float64", 14: "bfloat16", 19: "float16"}
_DTYPES |= {3: "int32", 7: "string", 9: "int64", 10: "bool"}  # counters and the graph of objects


class Entry(NamedTuple):
    """A tensor of a bundle: its number type's code, its shape, its ``size`` bytes in a shard, and their checksum."""

    code: int
    shape: tuple[int, ...]
    shard: Path
    offset: int
    size: int
    checksum: int

    @property
    def dtype(self) -> str:
        """Name of the number type."""
        return _DTYPES.get(self.code, f"number {self.code} of TensorFlow's")


@dataclass(frozen=True, slots=True)
class Bundle:
    """The tensors of one checkpoint, not read yet."""

    entries: dict[str, Entry]
    budget: Budget

    def tensors(self) -> dict[str, StoredTensor]:
        """All tensors by name."""
        return {
            name: StoredTensor(entry.shape, entry.dtype, partial(self._numbers, name))
            for name, entry in self.entries.items()
        }

    def string(self, name: str) -> bytes:
        """The one string that a tensor without dimensions holds: its length, a checksum of that, and its bytes."""
        entry = self.entries[name]
        if entry.code != _STRING or entry.shape or entry.size > MAX_STRUCTURE:
            raise CheckpointError(f"{shown(name)} is no single string: the checkpoint is damaged")
        with opened(entry.shard, self.budget) as shard:
            data = shard.read(entry.offset, entry.size)
        length, position = varint(data, 0, f"the string {shown(name)}")
        if length != len(data) - position - 4:
            raise CheckpointError(f"{shown(name)} has another length than it says: the checkpoint is damaged")
        # the checksum takes the length as a number of fixed size
        self._verify(name, length.to_bytes(4 if length < 2**32 else 8, "little") + data[position:])
        return data[position + 4 :]

    def _numbers(self, name: str) -> np.ndarray:
        """The numbers of a tensor in their own type."""
        entry = self.entries[name]
        if math.prod(entry.shape) * item_size(entry.dtype) != entry.size:
            raise CheckpointError(f"{shown(name)} has {entry.size} bytes for {shown(entry.shape)} numbers: damaged")
        with opened(entry.shard, self.budget) as shard:
            numbers = shard.numbers(entry.offset, entry.dtype, entry.shape)
        self._verify(name, numbers.reshape(-1).view(np.uint8))
        return numbers

    def _verify(self, name: str, data: bytes | np.ndarray) -> None:
        entry = self.entries[name]
        if crc32c(data) != unmasked(entry.checksum):
            raise CheckpointError(
                f"{shown(name)} has a wrong checksum: {entry.shard.name} is damaged, copy the checkpoint again"
            )


def read_bundle(index: ModelFile) -> Bundle:
    """The bundle with this index. Raises CheckpointError."""
    table = read_table(index)
    shards = _shards(table.pop(b"", memoryview(b"")), index)
    entries = {}
    for key, value in table.items():
        name = key.decode("utf-8", "backslashreplace")
        entries[name] = _entry(name, Message(value, f"the entry of {shown(name)}", index.budget), shards)
    _check_places(entries)
    return Bundle(entries, index.budget)


def shards_of(index: ModelFile) -> list[Path]:
    """The files of numbers that belong to this index. Raises CheckpointError."""
    return _shards(read_table(index).get(b"", memoryview(b"")), index)


def _shards(head: memoryview, index: ModelFile) -> list[Path]:
    """The files of numbers, as many as the head of the index says."""
    header = Message(head, "the head of the index", index.budget)
    count = header.number(1)
    if header.number(2) == _BIG_ENDIAN:
        raise CheckpointError("the checkpoint was written by a big-endian machine, which is not supported")
    if not 1 <= count <= _MAX_SHARDS:
        raise CheckpointError(f"the index claims {count} shards, expected 1 to {_MAX_SHARDS}: it is damaged")
    prefix = index.path.name.removesuffix(SUFFIX)
    return [_shard(index.path.parent, f"{prefix}.data-{number:05d}-of-{count:05d}") for number in range(count)]


def _shard(folder: Path, name: str) -> Path:
    path = inside(folder, name)
    if path is None:
        raise CheckpointError(f"{name}, which has the numbers, is not in the folder of the index: copy both there")
    return path


def _entry(name: str, described: Message, shards: list[Path]) -> Entry:
    if described.parts(7):
        raise CheckpointError(f"{shown(name)} is stored in slices (a partitioned variable), which is not supported")
    shape = tuple(size.number(1) for size in described.message(2).messages(2))
    shard = described.number(3)
    if len(shape) > _MAX_RANK or any(size >= 2**31 for size in shape) or shard >= len(shards):
        raise CheckpointError(f"{shown(name)} has shape {shown(shape)} in shard {shard}: the index is damaged")
    offset, size, checksum = (described.number(field) for field in (4, 5, 6))
    return Entry(described.number(1), shape, shards[shard], offset, size, checksum)


def _check_places(entries: dict[str, Entry]) -> None:
    """Raise CheckpointError unless all tensors lie inside their shards and none inside another."""
    ends: dict[Path, int] = {}
    sizes: dict[Path, int] = {}
    for name, entry in sorted(entries.items(), key=lambda item: (item[1].shard.name, item[1].offset, item[1].size)):
        size = sizes.get(entry.shard) or sizes.setdefault(entry.shard, entry.shard.stat().st_size)
        end = entry.offset + entry.size
        if end > size:
            raise CheckpointError(
                f"{entry.shard.name} has {size} bytes, {shown(name)} should end at {end}: it is cut off"
            )
        if entry.offset < ends.get(entry.shard, 0):
            raise CheckpointError(f"{shown(name)} lies inside another tensor: the index is damaged")
        ends[entry.shard] = end
