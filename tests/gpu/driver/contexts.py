"""How calls are made: with a context current, not while a capture forbids it, and with errors on demand.

``call`` makes a call by its name, of which a subclass has the method. Handles are integers here;
:mod:`tests.gpu.driver.install` has Numba's types. The handle of a context is its device.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from .faults import DriverError, Fault
from .graphs import Graph
from .memory import Memory, Span
from .timeline import Event, Stream, Timeline

OUT_OF_MEMORY, LAUNCH_FAILED = 2, 719
UNSAFE = {"cuMemAlloc", "cuMemHostAlloc", "cuMemFree", "cuMemFreeHost", "cuMemcpyHtoD", "cuMemcpyDtoH", "cuModuleLoad"}
NEEDS_NO_CONTEXT = {"cuCtxPushCurrent", "cuCtxGetCurrent", "cuDeviceGetCount", "cuDevicePrimaryCtxRetain"}
SURVIVES = {"cuCtxGetDevice", "cuCtxPopCurrent"}  # the loss of a device


@dataclass
class Gpu:
    """A device: its memory in bytes, and the error that it gives for ever once it is lost."""

    index: int
    memory: int = 1 << 30
    error: int = 0


class Contexts:
    """Some devices, and which context is current in which thread; what every call is checked for."""

    def __init__(self, devices: int = 1) -> None:
        self.gpus = [Gpu(index) for index in range(devices)]
        self.memory, self.timeline = Memory(), Timeline()
        self.streams: dict[int, Stream] = {}
        self.events: dict[int, Event] = {}
        self.graphs: list[Graph] = []
        self.calls: Counter[str] = Counter()
        self.threads: dict[int, set[int]] = {gpu.index: set() for gpu in self.gpus}  # that have called, by device
        self.kernels: Counter[str] = Counter()  # launched outside of graphs
        self.operands: dict[int, tuple[Span, ...]] = {}  # what kernels read by way of tensor maps, by their addresses
        self.faults: list[Fault] = []
        self.fail: Callable[[str, int], int] = lambda name, device: 0  # the error of a call, as a test wants it
        self._shared: dict[tuple[int, Any], int] = {}  # bytes of shared memory that kernels may have
        self._loaded: set[tuple[int, Any]] = set()  # kernels, by device
        self._local, self._lock, self._next = threading.local(), threading.RLock(), 0x1000

    def call(self, name: str, *arguments: Any) -> Any:
        """Make a call. Raises Fault, which is remembered, and DriverError."""
        with self._lock:
            self.calls[name] += 1
            try:
                device = self._check_context(name)
                if device is not None and name not in SURVIVES:
                    self._fail(name, device)
                self._check_captures(name, device)
                return getattr(self, f"_{name}")(*arguments)
            except Fault as fault:
                if fault not in self.faults:
                    self.faults.append(fault)
                raise

    def fault(self, what: str) -> Fault:
        """A fault, remembered, to be raised."""
        self.faults.append(Fault(what))
        return self.faults[-1]

    def _check_context(self, name: str) -> int | None:
        if name in NEEDS_NO_CONTEXT:
            return None
        if self.current is None:
            raise Fault(f"{name} in a thread that has no context current")
        self.threads[self.current].add(threading.get_ident())
        return self.current

    def _check_captures(self, name: str, device: int | None) -> None:
        for stream in self.streams.values():
            capture = stream.capture
            if capture and name in UNSAFE and capture.mode != "relaxed":
                if capture.mode == "global" or capture.thread == threading.get_ident():
                    raise Fault(f"{name} while {stream} is captured")
            if capture and name == "cuCtxSynchronize" and stream.device == device:
                raise Fault(f"{name} while {stream} is captured")

    def _fail(self, name: str, device: int) -> None:
        gpu = self.gpus[device]
        code = gpu.error or self.fail(name, device)
        if code == LAUNCH_FAILED and not gpu.error:
            gpu.error = code
            self.timeline.drop(device)
        if code:
            raise DriverError(code)

    def _new_handle(self) -> int:
        self._next += 1
        return self._next

    # -- contexts -------------------------------------------------------------------------------------------------

    @property
    def current(self) -> int | None:
        """The device whose context is current in this thread."""
        stack = self._stack()
        return stack[-1] if stack else None

    def _stack(self) -> list[int]:
        if not hasattr(self._local, "stack"):
            self._local.stack = []
        return self._local.stack

    @contextmanager
    def choosing(self) -> Iterator[None]:
        """This thread chooses its device, as opposed to Numba, which takes device 0 where nobody has."""
        self._local.is_choosing = True
        try:
            yield
        finally:
            self._local.is_choosing = False

    def _cuDeviceGetCount(self) -> int:
        return len(self.gpus)

    def _cuDevicePrimaryCtxRetain(self, device: int) -> int:
        return device

    def _cuCtxPushCurrent(self, device: int) -> None:
        if not getattr(self._local, "is_choosing", False):
            raise Fault(f"a thread that has chosen no device gets the context of device {device}")
        self._stack().append(device)

    def _cuCtxPopCurrent(self) -> int:
        return self._stack().pop()

    def _cuCtxGetCurrent(self) -> int | None:
        return self.current

    def _cuCtxGetDevice(self) -> int:
        assert self.current is not None
        return self.current
