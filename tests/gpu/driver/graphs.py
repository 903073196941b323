"""CUDA graphs as cuda-core makes them: by capturing a stream. Source: cuda-core, Stream and GraphBuilder."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cuda.bindings.driver import CUresult
from cuda.core._utils.cuda_utils import CUDAError

from .faults import DriverError, Fault
from .timeline import Clock, Stream, Work

if TYPE_CHECKING:
    from .driver import FakeDriver

MODES = ("global", "thread_local", "relaxed")


@dataclass(eq=False)
class Capture:
    """What is being recorded, by which thread, and how strictly."""

    stream: Stream
    mode: str
    thread: int = field(default_factory=threading.get_ident)
    works: list[Work] = field(default_factory=list)


def as_core(driver: FakeDriver, name: str, *arguments: Any) -> Any:
    """A call as cuda-core makes it: with its exception for an error."""
    try:
        return driver.call(name, *arguments)
    except DriverError as error:
        raise CUDAError(CUresult(error.code).name) from None


class CoreStream:
    """In the place of cuda.core.Stream. It does not keep the foreign stream alive."""

    def __init__(self, driver: FakeDriver, handle: int) -> None:
        self.driver, self.handle = driver, handle

    def create_graph_builder(self) -> GraphBuilder:
        """A builder that captures this stream."""
        return GraphBuilder(self)


class GraphBuilder:
    """In the place of cuda.core.graph.GraphBuilder."""

    def __init__(self, stream: CoreStream) -> None:
        self._stream, self._driver = stream, stream.driver
        self._works: list[Work] | None = None

    def begin_building(self, mode: str = "relaxed") -> GraphBuilder:
        """cuStreamBeginCapture."""
        as_core(self._driver, "cuStreamBeginCapture", self._stream.handle, mode)
        return self

    def end_building(self) -> GraphBuilder:
        """cuStreamEndCapture."""
        self._works = as_core(self._driver, "cuStreamEndCapture", self._stream.handle)
        return self

    def complete(self) -> Graph:
        """cuGraphInstantiate."""
        if self._works is None:
            raise self._driver.fault("a graph is completed before its building has ended")
        device = self._driver.streams[self._stream.handle].device
        return as_core(self._driver, "cuGraphInstantiate", self._works, device)


class Graph:
    """In the place of cuda.core.graph.Graph."""

    def __init__(self, driver: FakeDriver, works: list[Work], device: int) -> None:
        self._driver, self.works, self.device = driver, works, device
        self.clock: Clock = {}  # of its latest launch
        self.launches, self.alive = 0, True

    def launch(self, stream: CoreStream) -> None:
        """cuGraphLaunch."""
        as_core(self._driver, "cuGraphLaunch", self, stream.handle)

    def close(self) -> None:
        """cuGraphExecDestroy."""
        self.alive = False


def check_mode(mode: str) -> None:
    """Raise Fault for a mode that cuda-core does not have."""
    if mode not in MODES:
        raise Fault(f"got capture mode {mode!r}, expected one of {', '.join(MODES)}")
