"""What this machine can do at most: arithmetic on registers (without VNNI, that of int8 in the first-level cache), and
reading memory."""

from __future__ import annotations

import time

import numpy as np

from .instruction_sets import chosen, extension
from .topology import available_cores

MEASURED = ("float32", "bfloat16", "int8")


def measure(threads: int | None = None, seconds: float = 0.5, precision: str = "float32") -> dict[str, float]:
    """Measured peaks of this machine: ``fma_gflops`` (multiply-adds in a precision) and ``bandwidth_gbs`` (reading
    memory). Raises ValueError for a precision whose peak isn't known, RuntimeError if the processor lacks what it
    needs."""
    if precision not in MEASURED:
        raise ValueError(f"got precision {precision!r}, expected one whose peak can be measured: {', '.join(MEASURED)}")
    kernels, threads = extension(), threads or available_cores()
    tiles = chosen(precision=precision) == "amx"
    array = np.ones(1 << 26, np.float32)
    rates = {"fma_gflops": 0.0, "bandwidth_gbs": 0.0}
    deadline = time.perf_counter() + seconds
    while time.perf_counter() < deadline:
        start = time.perf_counter()
        operations, _ = kernels.run_multiply_adds(1 << 20, threads, precision, tiles)
        middle = time.perf_counter()
        kernels.run_sum(array, threads)
        end = time.perf_counter()
        rates["fma_gflops"] = max(rates["fma_gflops"], operations / (middle - start) / 1e9)
        rates["bandwidth_gbs"] = max(rates["bandwidth_gbs"], array.nbytes / (end - middle) / 1e9)
    return rates
