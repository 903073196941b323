"""Memory of the CPU engine: feature maps and scratch for n images of one size, and the constants of that size."""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np

from ..model.generator import INPUT, Source
from ..model.lowering import Op, Places, Program

LINE = 16  # floats of 64 bytes, to which maps and scratch are aligned
Shape = tuple[int, int, int, int]


def _in_lines(sizes: Mapping[str, int]) -> dict[str, int]:
    """Sizes in floats, rounded up."""
    return {name: -(-size // LINE) * LINE for name, size in sizes.items()}


class CpuBackend:
    """Packed convolutions by the name of their operation, run with a number of OpenMP threads.

    ``finds_range``: whether some of them need the least and the largest values of the maps that they read.
    """

    most_images = sys.maxsize

    def __init__(
        self,
        program: Program,
        kernels: ModuleType,
        convolutions: Mapping[str, Any],
        threads: int,
        finds_range: bool,
    ) -> None:
        self.program, self.kernels, self.convolutions, self.threads = program, kernels, convolutions, threads
        self.finds_range = finds_range

    def shapes(self, n: int, h: int, w: int) -> dict[str, Shape]:
        """(N,H,W,C) of the maps in memory, channels padded to whole vectors; the output is no map."""
        shapes = self.program.shapes(h, w)
        inner = (op.name for op in self.program.ops if op.name in self.convolutions and not op.makes_image)
        return {name: (n, *shapes[name][:2], self.kernels.padded(shapes[name][2])) for name in inner}

    def places(self, n: int, h: int, w: int) -> Places:
        """Where each map is, and each operation's scratch, in floats."""
        shapes = self.program.shapes(h, w)
        scratch = {
            op.name: self.convolutions[op.name].scratch(n, *shapes[op.sources[0].layer][:2], self.threads)
            for op in self.program.ops
            if op.name in self.convolutions
        }
        sizes = {
            name: math.prod(shape) // (2 if self.convolutions[name].half else 1)
            for name, shape in self.shapes(n, h, w).items()
        }
        return self.program.places(_in_lines(sizes), _in_lines(scratch))

    def size(self, n: int, h: int, w: int) -> int:
        """Floats of all maps and scratch."""
        return self.places(n, h, w).end

    def allocate(self, size: int) -> np.ndarray:
        """Floats, aligned to 64 bytes."""
        return self.kernels.aligned(size)

    def context(self, n: int, h: int, w: int, memory: np.ndarray) -> Workspace:
        """See :class:`pix2pix.engines.execution.Backend`."""
        return Workspace(self, n, h, w, memory)

    def synchronize(self) -> None:
        """Nothing to do: all work is done when a call returns."""

    def release(self) -> None:
        """Nothing to do: arrays are freed with their last reference."""


class Workspace:
    """A context on the CPU; see :class:`pix2pix.engines.execution.Context`."""

    def __init__(self, backend: CpuBackend, n: int, h: int, w: int, memory: np.ndarray) -> None:
        self.n, self.h, self.w = n, h, w
        self.constants: dict[str, Any] = {}
        self._backend = backend
        self._maps: dict[str, Any] = {}
        self._values: dict[str, Any] = {}  # what operations read now: maps, and the image as an array
        self._wanted: dict[str, np.ndarray] = {}  # copies of maps whose memory others use afterwards
        self._out: np.ndarray | None = None
        places = backend.places(n, h, w)
        for name, shape in backend.shapes(n, h, w).items():
            kept_as = np.float16 if backend.convolutions[name].half else np.float32
            raw = memory[places.results[name]].view(kept_as)[: math.prod(shape)].reshape(shape)
            mean, scale = np.zeros((n, shape[3]), np.float32), np.ones((n, shape[3]), np.float32)
            shift = backend.convolutions[name].shift
            if backend.program[name].epilogue.residual:  # which is added to the value itself
                shift = np.zeros_like(shift)
            self._maps[name] = backend.kernels.Map(raw, mean, scale, shift)
        self._scratch = {name: memory[where] for name, where in places.scratch.items()}

    def set_value(self, name: str, value: np.ndarray) -> None:
        """Read an image where it is; copy any other value to a map of its own."""
        self._values[name] = value if name == INPUT else self.make_constant(value)

    def make_constant(self, value: np.ndarray) -> Any:
        """A map of the value (N,H,W,C), float32, to be read as it is."""
        kernels, (n, h, w, channels) = self._backend.kernels, value.shape
        stride = kernels.padded(channels)
        raw = kernels.aligned(n * h * w * stride).reshape(n, h, w, stride)
        zeros, ones = np.zeros((n, stride), np.float32), np.ones((n, stride), np.float32)
        result = kernels.Map(raw, zeros, ones, zeros[0])
        result.set_raw(value, self._backend.threads, self._backend.finds_range)
        return result

    def set_constant(self, name: str) -> None:
        """Read the constant's map, whose one image stands for all."""
        self._values[name] = self.constants[name]

    def bind_output(self, out: np.ndarray) -> None:
        """Have the output written to ``out``."""
        self._out = out

    def replay(self, key: Any, launch: Callable[[threading.Event], None], stop: threading.Event) -> None:
        """Run the operations: there is nothing to record."""
        launch(stop)

    def unbind(self) -> None:
        """Let go of the arrays that callers gave."""
        self._values.clear()
        self._wanted.clear()
        self._out = None

    def run(self, op: Op, wanted: bool) -> None:
        """Run one convolution, with all that is fused into it."""
        convolution, threads = self._backend.convolutions[op.name], self._backend.threads
        scratch = self._scratch[op.name]
        if op.reads_image:
            sources: Any = self._values[INPUT]
        else:
            sources = [self._read(source) for source in op.sources]
        if op.makes_image:
            convolution.run(sources, self._out, op.epilogue.output_scale, scratch, threads)
            return
        residual, to = op.epilogue.residual, self._maps[op.name]
        convolution.run(sources, to, scratch, threads, self._read(residual) if residual else None)
        self._values[op.name] = to
        if wanted:
            n, h, w, _ = to.raw.shape
            value = np.empty((n, h, w, op.filters), np.float32)
            to.write_value(value, threads)
            self._wanted[op.name] = value

    def _read(self, source: Source) -> tuple[Any, float]:
        return self._values[source.layer], source.slope

    def get_value(self, name: str, out: np.ndarray) -> None:
        """Write the value of a map; the output is in its place already."""
        if name in self._wanted:
            out[...] = self._wanted[name]
        elif out is not self._out:
            self._values[name].write_value(out, self._backend.threads)
