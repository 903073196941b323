"""A driver and some objects, to call it in the wrong order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from .driver import LEGACY, FakeDriver
from .graphs import CoreStream, Graph, GraphBuilder
from .timeline import Work


class Calls:
    """A driver, whose calls are made by names; its device 0 is chosen."""

    def __init__(self, devices: int = 1) -> None:
        self.driver = FakeDriver(devices)
        self.choose(0)
        self.stream, self.other = self.make("cuStreamCreate", 0), self.make("cuStreamCreate", 0)
        self.memory = self.make("cuMemAlloc", 64)
        self.host = self.pinned(64)

    def choose(self, device: int) -> None:
        """Choose a device for this thread."""
        with self.driver.choosing():
            self.make("cuCtxPushCurrent", device)

    def make(self, name: str, *arguments: object) -> Any:
        """Make a call."""
        return self.driver.call(name, *arguments)

    def pinned(self, size: int) -> np.ndarray:
        """Pinned memory."""
        return self.driver.memory.at(self.make("cuMemHostAlloc", size, 0)).bytes

    def event(self, stream: int) -> int:
        """An event that is recorded."""
        event = self.make("cuEventCreate", 0)
        self.make("cuEventRecord", event, stream)
        return event

    def upload(self, stream: int = LEGACY) -> None:
        """Copy `host` to `memory`."""
        self.make("cuMemcpyHtoDAsync", self.memory, self.host, 64, stream)

    def download(self, stream: int = LEGACY) -> None:
        """Copy `memory` to `host`."""
        self.make("cuMemcpyDtoHAsync", self.host, self.memory, 64, stream)

    def launch(self, stream: int, *, kernel: str = "kernel", shared: int = 0) -> None:
        """Launch a kernel that adds 1 to all bytes."""
        span = self.driver.memory.span(self.memory, 64, kernel)

        def effect() -> None:
            span.bytes[...] += 1

        self.make("cuLaunchKernel", kernel, Work(kernel, (), (span,), effect), stream, shared)

    def begin(self, mode: str = "thread_local") -> GraphBuilder:
        """A builder that captures the stream, after the kernel was loaded and the stream waited for."""
        self.launch(self.stream)
        self.make("cuStreamSynchronize", self.stream)
        return CoreStream(self.driver, self.stream).create_graph_builder().begin_building(mode)

    def graph(self) -> Graph:
        """A graph of one launch."""
        builder = self.begin()
        self.launch(self.stream)
        return builder.end_building().complete()

    def elsewhere(self, call: Callable[[], object]) -> None:
        """Call in another thread, which has chosen the device. Raises what it raises."""
        raised: list[BaseException] = []

        def run() -> None:
            try:
                self.choose(0)
                call()
            except Exception as error:
                raised.append(error)

        thread = threading.Thread(target=run)
        thread.start()
        thread.join()
        if raised:
            raise raised[0]
