"""Sorted tables of keys and values, in LevelDB's format (SSTable).

A table is a sequence of blocks. A block is a sequence of entries, each of which shares the beginning of its key with
the entry before; then the positions of entries with whole keys, which only a search needs; then one byte for the
compression and a checksum. The last 48 bytes of the file say where the block is that lists all blocks of data.

Source: https://github.com/google/leveldb/blob/main/doc/table_format.md.
"""

from __future__ import annotations

from collections.abc import Iterator

from ...errors import CheckpointError
from ..model_file import ModelFile
from .crc32c import crc32c, unmasked
from .protobuf import varint

MAGIC = bytes.fromhex("57fb808b247547db")  # the last bytes of every table
_FOOTER = 48
_TRAILER = 5
_STEPS = 5  # of the budget, for one entry
_STEPS_OF_A_BLOCK = 50  # for its checksum
_MAX_KEY = 2000  # bytes
_DAMAGED = "the index is damaged or cut off: copy the checkpoint again"


def read_table(file: ModelFile) -> dict[bytes, memoryview]:
    """All entries of a table, in the order of their keys. Raises CheckpointError."""
    whole = memoryview(file.read())
    if len(whole) < _FOOTER or not bytes(whole[-_FOOTER:]).endswith(MAGIC):
        raise CheckpointError("the index does not end as a sorted table does: it is cut off or something else")
    _, _, position = _handle(whole, len(whole) - _FOOTER)  # of the block about blocks, which is empty
    offset, size, _ = _handle(whole, position)
    entries: dict[bytes, memoryview] = {}
    last = None
    for _, place in _entries(_block(whole, offset, size)):
        offset, size, _ = _handle(place, 0)
        file.budget.spend(_STEPS_OF_A_BLOCK)
        for key, value in _entries(_block(whole, offset, size)):
            file.budget.spend(_STEPS)
            if last is not None and key <= last:
                raise CheckpointError("the index has a name twice or out of order: the file is damaged")
            last = key
            entries[key] = value
    return entries


def _handle(data: memoryview, position: int) -> tuple[int, int, int]:
    """(offset, size) of a block, which are two numbers of variable length, and the position after them."""
    offset, position = varint(data, position, "the index")
    size, position = varint(data, position, "the index")
    return offset, size, position


def _block(whole: memoryview, offset: int, size: int) -> memoryview:
    """The entries of a block, once its checksum is verified."""
    end = offset + size
    if end + _TRAILER > len(whole) - _FOOTER or size < 4:
        raise CheckpointError(_DAMAGED)
    stored = int.from_bytes(whole[end + 1 : end + _TRAILER], "little")
    if crc32c(whole[offset : end + 1]) != unmasked(stored):
        raise CheckpointError(f"the index has a wrong checksum: {_DAMAGED}")
    if whole[end] != 0:
        raise CheckpointError("the index is compressed, as before TensorFlow 1.2: save it again with a later one")
    restarts = int.from_bytes(whole[end - 4 : end], "little")
    if 4 * restarts + 4 >= size:  # no program writes empty blocks, and each costs a checksum
        raise CheckpointError(_DAMAGED)
    return whole[offset : end - 4 * restarts - 4]


def _entries(block: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """(key, value) of every entry of a block."""
    position, key = 0, b""
    while position < len(block):
        shared, position = varint(block, position, "the index")
        own, position = varint(block, position, "the index")
        size, position = varint(block, position, "the index")
        end = position + own + size
        if shared > len(key) or shared + own > _MAX_KEY or end > len(block):
            raise CheckpointError(_DAMAGED)
        key = key[:shared] + bytes(block[position : position + own])
        yield key, block[end - size : end]
        position = end
