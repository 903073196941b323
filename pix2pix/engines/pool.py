"""The pool: an engine made of workers, each bound to a device for its life.

A ThreadPoolExecutor's threads are the workers. Each makes its engine in its own thread, where a GPU's context belongs,
and uses it there alone; workers of one device share what their crew's factory lets them share, above all the weights.
:mod:`pix2pix.engines.scheduler` decides who does what. A worker whose device fails is retired, which is logged as a warning,
and the others do its work again.
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

from ..model.generator import Generator
from .base import BaseEngine, EngineInfo
from .scheduler import Device, Feed, Request, Scheduler, Worker

# Batches per worker that a stream reads ahead of its results. They wait for the oldest batch, and while a slow device
# does that, others do many. Only QUEUED of them wait or are computed: enough that when the last one has been read, fast
# devices are busy for as long as slow ones with what they hold.
AHEAD, QUEUED = 8, 4
LEAST_PIXELS = 8 * 256 * 256  # of a part, where workers share a device: smaller ones cost speed
REQUESTS_FAULT = (ValueError, TypeError, MemoryError)  # any other error of an engine is its device's

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Crew:
    """The workers of one device. ``make`` makes a worker's engine, in that worker's thread and never for two at a
    time; it may return one engine to all. ``pixels`` are how much of a batch a worker takes, by default its share of
    what its engine does best at once."""

    name: str
    make: Callable[[], BaseEngine]
    workers: int = 1
    pixels: int | None = None


class PoolEngine(BaseEngine):
    """Runs a generator on several workers. See :class:`pix2pix.Engine` for the methods.

    Results come in order, and the same bytes whoever did them if all engines of the pool make the same bytes. What
    :meth:`stream` reads ahead is bounded. An error names the image, counted from 0 in what a call or a stream was
    given, in its notes. When no worker is left, calls raise RuntimeError.

    Raises ValueError for no workers, and whatever a factory raises.
    """

    def __init__(self, generator: Generator, crews: Sequence[Crew]) -> None:
        super().__init__(generator)
        if not crews or any(crew.workers < 1 for crew in crews):
            raise ValueError(f"got {[crew.workers for crew in crews]} workers, expected devices with 1 or more each")
        self.devices = tuple(crew.name for crew in crews)
        self.workers = sum(crew.workers for crew in crews)
        self.ahead = AHEAD * self.workers
        shared = [(crew, threading.Lock(), Device(crew.name)) for crew in crews]
        posts = deque(
            (crew, lock, Worker(device, crew.pixels or 0)) for crew, lock, device in shared for _ in range(crew.workers)
        )
        workers = [worker for _, _, worker in posts]
        self._scheduler = Scheduler(workers, self._wake, QUEUED * self.workers)
        self._executor = ThreadPoolExecutor(self.workers, thread_name_prefix="pix2pix-pool")
        self._bound = threading.local()  # in a worker's thread: its worker and its engine
        engines: list[BaseEngine] = []
        try:
            self._in_every_thread(lambda: engines.append(self._bind(*posts.popleft())))
        except BaseException:
            self._close()
            raise
        self.layers = frozenset.intersection(*(engine.layers for engine in engines))
        self.pixels_at_once = max(worker.pixels for worker in workers)
        device = ", ".join(f"{crew.name} ({crew.workers} worker{'s'[crew.workers == 1 :]})" for crew in crews)
        self._info = _in_common([engine.info for engine in engines], device)

    # -- in the workers' threads ------------------------------------------------------------------------------

    def _bind(self, crew: Crew, crews_lock: threading.Lock, worker: Worker) -> BaseEngine:
        """Make this thread that worker; returns its engine."""
        self._bound.worker, self._bound.engine = worker, None
        with crews_lock:
            engine = self._bound.engine = crew.make()
        worker.pixels = crew.pixels or max(LEAST_PIXELS, engine.info.pixels_at_once // crew.workers)
        return engine

    def _work(self) -> None:
        """Do parts until none is left for this worker."""
        worker, engine = self._bound.worker, self._bound.engine
        while part := self._scheduler.take(worker):
            began = time.perf_counter()
            try:
                part.request.do(engine, part.images, part.request.stop)
            except REQUESTS_FAULT as error:
                self._scheduler.refused(worker, part, error)
            except BaseException as error:
                left = self._scheduler.lost(worker, part, error)
                log.warning("%s failed, a worker is retired and %d are left: %s", worker.device.name, left, error)
            else:
                self._scheduler.done(worker, part, began, time.perf_counter())

    def _release(self) -> None:
        try:
            if self._bound.engine is not None:
                self._bound.engine.close()
        except Exception:
            if not self._bound.worker.retired:  # what has failed may fail again
                raise

    def _wake(self, count: int) -> None:
        for _ in range(count):
            self._executor.submit(self._work)

    def _in_every_thread(self, call: Callable[[], None]) -> None:
        """Call once in each worker's thread; raises the first error when all are through."""
        everyone = threading.Barrier(self.workers)  # nobody takes a second turn before all have had one

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

    def _run(self, given: dict[str, np.ndarray], outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
        h, w = self.picture_size(given)
        n = next(iter(given.values())).shape[0]
        shapes = self.generator.shapes(h, w)
        results = {name: np.empty((n, *shapes[name]), np.float32) for name in outputs}

        def do(engine: BaseEngine, images: slice, stop: threading.Event) -> None:
            part = engine.run(inputs={name: value[images] for name, value in given.items()}, outputs=outputs)
            for name, value in part.items():
                results[name][images] = value

        self._await(Request(do, n, h * w, most=self._share(n)))
        return results

    def _translate(self, b: np.ndarray, out: np.ndarray, stop: threading.Event) -> None:
        self._await(self._translation(b, out, most=self._share(len(b))))

    def _close(self) -> None:
        self._scheduler.close()
        try:
            self._in_every_thread(self._release)
        finally:
            self._executor.shutdown()

    # -- requests ---------------------------------------------------------------------------------------------

    def _share(self, n: int) -> int:
        """So many of n images at once let every device have some."""
        return -(-n // len(self.devices))

    def _translation(self, b: np.ndarray, out: np.ndarray, **options: Any) -> Request:
        """The request to fill ``out`` from ``b``, both (N,H,W,C)."""

        def do(engine: BaseEngine, images: slice, stop: threading.Event) -> None:
            engine.translate_part(stop, b[images], out[images])

        return Request(do, len(b), b.shape[1] * b.shape[2], **options)

    def _await(self, request: Request) -> None:
        """Have a request done. If the wait is interrupted, it is given up."""
        self._scheduler.put(request)
        try:
            request.wait()
        except BaseException:
            self._scheduler.cancel(request)
            request.finished.wait()
            raise

    def stream(self, batches: Iterable[np.ndarray]) -> Stream[np.ndarray, None, None]:
        """Translate an iterable of uint8 batches, in order; at most ``ahead`` batches are read ahead of the results.

        Each batch is copied when it comes, so that one array may be filled again and again. Closing the stream, or an
        interrupt, gives up what is being computed.
        """
        flying: deque[tuple[Request, np.ndarray]] = deque()
        try:
            with self._scheduler.more_to_come() as feed:
                first = 0
                for batch in batches:
                    flying.append(self._start(batch, first, feed))
                    first += flying[-1][0].images
                    while flying and self._must_land(flying, feed):
                        yield self._landed(flying)
            while flying:
                yield self._landed(flying)
        finally:
            for request, _ in flying:
                self._scheduler.cancel(request)
            for request, _ in flying:
                request.finished.wait()

    def _start(self, batch: np.ndarray, first: int, feed: Feed) -> tuple[Request, np.ndarray]:
        """A copied batch's request, put, and the array that it fills; a mistake fails the request, in its turn."""
        try:
            pictures, results, out = self._checked_batch(np.array(batch), None)
            request = self._translation(pictures, results, first=first, feed=feed)
            with self._usable():
                self._scheduler.put(request)
            return request, out
        except Exception as error:
            return Request.failed(error), batch

    def _must_land(self, flying: deque[tuple[Request, np.ndarray]], feed: Feed) -> bool:
        """Whether the oldest batch comes before another one is read; waits until either can be."""
        if len(flying) < self.ahead:
            self._scheduler.wait_for_room(feed)
            return flying[0][0].finished.is_set()
        return True

    @staticmethod
    def _landed(flying: deque[tuple[Request, np.ndarray]]) -> np.ndarray:
        """The oldest batch's result, when it is there."""
        flying[0][0].wait()
        return flying.popleft()[1]


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
