"""One GPU as the engine needs it: memory, streams, CUDA graphs; and the same in Numba's simulator.

A :class:`Device` belongs to the thread that makes it, as CUDA contexts are per thread. The simulator overlaps nothing:
arrays are ordinary ones, and graphs are plain calls.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import logging
import math
import threading
import traceback
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import numpy as np
from numba import cuda

from ..devices import gpu_name, one_line
from .jit import SIMULATED

OUT_OF_MEMORY = 2  # CUDA_ERROR_OUT_OF_MEMORY
LEAST_CAPABILITY, HOPPER = (8, 0), (9, 0)
# Around launches of kernels: Numba simulates one at a time in the whole process.
SIMULATOR: AbstractContextManager[object] = threading.Lock() if SIMULATED else nullcontext()

try:
    from cuda.core import Stream as CoreStream
except ImportError:  # older than 0.5, or not installed
    CoreStream = None

log = logging.getLogger(__name__)


def capability_of(index: int) -> tuple[int, int]:
    """The compute capability of the GPU of that index; the simulator has every kernel's."""
    return HOPPER if SIMULATED else tuple(cuda.gpus[index].compute_capability)


def selected(index: int) -> AbstractContextManager[None]:
    """Within it, this thread has that GPU selected."""
    return nullcontext() if SIMULATED else cuda.gpus[index]


def is_of_driver(error: BaseException) -> bool:
    """Whether an error comes from Numba or cuda-core, whose exceptions have no common root."""
    return type(error).__module__.partition(".")[0] in ("numba", "cuda")


class EngineTraceback(Exception):
    """The cause of an engine's error: what its own thread was doing, as text, for frames would keep GPU memory."""

    def __str__(self) -> str:
        return f"\n{self.args[0]}"


def detached(error: Exception, whose: str) -> Exception:
    """An error without frames, for another thread, which cannot free what they hold; one of the driver is RuntimeError.

    To be called in the thread that has the GPU selected.
    """
    text = "".join(traceback.format_exception(error))
    told = RuntimeError(f"{whose} failed: {one_line(error)}") if is_of_driver(error) else error
    chain: list[BaseException | None] = [error]
    while chain:
        if part := chain.pop():
            chain += [part.__cause__, part.__context__]
            part.__cause__ = part.__context__ = part.__traceback__ = None
    told.__cause__ = EngineTraceback(text)
    return told


@functools.cache
def _leave_memory_at_exit(index: int) -> AbstractContextManager[None]:
    """Have Numba's finalizers free nothing when the process ends: the main thread cannot, and the driver does it."""
    context = cuda.current_context()
    context.create_stream()  # has a finalizer: those of all objects run after what is registered from now on
    deferring: AbstractContextManager[None] = context.defer_cleanup()
    atexit.register(deferring.__enter__)
    return deferring


class Device:
    """A GPU, selected for the thread that makes this. Raises RuntimeError if there is none, or it is too old."""

    def __init__(self, index: int) -> None:
        self.index, self.name = index, gpu_name(index)
        cuda.select_device(index)
        if not SIMULATED:
            _leave_memory_at_exit(index)
        self.capability = capability_of(index)
        if self.capability < LEAST_CAPABILITY:
            needed, there = (".".join(map(str, version)) for version in (LEAST_CAPABILITY, self.capability))
            raise RuntimeError(f"device cuda:{index}: {self.name} has compute capability {there}, {needed} is needed")
        self._allowed: set[Any] = set()  # kernels that may have more shared memory
        self._is_open, self._dropped = True, deque[list[np.ndarray]]()  # memory that was lent, and is to be freed
        self.has_graphs = not SIMULATED and hasattr(CoreStream, "create_graph_builder")

    def empty(self, size: int, dtype: Any = np.float32) -> Any:
        """`size` uninitialised elements in the GPU's memory. Raises MemoryError if there isn't enough."""
        with self._memory_errors(size * np.dtype(dtype).itemsize, f"cuda:{self.index}"):
            return cuda.device_array(size, dtype)

    def upload(self, array: np.ndarray) -> Any:
        """A copy of a host array in the GPU's memory, flat."""
        # The default stream waits for all others, so it may not be used while one of them is captured. A new stream
        # lives and dies in the thread that has the GPU selected.
        result, stream, source = self.empty(array.size, array.dtype), cuda.stream(), np.ascontiguousarray(array)
        result.copy_to_device(source.reshape(-1), stream=stream)
        stream.synchronize()
        return result

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Uninitialised page-locked host memory, which the GPU copies asynchronously. Raises MemoryError."""
        with self._memory_errors(math.prod(shape) * np.dtype(dtype).itemsize, "the host"):
            return cuda.pinned_array(shape, dtype)

    def lent(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """:meth:`pinned` memory that any thread may drop. It is freed at the next call of this method or ``release``.

        A thread without a context can free nothing; after :meth:`close`, it selects the GPU for that.
        """
        self._dropped.clear()
        array = self.pinned(shape, dtype)
        if SIMULATED:
            return array
        held, memory = [array], (ctypes.c_uint8 * array.nbytes).from_address(array.ctypes.data)

        def drop() -> None:  # without a lock: it may be called by the garbage collector
            if self._is_open:
                self._dropped.append(held)
            else:
                with selected(self.index):
                    held.clear()

        weakref.finalize(memory, drop).atexit = False
        return np.frombuffer(memoryview(memory), dtype).reshape(shape)

    @contextmanager
    def _memory_errors(self, size: int, whose: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if getattr(error, "code", None) != OUT_OF_MEMORY:
                raise
            raise MemoryError(f"{whose} has no {size:,} bytes of memory left") from None

    def allow_shared(self, kernel: Any, arguments: tuple[Any, ...], size: int) -> None:
        """Let a kernel have `size` bytes of dynamic shared memory, where more than 48 KB must be asked for.

        Numba has no call for it (https://github.com/NVIDIA/numba-cuda/issues/94), so the driver is asked, for the
        function that Numba has compiled for arguments of these types: the same at every launch.
        """
        if SIMULATED or kernel in self._allowed:
            return
        from cuda.bindings.driver import CUfunction_attribute
        from numba.cuda.cudadrv.driver import driver

        signature = tuple(kernel.typeof_pyval(argument) for argument in arguments)
        function = kernel.compile(signature)._codelibrary.get_cufunc()
        attribute = CUfunction_attribute.CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES
        driver.cuKernelSetAttribute(attribute, size, function.handle, function.device.id)
        self._allowed.add(kernel)

    def stream(self) -> Any:
        """A new stream."""
        return cuda.stream()

    def event(self) -> Any:
        """A new event, without a time."""
        return cuda.event() if SIMULATED else cuda.event(timing=False)

    def graph(self, work: Callable[[], None], stream: Any) -> Callable[[], None]:
        """``work``, which launches kernels on ``stream``, as a CUDA graph if there are any.

        It is then run once before it is captured, so that its kernels are compiled and loaded.
        """
        if not self.has_graphs:
            return work
        work()
        try:
            return self._capture(work, stream)
        except Exception as error:
            self.has_graphs = False
            log.warning("kernels are launched one by one: no CUDA graph (%s)", one_line(error))
            return work

    def _capture(self, work: Callable[[], None], stream: Any) -> Callable[[], None]:
        stream.synchronize()
        captured = CoreStream.from_handle(int(stream.handle))
        builder = captured.create_graph_builder()
        with self.deferring():
            builder.begin_building("thread_local")
            try:
                work()
            finally:
                builder.end_building()
        graph = builder.complete()
        return lambda: graph.launch(captured)

    def deferring(self) -> AbstractContextManager[None]:
        """Within it, memory whose arrays go is not freed yet: a capture forbids it, and on a lost GPU it fails."""
        return nullcontext() if SIMULATED else cuda.defer_cleanup()

    def release(self) -> None:
        """Free memory whose arrays are gone, now."""
        self._dropped.clear()
        if not SIMULATED:
            context = cuda.current_context()
            context.memory_manager.deallocations.clear()  # of arrays
            context.deallocations.clear()  # of streams and events

    def close(self) -> None:
        """The last :meth:`release`."""
        self._is_open = False
        self.release()
