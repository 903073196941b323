"""The stream: image files -> decode -> batches -> engine -> encode -> image files.

Decoding and encoding run on a few threads beside the engine, a batch ahead of it and a batch behind. All queues are
bounded, so memory does not grow with the number of images. An image that cannot be read or written becomes a failed
:class:`.outcome.Outcome` and never stops the run. Images that take much memory are translated one at a time, after all
others; so are those for which memory did not suffice beside others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Generator, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from itertools import chain
from pathlib import Path

import numpy as np

from ..cpu.topology import allowed_cpus
from ..engines.base import Engine
from ..errors import ImageError
from . import codecs
from .fitting import FittedImage, Fitting
from .jobs import Job
from .limits import Admission, Deferred
from .outcome import Finisher, Item, Outcome, Put, put_file
from .provenance import Source, size_and_time

BATCH_SIZE = 8


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
    finisher = Finisher(engine, fitting, thumbnail_edge, put)
    return _Pipeline(finisher, batch_size).outcomes(iter(todo), skipped)


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
    return _Pipeline(Finisher(engine, fitting, thumbnail_edge, put_file), batch_size).outcomes(todo, skipped)


def split(jobs: Sequence[Job], finished: Collection[Path]) -> tuple[list[Job], list[Job]]:
    """The jobs that are to be done, and those whose output is in ``finished``."""
    return [j for j in jobs if j.output not in finished], [j for j in jobs if j.output in finished]


def best_batch_size(engine: Engine) -> int:
    """How many images of 256 x 256 an engine runs most efficiently at once."""
    return engine.info.best_batch


def batch_capacity(engine: Engine, batch_size: int, height: int, width: int) -> int:
    """How many images of this size make a batch: no more pixels than ``batch_size`` of the model's own size."""
    own_size = max(engine.generator.size, engine.generator.multiple)
    return max(1, min(batch_size, batch_size * own_size**2 // (height * width)))


def io_threads() -> int:
    """How many threads decode and encode: the cores that this process may use, within 2 to 8."""
    return min(8, max(2, len(allowed_cpus())))


Batch = list[Item]


class _Pipeline:
    def __init__(self, finisher: Finisher, batch_size: int) -> None:
        self.finisher, self.engine, self.fitting = finisher, finisher.engine, finisher.fitting
        self.batch_size, self.threads = batch_size, io_threads()
        self.admission = Admission(self.fitting.limits, self.engine, self.threads, 8 * batch_size + 2 * self.threads)
        self.todo: Iterator[Job] = iter(())
        self.alone: deque[Job] = deque()  # jobs to be done when there are no others
        self.is_alone = False
        self.decoding: deque[tuple[Job, Future[Item]]] = deque()
        self.groups: dict[tuple[int, ...], Batch] = {}  # decoded images, by shape
        self.running: deque[Batch] = deque()  # batches given to the engine
        self.writing: deque[tuple[Job, Future[Outcome]]] = deque()
        self.ready: deque[Outcome] = deque()

    def outcomes(self, todo: Iterator[Job], skipped: Sequence[Job]) -> Generator[Outcome, None, None]:
        """An outcome for each job, those of ``skipped`` first."""
        pool = ThreadPoolExecutor(self.threads, thread_name_prefix="pix2pix-io")
        try:
            yield from self._skip(pool, skipped)
            self.todo = todo
            yield from self._translate(pool)
            self.is_alone = True
            while self.alone:
                self.todo = iter([self.alone.popleft()])
                yield from self._translate(pool)
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def _skip(self, pool: ThreadPoolExecutor, skipped: Sequence[Job]) -> Iterator[Outcome]:
        """Outcomes of jobs done by an earlier run. Their files are read only for metrics or thumbnails."""
        for job in skipped:
            if self.finisher.shows:
                self.writing.append((job, pool.submit(self._review, job)))
                yield from self._written(limit=2 * self.threads)
            else:
                yield Outcome(job, "skipped")
        yield from self._written(limit=0)
        self.is_alone = True
        while self.alone:
            self.ready.append(self._review(self.alone.popleft()))
            yield from self._written(limit=0)
        self.is_alone = False

    def _translate(self, pool: ThreadPoolExecutor) -> Iterator[Outcome]:
        while True:
            try:
                with closing(self.engine.stream(self._batches(pool))) as results:
                    for result in results:
                        for item, pixels in zip(tuple(self.running[0]), result, strict=True):
                            output = pixels[: item.image.height, : item.image.width]
                            self.writing.append((item.job, pool.submit(self.finisher.finish, item, output)))
                            del self.running[0][0]
                        self.running.popleft()
                        yield from self._written(limit=2 * self.batch_size)
                yield from self._written(limit=0)
                return
            except MemoryError:  # in one of these batches, which only trying tells
                self.admission.forget()
                for item in chain.from_iterable(self.running):
                    height, width = item.image.pixels.shape[:2]
                    self._postpone(item.job, f"not enough memory to translate {width}x{height} pixels")
                self.running.clear()

    def _postpone(self, job: Job, reason: str) -> None:
        """Do a job later, alone. If it is alone already, it has failed."""
        if self.is_alone:
            self.ready.append(Outcome(job, "failed", reason))
        else:
            self.alone.append(job)

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
        while sum(map(len, self.groups.values())) < 4 * self.batch_size:
            while len(self.decoding) < self.batch_size + self.threads and (job := next(self.todo, None)):
                self.decoding.append((job, pool.submit(self._decode, job)))
            if not self.decoding:
                break
            job, future = self.decoding.popleft()
            try:
                item = future.result()
            except (Deferred, MemoryError) as error:
                self._postpone(job, str(error) or "not enough memory to read it")
                continue
            except ImageError as error:
                self.ready.append(Outcome(job, "failed", str(error)))
                continue
            shape = item.image.pixels.shape
            group = self.groups.setdefault(shape, [])
            group.append(item)
            if len(group) >= batch_capacity(self.engine, self.batch_size, *shape[:2]):
                return self.groups.pop(shape)
        return self.groups.pop(max(self.groups, key=lambda shape: len(self.groups[shape]))) if self.groups else []

    def _read(self, job: Job) -> FittedImage:
        """Decode and fit a job's input. Raises ImageError, Deferred for what should be decoded alone."""
        return self.fitting.read(job.source, partial(self.admission.admit, alone=self.is_alone), job.instances)

    def _decode(self, job: Job) -> Item:
        try:
            before = size_and_time(*job.files)
            image = self._read(job)
            source = Source.of(*job.files)
        except OSError as error:
            if job.instances is not None and not job.instances.exists():
                raise ImageError(f"there is no image of its instances, expected {str(job.instances)!r}") from None
            raise ImageError(error.strerror or str(error)) from None
        if (source.size, source.changed_ns) != before:
            raise ImageError("the file changed while it was read")
        return Item(job, image, source)

    # -- behind the engine ------------------------------------------------------------------------------------

    def _review(self, job: Job) -> Outcome:
        """The outcome of a job that an earlier run did. Raises Deferred or MemoryError for what is to be done alone."""
        try:
            return self.finisher.review(job, self._read(job))
        except (Deferred, MemoryError):
            if not self.is_alone:
                raise
            return Outcome(job, "failed", "not enough memory to compare it (translated earlier)")
        except ImageError as error:
            return Outcome(job, "failed", f"{error} (translated earlier)")

    def _written(self, limit: int) -> Iterator[Outcome]:
        """The outcomes that are known; waits until no more than ``limit`` images are being written."""
        while self.writing and (len(self.writing) > limit or self.writing[0][1].done()):
            job, future = self.writing.popleft()
            try:
                self.ready.append(future.result())
            except (Deferred, MemoryError) as error:
                self._postpone(job, str(error) or "not enough memory to write it")
        while self.ready:
            yield self.ready.popleft()
