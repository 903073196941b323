"""Times of launches on a GPU.

A launch is recorded many times in one CUDA graph, and the graph's time is divided by their number. Launch overhead does
not count, and caches are as warm as they get.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pix2pix.gpu.engine import GpuEngine

BLOCKS = 5  # times that each graph is timed
GRAPH_SECONDS = 0.01  # about how long a graph takes
MOST_REPEATS = 256


def graph_seconds(engine: GpuEngine, work: Callable[[], None]) -> float:
    """The median seconds of one ``work``, without launch overhead."""

    def once(graph: Callable[[], None]) -> float:
        start = time.perf_counter()
        graph()
        engine.compute_stream.synchronize()
        return time.perf_counter() - start

    def measure() -> float:
        single = once(engine.device.graph(work, engine.compute_stream))
        repeats = min(MOST_REPEATS, max(1, round(GRAPH_SECONDS / single)))

        def repeated() -> None:
            for _ in range(repeats):
                work()

        graph = engine.device.graph(repeated, engine.compute_stream)
        return float(np.median([once(graph) for _ in range(BLOCKS)])) / repeats

    return engine.do(measure)
