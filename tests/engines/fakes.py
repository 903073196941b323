"""Fake devices, for tests of how a pool schedules. Each computes one batch at a time, for as long as it is told."""

from __future__ import annotations

import threading
import time
from collections import deque

import numpy as np

from pix2pix.engines.base import BaseEngine
from pix2pix.engines.execution import Maps
from pix2pix.engines.pool import WorkerGroup
from pix2pix.engines.reference import ReferenceEngine
from pix2pix.model.generator import Generator, Weights
from pix2pix.model.unet import unet

SMALL = unet(ngf=2, depth=2)  # takes images of 4 x 4


class FakeDevice:
    """A device that several engines share. It is busy for ``seconds`` with each batch, without the GIL.

    It is a queue, as a GPU is: a batch that arrived in time begins when the one before ends, not when a thread has
    woken up.
    """

    def __init__(self, seconds: float = 0.0) -> None:
        self.seconds = seconds
        self.busy = 0.0  # seconds in which it computed
        self.batches: list[int] = []  # the number of images in each batch that it did
        self.engines: list[FakeEngine] = []
        self.error: BaseException | None = None  # raised by all later work
        self.going = threading.Event()  # while cleared, the device hangs
        self.going.set()
        self.lock = threading.Lock()
        self._arrivals: deque[float] = deque()
        self._free_at = 0.0

    def compute(self, images: int, stop: threading.Event) -> None:
        """Compute a batch of ``images`` images, or give up when ``stop`` is set."""
        self._arrivals.append(time.perf_counter())
        with self.lock:
            begin = max(self._arrivals.popleft(), self._free_at)
            while not self.going.wait(0.001):
                if stop.is_set():
                    return
            if self.error is not None:
                raise self.error
            if self.seconds:
                self._free_at = begin + self.seconds
                time.sleep(max(0.0, self._free_at - time.perf_counter()))
                self.busy += self.seconds
            self.batches.append(images)

    def group(self, name: str = "fake", workers: int = 4, images: int = 8) -> WorkerGroup:
        """Workers on this device, each of which takes up to ``images`` images of 4 x 4 at once."""
        return WorkerGroup(name, lambda: FakeEngine(self), workers, images * 4 * 4)


class FakeEngine(BaseEngine):
    """Inverts images on a fake device, and refuses those whose first byte is 13."""

    def __init__(self, device: FakeDevice) -> None:
        super().__init__(SMALL)
        self.closed_by: int | None = None
        self.thread = threading.get_ident()
        self._device = device
        device.engines.append(self)

    def _translate(self, b: np.ndarray, out: np.ndarray, stop: threading.Event) -> None:
        if threading.get_ident() != self.thread:
            raise RuntimeError("an engine was used outside the thread that made it")
        result, unlucky = 255 - b, 13 in b[:, 0, 0, 0].tobytes()  # the device is not needed for this
        self._device.compute(len(b), stop)
        if unlucky:
            raise ValueError("an unlucky image")
        out[...] = result

    def _close(self) -> None:
        self.closed_by = threading.get_ident()


class SlowReference(ReferenceEngine):
    """The reference engine, on a fake device."""

    def __init__(self, device: FakeDevice, generator: Generator, weights: Weights) -> None:
        super().__init__(generator, weights, np.float32)
        self._device = device

    def _run(self, given: Maps, results: Maps) -> None:
        self._device.compute(1, threading.Event())
        super()._run(given, results)

    def _translate(self, b: np.ndarray, out: np.ndarray, stop: threading.Event) -> None:
        self._device.compute(len(b), stop)
        super()._translate(b, out, stop)
