"""What :mod:`.gpu` compares: engines with a batch in the memory of one GPU, or in pinned memory of the host.

All of them run in one process and one after another. ``run`` and ``stream`` wait until what they started is done, once
for all calls, as a program would that has more work to give.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from pix2pix.engines.base import BaseEngine
from pix2pix.engines.reference import to_float

PRECISIONS = ("float32", "tf32", "float16", "bfloat16")


@dataclass(frozen=True, slots=True)
class Contender:
    """One way to run the network over one batch.

    ``run(calls)`` does so many times with what lies in the GPU's memory, ``stream(calls)`` from the host's pinned
    memory and back, copies overlapped, ``translate`` once from there and back: uint8 (N,H,W,C). ``output`` is what is
    computed, float32 (N,H,W,C); ``precision`` says how near to the oracle that must be. ``settings`` are those that it
    has chosen by itself, in words.
    """

    precision: str
    run: Callable[[int], None]
    output: Callable[[], np.ndarray]
    stream: Callable[[int], None]
    translate: Callable[[], np.ndarray]
    settings: str = ""


def resident(engine: BaseEngine, b: np.ndarray) -> Contender:
    """This project's GPU engine: 8-bit pictures to 8-bit pictures, in as many parts as the engine makes of a batch."""
    gpu: Any = engine
    slots: list[Any] = []
    pinned = engine.empty(*b.shape[:3])
    pinned[...] = b
    out = np.empty_like(engine.translate(b))

    def upload(images: slice) -> None:
        part = np.ascontiguousarray(b[images])
        slots.append(gpu.pipeline.buffer(gpu.forward_pass.context(*part.shape[:3])))
        slots[-1].b.copy_to_device(part.reshape(-1), stream=gpu.compute_stream)
        gpu.compute_stream.synchronize()

    def run(calls: int) -> None:
        for _ in range(calls):
            for slot in slots:
                slot.translate()
        gpu.compute_stream.synchronize()

    def stream(calls: int) -> None:
        for result in engine.stream(itertools.repeat(pinned, calls)):
            if result.shape != out.shape:
                raise RuntimeError(f"stream gave {result.shape} for {b.shape}")

    if not np.array_equal(next(iter(engine.stream([pinned]))), engine.translate(b)):
        raise RuntimeError("stream and translate differ: not timed")
    gpu.do(gpu.chunks.run, b.shape[:3], upload, gpu.forget)
    return Contender(
        precision=gpu.info.precision,
        run=lambda calls: gpu.do(run, calls),
        output=lambda: engine.run(to_float(b)),
        stream=stream,
        translate=lambda: engine.translate(pinned, out),
        settings=f"tuned for {gpu.plan.tune}",
    )
