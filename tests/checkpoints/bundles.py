"""The parts of TensorFlow's files, read and written; also such as it would not write, with true checksums."""

from __future__ import annotations

import random
import struct
from pathlib import Path

from pix2pix.checkpoints.budget import Budget
from pix2pix.checkpoints.containers.crc32c import crc32c
from pix2pix.checkpoints.containers.sstable import MAGIC, read_table
from pix2pix.checkpoints.model_file import opened
from pix2pix.checkpoints.tensorflow.bundle import Bundle, read_bundle

NUMBERS = (0, 1, 7, 127, 128, 255, 65536, 2**31 - 1, 2**32, 2**62, 2**63 - 1)


def table(index: Path) -> dict[bytes, bytes]:
    """The entries of an index."""
    with opened(index, Budget()) as file:
        return {key: bytes(value) for key, value in read_table(file).items()}


def bundle(index: Path) -> Bundle:
    """The checkpoint of an index."""
    with opened(index, Budget()) as file:
        return read_bundle(file)


def varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def masked(data: bytes) -> bytes:
    """The checksum of these bytes as TensorFlow stores it."""
    checksum = crc32c(data)
    return struct.pack("<I", ((checksum >> 15 | checksum << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def field(number: int, value: int | bytes) -> bytes:
    """One field of a protocol buffer."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def table_of(
    entries: list[tuple[bytes, bytes]], rng: random.Random | None = None, per_block: int | None = None
) -> bytes:
    """A sorted table of these entries, in one block; with ``rng``, in several and with a lie now and then."""

    def number(honest: int) -> bytes:
        return varint(rng.choice(NUMBERS) if rng and rng.random() < 0.0005 else honest)

    def block(pairs: list[tuple[bytes, bytes]]) -> bytes:
        content = b"".join(number(0) + number(len(k)) + number(len(v)) + k + v for k, v in pairs)
        content += struct.pack("<II", 0, rng.choice(NUMBERS) & 0xFFFFFFFF if rng and rng.random() < 0.02 else 1) + b"\0"
        return content + masked(content)

    per_block = per_block or (rng.choice((1, 3, 1000)) if rng else len(entries))
    out, handles = b"", []
    for start in range(0, len(entries), per_block):
        data = block(entries[start : start + per_block])
        handles.append((entries[start][0], number(len(out)) + number(len(data) - 5)))
        out += data
        if rng and rng.random() < 0.02:
            handles.append(rng.choice(handles))
    index = block(handles)
    footer = varint(0) + varint(0) + number(len(out)) + number(len(index) - 5)
    return out + index + footer[:40].ljust(40, b"\0") + MAGIC
