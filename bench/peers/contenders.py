"""Contenders: engines, each in a process of its own, that run blocks of calls on demand.

Separate processes keep the thread pools of different libraries apart. Only one of them works at a time. They import
nothing beside their engine's own libraries that would take memory.
"""

from __future__ import annotations

import time
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np

from ..clock import time_calls
from .engines import ENGINES, Task


def _serve(connection: Connection, name: str, task: Task) -> None:
    """In the contender's process: load, send the first output, then time as many calls as each message asks for."""
    try:
        start = time.perf_counter()
        call, to_nhwc = ENGINES[name].load(task)
        output = np.array(to_nhwc(call()))
        connection.send((output, time.perf_counter() - start))
        while repetitions := connection.recv():
            connection.send((time_calls(call, repetitions), peak_memory()))
    except Exception as error:
        connection.send(error)


def peak_memory() -> float:
    """The largest resident set (VmHWM, MiB) of this process so far."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return round(next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1024, 1)


class Contender:
    """One engine in a process of its own, ready to be timed. The constructor raises what the engine raised.

    ``output`` is float32 (N,H,W,C). ``setup`` is the seconds from the model's file to the first output. ``memory`` is
    the peak resident set of the process (MiB) when it was last timed.
    """

    def __init__(self, name: str, task: Task) -> None:
        context = get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(theirs, name, task), daemon=True)
        self._process.start()
        theirs.close()
        self.memory = 0.0
        try:
            self.output, self.setup = self._receive()
        except BaseException:
            self._process.join()
            raise

    def _receive(self) -> Any:
        reply = self._connection.recv()
        if isinstance(reply, Exception):
            raise reply
        return reply

    def time(self, repetitions: int) -> list[float]:
        """Seconds of each of so many calls, run now."""
        self._connection.send(repetitions)
        seconds, self.memory = self._receive()
        return seconds

    def close(self) -> None:
        """End the process."""
        self._connection.send(0)
        self._process.join()
