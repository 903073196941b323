"""Measured peaks of a GPU: float32 multiply-adds in registers, copies within its memory, products by cuBLAS."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numba import cuda

from pix2pix.gpu.jit import SIMULATED, kernel

from .timing import graph_seconds

if TYPE_CHECKING:
    from pix2pix.gpu.engine import GpuEngine

ROUNDS, BLOCKS, THREADS, FLOATS = (2, 1, 2, 16) if SIMULATED else (1 << 18, 2048, 256, 1 << 28)
CHAINS = 8  # independent multiply-adds of a thread: enough to hide their latency


@kernel(THREADS)
def multiply_add(out, rounds, x):
    """out[thread] = the result of 8 multiply-adds per round."""
    a0, a1, a2, a3, a4, a5, a6, a7 = x, x, x, x, x, x, x, x
    for _ in range(rounds):
        a0, a1, a2, a3 = a0 * x + a4, a1 * x + a5, a2 * x + a6, a3 * x + a7
        a4, a5, a6, a7 = a4 * x + a0, a5 * x + a1, a6 * x + a2, a7 * x + a3
    out[cuda.grid(1)] = a0 + a1 + a2 + a3 + a4 + a5 + a6 + a7


def measure(engine: GpuEngine) -> dict[str, float]:
    """``fma_gflops`` and ``bandwidth_gbs`` (bytes read plus bytes written) of the engine's GPU."""

    def arrays() -> tuple[Any, Any, Any]:
        return tuple(engine.device.empty(size) for size in (BLOCKS * THREADS, FLOATS, FLOATS))

    out, source, target = engine.do(arrays)
    launch = multiply_add[BLOCKS, THREADS, engine.compute_stream]
    multiply = graph_seconds(engine, lambda: launch(out, ROUNDS, np.float32(0.5)))
    copy = graph_seconds(engine, lambda: target.copy_to_device(source, stream=engine.compute_stream))
    return {
        "fma_gflops": round(2 * CHAINS * ROUNDS * BLOCKS * THREADS / multiply / 1e9, 6),
        "bandwidth_gbs": round(2 * 4 * FLOATS / copy / 1e9, 6),
    }


def all_of(engine: GpuEngine, precisions: Iterable[str]) -> dict[str, Any]:
    """:func:`measure`, and ``cublas_gflops`` by precision."""
    from .pytorch import product_gflops

    return {**measure(engine), "cublas_gflops": {p: product_gflops(engine.info.device, p) for p in precisions}}
