"""Raw files: uint8 frames of one size, concatenated, without a header, as the course program takes and makes them."""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator
from contextlib import closing
from io import BufferedReader
from pathlib import Path

import numpy as np

from ..atomic import open_atomically
from ..engines.base import Engine
from .fitting import ENGINE_COPIES, RESULT_COPIES
from .limits import DEFAULT, NEGLIGIBLE, Limits, network_bytes, too_large
from .outcome import NOT_FINITE, is_finite, is_suspicious
from .provenance import Made, Source, absolute
from .stream import BATCH_SIZE

RAW = ".rgb"  # the suffix of such files


def raw_frames(source: Path, height: int, width: int, channels: int) -> int:
    """How many frames of height x width x channels bytes a raw file holds. Raises ValueError if not a whole number."""
    frame, size = height * width * channels, source.stat().st_size
    if size == 0 or size % frame:
        raise ValueError(
            f"{str(source)!r} has {size} bytes, expected a multiple of {frame}: frames of {width}x{height} pixels, "
            f"{channels} bytes each; use --size for another size"
        )
    return size // frame


def frames_at_once(engine: Engine, height: int, width: int, batch_size: int, limits: Limits = DEFAULT) -> int:
    """How many frames of height x width pixels to give an engine: up to ``batch_size``, what ``limits`` leave room for.

    Raises ValueError if the memory does not suffice for one.
    """
    generator = engine.generator
    frame = height * width * (ENGINE_COPIES * generator.in_channels + RESULT_COPIES * generator.out_channels)
    needed, available = round(height * width * network_bytes(engine)) + frame, limits.available()
    if needed > max(available, NEGLIGIBLE):
        raise ValueError(f"frames are too large: {too_large(width, height, needed, available)}")
    return min(batch_size, 1 + max(0, available - needed) // frame)


def translate_raw(
    engine: Engine,
    source: Path,
    output: Path,
    size: tuple[int, int] | None = None,
    batch_size: int = BATCH_SIZE,
    limits: Limits = DEFAULT,
) -> Generator[int, None, Made]:
    """Translate a file of raw frames N x H x W x Cin bytes into one of N x H x W x Cout bytes.

    Yields the number of frames of each batch that was written, and returns what was made, without digests. ``size`` is
    (H, W), by default the size that the model was trained at. The output appears when it is whole and on the disk.
    Batches hold fewer than ``batch_size`` frames where these would take more memory than ``limits`` leave. Raises
    ValueError for a file that is not whole frames, a size that the generator cannot take or that is too large for the
    memory, OSError if a file cannot be read or written.
    """
    generator = engine.generator
    height, width = size or (generator.size, generator.size)
    generator.check_size(height, width)
    shape = height, width, generator.in_channels
    total = raw_frames(source, *shape)
    batch_size = frames_at_once(engine, height, width, batch_size, limits)

    def batches(file: BufferedReader) -> Iterator[np.ndarray]:
        for first in range(0, total, batch_size):
            batch = engine.empty(min(batch_size, total - first), height, width)
            if file.readinto(batch.data.cast("B")) != batch.nbytes:
                raise ValueError(f"{str(source)!r} became shorter while it was read")
            yield batch

    before, done = source.stat(), 0
    with open(source, "rb") as reader, open_atomically(output) as writer:
        with closing(engine.stream(batches(reader))) as results:
            for result in results:
                for y in result:
                    if is_suspicious(y) and not is_finite(engine, _frame(source, done, shape)):
                        raise ValueError(f"frame {done}: {NOT_FINITE}")
                    done += 1
                writer.write(result.data.cast("B"))
                yield len(result)
        size_made = writer.tell()
    return Made(Source(absolute(source), before.st_size, before.st_mtime_ns, None), size_made, None)


def _frame(source: Path, number: int, shape: tuple[int, int, int]) -> np.ndarray:
    """One frame of a raw file, uint8 (H,W,C)."""
    length = math.prod(shape)
    return np.fromfile(source, np.uint8, length, offset=number * length).reshape(shape)
