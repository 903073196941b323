"""The one queue in front of all engines: images of one model and size are computed together.

An image waits for others of its size at most ``max_delay`` seconds, and only while others are on their way. While an
engine computes, images gather anyway. Everything but the computation runs on the event loop's thread. Which images are
computed together never changes a byte of them.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np

from ..engines.base import Engine
from .metrics import Metrics
from .problems import Problem, busy


@dataclass(eq=False, slots=True)
class Waiting:
    """An image that waits, (H,W,Cin) in uint8 or float32, and the future of its result."""

    pixels: np.ndarray
    result: asyncio.Future[np.ndarray]
    since: float


class Lane:
    """The images that wait for one engine, by dtype and shape, and how many batches it has."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self.engine, self._metrics = engine, metrics
        self.groups: dict[tuple[str, tuple[int, ...]], deque[Waiting]] = {}
        self.running = 0
        self.at_once = 1 if engine.info.workers == 1 else 2  # a pool's next batch is ready when its workers are
        self.timer: asyncio.TimerHandle | None = None
        self._threads = ThreadPoolExecutor(self.at_once, thread_name_prefix="pix2pix-engine")

    def capacity(self, pixels: np.ndarray) -> int:
        """How many images like this one the engine does best at once."""
        height, width, _ = pixels.shape
        return max(1, self.engine.info.pixels_at_once // (height * width))

    async def compute(self, images: list[np.ndarray], stop: threading.Event) -> np.ndarray:
        """The engine's results for images of one dtype and shape."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, partial(self._compute, images, stop))

    def _compute(self, images: list[np.ndarray], stop: threading.Event) -> np.ndarray:
        with self._metrics.timed("engine"):
            return self._results(images, stop)

    def _results(self, images: list[np.ndarray], stop: threading.Event) -> np.ndarray:
        if images[0].dtype == np.float32:
            result: np.ndarray = self.engine.run(np.stack(images))
            return result
        height, width, _ = images[0].shape
        batch = self.engine.empty(len(images), height, width)
        for row, pixels in zip(batch, images, strict=True):
            row[...] = pixels
        return self.engine.translate_until(stop, batch)

    def close(self) -> None:
        """Wait for what is computed, and free the engine."""
        self._threads.shutdown(cancel_futures=True)
        self.engine.close()


class Claim:
    """Places in the queue for images that are being received or decoded."""

    def __init__(self, queue: Queue, count: int) -> None:
        self._queue, self.left = queue, count

    async def submit(self, lane: Lane, pixels: np.ndarray) -> np.ndarray:
        """The result for an image (H,W,Cin), uint8 or float32, that takes one of the places. Cancelling drops it."""
        self.left -= 1
        self._queue.arriving -= 1
        return await self._queue.put(lane, pixels)


class Queue:
    """Up to ``limit`` images that wait or arrive. ``arriving`` and ``waiting`` are their numbers."""

    def __init__(self, limit: int, max_delay: float, metrics: Metrics) -> None:
        self.limit, self._max_delay, self._metrics = limit, max_delay, metrics
        self.arriving = self.waiting = 0
        self._lanes: set[Lane] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._stops: set[threading.Event] = set()  # of the batches that are computed

    def check(self) -> None:
        """Raise Problem 503 if nothing more can wait."""
        if self.arriving + self.waiting >= self.limit:
            raise busy(f"{self.limit} images are waiting already")

    @contextmanager
    def claim(self, count: int) -> Iterator[Claim]:
        """Places for ``count`` images, which are free again at the end of the block.

        Raises Problem: 413 for more than there are, 503 if they are not free.
        """
        if count > self.limit:
            raise Problem(413, f"got {count} images, expected up to {self.limit}: send them in several requests")
        if self.arriving + self.waiting + count > self.limit:
            raise busy(f"{self.waiting + self.arriving} images are waiting, of {self.limit} that may")
        self.arriving += count
        claim = Claim(self, count)
        try:
            yield claim
        finally:
            self.arriving -= claim.left
            for lane in self._lanes:
                self._dispatch(lane)

    async def put(self, lane: Lane, pixels: np.ndarray) -> np.ndarray:
        """The result for an image that has a claim."""
        self._lanes.add(lane)
        item = Waiting(pixels, asyncio.get_running_loop().create_future(), time.monotonic())
        key = (pixels.dtype.name, pixels.shape)
        lane.groups.setdefault(key, deque()).append(item)
        self.waiting += 1
        for other in self._lanes:  # there, too, images may have waited for this one
            self._dispatch(other)
        try:
            return await item.result
        except asyncio.CancelledError:
            self._metrics.dropped.inc()
            if item in (group := lane.groups.get(key, deque())):
                group.remove(item)
                self.waiting -= 1
                if not group:
                    del lane.groups[key]
            raise

    def abandon(self) -> None:
        """Give up all batches that are computed. The requests for them have been cancelled."""
        for stop in self._stops:
            stop.set()

    def _dispatch(self, lane: Lane) -> None:
        """Start as many batches as the engine takes and as are ready, and have a full one wait for it.

        Then the engine need not wait for this thread, and no batch begins smaller than it might have become.
        """
        while lane.running <= lane.at_once and (batch := self._next(lane, must_be_full=lane.running == lane.at_once)):
            lane.running += 1
            task = asyncio.create_task(self._run(lane, batch))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _next(self, lane: Lane, must_be_full: bool) -> list[Waiting]:
        """The batch that is ready and whose first image waits longest; [] if none is ready yet.

        With ``must_be_full``, only that of the image that waits longest of all: no group is passed over for ever.
        """
        now = time.monotonic()
        groups = sorted(lane.groups.items(), key=lambda group: group[1][0].since)
        for key, group in groups:
            capacity = lane.capacity(group[0].pixels)
            if must_be_full and len(group) < capacity:
                return []
            if not self.arriving or len(group) >= capacity or now - group[0].since >= self._max_delay:
                batch = [group.popleft() for _ in range(min(capacity, len(group)))]
                if not group:
                    del lane.groups[key]
                self.waiting -= len(batch)
                return batch
        if groups:
            if lane.timer is not None:
                lane.timer.cancel()
            wait = groups[0][1][0].since + self._max_delay - now
            lane.timer = asyncio.get_running_loop().call_later(wait, self._dispatch, lane)
        return []

    async def _run(self, lane: Lane, batch: list[Waiting]) -> None:
        """Compute a batch, and give up soon after nobody waits for it any more."""
        stop = threading.Event()
        self._stops.add(stop)

        def note(_result: asyncio.Future[np.ndarray]) -> None:
            if all(item.result.cancelled() for item in batch):
                stop.set()

        for item in batch:
            item.result.add_done_callback(note)
        for item in batch:
            self._metrics.seconds.labels("wait").observe(time.monotonic() - item.since)
        self._metrics.batch_images.observe(len(batch))
        try:
            results = await lane.compute([item.pixels for item in batch], stop)
        except Exception as error:
            for item in batch:
                if not item.result.done():
                    item.result.set_exception(error)
        else:
            for item, result in zip(batch, results, strict=True):
                if not item.result.done():
                    item.result.set_result(result)
        finally:
            lane.running -= 1
            self._stops.discard(stop)
            self._dispatch(lane)
