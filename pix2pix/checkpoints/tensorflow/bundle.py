"""TensorFlow's checkpoints of version 2, tensor bundles: ``PREFIX.index`` and ``PREFIX.data-NNNNN-of-NNNNN``.

The index is a sorted table from names to places: type, shape, shard, offset, size and checksum of each tensor. The
shards are the tensors' raw numbers. Nothing is read but the index and the tensors that are asked for, from regular
files in the folder of the index; all checksums are verified.

Source: tensorflow/core/util/tensor_bundle/ and tensorflow/core/protobuf/tensor_bundle.proto of
https://github.com/tensorflow/tensorflow.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ...errors import CheckpointError
from ..common import inside, read_bounded, shown, to_float32
from ..containers.crc32c import crc32c, unmasked
from ..containers.protobuf import Message, varint
from ..containers.sstable import read_table

SUFFIX = ".index"
_MAX_INDEX = 1 << 20  # that of a model of 8 levels with all that Adam keeps has some 20,000 bytes
_MAX_ENTRY = 1000
_MAX_SHARDS = 1000
_MAX_RANK = 8
_BIG_ENDIAN = 1
_STRING = 7
_DTYPES = {1: ("float32", "<f4"), 2: ("float64", "<f8"), 14: ("bfloat16", "<u2"), 19: ("float16", "<f2")}
_OTHER_DTYPES = {3: ("int32", 4), 9: ("int64", 8), 10: ("bool", 1)}  # counters, which are only skipped


@dataclass(frozen=True, slots=True)
class BundleTensor:
    """One tensor of a bundle, not read yet: where its ``size`` bytes are, and the checksum that they must have."""

    name: str
    code: int  # of its type of numbers
    shape: tuple[int, ...]
    shard: Path
    offset: int
    size: int
    checksum: int

    @property
    def dtype(self) -> str:
        """Name of the number type in the file."""
        if self.code == _STRING:
            return "string"
        return (_DTYPES | _OTHER_DTYPES).get(self.code, (f"number {self.code} of TensorFlow's", 0))[0]

    def read(self) -> np.ndarray:
        """The numbers as a float32 array of the tensor's shape. Raises CheckpointError for other types of numbers."""
        if self.code not in _DTYPES:
            raise CheckpointError(f"{shown(self.name)} has numbers of type {self.dtype}, expected floating point")
        dtype, stored = _DTYPES[self.code]
        if math.prod(self.shape) * np.dtype(stored).itemsize != self.size:
            raise CheckpointError(f"{shown(self.name)} has {self.size} bytes for {shown(self.shape)} numbers: damaged")
        data = self._bytes()
        self._verify(data)
        return to_float32(data.view(stored), dtype).reshape(self.shape)

    def read_string(self) -> bytes:
        """The one string that a tensor without dimensions holds: its length, a checksum of that, and its bytes."""
        if self.code != _STRING or self.shape:
            raise CheckpointError(f"{shown(self.name)} is no single string: the checkpoint is damaged")
        data = self._bytes().tobytes()
        length, position = varint(data, 0, f"the string {shown(self.name)}")
        if length != len(data) - position - 4:
            raise CheckpointError(f"{shown(self.name)} has another length than it says: the checkpoint is damaged")
        # the checksum takes the length as a number of fixed size
        self._verify(length.to_bytes(4 if length < 2**32 else 8, "little") + data[position:])
        return data[position + 4 :]

    def _bytes(self) -> np.ndarray:
        data = np.fromfile(self.shard, np.uint8, self.size, offset=self.offset)
        if data.size != self.size:
            raise CheckpointError(f"{self.shard.name} changed while it was read: try again")
        return data

    def _verify(self, data: bytes | np.ndarray) -> None:
        if crc32c(data) != unmasked(self.checksum):
            raise CheckpointError(
                f"{shown(self.name)} has a wrong checksum: {self.shard.name} is damaged, copy the checkpoint again"
            )


def read_bundle(index: Path) -> dict[str, BundleTensor]:
    """The tensors of the bundle whose index is the file ``index``, by name. Raises CheckpointError."""
    table = read_table(read_bounded(index, _MAX_INDEX, "the index of a checkpoint"))
    header = Message(table.pop(b"", memoryview(b"")), "the head of the index")
    count = header.number(1)
    if header.number(2) == _BIG_ENDIAN:
        raise CheckpointError("the checkpoint was written by a big-endian machine, which is not supported")
    if not 1 <= count <= _MAX_SHARDS:
        raise CheckpointError(f"the index claims {count} shards, expected 1 to {_MAX_SHARDS}: it is damaged")
    prefix = index.name.removesuffix(SUFFIX)
    shards = [_shard(index.parent, f"{prefix}.data-{number:05d}-of-{count:05d}") for number in range(count)]
    tensors = {}
    for key, value in table.items():
        name = key.decode("utf-8", "backslashreplace")
        if len(value) > _MAX_ENTRY:
            raise CheckpointError(f"the entry of {shown(name)} has {len(value)} bytes, too many: the index is damaged")
        tensors[name] = _tensor(name, Message(value, f"the entry of {shown(name)}"), shards)
    _check_places(tensors.values())
    return tensors


def _shard(folder: Path, name: str) -> Path:
    path = inside(folder, name)
    if path is None:
        raise CheckpointError(f"{name}, which has the numbers, is not in the folder of the index: copy both there")
    return path


def _tensor(name: str, entry: Message, shards: list[Path]) -> BundleTensor:
    if entry.parts(7):
        raise CheckpointError(f"{shown(name)} is stored in slices (a partitioned variable), which is not supported")
    shape = tuple(size.number(1) for size in entry.message(2).messages(2))
    shard = entry.number(3)
    if len(shape) > _MAX_RANK or any(size >= 2**31 for size in shape) or shard >= len(shards):
        raise CheckpointError(f"{shown(name)} has shape {shown(shape)} in shard {shard}: the index is damaged")
    return BundleTensor(name, entry.number(1), shape, shards[shard], entry.number(4), entry.number(5), entry.number(6))


def _check_places(tensors: Iterable[BundleTensor]) -> None:
    """Raise CheckpointError unless all tensors lie inside their shards and none inside another."""
    ends: dict[Path, int] = {}
    sizes: dict[Path, int] = {}
    for tensor in sorted(tensors, key=lambda each: (each.shard, each.offset, each.size)):
        size = sizes.get(tensor.shard) or sizes.setdefault(tensor.shard, tensor.shard.stat().st_size)
        end = tensor.offset + tensor.size
        if end > size:
            raise CheckpointError(
                f"{tensor.shard.name} has {size} bytes, {shown(tensor.name)} should end at {end}: it is cut off"
            )
        if tensor.offset < ends.get(tensor.shard, 0):
            raise CheckpointError(f"{shown(tensor.name)} lies inside another tensor: the index is damaged")
        ends[tensor.shard] = end
