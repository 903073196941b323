"""The sides of :mod:`.peers`: engines with a batch in the memory of one GPU, or in pinned host memory.

All run in one process, one after another. ``run`` and ``stream`` synchronise once, after all their calls, as a program
with more work would.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from pix2pix.engines.reference import to_float
from pix2pix.plans.precisions import PRECISIONS as TABLE

if TYPE_CHECKING:
    from pix2pix.gpu.engine import GpuEngine

PRECISIONS = tuple(name for name, precision in TABLE.items() if "cuda" in precision.hardware)


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to run the network over one batch.

    ``run(calls)`` runs it so many times from and to the GPU's memory, ``stream(calls)`` from and to pinned host memory
    with overlapped copies. ``translate`` runs it once from and to pinned host memory: uint8 (N,H,W,C). ``output`` is
    float32 (N,H,W,C); ``precision`` determines its tolerance. ``settings`` describes what the engine chose by itself.
    """

    precision: str
    run: Callable[[int], None]
    output: Callable[[], np.ndarray]
    stream: Callable[[int], None]
    translate: Callable[[], np.ndarray]
    settings: str = ""


def resident(engine: GpuEngine, b: np.ndarray) -> Contender:
    """This project's GPU engine over uint8 images, in the chunks into which the engine splits the batch."""
    buffers: list[Any] = []
    pinned = engine.empty(*b.shape[:3])
    pinned[...] = b
    out = np.empty_like(engine.translate(b))

    def upload(images: slice) -> None:
        part = np.ascontiguousarray(b[images])
        buffers.append(engine.pipeline.buffer(engine.forward_pass.context(*part.shape[:3])))
        buffers[-1].b.copy_to_device(part.reshape(-1), stream=engine.compute_stream)
        engine.compute_stream.synchronize()

    def run(calls: int) -> None:
        for _ in range(calls):
            for buffer in buffers:
                buffer.translate()
        engine.compute_stream.synchronize()

    def stream(calls: int) -> None:
        for result in engine.stream(itertools.repeat(pinned, calls)):
            if result.shape != out.shape:
                raise RuntimeError(f"stream gave {result.shape} for {b.shape}")

    if not np.array_equal(next(iter(engine.stream([pinned]))), engine.translate(b)):
        raise RuntimeError("stream and translate differ: not timed")
    engine.do(engine.chunks.run, b.shape[:3], upload, engine.forget)
    return Contender(
        precision=engine.info.precision,
        run=lambda calls: engine.do(run, calls),
        output=lambda: engine.run(to_float(b)),
        stream=stream,
        translate=lambda: engine.translate(pinned, out),
        settings=f"tuned for {engine.info.plan.tune}",
    )
