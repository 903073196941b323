"""The stream: image files -> decode -> batches -> engine -> encode -> image files.

Decoding and encoding run on a few threads beside the engine, a batch ahead of it and a batch behind. All queues are
bounded, so memory does not grow with the number of images. An image that cannot be read or written becomes a failed
:class:`Outcome` and never stops the run.
"""

from __future__ import annotations

import errno
import io
import os
from collections import deque
from collections.abc import Callable, Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from ..atomic import write_atomically
from ..engines.base import Engine
from ..errors import ImageError
from . import codecs, metrics
from .fitting import FittedImage, Fitting
from .gallery import Thumbnails
from .jobs import Job
from .provenance import Made, Source

BATCH_SIZE = 8
NOT_FINITE = "the generator's output is not finite: its weights are damaged, or its options (eps) do not suit it"


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one job.

    ``reason`` is why it failed. ``metrics`` compare the output with the target, if there is one. ``thumbnails`` are
    for a gallery, if one was asked for. ``made`` is for the run record; ``is_synced`` says that the output is on the
    disk.
    """

    job: Job
    status: Literal["done", "skipped", "failed"]
    reason: str = ""
    metrics: Mapping[str, float] | None = None
    thumbnails: Thumbnails | None = None
    made: Made | None = None
    is_synced: bool = False


Put = Callable[[Job, bytes, Made], None]  # writes the output of a job: its content, and what that was made from


def put_file(job: Job, content: bytes, _made: Made) -> None:
    """Write an output."""
    write_atomically(job.output, content, sync=False)


def translate_files(
    engine: Engine,
    jobs: Sequence[Job],
    fitting: Fitting,
    *,
    finished: Collection[Path] = (),
    batch_size: int = BATCH_SIZE,
    thumbnail_edge: int | None = None,
    put: Put = put_file,
) -> Generator[Outcome, None, None]:
    """Translate image files; yields an outcome for each job as it comes, not always in order.

    ``finished`` are outputs that are kept as they are. ``thumbnail_edge`` asks for thumbnails of that many pixels.
    Batches hold up to ``batch_size`` images of one size, fewer of images larger than the model's own size.

    ``put`` writes the outputs, on several threads. An OSError of it is an image's failure unless the disk is full.

    Raises ValueError before anything is read if an output's file format cannot hold what the generator makes, OSError
    if no further output can be written (disk full), and what the engine raises.
    """
    if batch_size < 1:
        raise ValueError(f"got a batch size of {batch_size}, expected 1 or more")
    for job in jobs:
        codecs.check_writable(job.output, fitting.out_channels)
    todo, skipped = split(jobs, finished)
    pipeline = _Pipeline(engine, fitting, batch_size, thumbnail_edge, put)
    return pipeline.outcomes(iter(todo), skipped)


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

    ``skipped`` are jobs whose outputs exist. Their outcomes come first.
    """
    return _Pipeline(engine, fitting, batch_size, thumbnail_edge).outcomes(todo, skipped)


def split(jobs: Sequence[Job], finished: Collection[Path]) -> tuple[list[Job], list[Job]]:
    """The jobs that are to be done, and those whose output is in ``finished``."""
    return [j for j in jobs if j.output not in finished], [j for j in jobs if j.output in finished]


def best_batch_size(engine: Engine) -> int:
    """How many images of 256 x 256 an engine runs most efficiently at once."""
    return engine.info.best_batch


def is_suspicious(y: np.ndarray) -> bool:
    """Whether a translated image (H,W,C) may come from values that are not finite.

    Engines turn these into one byte, black or white, and norms spread them over the whole image.
    """
    return y.flat[0] in (0, 255) and bool((y == y.flat[0]).all())


def is_finite(engine: Engine, x: np.ndarray) -> bool:
    """Whether the engine's output for an image, uint8 (H,W,Cin), is finite. Computes it in floating point."""
    return bool(np.isfinite(engine.run(x / np.float32(127.5) - np.float32(1))).all())


def io_threads() -> int:
    """How many threads decode and encode: the cores that this process may use, within 2 to 8."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(8, max(2, cores))


def is_fatal(error: OSError) -> bool:
    """Whether no further file can be written either: the disk is full, over quota or read-only."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


class _Item(NamedTuple):
    job: Job
    image: FittedImage
    source: Source


Batch = list[_Item]


@dataclass
class _Pipeline:
    engine: Engine
    fitting: Fitting
    batch_size: int
    thumbnail_edge: int | None
    put: Put = put_file
    threads: int = field(default_factory=io_threads)

    def __post_init__(self) -> None:
        self.todo: Iterator[Job] = iter(())
        self.decoding: deque[tuple[Job, Future[_Item]]] = deque()
        self.groups: dict[tuple[int, ...], Batch] = {}  # decoded images, by shape
        self.again: deque[Batch] = deque()  # batches that a failed stream did not reach
        self.running: deque[Batch] = deque()  # batches given to the engine
        self.writing: deque[Future[Outcome]] = deque()
        self.ready: deque[Outcome] = deque()

    @property
    def _is_shown(self) -> bool:
        """Whether outputs are compared with targets, or shown in a gallery."""
        return bool(self.fitting.pair or self.thumbnail_edge)

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
        """Outcomes of jobs done by an earlier run. Their files are read only for metrics or thumbnails."""
        for job in skipped:
            if self._is_shown:
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
                        for item, pixels in zip(self.running.popleft(), result, strict=True):
                            output = pixels[: item.image.height, : item.image.width]
                            self.writing.append(pool.submit(self._finish, item, output))
                        yield from self._written(limit=2 * self.batch_size)
                yield from self._written(limit=0)
                return
            except MemoryError:  # the oldest batch was too large; the following ones go to a new stream
                for item in self.running.popleft():
                    height, width = item.image.pixels.shape[:2]
                    reason = f"not enough memory to translate {width}x{height} pixels: use --fit resize"
                    self.ready.append(Outcome(item.job, "failed", reason))
                self.again.extend(self.running)
                self.running.clear()

    # -- in front of the engine -------------------------------------------------------------------------------

    def _batches(self, pool: ThreadPoolExecutor) -> Iterator[np.ndarray]:
        while batch := self._next_batch(pool):
            self.running.append(batch)
            height, width = batch[0].image.pixels.shape[:2]
            array = self.engine.empty(len(batch), height, width)
            for row, item in zip(array, batch, strict=True):
                row[...] = item.image.pixels
            yield array

    def _next_batch(self, pool: ThreadPoolExecutor) -> Batch:
        """A full batch of images of one size; the fullest if too many wait or no more come; empty at the end."""
        if self.again:
            return self.again.popleft()
        while sum(map(len, self.groups.values())) < 4 * self.batch_size:
            while len(self.decoding) < self.batch_size + self.threads and (job := next(self.todo, None)):
                self.decoding.append((job, pool.submit(self._decode, job)))
            if not self.decoding:
                break
            job, future = self.decoding.popleft()
            try:
                item = future.result()
            except ImageError as error:
                self.ready.append(Outcome(job, "failed", str(error)))
                continue
            shape = item.image.pixels.shape
            group = self.groups.setdefault(shape, [])
            group.append(item)
            if len(group) >= self._capacity(*shape):
                return self.groups.pop(shape)
        return self.groups.pop(max(self.groups, key=lambda shape: len(self.groups[shape]))) if self.groups else []

    def _decode(self, job: Job) -> _Item:
        try:
            before = job.source.stat()
            image = self.fitting.read(job.source)
            source = Source.of(job.source)
        except OSError as error:
            raise ImageError(error.strerror or str(error)) from None
        if (source.size, source.changed_ns) != (before.st_size, before.st_mtime_ns):
            raise ImageError("the file changed while it was read")
        return _Item(job, image, source)

    def _capacity(self, height: int, width: int, _channels: int) -> int:
        """How many images of this size make a batch: no more pixels than ``batch_size`` of the model's own size."""
        own_size = max(self.engine.generator.size, self.engine.generator.multiple)
        return max(1, min(self.batch_size, self.batch_size * own_size**2 // (height * width)))

    # -- behind the engine ------------------------------------------------------------------------------------

    def _finish(self, item: _Item, output: np.ndarray) -> Outcome:
        job = item.job
        if is_suspicious(output) and not is_finite(self.engine, item.image.pixels):
            return Outcome(job, "failed", NOT_FINITE)
        try:
            content = codecs.encode(output, job.output.suffix)
            made = Made.of(item.source, content)
            self.put(job, content, made)
            if self._is_shown and not codecs.WRITABLE[job.output.suffix.lower()].is_lossless:
                output = codecs.read(io.BytesIO(content), self.fitting.out_channels)  # as later runs will see it
            outcome = self._outcome(job, "done", item.image, output)
        except ImageError as error:
            return Outcome(job, "failed", str(error))
        except MemoryError:
            return Outcome(job, "failed", "not enough memory to write it")
        except OSError as error:
            if is_fatal(error):
                raise
            return Outcome(job, "failed", f"cannot write {str(job.output)!r}: {error.strerror or error}")
        return replace(outcome, made=made)

    def _review(self, job: Job) -> Outcome:
        """The outcome of a job that an earlier run did."""
        try:
            image = self.fitting.read(job.source)
            output = codecs.read(job.output, self.fitting.out_channels)
            if output.shape[:2] != (image.height, image.width):
                return Outcome(job, "failed", f"{str(job.output)!r} has another size than it should: use --overwrite")
            return self._outcome(job, "skipped", image, output)
        except ImageError as error:
            return Outcome(job, "failed", f"{error} (translated earlier)")

    def _outcome(self, job: Job, status: Literal["done", "skipped"], image: FittedImage, output: np.ndarray) -> Outcome:
        compared = metrics.compare(output, image.target) if image.target is not None else None
        thumbnails = None
        if self.thumbnail_edge:
            shown = image.pixels[: image.height, : image.width]
            thumbnails = Thumbnails.of(shown, output, image.target, self.thumbnail_edge)
        return Outcome(job, status, "", compared, thumbnails)

    def _written(self, limit: int) -> Iterator[Outcome]:
        """The outcomes that are known; waits until no more than ``limit`` images are being written."""
        while self.writing and (len(self.writing) > limit or self.writing[0].done()):
            self.ready.append(self.writing.popleft().result())
        while self.ready:
            yield self.ready.popleft()
