"""Work sharing: requests are cut into chunks for idle workers, and chunks of failed workers are given to others.

The scheduler has no threads and knows no engines: workers' threads take chunks and report what became of them, callers'
threads submit requests and wait. A chunk has as many images as suit the worker that takes it, so that a slow worker
does little at a time. Near the end, workers of a slow device leave the remaining images to faster devices if these
will finish them sooner.
"""

from __future__ import annotations

import sys
import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

Compute = Callable[[Any, slice, threading.Event], None]

SMOOTHING = 1 / 8  # weight of the latest chunk in a device's mean time per pixel, once there have been 8 chunks


@dataclass(eq=False, slots=True)
class DeviceLoad:
    """What the scheduler knows of a device. ``seconds_per_pixel`` is measured with all its workers at work; it is None
    before the first chunk. ``pixels_taken`` are those of chunks that its workers have taken and not finished.

    Times are kept per device, not per worker: how long a worker waits for the device varies from chunk to chunk.
    """

    name: str
    seconds_per_pixel: float | None = None
    pixels_taken: int = 0
    chunks_done: int = 0
    last_end: float = 0.0  # when the latest chunk was done

    def record(self, pixels: int, began: float, ended: float) -> None:
        """Note that a worker computed ``pixels`` between these times, in seconds."""
        latest = max(0.0, ended - max(began, self.last_end)) / pixels
        mean = latest if self.seconds_per_pixel is None else self.seconds_per_pixel
        self.chunks_done += 1
        self.seconds_per_pixel = mean + max(SMOOTHING, 1 / self.chunks_done) * (latest - mean)
        self.last_end = max(ended, self.last_end)

    def seconds_to_finish(self, pixels: int) -> float:
        """The time until the device has finished what it has taken and then ``pixels`` more."""
        return (self.seconds_per_pixel or 0.0) * (self.pixels_taken + pixels)


@dataclass(eq=False, slots=True)
class Worker:
    """What the scheduler knows of a worker; ``pixels`` is the largest size of its chunks."""

    device: DeviceLoad
    pixels: int
    busy: bool = False  # it has a chunk, or is asking for one
    retired: bool = False


class BackPressureWindow:
    """Bounds how many requests of a stream are unfinished: at most ``size``.

    Whoever finds the window full waits until an eighth of it is free. The stream's thread competes with the workers for
    the GIL, so it wakes up once for several requests instead of once for each.
    """

    def __init__(self, size: int, lock: threading.Lock) -> None:
        self.unfinished = 0
        self._size, self._resume_at = size, size - max(1, size // 8)
        self._freed = threading.Condition(lock)

    def wait(self) -> None:
        """Wait until there is room."""
        with self._freed:
            if self.unfinished >= self._size:
                self._freed.wait_for(lambda: self.unfinished <= self._resume_at)

    def add(self, change: int) -> None:
        """Change the number of unfinished requests. The caller holds the lock."""
        self.unfinished += change
        if self.unfinished == self._resume_at:
            self._freed.notify_all()


@dataclass(eq=False)
class Request:
    """``images`` images of ``pixels`` each, computed by calls of ``compute(engine, slice, stop)``.

    A call gets at most ``max_images`` images; it should return soon after ``stop`` is set. ``first`` is the number of
    the first image in error messages, ``window`` that of the stream to which the request belongs. ``finished`` is set
    when all calls have returned and no more will be made.
    """

    compute: Compute
    images: int
    pixels: int
    first: int = 0
    max_images: int = sys.maxsize
    window: BackPressureWindow | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    finished: threading.Event = field(default_factory=threading.Event)
    error: BaseException | None = None
    running: int = 0  # chunks; for the scheduler, as is ``untaken``

    def __post_init__(self) -> None:
        self.untaken = deque([slice(0, self.images)] if self.images else [])

    @classmethod
    def failed(cls, error: Exception) -> Request:
        """A request that failed before any of it could be computed."""
        request = cls(lambda engine, images, stop: None, 0, 1, error=error)
        request.finished.set()
        return request

    def wait(self) -> None:
        """Wait until the request is finished. Raises the error that made it fail."""
        self.finished.wait()
        if self.error is not None:
            raise self.error

    def take(self, pixels: int) -> Chunk:
        """Take the next images: as many as have ``pixels`` together, but at least one."""
        images = self.untaken.popleft()
        end = min(images.stop, images.start + self.fitting(pixels))
        if end < images.stop:
            self.untaken.appendleft(slice(end, images.stop))
        self.running += 1
        return Chunk(self, slice(images.start, end))

    def fitting(self, pixels: int) -> int:
        """How many images a chunk of at most ``pixels`` has."""
        return max(1, min(self.max_images, pixels // self.pixels))

    def abandon(self) -> None:
        """Start no more chunks, and stop those that run."""
        self.stop.set()
        self.untaken.clear()


class Chunk(NamedTuple):
    """Some images of a request, computed in one call."""

    request: Request
    images: slice

    @property
    def pixels(self) -> int:
        return (self.images.stop - self.images.start) * self.request.pixels


class Scheduler:
    """Gives chunks of requests, first come first served, to workers.

    ``wake(n)`` must make n idle workers call :meth:`take`. ``window`` is the size of a stream's back-pressure window.
    """

    def __init__(self, workers: Sequence[Worker], wake: Callable[[int], None], window: int) -> None:
        self._live, self._wake, self._window = list(workers), wake, window
        self._devices = {worker.device for worker in workers}
        self._lock = threading.Lock()
        # Threads are notified only when needed: each one that wakes up competes for the GIL with the workers.
        self._all_finished, self._changed = threading.Condition(self._lock), threading.Condition(self._lock)
        self._queue: deque[Request] = deque()  # requests with images that no worker has taken
        self._unfinished = 0
        self._streams = 0
        self._standing_by = 0  # workers that leave the queue to faster devices, and wait to see it emptied
        self._closed = False

    # -- for callers ------------------------------------------------------------------------------------------

    def submit(self, request: Request) -> None:
        """Queue a request. Raises RuntimeError after :meth:`close`, and if no worker is left."""
        with self._lock:
            if self._closed:
                raise RuntimeError("this engine is closed: load the model again")
            if not self._live:
                raise RuntimeError("no worker is left, all devices have failed: load the model again")
            if not request.untaken:
                request.finished.set()
                return
            self._count(request, 1)
            self._queue.append(request)
            self._wake_idle(request.images)

    def cancel(self, request: Request) -> None:
        """Start no more chunks of a request; it is finished as soon as the running ones have stopped."""
        with self._lock:
            if not request.finished.is_set():
                self._abandon(request)

    @contextmanager
    def streaming(self) -> Iterator[BackPressureWindow]:
        """For the requests of a stream. Until it ends more work may come, so that no worker leaves any to others."""
        with self._lock:
            self._streams += 1
        try:
            yield BackPressureWindow(self._window, self._lock)
        finally:
            with self._lock:
                self._streams -= 1

    def close(self) -> None:
        """Accept no more requests, and wait until all are finished."""
        with self._lock:
            self._closed = True
            self._all_finished.wait_for(lambda: not self._unfinished)

    # -- for workers ------------------------------------------------------------------------------------------

    def take(self, worker: Worker) -> Chunk | None:
        """The next chunk for a worker, which then reports what became of it; None if there is nothing to do.

        A worker that should leave the queue to faster devices wakes another worker, and waits until the queue is empty
        or it should take a chunk after all.
        """
        with self._lock:
            worker.busy, passed_on = True, False
            while self._queue:
                request = self._queue[0]
                if not worker.retired and not self._others_finish_sooner(worker, request):
                    chunk = request.take(worker.pixels)
                    worker.device.pixels_taken += chunk.pixels
                    if not request.untaken:
                        self._queue.popleft()
                        if not self._queue:
                            self._notify_standing_by()
                    return chunk
                if not passed_on:
                    passed_on = True
                    self._wake(1)
                self._standing_by += 1
                self._changed.wait()
                self._standing_by -= 1
            worker.busy = False
            return None

    def done(self, worker: Worker, chunk: Chunk, began: float, ended: float) -> None:
        """The worker computed its chunk between these times, in seconds."""
        with self._lock:
            worker.device.record(chunk.pixels, began, ended)
            self._returned(worker, chunk)

    def request_failed(self, worker: Worker, chunk: Chunk, error: Exception) -> None:
        """The engine refused the chunk. Its images are tried one by one to find the culprit, whose error the request
        then raises."""
        request, images = chunk
        with self._lock:
            if request.stop.is_set():
                pass
            elif images.stop - images.start > 1:
                self._give_back(request, [slice(i, i + 1) for i in range(images.start, images.stop)])
            else:
                error.add_note(f"image {request.first + images.start} (from 0) of what the pool was given")
                request.error = error
                self._abandon(request)
            self._returned(worker, chunk)

    def worker_failed(self, worker: Worker, chunk: Chunk, error: BaseException) -> int:
        """The worker's device failed: it gets no more chunks, and others compute this one. Returns how many workers are
        left."""
        with self._lock:
            worker.retired = True
            self._live.remove(worker)
            self._devices = {worker.device for worker in self._live}
            if not chunk.request.stop.is_set():
                self._give_back(chunk.request, [chunk.images])
            for request in [] if self._live else list(self._queue):
                last = worker.device.name
                request.error = RuntimeError(f"no worker is left: {last} was the last, and failed: {error}")
                request.error.__cause__ = error
                self._abandon(request)
            self._returned(worker, chunk)
            self._wake_idle(len(self._live))
            return len(self._live)

    # -- with the lock held -----------------------------------------------------------------------------------

    def _wake_idle(self, limit: int) -> None:
        idle = sum(not worker.busy for worker in self._live)
        if count := min(limit, idle):
            self._wake(count)
        self._notify_standing_by()

    def _notify_standing_by(self) -> None:
        if self._standing_by:  # seldom; notify_all costs time even without waiters, and devices wait meanwhile
            self._changed.notify_all()

    def _others_finish_sooner(self, worker: Worker, request: Request) -> bool:
        """Whether other devices will have emptied the queue before this one has finished a chunk of it.

        It is never so for the fastest device while no device has work, so one of them always goes on.
        """
        if self._streams or not worker.device.seconds_per_pixel:
            return False
        others = [device for device in self._devices if device.seconds_per_pixel and device is not worker.device]
        if not others:
            return False
        queued = sum((s.stop - s.start) * r.pixels for r in self._queue for s in r.untaken)
        chunk = request.fitting(worker.pixels) * request.pixels
        soonest = min(device.seconds_to_finish(chunk) for device in others)
        rate = sum(1 / device.seconds_per_pixel for device in others if device.seconds_per_pixel)
        return worker.device.seconds_to_finish(chunk) > soonest + queued / rate

    def _give_back(self, request: Request, slices: Sequence[slice]) -> None:
        if not request.untaken:
            self._queue.appendleft(request)
        request.untaken.extendleft(reversed(slices))

    def _abandon(self, request: Request) -> None:
        request.abandon()
        if request in self._queue:
            self._queue.remove(request)
        self._finish_if_done(request)

    def _returned(self, worker: Worker, chunk: Chunk) -> None:
        worker.device.pixels_taken -= chunk.pixels
        chunk.request.running -= 1
        self._finish_if_done(chunk.request)

    def _finish_if_done(self, request: Request) -> None:
        if not request.untaken and not request.running:
            request.finished.set()
            self._count(request, -1)
        self._notify_standing_by()

    def _count(self, request: Request, change: int) -> None:
        self._unfinished += change
        if not self._unfinished:
            self._all_finished.notify_all()
        if request.window:
            request.window.add(change)
