"""Each launch of the GPU engine by itself: its time, GFLOP/s and GB/s.

A launch is recorded so many times in one CUDA graph, and the graph's time divided by their number: launching doesn't
count, and caches are as warm as they get. GFLOP are those of the convolution (zeros that im2col multiplies don't
count); bytes are what a kernel cannot do without, each map and weight once.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pix2pix.engine import BaseEngine
from pix2pix.generator import INPUT, Generator

BLOCKS = 5  # times that each graph is timed
GRAPH_SECONDS = 0.02  # about how long a graph takes
MOST_REPEATS = 256


@dataclass(frozen=True, slots=True)
class Launch:
    """One or more kernels that the engine launches together for a layer; ``work`` does so."""

    layer: str
    kernel: str
    work: Callable[[], None]


def launches(engine: BaseEngine, b: np.ndarray) -> list[Launch]:
    """Everything that the engine launches to translate such a batch once all is set up, in order."""
    gpu: Any = engine
    found: list[Launch] = []

    def record() -> None:
        size = gpu._size(*b.shape[:3])
        slot, forward = gpu._slot(size), size.forward
        layer = INPUT
        compute, multiply, launch, normalise = forward._compute, forward._multiply, forward._launch, forward._normalise
        set_map = forward.set_map

        def keep(kernel: str, work: Callable[[], None]) -> None:
            found.append(Launch(layer, kernel, work))
            work()

        def compute_layer(packed: Any, picture: Any) -> None:
            nonlocal layer
            layer = packed.layer.name
            compute(packed, picture)

        def set_constant(name: str, value: Any, images: int) -> None:
            nonlocal layer
            layer = name
            set_map(name, value, images)

        forward._compute, forward.set_map = compute_layer, set_constant
        forward._multiply = lambda *a: keep("multiply", lambda: multiply(*a))
        forward._normalise = lambda packed: keep("normalise", lambda: normalise(packed))
        forward._launch = lambda kernel, *a: keep(kernel.__name__, lambda: launch(kernel, *a))
        try:
            forward.set_pictures(slot.b)
            forward.compute({INPUT}, (gpu.generator.layers[-1].name,), slot.out)
        finally:
            for name in ("_compute", "set_map", "_multiply", "_normalise", "_launch"):
                delattr(forward, name)
        gpu._stream.synchronize()

    gpu._do(record)
    return found


def seconds_of(engine: BaseEngine, work: Callable[[], None]) -> float:
    """The median time of one ``work``, without launching it."""
    gpu: Any = engine

    def once(graph: Callable[[], None]) -> float:
        start = time.perf_counter()
        graph()
        gpu._stream.synchronize()
        return time.perf_counter() - start

    def measure() -> float:
        single = once(gpu._device.graph(work, gpu._stream))
        repeats = min(MOST_REPEATS, max(1, round(GRAPH_SECONDS / single)))

        def repeated() -> None:
            for _ in range(repeats):
                work()

        graph = gpu._device.graph(repeated, gpu._stream)
        return float(np.median([once(graph) for _ in range(BLOCKS)])) / repeats

    return gpu._do(measure)


def layer_seconds(engine: BaseEngine, b: np.ndarray) -> dict[str, float]:
    """Seconds of all launches of each layer together."""
    parts: dict[str, list[Callable[[], None]]] = defaultdict(list)
    for launch in launches(engine, b):
        parts[launch.layer].append(launch.work)

    def seconds(works: list[Callable[[], None]]) -> float:
        def together() -> None:
            for work in works:
                work()

        return seconds_of(engine, together)

    return {layer: seconds(works) for layer, works in parts.items()}


def traffic(generator: Generator, n: int, h: int, w: int) -> dict[tuple[str, str], int]:
    """Bytes that each (layer, kernel) must read and write for ``n`` pictures of h x w; those of other kernels vary."""
    floats = {name: n * int(np.prod(shape)) for name, shape in generator.shapes(h, w).items()}
    needed = {(INPUT, "from_picture"): 5 * floats[INPUT]}
    for layer in generator.layers:
        weights = layer.kernel**2 * layer.in_channels * layer.filters
        read = sum(floats[source.layer] for source in layer.inputs)
        needed[layer.name, "multiply"] = 4 * (weights + read + floats[layer.name])
        needed[layer.name, "normalise"] = 4 * 3 * floats[layer.name]  # read for the statistics, then read and written
    return needed


def measure(engine: BaseEngine, b: np.ndarray) -> list[dict[str, Any]]:
    """Time, GFLOP/s and GB/s of every kernel of every layer, for batches like ``b``."""
    works: dict[tuple[str, str], list[Callable[[], None]]] = defaultdict(list)
    for launch in launches(engine, b):
        works[launch.layer, launch.kernel].append(launch.work)
    n, h, w, _ = b.shape
    macs, needed = engine.generator.macs(h, w), traffic(engine.generator, n, h, w)
    plan: Any = engine.plan
    rows = []
    for (layer, kernel), parts in works.items():
        seconds = sum(seconds_of(engine, work) for work in parts)
        row = {"layer": layer, "kernel": kernel, "launches": len(parts), "us": round(1e6 * seconds, 2)}
        row["algorithm"] = plan.layers.get(layer)
        row["gflops"] = round(2 * n * macs[layer] / seconds / 1e9, 1) if kernel == "multiply" else None
        row["gbs"] = round(needed[layer, kernel] / seconds / 1e9, 1) if (layer, kernel) in needed else None
        rows.append(row)
    return rows
