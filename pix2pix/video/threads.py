"""Work beside the engine: what comes is fetched ahead of it, what it makes is taken care of behind it.

Both sides are bounded, so that memory does not grow with the number of frames.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Generator, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")
SECONDS_BETWEEN_LOOKS = 0.1  # whether the other side has given up, or an interrupt has come


class _End:
    """The last item of a queue; ``error`` ended what fills it."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error


def ahead(items: Iterable[T], room: int, is_waited_for: bool = True) -> Generator[T, None, None]:
    """``items``, which another thread fetches, up to ``room`` of them before they are asked for.

    Raises what they raise. When this generator is closed, the thread has ended; or, if ``is_waited_for`` is false,
    because an item may never come, it will with the next item.
    """
    waiting: queue.Queue[T | _End] = queue.Queue(room)
    stop = threading.Event()

    def put(item: T | _End) -> bool:
        while not stop.is_set():
            try:
                waiting.put(item, timeout=SECONDS_BETWEEN_LOOKS)
                return True
            except queue.Full:
                continue
        return False

    def fetch() -> None:
        try:
            for item in items:
                if not put(item):
                    return
            put(_End())
        except BaseException as error:
            put(_End(error))

    thread = threading.Thread(target=fetch, name="pix2pix-ahead", daemon=True)
    thread.start()
    try:
        while not isinstance(item := _taken(waiting), _End):
            yield item
        if item.error is not None:
            raise item.error
    finally:
        stop.set()
        if is_waited_for:
            thread.join()


def _taken(waiting: queue.Queue[T]) -> T:
    """The next item. A wait without an end would now and then sleep through an interrupt that comes just before it."""
    while True:
        try:
            return waiting.get(timeout=SECONDS_BETWEEN_LOOKS)
        except queue.Empty:
            continue


class Behind(Generic[T]):
    """A thread that calls ``take`` for each item that is put, in order; up to ``room`` of them wait.

    What ``take`` raises is raised by the next :meth:`put` or by :meth:`finish`, and the items after it are dropped. Use
    it as a context manager: at its end the thread has ended, and has dropped what was not taken yet; or, if
    ``is_waited_for`` is false because ``take`` may never return, it will.
    """

    def __init__(self, take: Callable[[T], None], room: int, is_waited_for: bool = True) -> None:
        self._take, self._stop, self._is_waited_for = take, threading.Event(), is_waited_for
        self._waiting: queue.Queue[T | _End] = queue.Queue(room)
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="pix2pix-behind", daemon=True)

    def __enter__(self) -> Behind[T]:
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stop.set()
        if self._is_waited_for:
            self._put(_End())
            self._thread.join()

    def put(self, item: T) -> None:
        """Have an item taken; waits while there is no room."""
        self._put(item)
        self._raise()

    def finish(self) -> None:
        """Wait until everything is taken."""
        self._put(_End())
        while self._thread.is_alive():  # a wait without an end might miss an interrupt, as in _taken
            self._thread.join(SECONDS_BETWEEN_LOOKS)
        self._raise()

    def _put(self, item: T | _End) -> None:
        while self._thread.is_alive():
            try:
                return self._waiting.put(item, timeout=SECONDS_BETWEEN_LOOKS)
            except queue.Full:
                continue

    def _raise(self) -> None:
        if self._error is not None:
            raise self._error

    def _run(self) -> None:
        while not isinstance(item := self._waiting.get(), _End):
            if self._stop.is_set():
                continue
            try:
                self._take(item)
            except BaseException as error:
                self._error = error
                return
