"""What a GPU can do at most: float32 multiply-adds in registers, copying within its memory, and cuBLAS's products."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numba import cuda

from pix2pix.engines.base import BaseEngine
from pix2pix.gpu.jit import SIMULATED, kernel

from .kernels import seconds_of

ROUNDS, BLOCKS, THREADS, FLOATS = (2, 1, 2, 16) if SIMULATED else (1 << 18, 2048, 256, 1 << 28)
CHAINS = 8  # of multiply-adds that a thread has at a time: enough to hide how long one takes


@kernel(THREADS)
def multiply_add(out, rounds, x):
    """out[thread] = something that needs 8 multiply-adds for each round."""
    a0, a1, a2, a3, a4, a5, a6, a7 = x, x, x, x, x, x, x, x
    for _ in range(rounds):
        a0, a1, a2, a3 = a0 * x + a4, a1 * x + a5, a2 * x + a6, a3 * x + a7
        a4, a5, a6, a7 = a4 * x + a0, a5 * x + a1, a6 * x + a2, a7 * x + a3
    out[cuda.grid(1)] = a0 + a1 + a2 + a3 + a4 + a5 + a6 + a7


def measure(engine: BaseEngine) -> dict[str, float]:
    """``fma_gflops`` and ``bandwidth_gbs`` (bytes read and bytes written) of the engine's GPU."""
    gpu: Any = engine

    def arrays() -> tuple[Any, Any, Any]:
        return tuple(gpu.device.empty(size) for size in (BLOCKS * THREADS, FLOATS, FLOATS))

    out, source, target = gpu.do(arrays)
    launch = multiply_add[BLOCKS, THREADS, gpu.compute_stream]
    multiply = seconds_of(engine, lambda: launch(out, ROUNDS, np.float32(0.5)))
    copy = seconds_of(engine, lambda: target.copy_to_device(source, stream=gpu.compute_stream))
    return {
        "fma_gflops": round(2 * CHAINS * ROUNDS * BLOCKS * THREADS / multiply / 1e9, 6),
        "bandwidth_gbs": round(2 * 4 * FLOATS / copy / 1e9, 6),
    }


def all_of(engine: BaseEngine, precisions: Iterable[str]) -> dict[str, Any]:
    """:func:`measure`, and ``cublas_gflops`` by precision."""
    from .pytorch import product_gflops

    gpu: Any = engine
    return {**measure(engine), "cublas_gflops": {p: product_gflops(gpu.info.device, p) for p in precisions}}
