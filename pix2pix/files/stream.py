"""The stream: picture files -> decode -> batches -> engine -> encode -> picture files.

Decoding and encoding run on a few threads beside the engine, always a batch ahead of it and one behind, over bounded
queues: memory doesn't grow with the number of pictures. A picture that cannot be read or written becomes a failed
:class:`Outcome` and never stops the run.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path
from typing import Literal

import numpy as np

from ..engines.base import Engine
from . import images, metrics
from .gallery import Thumbnails
from .images import Fitting, Picture
from .jobs import Job

BATCH_SIZE = 8


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one job. ``reason`` is why it failed; ``metrics`` compare the output with the target, if there
    is one; ``thumbnails`` are for a gallery, if one was asked for."""

    job: Job
    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    metrics: Mapping[str, float] | None = None
    thumbnails: Thumbnails | None = None


def translate_files(
    engine: Engine,
    jobs: Sequence[Job],
    fitting: Fitting,
    *,
    finished: Collection[Path] = (),
    batch_size: int = BATCH_SIZE,
    thumbnail_edge: int | None = None,
) -> Generator[Outcome, None, None]:
    """Translate picture files; yields an outcome for each job as it comes, not always in order.

    ``finished`` are outputs that are kept as they are. ``thumbnail_edge`` asks for thumbnails of that many pixels.
    Batches hold up to ``batch_size`` pictures of one size, fewer of pictures larger than the model's own size.

    Raises ValueError before anything is read if an output's file format cannot hold what the generator makes, OSError
    if no further output can be written (disk full), and what the engine raises.
    """
    if batch_size < 1:
        raise ValueError(f"got a batch size of {batch_size}, expected 1 or more")
    for job in jobs:
        images.check_writable(job.output, fitting.out_channels)
    todo, skipped = split(jobs, finished)
    return translate_stream(
        engine, iter(todo), fitting, skipped=skipped, batch_size=batch_size, thumbnail_edge=thumbnail_edge
    )


def translate_stream(
    engine: Engine,
    todo: Iterator[Job],
    fitting: Fitting,
    *,
    skipped: Sequence[Job] = (),
    batch_size: int = BATCH_SIZE,
    thumbnail_edge: int | None = None,
) -> Generator[Outcome, None, None]:
    """:func:`translate_files` for jobs that become known one by one: about two batches are taken ahead of the engine.

    ``skipped`` are jobs whose outputs are there. They come first.
    """
    return _Run(engine, fitting, batch_size, thumbnail_edge).outcomes(todo, skipped)


def split(jobs: Sequence[Job], finished: Collection[Path]) -> tuple[list[Job], list[Job]]:
    """The jobs that are to be done, and those whose output is in ``finished``."""
    return [j for j in jobs if j.output not in finished], [j for j in jobs if j.output in finished]


def best_batch_size(engine: Engine) -> int:
    """How many pictures of 256 x 256 an engine does best at once."""
    return engine.info.best_batch


def io_threads() -> int:
    """How many threads decode and encode: the cores that this process may use, within 2 to 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(2, cores))


@dataclass
class _Run:
    engine: Engine
    fitting: Fitting
    batch_size: int
    thumbnail_edge: int | None
    threads: int = field(default_factory=io_threads)

    def __post_init__(self) -> None:
        self.todo: Iterator[Job] = iter(())
        self.decoding: deque[tuple[Job, Future[Picture]]] = deque()
        self.groups: dict[tuple[int, ...], list[tuple[Job, Picture]]] = {}  # decoded, by shape
        self.again: deque[list[tuple[Job, Picture]]] = deque()  # batches that the engine didn't come to
        self.running: deque[list[tuple[Job, Picture]]] = deque()  # batches given to the engine
        self.writing: deque[Future[Outcome]] = deque()
        self.ready: deque[Outcome] = deque()

    def outcomes(self, todo: Iterator[Job], skipped: Sequence[Job]) -> Generator[Outcome, None, None]:
        """An outcome for each job, those of ``skipped`` first."""
        self.todo = todo
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="pix2pix-io")
        try:
            yield from self._skip(pool, skipped)
            yield from self._translate(pool)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _skip(self, pool: ThreadPoolExecutor, skipped: Sequence[Job]) -> Iterator[Outcome]:
        """Outcomes of jobs done by an earlier run; their files are read only if something of them is shown."""
        for job in skipped:
            if self.fitting.pair or self.thumbnail_edge:
                self.writing.append(pool.submit(self._review, job))
                yield from self._written(limit=2 * self.threads)
            else:
                yield Outcome(job, "skipped")
        yield from self._written(limit=0)

    def _translate(self, pool: ThreadPoolExecutor) -> Iterator[Outcome]:
        while True:
            try:
                with closing(self.engine.stream(self._batches(pool))) as results:
                    for result in results:
                        for (job, picture), pixels in zip(self.running.popleft(), result, strict=True):
                            output = pixels[: picture.height, : picture.width]
                            self.writing.append(pool.submit(self._finish, job, picture, output))
                        yield from self._written(limit=2 * self.batch_size)
                yield from self._written(limit=0)
                return
            except MemoryError:  # the oldest batch's; those behind it are given to a new stream
                for job, picture in self.running.popleft():
                    height, width = picture.pixels.shape[:2]
                    reason = f"not enough memory to translate {width}x{height} pixels: use --fit resize"
                    self.ready.append(Outcome(job, "failed", reason))
                self.again.extend(self.running)
                self.running.clear()

    # -- in front of the engine -------------------------------------------------------------------------------

    def _batches(self, pool: ThreadPoolExecutor) -> Iterator[np.ndarray]:
        while batch := self._next_batch(pool):
            self.running.append(batch)
            height, width = batch[0][1].pixels.shape[:2]
            array = self.engine.empty(len(batch), height, width)
            for row, (_, picture) in zip(array, batch, strict=True):
                row[...] = picture.pixels
            yield array

    def _next_batch(self, pool: ThreadPoolExecutor) -> list[tuple[Job, Picture]]:
        """A full batch of pictures of one size; the fullest if too many wait or no more come; empty at the end."""
        if self.again:
            return self.again.popleft()
        while sum(map(len, self.groups.values())) < 4 * self.batch_size:
            while len(self.decoding) < self.batch_size + self.threads and (job := next(self.todo, None)):
                self.decoding.append((job, pool.submit(images.read, job.source, self.fitting)))
            if not self.decoding:
                break
            job, future = self.decoding.popleft()
            try:
                picture = future.result()
            except images.ImageError as error:
                self.ready.append(Outcome(job, "failed", str(error)))
                continue
            shape = picture.pixels.shape
            group = self.groups.setdefault(shape, [])
            group.append((job, picture))
            if len(group) >= self._capacity(*shape):
                return self.groups.pop(shape)
        return self.groups.pop(max(self.groups, key=lambda shape: len(self.groups[shape])), []) if self.groups else []

    def _capacity(self, height: int, width: int, _channels: int) -> int:
        """How many pictures of this size make a batch: no more pixels than ``batch_size`` of the model's own size."""
        own_size = max(self.engine.generator.size, self.engine.generator.multiple)
        return max(1, min(self.batch_size, self.batch_size * own_size**2 // (height * width)))

    # -- behind the engine ------------------------------------------------------------------------------------

    def _finish(self, job: Job, picture: Picture, output: np.ndarray) -> Outcome:
        try:
            images.write(job.output, images.encode(output, job.output.suffix))
        except OSError as error:
            if images.is_fatal(error):
                raise
            return Outcome(job, "failed", f"cannot write {str(job.output)!r}: {error.strerror or error}")
        return self._outcome(job, "done", picture, output)

    def _review(self, job: Job) -> Outcome:
        """The outcome of a job that an earlier run did."""
        try:
            picture = images.read(job.source, self.fitting)
            output = images.read_plain(job.output, self.fitting.out_channels)
            if output.shape[:2] != (picture.height, picture.width):
                return Outcome(job, "failed", f"{str(job.output)!r} has another size than it should: use --overwrite")
            return self._outcome(job, "skipped", picture, output)
        except images.ImageError as error:
            return Outcome(job, "failed", f"{error} (translated earlier)")

    def _outcome(self, job: Job, status: Literal["done", "skipped"], picture: Picture, output: np.ndarray) -> Outcome:
        compared = metrics.compare(output, picture.target) if picture.target is not None else None
        thumbnails = None
        if self.thumbnail_edge:
            shown = picture.pixels[: picture.height, : picture.width]
            thumbnails = Thumbnails.of(shown, output, picture.target, self.thumbnail_edge)
        return Outcome(job, status, "", compared, thumbnails)

    def _written(self, limit: int) -> Iterator[Outcome]:
        """The outcomes that are there; waits until no more than ``limit`` pictures are being written."""
        while self.writing and (len(self.writing) > limit or self.writing[0].done()):
            self.ready.append(self.writing.popleft().result())
        while self.ready:
            yield self.ready.popleft()


def raw_frames(source: Path, height: int, width: int, channels: int) -> int:
    """How many frames of height x width x channels bytes a raw file holds. Raises ValueError if not a whole number."""
    frame, size = height * width * channels, source.stat().st_size
    if size == 0 or size % frame:
        raise ValueError(
            f"{str(source)!r} has {size} bytes, expected a multiple of {frame}: frames of {width}x{height} pixels, "
            f"{channels} bytes each; use --size for another size"
        )
    return size // frame


def translate_raw(
    engine: Engine, source: Path, output: Path, size: tuple[int, int] | None = None, batch_size: int = BATCH_SIZE
) -> Generator[int, None, None]:
    """Translate a file of raw frames N x H x W x Cin bytes into one of N x H x W x Cout bytes.

    Yields the number of frames of each batch that was written. ``size`` is (H, W), by default the size that the model
    was trained at. The output is written to ``<output>.partial``, then renamed. Raises ValueError for a file that is
    not whole frames or a size that the generator cannot take, OSError if a file cannot be read or written.
    """
    generator = engine.generator
    height, width = size or (generator.size, generator.size)
    generator.check_size(height, width)
    left = raw_frames(source, height, width, generator.in_channels)
    partial = output.with_name(output.name + ".partial")

    def batches(file: BufferedReader) -> Iterator[np.ndarray]:
        for first in range(0, left, batch_size):
            batch = engine.empty(min(batch_size, left - first), height, width)
            if file.readinto(batch.data.cast("B")) != batch.nbytes:
                raise ValueError(f"{str(source)!r} became shorter while it was read")
            yield batch

    output.parent.mkdir(parents=True, exist_ok=True)
    with open(source, "rb") as reader, open(partial, "wb") as writer:
        with closing(engine.stream(batches(reader))) as results:
            for result in results:
                writer.write(result.data.cast("B"))
                yield len(result)
    os.replace(partial, output)
