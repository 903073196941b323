"""The driver's calls, by name. Each checks what its documentation requires, and raises Fault, or gives a result."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np

from .contexts import OUT_OF_MEMORY, Contexts
from .faults import DriverError, Fault
from .graphs import Capture, Graph, check_mode
from .memory import HostArray, Span
from .timeline import Event, Stream, Work, merge

LEGACY = 0
WITHOUT_ASKING = 48 << 10  # bytes of shared memory


class FakeDriver(Contexts):
    """Some devices, and all that was made on them. For all threads; calls are made one at a time."""

    # -- memory ---------------------------------------------------------------------------------------------------

    def _cuMemGetInfo(self) -> tuple[int, int]:
        gpu = self.gpus[self._cuCtxGetDevice()]
        return gpu.memory - self.memory.used(gpu.index), gpu.memory

    def _cuMemAlloc(self, size: int) -> int:
        if size > self._cuMemGetInfo()[0]:
            raise DriverError(OUT_OF_MEMORY)
        return self.memory.allocate(self._cuCtxGetDevice(), size).address

    def _cuMemHostAlloc(self, size: int, flags: int) -> int:
        return self.memory.allocate_pinned(self._cuCtxGetDevice(), size).address

    def _cuMemFree(self, address: int) -> None:
        found = self.memory.at(address)
        if found is None or found.address != address:
            raise Fault(f"{address:#x} is freed, which no allocation returned")
        found.check_alive("freeing")
        if found.device != self.current:
            raise Fault(f"{found} are freed in a thread whose context is of device {self.current}")
        if using := found.pending():
            raise Fault(f"{found} are freed while {using[0]} may use them")
        found.alive = False

    _cuMemFreeHost = _cuMemFree

    def _own(self, spans: tuple[Span, ...], what: str) -> tuple[Span, ...]:
        for span in spans:
            if span.allocation.device != self.current:
                raise Fault(f"{what} uses {span.allocation} in a context of device {self.current}")
        return spans

    def _cuMemcpyHtoDAsync(self, address: int, array: np.ndarray, size: int, stream: int = LEGACY) -> None:
        what = f"a copy to the device of {size} bytes"
        to, source = self.memory.span(address, size, what), HostArray(array, is_read=True)

        def effect() -> None:
            to.bytes[...] = source.bytes()

        self._copy(Work(what, self._pinned(array), self._own((to,), what), effect), stream)

    def _cuMemcpyDtoHAsync(self, array: np.ndarray, address: int, size: int, stream: int = LEGACY) -> None:
        what = f"a copy to the host of {size} bytes"
        source, to = self.memory.span(address, size, what), HostArray(array, is_read=False)

        def effect() -> None:
            to.bytes()[...] = source.bytes

        self._copy(Work(what, self._own((source,), what), self._pinned(array), effect), stream)

    def _cuMemcpyHtoD(self, address: int, array: np.ndarray, size: int) -> None:
        self._cuMemcpyHtoDAsync(address, array, size)
        self._cuStreamSynchronize(LEGACY)

    def _cuMemcpyDtoH(self, array: np.ndarray, address: int, size: int) -> None:
        self._cuMemcpyDtoHAsync(array, address, size)
        self._cuStreamSynchronize(LEGACY)

    def _pinned(self, array: np.ndarray) -> tuple[Span, ...]:
        """The part of pinned memory that an array is, if it is."""
        address = array.ctypes.data
        found = self.memory.at(address)
        return (Span(found, address - found.address, address - found.address + array.nbytes),) if found else ()

    def _copy(self, work: Work, handle: int) -> None:
        stream = self._stream(handle)
        if stream.capture:
            raise Fault(f"{work.what} on a stream that is captured: the fake has no such graphs")
        self._submit(work, stream)

    # -- streams and events ---------------------------------------------------------------------------------------

    def _stream(self, handle: int) -> Stream:
        """A stream of the current context; the legacy one waits for all others, and they for it."""
        device = self._cuCtxGetDevice()
        if handle == LEGACY:
            legacy = self.streams.setdefault(-device - 1, Stream(-device - 1, device))
            for stream in self._blocking(device):
                if stream.capture:
                    raise Fault(f"the legacy default stream is used while {stream} is captured")
                merge(legacy.clock, stream.clock)
            return legacy
        stream = self.streams[handle]
        if not stream.alive:
            raise Fault(f"{stream} is used after it was destroyed")
        if stream.device != device:
            raise Fault(f"{stream} is used in a context of device {device}")
        return stream

    def _blocking(self, device: int) -> list[Stream]:
        return [s for s in self.streams.values() if s.device == device and s.alive and s.handle > 0]

    def _submit(self, work: Work, stream: Stream) -> None:
        self.timeline.submit(work, stream)
        if stream.handle < 0:
            for other in self._blocking(stream.device):
                merge(other.clock, stream.clock)

    def _cuStreamCreate(self, flags: int) -> int:
        handle = self._new_handle()
        self.streams[handle] = Stream(handle, self._cuCtxGetDevice())
        return handle

    def _cuStreamDestroy(self, handle: int) -> None:
        stream = self._stream(handle)
        if stream.capture:
            raise Fault(f"{stream} is destroyed while it is captured")
        stream.alive = False

    def _cuStreamSynchronize(self, handle: int) -> None:
        stream = self._stream(handle)
        if stream.capture:
            raise Fault(f"{stream} is waited for while it is captured")
        self.timeline.complete(stream.clock)

    def _cuCtxSynchronize(self) -> None:
        for stream in self.streams.values():
            if stream.device == self.current:
                self.timeline.complete(stream.clock)

    def _cuEventCreate(self, flags: int) -> int:
        handle = self._new_handle()
        self.events[handle] = Event(handle, self._cuCtxGetDevice())
        return handle

    def _event(self, handle: int) -> Event:
        event = self.events[handle]
        if not event.alive:
            raise Fault("an event is used after it was destroyed")
        return event

    def _cuEventDestroy(self, handle: int) -> None:
        self._event(handle).alive = False

    def _cuEventRecord(self, handle: int, stream_handle: int) -> None:
        event, stream = self._event(handle), self._stream(stream_handle)
        if event.device != stream.device:
            raise Fault(f"an event of device {event.device} is recorded in {stream}")
        event.clock, event.capture = dict(stream.clock), stream.capture

    def _cuEventSynchronize(self, handle: int) -> None:
        event = self._event(handle)
        if event.clock is None:
            raise Fault("the host waits for an event that was never recorded")
        if event.capture:
            raise Fault("the host waits for an event that was recorded in a capture")
        self.timeline.complete(event.clock)

    def _cuStreamWaitEvent(self, stream_handle: int, handle: int, flags: int) -> None:
        event, stream = self._event(handle), self._stream(stream_handle)
        if event.clock is None:
            raise Fault(f"{stream} waits for an event that was never recorded")
        if event.capture is not stream.capture:
            raise Fault(f"{stream} waits for an event across the border of a capture")
        merge(stream.clock, event.clock)

    # -- kernels and graphs ---------------------------------------------------------------------------------------

    def _cuKernelSetAttribute(self, attribute: int, size: int, kernel: Any, device: int) -> None:
        self._shared[device, kernel] = size

    def _cuLaunchKernel(self, kernel: Any, work: Work, handle: int, shared: int) -> None:
        stream, device = self._stream(handle), self._cuCtxGetDevice()
        if shared > max(WITHOUT_ASKING, self._shared.get((device, kernel), 0)):
            raise Fault(f"{work.what}: {shared} bytes of shared memory were not asked for")
        if (device, kernel) not in self._loaded:
            self._check_captures("cuModuleLoad", device)
            self._loaded.add((device, kernel))
        for span, _ in work.spans():
            span.allocation.check_alive(work.what)
        self._own((*work.reads, *work.writes), work.what)
        if stream.capture:
            stream.capture.works.append(work)
            return
        self.kernels[work.what] += 1
        self._submit(work, stream)

    def _cuStreamBeginCapture(self, handle: int, mode: str) -> None:
        check_mode(mode)
        if handle == LEGACY:
            raise Fault("the legacy default stream cannot be captured")
        stream = self._stream(handle)
        if stream.capture:
            raise Fault(f"{stream} is captured already")
        stream.capture = Capture(stream, mode)

    def _cuStreamEndCapture(self, handle: int) -> list[Work]:
        stream = self._stream(handle)
        capture = stream.capture
        if capture is None:
            raise Fault(f"{stream} is not captured")
        if capture.mode != "relaxed" and capture.thread != threading.get_ident():
            raise Fault(f"the capture of {stream} is ended by another thread")
        stream.capture = None
        return capture.works

    def _cuGraphInstantiate(self, works: list[Work], device: int) -> Graph:
        self.graphs.append(Graph(self, works, device))
        return self.graphs[-1]

    def _cuGraphLaunch(self, graph: Graph, handle: int) -> None:
        stream = self._stream(handle)
        if not graph.alive:
            raise Fault("a graph is launched after it was destroyed")
        if stream.capture:
            raise Fault(f"a graph is launched in {stream}, which is captured: the fake has no such graphs")
        if stream.device != graph.device:
            raise Fault(f"a graph of device {graph.device} is launched in {stream}")
        merge(stream.clock, graph.clock)
        for work in graph.works:
            self._submit(work, stream)
        graph.clock, graph.launches = dict(stream.clock), graph.launches + 1
