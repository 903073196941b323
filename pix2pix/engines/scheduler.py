"""Who does which images: requests are cut into parts for whichever worker is idle, and parts of failed ones go round.

No threads of its own, no engines: workers' threads come and take parts, callers' threads put requests and wait. A part
has as many images as suit the worker that takes it, so a slow one does little at a time. Near the end workers of a
slow device leave what is left to those of faster ones, if they will be done with it sooner.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

Work = Callable[[Any, slice, threading.Event], None]

SMOOTHING = 1 / 8  # the weight of the latest part in a device's pace, when there have been so many


@dataclass(eq=False, slots=True)
class Device:
    """What the scheduler knows of a device: ``pace`` is its seconds per pixel, with all its workers at work, and None
    before its first part; ``held`` are the pixels that its workers have taken and not done.

    The pace is the device's and not a worker's, since how long a worker waits for the others differs from part to part.
    """

    name: str
    pace: float | None = None
    held: int = 0
    done: int = 0  # parts
    ended: float = 0.0  # when the latest part was done

    def did(self, pixels: int, began: float, ended: float) -> None:
        """A worker has done so many pixels between these times, in seconds."""
        pace = max(0.0, ended - max(began, self.ended)) / pixels
        self.done += 1
        self.pace = pace if self.pace is None else self.pace + max(SMOOTHING, 1 / self.done) * (pace - self.pace)
        self.ended = max(ended, self.ended)

    def until(self, pixels: int) -> float:
        """In how many seconds it will have done what is held, and then so many pixels."""
        return (self.pace or 0.0) * (self.held + pixels)


@dataclass(eq=False, slots=True)
class Worker:
    """What the scheduler knows of a worker: ``pixels`` is how large its parts may be."""

    device: Device
    pixels: int
    engaged: bool = False  # it has a part, or is asking for one
    retired: bool = False


class Feed:
    """A stream's requests: there is room for more while fewer than ``room`` are ``unfinished``.

    When there is none, it is waited for until an eighth of it is free, so that the stream's thread, which wants the GIL
    as workers do, wakes up once for several parts and not for each.
    """

    def __init__(self, room: int, lock: threading.Lock) -> None:
        self.unfinished = 0
        self._room, self._enough = room, room - max(1, room // 8)
        self._less = threading.Condition(lock)

    def wait(self) -> None:
        """Wait until there is room. The lock is held, and let go of meanwhile."""
        if self.unfinished >= self._room:
            self._less.wait_for(lambda: self.unfinished <= self._enough)

    def count(self, change: int) -> None:
        """So many more are unfinished. The lock is held."""
        self.unfinished += change
        if self.unfinished == self._enough:
            self._less.notify_all()


class Request:
    """So many images, of so many ``pixels`` each, to be done by calls of ``do(engine, images, stop)``.

    In such a call, ``images`` is a slice of ``most`` images at most, and ``stop`` is set when it should give up soon.
    ``first`` is the number of the first image where errors tell it, ``feed`` the stream that it belongs to.
    ``finished`` is set when all calls have returned, and no more will be made.
    """

    def __init__(
        self,
        do: Work,
        images: int,
        pixels: int,
        *,
        first: int = 0,
        most: int | None = None,
        feed: Feed | None = None,
    ) -> None:
        self.do, self.images, self.pixels, self.first = do, images, pixels, first
        self.most, self.feed = most or images, feed
        self.stop, self.finished = threading.Event(), threading.Event()
        self.error: BaseException | None = None
        self.left = deque([slice(0, images)] if images else [])  # nobody does these; only the scheduler touches them
        self.running = 0

    @classmethod
    def failed(cls, error: Exception) -> Request:
        """A request that failed before anything of it could be done."""
        request = cls(lambda engine, images, stop: None, 0, 1)
        request.error = error
        request.finished.set()
        return request

    def wait(self) -> None:
        """Wait until it is finished. Raises what made it fail."""
        self.finished.wait()
        if self.error is not None:
            raise self.error

    def cut(self, pixels: int) -> slice:
        """Take the next images, as many as have so many pixels together, but one at least."""
        images = self.left.popleft()
        end = min(images.stop, images.start + max(1, min(self.most, pixels // self.pixels)))
        if end < images.stop:
            self.left.appendleft(slice(end, images.stop))
        self.running += 1
        return slice(images.start, end)

    def abandon(self) -> None:
        """Begin nothing more, and give up what has begun."""
        self.stop.set()
        self.left.clear()


class Part(NamedTuple):
    """Some images of a request."""

    request: Request
    images: slice

    @property
    def pixels(self) -> int:
        return (self.images.stop - self.images.start) * self.request.pixels


class Scheduler:
    """Requests in the order of their coming, and the workers that do them.

    ``wake(n)`` must make n idle workers ask for a part. ``room`` is how many requests of a stream may be unfinished.
    """

    def __init__(self, workers: Sequence[Worker], wake: Callable[[int], None], room: int) -> None:
        self._live, self._wake, self._room = list(workers), wake, room
        self._devices = {worker.device for worker in workers}
        self._lock = threading.Lock()
        # Nobody is woken without need, who would want the GIL just when a worker is about to give its device work.
        self._none_left, self._changed = threading.Condition(self._lock), threading.Condition(self._lock)
        self._waiting: deque[Request] = deque()  # those with images that nobody does
        self._unfinished = 0
        self._streams = 0
        self._leaving = 0  # workers that leave what waits to others, and wait until these have taken it
        self._closed = False

    # -- for callers ------------------------------------------------------------------------------------------

    def put(self, request: Request) -> None:
        """Have a request done. Raises RuntimeError after :meth:`close`, and if no worker is left."""
        with self._lock:
            if self._closed:
                raise RuntimeError("this engine is closed: load the model again")
            if not self._live:
                raise RuntimeError("no worker is left, all devices have failed: load the model again")
            if not request.left:
                request.finished.set()
                return
            self._count(request, 1)
            self._waiting.append(request)
            self._wake_idle(request.images)

    def wait_for_room(self, feed: Feed) -> None:
        """Wait until there is room for another request of a stream."""
        with self._lock:
            feed.wait()

    def cancel(self, request: Request) -> None:
        """Begin nothing more of a request; it is finished as soon as what has begun has given up."""
        with self._lock:
            if not request.finished.is_set():
                self._abandon(request)

    @contextmanager
    def more_to_come(self) -> Iterator[Feed]:
        """For the requests of a stream. Meanwhile none is the last one, and so nobody leaves anything to others."""
        with self._lock:
            self._streams += 1
        try:
            yield Feed(self._room, self._lock)
        finally:
            with self._lock:
                self._streams -= 1

    def close(self) -> None:
        """Take no more requests, and wait until all are finished."""
        with self._lock:
            self._closed = True
            self._none_left.wait_for(lambda: not self._unfinished)

    # -- for workers ------------------------------------------------------------------------------------------

    def take(self, worker: Worker) -> Part | None:
        """The next part for a worker; None if there is nothing to do. The worker says then what became of it.

        A worker that shouldn't do what waits wakes another one in its place, and waits until that is taken.
        """
        with self._lock:
            worker.engaged, passed_on = True, False
            while self._waiting:
                request = self._waiting[0]
                if not worker.retired and not self._others_are_sooner(worker, request):
                    part = Part(request, request.cut(worker.pixels))
                    worker.device.held += part.pixels
                    if not request.left:
                        self._waiting.popleft()
                        if not self._waiting:
                            self._tell_leaving()
                    return part
                if not passed_on:
                    passed_on = True
                    self._wake(1)
                self._leaving += 1
                self._changed.wait()
                self._leaving -= 1
            worker.engaged = False
            return None

    def done(self, worker: Worker, part: Part, began: float, ended: float) -> None:
        """The worker did its part between these times, in seconds."""
        with self._lock:
            worker.device.did(part.pixels, began, ended)
            self._returned(worker, part)

    def refused(self, worker: Worker, part: Part, error: Exception) -> None:
        """The images of this part cannot be done: they are tried one by one, to find which, and then their request
        fails with ``error``."""
        request, images = part
        with self._lock:
            if request.stop.is_set():
                pass
            elif images.stop - images.start > 1:
                self._give_back(request, [slice(i, i + 1) for i in range(images.start, images.stop)])
            else:
                error.add_note(f"image {request.first + images.start} (from 0) of what the pool was given")
                request.error = error
                self._abandon(request)
            self._returned(worker, part)

    def lost(self, worker: Worker, part: Part, error: BaseException) -> int:
        """The worker's device failed: it gets no more parts, others do this one. Returns how many workers are left."""
        with self._lock:
            worker.retired = True
            self._live.remove(worker)
            self._devices = {worker.device for worker in self._live}
            if not part.request.stop.is_set():
                self._give_back(part.request, [part.images])
            for request in [] if self._live else list(self._waiting):
                last = worker.device.name
                request.error = RuntimeError(f"no worker is left: {last} was the last, and failed: {error}")
                request.error.__cause__ = error
                self._abandon(request)
            self._returned(worker, part)
            self._wake_idle(len(self._live))
            return len(self._live)

    # -- all of this holds the lock ---------------------------------------------------------------------------

    def _wake_idle(self, most: int) -> None:
        idle = sum(not worker.engaged for worker in self._live)
        if count := min(most, idle):
            self._wake(count)
        self._tell_leaving()

    def _tell_leaving(self) -> None:
        if self._leaving:  # mostly nobody: and when a part is done, every line of Python is time that its device waits
            self._changed.notify_all()

    def _others_are_sooner(self, worker: Worker, request: Request) -> bool:
        """Whether other devices will have done all that waits before this one has done a part of it.

        Never so for the fastest one when nobody holds anything: somebody always goes on.
        """
        if self._streams or not worker.device.pace:
            return False
        others = [device for device in self._devices if device.pace and device is not worker.device]
        if not others:
            return False
        waiting = sum((s.stop - s.start) * r.pixels for r in self._waiting for s in r.left)
        part = max(1, min(request.most, worker.pixels // request.pixels)) * request.pixels
        soonest = min(device.until(part) for device in others)
        return worker.device.until(part) > soonest + waiting / sum(1 / device.pace for device in others if device.pace)

    def _give_back(self, request: Request, parts: Sequence[slice]) -> None:
        if not request.left:
            self._waiting.appendleft(request)
        request.left.extendleft(reversed(parts))

    def _abandon(self, request: Request) -> None:
        request.abandon()
        if request in self._waiting:
            self._waiting.remove(request)
        self._settle(request)

    def _returned(self, worker: Worker, part: Part) -> None:
        worker.device.held -= part.pixels
        part.request.running -= 1
        self._settle(part.request)

    def _settle(self, request: Request) -> None:
        if not request.left and not request.running:
            request.finished.set()
            self._count(request, -1)
        self._tell_leaving()

    def _count(self, request: Request, change: int) -> None:
        self._unfinished += change
        if not self._unfinished:
            self._none_left.notify_all()
        if request.feed:
            request.feed.count(change)
