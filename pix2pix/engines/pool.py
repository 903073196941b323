"""An engine made of workers on one or several devices.

The workers are threads of a ThreadPoolExecutor, each bound to a device for its life. A worker makes its engine in its
own thread, where a GPU's context belongs, and no other thread uses that engine. Workers of one device share whatever
the device's factory lets them share, above all the weights. :mod:`pix2pix.engines.scheduler` decides who does what. A
worker whose device fails is retired with a logged warning, and the others repeat its work.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from collections.abc import Generator as Stream
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import RankHungError
from ..model.generator import Generator
from .base import BaseEngine, EngineInfo
from .execution import Maps
from .scheduler import BackPressureWindow, DeviceLoad, Request, Scheduler, Worker

# Per worker, a stream reads at most READ_AHEAD batches more than it has yielded results, of which at most UNFINISHED
# are not computed yet. The difference lets fast devices go on while the oldest batch waits for a slow one; UNFINISHED
# keeps fast devices busy for as long as slow ones after the last batch has been read.
READ_AHEAD, UNFINISHED = 8, 4
MIN_CHUNK_PIXELS = 8 * 256 * 256  # where workers share a device: smaller chunks are slower
REQUEST_ERRORS = (ValueError, TypeError, MemoryError)  # the request's fault; others are the device's
FINAL_ERRORS = (RankHungError,)  # the job ends: other workers cannot go on either

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class WorkerGroup:
    """The workers of one device. ``make`` makes a worker's engine: it is called in that worker's thread, never by two
    at a time, and may return one engine to all. ``pixels`` is the largest size of a worker's chunk, by default its
    share of what its engine does best at once."""

    name: str
    make: Callable[[], BaseEngine]
    workers: int = 1
    pixels: int | None = None


class PoolEngine(BaseEngine):
    """Runs a generator on several workers. See :class:`pix2pix.Engine` for the methods.

    Results come in order. They don't depend on who computed them if all engines of the pool give the same bytes.
    :meth:`stream` reads a bounded number of batches ahead. The notes of an error name the image, counted from 0 in what
    a call or a stream was given. When no worker is left, calls raise RuntimeError.

    Raises ValueError for no workers, and whatever a group's ``make`` raises.
    """

    def __init__(self, generator: Generator, groups: Sequence[WorkerGroup]) -> None:
        super().__init__(generator)
        if not groups or any(group.workers < 1 for group in groups):
            raise ValueError(f"got {[group.workers for group in groups]} workers, expected devices with 1 or more each")
        self.devices = tuple(group.name for group in groups)
        self.workers = sum(group.workers for group in groups)
        self.read_ahead = READ_AHEAD * self.workers
        locks = [(group, threading.Lock(), DeviceLoad(group.name)) for group in groups]
        assignments = deque(
            (group, lock, Worker(load, group.pixels or 0)) for group, lock, load in locks for _ in range(group.workers)
        )
        workers = [worker for _, _, worker in assignments]
        self._scheduler = Scheduler(workers, self._wake, UNFINISHED * self.workers)
        self._executor = ThreadPoolExecutor(self.workers, thread_name_prefix="pix2pix-pool")
        self._local = threading.local()  # in a worker's thread: its worker and its engine
        engines: list[BaseEngine] = []
        try:
            self._in_every_thread(lambda: engines.append(self._assign(*assignments.popleft())))
        except BaseException:
            self._close()
            raise
        self.layers = frozenset.intersection(*(engine.layers for engine in engines))
        self.chunks.pixels = max(worker.pixels for worker in workers)
        device = ", ".join(f"{group.name} ({group.workers} worker{'s'[group.workers == 1 :]})" for group in groups)
        self._info = _in_common([engine.info for engine in engines], device)

    # -- in the workers' threads ------------------------------------------------------------------------------

    def _assign(self, group: WorkerGroup, lock: threading.Lock, worker: Worker) -> BaseEngine:
        """Make this thread ``worker``, a member of ``group``; returns its engine."""
        self._local.worker, self._local.engine = worker, None
        with lock:
            engine = self._local.engine = group.make()
        worker.pixels = group.pixels or max(MIN_CHUNK_PIXELS, engine.info.pixels_at_once // group.workers)
        return engine

    def _work(self) -> None:
        """Compute chunks until none is left for this worker."""
        worker, engine = self._local.worker, self._local.engine
        while chunk := self._scheduler.take(worker):
            began = time.perf_counter()
            try:
                chunk.request.compute(engine, chunk.images, chunk.request.stop)
            except (*REQUEST_ERRORS, *FINAL_ERRORS) as error:
                self._scheduler.request_failed(worker, chunk, error)
            except BaseException as error:
                left = self._scheduler.worker_failed(worker, chunk, error)
                log.warning("%s failed, a worker is retired and %d are left: %s", worker.device.name, left, error)
            else:
                self._scheduler.done(worker, chunk, began, time.perf_counter())

    def _close_engine(self) -> None:
        try:
            if self._local.engine is not None:
                self._local.engine.close()
        except Exception:
            if not self._local.worker.retired:  # a failed device may fail again
                raise

    def _wake(self, count: int) -> None:
        for _ in range(count):
            self._executor.submit(self._work)

    def _in_every_thread(self, call: Callable[[], None]) -> None:
        """Call once in each worker's thread; raises the first error when all have returned."""
        everyone = threading.Barrier(self.workers)  # no thread takes a second call before all have had one

        def once() -> None:
            try:
                call()
            finally:
                everyone.wait()

        futures = [self._executor.submit(once) for _ in range(self.workers)]
        for error in [future.exception() for future in futures]:
            if error is not None:
                raise error

    # -- what BaseEngine asks for -----------------------------------------------------------------------------

    @contextmanager
    def _usable(self) -> Iterator[None]:
        with super()._usable():
            pass
        yield  # without the lock: requests of many callers share the workers

    def _run(self, given: Maps, results: Maps) -> None:
        n, h, w = self.program.batch_of(given)

        def compute(engine: BaseEngine, images: slice, stop: threading.Event) -> None:
            values = engine.run(inputs={name: value[images] for name, value in given.items()}, outputs=tuple(results))
            for name, value in values.items():
                results[name][images] = value

        self._await(Request(compute, n, h * w, max_images=self._share(n)))

    def _translate(self, b: np.ndarray, out: np.ndarray, stop: threading.Event) -> None:
        self._await(self._translation(b, out, max_images=self._share(len(b)), stop=stop))

    def _close(self) -> None:
        self._scheduler.close()
        try:
            self._in_every_thread(self._close_engine)
        finally:
            self._executor.shutdown()

    # -- requests ---------------------------------------------------------------------------------------------

    def _share(self, n: int) -> int:
        """The size of chunks of ``n`` images that gives every device some."""
        return -(-n // len(self.devices))

    def _translation(self, b: np.ndarray, out: np.ndarray, **options: Any) -> Request:
        """The request to fill ``out`` from ``b``, both (N,H,W,C)."""

        def compute(engine: BaseEngine, images: slice, stop: threading.Event) -> None:
            engine.translate_part(stop, b[images], out[images])

        return Request(compute, len(b), b.shape[1] * b.shape[2], **options)

    def _await(self, request: Request) -> None:
        """Submit a request and wait for it. If the wait is interrupted, the request is cancelled."""
        self._scheduler.submit(request)
        try:
            request.wait()
        except BaseException:
            self._scheduler.cancel(request)
            request.finished.wait()
            raise

    def stream(self, batches: Iterable[np.ndarray]) -> Stream[np.ndarray, None, None]:
        """See :meth:`BaseEngine.stream`. At most ``read_ahead`` batches are read ahead of the results."""
        in_flight: deque[tuple[Request, np.ndarray]] = deque()
        try:
            with self._scheduler.streaming() as window:
                first = 0
                for batch in batches:
                    in_flight.append(self._start(batch, first, window))
                    first += in_flight[-1][0].images
                    while in_flight and self._oldest_is_due(in_flight, window):
                        yield self._oldest_result(in_flight)
            while in_flight:
                yield self._oldest_result(in_flight)
        finally:
            for request, _ in in_flight:
                self._scheduler.cancel(request)
            for request, _ in in_flight:
                request.finished.wait()

    def _start(self, batch: np.ndarray, first: int, window: BackPressureWindow) -> tuple[Request, np.ndarray]:
        """The submitted request for a copy of a batch, and the array that it fills.

        An invalid batch gives a failed request, so that its error is raised after the results of earlier batches.
        """
        try:
            images, results, out = self._checked_batch(np.array(batch), None)
            request = self._translation(images, results, first=first, window=window)
            with self._usable():
                self._scheduler.submit(request)
            return request, out
        except Exception as error:
            return Request.failed(error), batch

    def _oldest_is_due(self, in_flight: deque[tuple[Request, np.ndarray]], window: BackPressureWindow) -> bool:
        """Whether to yield the oldest batch before another one is read; waits until either is possible."""
        if len(in_flight) < self.read_ahead:
            window.wait()
            return in_flight[0][0].finished.is_set()
        return True

    @staticmethod
    def _oldest_result(in_flight: deque[tuple[Request, np.ndarray]]) -> np.ndarray:
        """Wait for the oldest batch, and return its result."""
        in_flight[0][0].wait()
        return in_flight.popleft()[1]


def _in_common(infos: Sequence[EngineInfo], device: str) -> EngineInfo:
    """What is the same for all engines of a pool that have it at all."""
    plans = {info.plan for info in infos if info.plan is not None}
    threads = {info.threads for info in infos if info.threads is not None}
    sets = {info.instruction_set for info in infos if info.instruction_set}
    return EngineInfo(
        device,
        precision=infos[0].precision,
        instruction_set=sets.pop() if len(sets) == 1 else "",
        threads=threads.pop() if len(threads) == 1 else None,
        plan=plans.pop() if len(plans) == 1 else None,
        workers=len(infos),
    )
