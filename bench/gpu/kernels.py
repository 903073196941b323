"""Times of single kernel launches of the GPU engine, and of all launches of a layer together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pix2pix.model.generator import INPUT
from pix2pix.model.lowering import Op

from .timing import graph_seconds

if TYPE_CHECKING:
    from pix2pix.gpu.engine import GpuEngine


@dataclass(frozen=True, slots=True)
class Launch:
    """A kernel that the engine launches for a layer; ``work`` does so."""

    layer: str
    kernel: str
    work: Callable[[], None]


@contextmanager
def noticed(notice: Callable[[str, Callable[[], None]], None]) -> Iterator[None]:
    """Within the block, launching a kernel calls ``notice(its name, function that launches it)`` instead."""
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


def launches(engine: GpuEngine, b: np.ndarray) -> list[Launch]:
    """All kernel launches for a batch of that shape, in order, without the set-up of a new size."""
    found: list[Launch] = []

    def record() -> None:
        context: Any = engine.forward_pass.context(*b.shape[:3])
        buffer = engine.pipeline.buffer(context)
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
                engine.forward_pass.launch(context, {INPUT}, {engine.program.output.name})
        finally:
            del context.run, context.set_constant

    engine.do(record)
    return found


def layer_seconds(engine: GpuEngine, b: np.ndarray) -> dict[str, float]:
    """Seconds of all launches of each layer together, in order; ``input`` is what precedes the first layer."""
    parts: dict[str, list[Callable[[], None]]] = defaultdict(list)
    for launch in launches(engine, b):
        parts[launch.layer].append(launch.work)

    def seconds(works: list[Callable[[], None]]) -> float:
        def together() -> None:
            for work in works:
                work()

        return graph_seconds(engine, together)

    return {layer: seconds(works) for layer, works in parts.items()}


def measure(engine: GpuEngine, b: np.ndarray) -> list[dict[str, Any]]:
    """Microseconds of every kernel of every layer, for batches like ``b``."""
    works: dict[tuple[str, str], list[Callable[[], None]]] = defaultdict(list)
    for launch in launches(engine, b):
        works[launch.layer, launch.kernel].append(launch.work)
    return [
        {
            "layer": layer,
            "kernel": kernel,
            "launches": len(parts),
            "us": round(1e6 * sum(graph_seconds(engine, work) for work in parts), 2),
        }
        for (layer, kernel), parts in works.items()
    ]
