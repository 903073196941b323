"""Standard streams whose failures never touch the work, and signals that end it in good order."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TextIO

ENDINGS = ("SIGTERM", "SIGHUP")  # end a run as Ctrl-C does


class Unfailing:
    """A text stream whose writes never raise: what cannot be written is lost, and ``error`` says why.

    Characters that its encoding lacks are written as escapes. ``stream`` is None if the process has no such stream.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self.stream = stream
        self.error: Exception | None = None

    def write(self, text: str) -> int:
        if self.stream is not None:
            try:
                self.stream.write(text)
            except UnicodeEncodeError as error:
                self.write(text.encode(error.encoding, "backslashreplace").decode(error.encoding))
            except (OSError, ValueError) as error:  # ValueError: the stream is closed
                self.error = error
        return len(text)

    def flush(self) -> None:
        if self.stream is not None:
            try:
                self.stream.flush()
            except (OSError, ValueError) as error:
                self.error = error

    def isatty(self) -> bool:
        return self.stream is not None and not self.stream.closed and self.stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def check_written(stream: TextIO) -> None:
    """Flush a stream that carries a result. Raises OSError if that was lost though somebody reads the stream."""
    stream.flush()
    error = getattr(stream, "error", None)
    if isinstance(error, OSError) and not isinstance(error, BrokenPipeError):
        raise error


@contextmanager
def unfailing_streams() -> Iterator[None]:
    """In the block, stdout and stderr never fail."""
    _reserve_descriptors()
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = streams = Unfailing(sys.stdout), Unfailing(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before
        for stream in streams:
            stream.error = None
            stream.flush()
            if stream.error is not None:
                _discard(stream)


def _reserve_descriptors() -> None:
    """Open the null device for standard streams that are closed: no file may get their numbers, which all write to."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)


def _discard(stream: Unfailing) -> None:
    """Let what a stream still holds go to the null device: the interpreter flushes it again when it ends."""
    try:
        descriptor = stream.fileno()
    except (OSError, ValueError, AttributeError):
        return
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)
    stream.flush()


@contextmanager
def interrupted_by_signals() -> Iterator[None]:
    """In the block, signals that ask a process to end raise KeyboardInterrupt, unless they are ignored (nohup)."""

    def interrupt(_signal: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = {}
    if threading.current_thread() is threading.main_thread():
        for name in ENDINGS:
            number = getattr(signal, name, None)
            if number is not None and signal.getsignal(number) == signal.SIG_DFL:
                before[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
