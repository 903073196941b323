"""Batches of 8-bit images on their way through a GPU: copies in, kernels, and copies out, overlapped.

Images travel through pinned host memory on streams of their own, so that a batch is computed while its neighbours are
copied. What lies between the two copies of a staging buffer is recorded once as a CUDA graph.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..engines.execution import Chunks, ForwardPass
from ..model.generator import INPUT
from .device import Device
from .forward import GpuContext

MOST_IN_FLIGHT = 2  # parts of a batch that are copied or computed while the next is sent


@dataclass(slots=True)
class StagingBuffer:
    """Memory through which one part of a batch at a time travels, in and out."""

    staged: np.ndarray  # pinned: (n, h, w, channels)
    result: np.ndarray
    b: Any  # the same in the GPU's memory, flat
    out: Any
    copied: Any  # events: the images are there, the results are computed, the results are back
    computed: Any
    fetched: Any
    translate: Callable[[], None]  # all launches between b and out


@dataclass(slots=True)
class InFlight:
    """A part of a batch on its way: the buffer it travels in, and where its results go."""

    context: GpuContext
    buffer: StagingBuffer
    out: np.ndarray


class Pipeline:
    """Sends batches through one GPU. For the thread that has the GPU selected."""

    def __init__(
        self, device: Device, forward_pass: ForwardPass[GpuContext], stream: Any, streams: tuple[Any, Any]
    ) -> None:
        self._device, self._forward_pass, self._stream = device, forward_pass, stream
        self._inward, self._outward = streams

    def begin(self, b: np.ndarray, out: np.ndarray, chunks: Chunks, stop: threading.Event) -> deque[InFlight]:
        """Send a batch on its way; returns the parts that are in flight."""
        flying: deque[InFlight] = deque()

        def send(images: slice) -> None:
            if not stop.is_set():
                flying.append(self._send(b[images], out[images]))
                if len(flying) > MOST_IN_FLIGHT:
                    self._fetch(flying.popleft())

        try:
            chunks.run(b.shape[:3], send, self._forward_pass.forget)
        except BaseException:
            self.finish(flying)  # the GPU is still writing there
            raise
        return flying

    def finish(self, flying: deque[InFlight]) -> None:
        """Wait until all parts are back."""
        while flying:
            self._fetch(flying.popleft())

    def buffer(self, context: GpuContext) -> StagingBuffer:
        """Memory for one more part on its way."""
        program, (n, h, w) = self._forward_pass.program, (context.n, context.h, context.w)
        staged = self._device.pinned((n, h, w, program.generator.in_channels), np.uint8)
        result = self._device.pinned((n, *context.shapes[program.output.name]), np.uint8)
        b, out = self._device.empty(staged.size, np.uint8), self._device.empty(result.size, np.uint8)

        def translate() -> None:
            context.set_images(b)
            context.image = out
            self._forward_pass.launch(context, {INPUT}, {program.output.name})

        copied, computed, fetched = (self._device.event() for _ in range(3))
        graph = self._device.graph(translate, self._stream)
        return StagingBuffer(staged, result, b, out, copied, computed, fetched, graph)

    def _send(self, b: np.ndarray, out: np.ndarray) -> InFlight:
        """Copy images to the GPU, start translating them, and have the results copied back."""
        context = self._forward_pass.context(*b.shape[:3])
        buffer = context.buffers.pop() if context.buffers else self.buffer(context)
        np.copyto(buffer.staged, b)
        buffer.b.copy_to_device(buffer.staged.reshape(-1), stream=self._inward)
        buffer.copied.record(self._inward)
        buffer.copied.wait(self._stream)
        buffer.translate()
        buffer.computed.record(self._stream)
        buffer.computed.wait(self._outward)
        buffer.out.copy_to_host(buffer.result.reshape(-1), stream=self._outward)
        buffer.fetched.record(self._outward)
        return InFlight(context, buffer, out)

    @staticmethod
    def _fetch(part: InFlight) -> None:
        """Wait for results, and put them where they belong."""
        part.buffer.fetched.synchronize()
        np.copyto(part.out, part.buffer.result)
        part.context.buffers.append(part.buffer)
