"""How kernels are compiled and launched, and what differs in Numba's simulator (NUMBA_ENABLE_CUDASIM=1).

A kernel is made by a factory whose arguments are compile-time constants, so that the simulator runs small tiles of the
same source. Arrays are one-dimensional and contiguous. Kernels compute indices themselves, in 64 bits where a map may
be larger than 2**31 words. Only this package imports numba: without a GPU, nobody needs it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any, TypeVar

from numba import config, cuda
from numba import int32 as numba_int32

SIMULATED = bool(config.ENABLE_CUDASIM)
int32: Any = int if SIMULATED else numba_int32  # Python integers do not overflow, and Numba's conversion is slow there
THREADS, MOST_BLOCKS = (4, 2) if SIMULATED else (256, 4096)  # of kernels whose threads go over elements
ALIGNMENT = None if SIMULATED else 16  # bytes, of shared arrays; the simulator has no such argument
Array = Any  # of a kernel: one-dimensional and contiguous, in global, shared or local memory
Vector = Any  # 8 float32 in registers
T = TypeVar("T")
_making = threading.RLock()  # held while kernels are made; Numba compiles them under a lock of its own

if SIMULATED:

    def synchronise() -> None:
        """Wait for all threads of the block. In device functions of other modules, `cuda` is not the simulated one."""
        threading.current_thread().syncthreads()  # type: ignore[attr-defined]

else:
    from numba.cuda import dispatcher

    dispatcher.config.CUDA_LOW_OCCUPANCY_WARNINGS = 0  # small layers have small grids
    synchronise = cuda.syncthreads


def kernel(threads: int, blocks: int = 1) -> Callable[[Callable[..., None]], Any]:
    """Decorator: a kernel for blocks of `threads`, of which `blocks` must fit a multiprocessor together.

    A kernel is compiled at its first launch and cached on disk beside its source (or in NUMBA_CACHE_DIR). Numba
    notices changes of the kernel's file and of its compile-time constants, which therefore are numbers only. It does
    not notice changes of intrinsics or of imported functions: delete the cache then (``ci/gpu.sh build`` does).
    """

    def compile_lazily(function: Callable[..., None]) -> Any:
        if SIMULATED:
            return cuda.jit(function)
        return cuda.jit(launch_bounds=(threads, blocks), cache=True)(function)

    return compile_lazily


def made_once(factory: Callable[..., T]) -> Callable[..., T]:
    """Decorator: what makes kernels does so once for the same arguments, whichever threads ask for them at once.

    If there were two of a kernel, a thread could load one, and then have the other in the graph that it records.
    """
    cached = functools.cache(factory)

    @functools.wraps(factory)
    def make(*arguments: Any) -> T:
        with _making:
            return cached(*arguments)

    return make


def inlined(function: Callable[..., Any]) -> Any:
    """Decorator: a device function that is inlined into kernels, with the caller's compile-time constants."""
    return function if SIMULATED else cuda.jit(device=True, inline="always")(function)


def launch_over(kernel: Any, stream: Any, count: int, *arguments: Any) -> None:
    """Launch a kernel whose threads go over ``count`` elements in steps of the grid."""
    kernel[min(-(-count // THREADS), MOST_BLOCKS), THREADS, stream](*arguments)
