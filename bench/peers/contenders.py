"""Contenders: engines in processes of their own that run blocks of calls on demand, and what they all run.

Processes keep the thread pools of different libraries apart; only one of them works at a time.
"""

from __future__ import annotations

import time
from functools import cache
from multiprocessing import get_context
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from pix2pix.model.generator import Generator, Weights
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights

from . import common
from .engines import ENGINES, Task

MODEL_SEED = 0
CALIBRATION_SEED = 100  # the first of the pictures that give int8 its ranges; no others start there
CALIBRATION_PICTURES = 8


@cache
def model() -> tuple[Generator, Weights]:
    """The network that all contenders run: U-Net 256, ngf=64, random weights, image statistics."""
    generator = unet(ngf=64, depth=8)
    return generator, random_weights(generator, MODEL_SEED)


def inputs(n: int) -> np.ndarray:
    """The pictures that all contenders run over: float32 (n,256,256,3) in [-1,1]."""
    return common.to_float(common.pictures(n))


def calibration() -> np.ndarray:
    """Other pictures of the same kind, for int8."""
    return common.to_float(common.pictures(CALIBRATION_PICTURES, CALIBRATION_SEED))


def _serve(connection: Connection, name: str, task: Task) -> None:
    """In the contender's process: get ready, send the output, then time as many calls as is asked for."""
    try:
        start = time.perf_counter()
        call, to_nhwc = ENGINES[name].load(task)
        output = np.array(to_nhwc(call()))
        connection.send((output, time.perf_counter() - start))
        while repetitions := connection.recv():
            connection.send((common.time_calls(call, repetitions), common.peak_memory()))
    except Exception as error:
        connection.send(error)


class Contender:
    """One engine in a process of its own, ready to be timed.

    ``output`` is float32 (N,256,256,3); ``setup`` is the seconds from the model's file to the first output; ``memory``
    is the most, in MiB, that the process had held when it was last timed. Raises what the engine raised.
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
