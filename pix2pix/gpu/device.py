"""One GPU as the engine needs it: memory, streams, CUDA graphs; and the same in Numba's simulator.

A :class:`Device` belongs to the thread that makes it, as CUDA contexts are per thread. The simulator overlaps nothing:
arrays are ordinary ones, and graphs are plain calls.
"""

from __future__ import annotations

import logging
import math
import threading
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


class Device:
    """A GPU, selected for the thread that makes this. Raises RuntimeError if there is none, or it is too old."""

    def __init__(self, index: int) -> None:
        self.index, self.name = index, gpu_name(index)
        cuda.select_device(index)
        self.capability = capability_of(index)
        if self.capability < LEAST_CAPABILITY:
            needed, there = (".".join(map(str, version)) for version in (LEAST_CAPABILITY, self.capability))
            raise RuntimeError(f"device cuda:{index}: {self.name} has compute capability {there}, {needed} is needed")
        self._allowed: set[Any] = set()  # kernels that may have more shared memory
        # The default stream waits for all others, so it may not be used while one of them is captured.
        self._uploads = cuda.stream()
        self.has_graphs = not SIMULATED and hasattr(CoreStream, "create_graph_builder")

    def empty(self, size: int, dtype: Any = np.float32) -> Any:
        """`size` uninitialised elements in the GPU's memory. Raises MemoryError if there isn't enough."""
        with self._memory_errors(size * np.dtype(dtype).itemsize, f"cuda:{self.index}"):
            return cuda.device_array(size, dtype)

    def upload(self, array: np.ndarray) -> Any:
        """A copy of a host array in the GPU's memory, flat."""
        result = self.empty(array.size, array.dtype)
        result.copy_to_device(np.ascontiguousarray(array).reshape(-1), stream=self._uploads)
        self._uploads.synchronize()
        return result

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
        """Uninitialised page-locked host memory, which the GPU copies asynchronously. Raises MemoryError."""
        with self._memory_errors(math.prod(shape) * np.dtype(dtype).itemsize, "the host"):
            return cuda.pinned_array(shape, dtype)

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
        with cuda.defer_cleanup():  # freeing memory would end the capture
            builder.begin_building("thread_local")
            try:
                work()
            finally:
                builder.end_building()
        graph = builder.complete()
        return lambda: graph.launch(captured)

    def release(self) -> None:
        """Free memory whose arrays are gone, now."""
        if not SIMULATED:
            cuda.current_context().deallocations.clear()
