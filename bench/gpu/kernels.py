"""Each launch of the GPU engine by itself: its time, and that of a layer's launches together.

A launch is recorded so many times in one CUDA graph, and the graph's time divided by their number: launching doesn't
count, and caches are as warm as they get.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from pix2pix.engines.base import BaseEngine
from pix2pix.model.generator import INPUT
from pix2pix.model.lowering import Op

BLOCKS = 5  # times that each graph is timed
GRAPH_SECONDS = 0.01  # about how long a graph takes
MOST_REPEATS = 256


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel that the engine launches for a layer; ``work`` does so."""

    layer: str
    kernel: str
    work: Callable[[], None]


@contextmanager
def noticed(notice: Callable[[str, Callable[[], None]], None]) -> Iterator[None]:
    """Within, every launch of a kernel calls ``notice(its name, what launches it)`` instead."""
    from .peak import multiply_add

    kind: Any = type(multiply_add)
    configure = kind.__getitem__

    def configure_to_notice(kernel: Any, configuration: Any) -> Callable[..., None]:
        name = getattr(kernel, "py_func", kernel).__name__
        return lambda *arguments: notice(name, lambda: configure(kernel, configuration)(*arguments))

    kind.__getitem__ = configure_to_notice
    try:
        yield
    finally:
        kind.__getitem__ = configure


def launches(engine: BaseEngine, b: np.ndarray) -> list[Launch]:
    """Everything that the engine launches to translate such a batch once all is set up, in order."""
    gpu: Any = engine
    found: list[Launch] = []

    def record() -> None:
        context = gpu.forward_pass.context(*b.shape[:3])
        buffer = gpu.pipeline.buffer(context)
        run, set_constant, layer = context.run, context.set_constant, INPUT

        def run_noticed(op: Op, wanted: bool) -> None:
            nonlocal layer
            layer = op.name
            run(op, wanted)

        def set_noticed(name: str) -> None:
            nonlocal layer
            layer = name
            set_constant(name)

        def notice(kernel: str, work: Callable[[], None]) -> None:
            found.append(Launch(layer, kernel, work))

        context.run, context.set_constant = run_noticed, set_noticed
        try:
            with noticed(notice):
                context.set_images(buffer.b)
                context.image = buffer.out
                gpu.forward_pass.launch(context, {INPUT}, {gpu.program.output.name})
        finally:
            del context.run, context.set_constant

    gpu.do(record)
    return found


def seconds_of(engine: BaseEngine, work: Callable[[], None]) -> float:
    """The median time of one ``work``, without launching it."""
    gpu: Any = engine

    def once(graph: Callable[[], None]) -> float:
        start = time.perf_counter()
        graph()
        gpu.compute_stream.synchronize()
        return time.perf_counter() - start

    def measure() -> float:
        single = once(gpu.device.graph(work, gpu.compute_stream))
        repeats = min(MOST_REPEATS, max(1, round(GRAPH_SECONDS / single)))

        def repeated() -> None:
            for _ in range(repeats):
                work()

        graph = gpu.device.graph(repeated, gpu.compute_stream)
        return float(np.median([once(graph) for _ in range(BLOCKS)])) / repeats

    return gpu.do(measure)


def layer_seconds(engine: BaseEngine, b: np.ndarray) -> dict[str, float]:
    """Seconds of all launches of each layer together, and of what is done before the first; in order."""
    parts: dict[str, list[Callable[[], None]]] = defaultdict(list)
    for launch in launches(engine, b):
        parts[launch.layer].append(launch.work)

    def seconds(works: list[Callable[[], None]]) -> float:
        def together() -> None:
            for work in works:
                work()

        return seconds_of(engine, together)

    return {layer: seconds(works) for layer, works in parts.items()}


def measure(engine: BaseEngine, b: np.ndarray) -> list[dict[str, Any]]:
    """Microseconds of every kernel of every layer, for batches like ``b``."""
    works: dict[tuple[str, str], list[Callable[[], None]]] = defaultdict(list)
    for launch in launches(engine, b):
        works[launch.layer, launch.kernel].append(launch.work)
    return [
        {
            "layer": layer,
            "kernel": kernel,
            "launches": len(parts),
            "us": round(1e6 * sum(seconds_of(engine, work) for work in parts), 2),
        }
        for (layer, kernel), parts in works.items()
    ]
