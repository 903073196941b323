"""The CPU engine: walks the generator's layers over packed weights; the arithmetic is in _cpu.pyx.

One engine has `threads` OpenMP threads, whoever calls it: all work is done by one thread of its own that leads them,
so callers in many threads don't multiply them, and Ctrl-C interrupts a wait at once.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..engines.base import BaseEngine, EngineInfo
from ..model.generator import INPUT, Generator, Weights
from ..model.lowering import lower
from ..model.weights import fold_parts, without_stored_statistics
from ..plans.heuristics import choose
from ..plans.plan import Plan
from .instruction_sets import extension
from .topology import available_cores

SIZES_KEPT = 4
MAX_THREADS = 1024

Maps = Mapping[str, np.ndarray]  # values of layers by name, (N,H,W,C)


class CpuEngine(BaseEngine):
    """Runs a generator on the processor's cores. See :class:`pix2pix.Engine` for the methods.

    ``precision`` bfloat16 multiplies numbers of 8 bits' precision and adds them up in float32, but for the first
    layer. ``threads`` defaults to the physical cores that this process may use. ``isa`` forces an instruction set, as
    the environment variable PIX2PIX_ISA does. Under a plan that places layers elsewhere too, the engine packs and runs
    those on the CPU alone: it then can ``run`` from given layers to others, but not ``translate``. With ``release``,
    ``weights`` is a dict that the engine empties tensor by tensor while it packs, so that memory for all of them is
    never needed twice.

    Raises ValueError for weights that don't fit the generator, for a plan that doesn't, and for layers that are not
    those of a U-Net; RuntimeError if the extension is not built, or the processor lacks what the precision needs.
    """

    def __init__(
        self,
        generator: Generator,
        weights: Weights,
        *,
        precision: str = "float32",
        tune: str = "throughput",
        plan: Plan | str | os.PathLike[str] | None = None,
        threads: int | None = None,
        isa: str | None = None,
        release: bool = False,
    ) -> None:
        self.plan = choose(generator, tune, plan, precision)
        generator.check_weights(weights)
        if threads is not None and (type(threads) is not int or not 1 <= threads <= MAX_THREADS):
            raise ValueError(f"got {threads!r} threads, expected a whole number from 1 to {MAX_THREADS}")
        self._kernels = extension(isa)
        facts = self._kernels.build_facts()
        self.threads = 1 if facts["openmp"] == "no" else threads or available_cores()
        isa = facts["isa"]
        if precision == "bfloat16" and facts["bfloat16"] != "yes":
            raise RuntimeError(
                f"precision 'bfloat16' needs a processor with AVX512_BF16 and the instruction set avx512, this is "
                f"{facts['processor']} using {isa}: use float32"
            )
        info = EngineInfo("cpu", "", precision, isa, self.threads, self.plan)
        super().__init__(generator, self.plan.layers_on("cpu"), info)
        self._folded = without_stored_statistics(generator)
        remaining = weights if release and isinstance(weights, dict) else dict(weights)
        served = [layer.name for layer in generator.layers if layer.name in self.layers]
        self._layers = {name: self._pack(name, remaining) for name in served}
        remaining.clear()  # of what nothing reads
        self._workspaces: OrderedDict[tuple[int, int, int], Workspace] = OrderedDict()
        self._memory = np.empty(0, np.float32)
        self._leader = ThreadPoolExecutor(1, thread_name_prefix="pix2pix-cpu")

    def _pack(self, name: str, remaining: dict[str, np.ndarray]) -> Any:
        """The layer with its weights packed, which are taken out of ``remaining``."""
        given, layer = self.generator[name], self._folded[name]
        tensors = given.tensors(self.generator.statistics)
        parts: Mapping[str, np.ndarray] = {key.rpartition(".")[2]: remaining.pop(key) for key in tensors}
        if self.generator.statistics == "running":
            parts = fold_parts(given, parts)
        kernel = np.ascontiguousarray(parts["kernel"])
        picture = layer.inputs[0].layer == INPUT
        channels = [layer.in_channels] if picture else [self._folded[s.layer].filters for s in layer.inputs]
        half = self._info.precision == "bfloat16" and not picture
        if layer.activation == "tanh":
            return self._kernels.OutputConvolution(kernel, channels, parts.get("bias"), half)
        common = (kernel, layer.transposed, channels, *(parts.get(key) for key in ("bias", "gamma", "beta")))
        eps = layer.norm.eps if layer.norm else None
        algorithm = self.plan.layers[layer.name]
        if algorithm.kind == "direct":
            return self._kernels.DirectConvolution(*common, eps, half, picture, self.threads)
        return self._kernels.WinogradConvolution(*common, eps, half, algorithm.m, algorithm.shared, self.threads)

    # -- what BaseEngine asks for -----------------------------------------------------------------------------

    def _run(self, given: dict[str, np.ndarray], outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
        h, w = self.image_size(given)
        n = next(iter(given.values())).shape[0]
        shapes = self.generator.shapes(h, w)
        results = {name: np.empty((n, *shapes[name]), np.float32) for name in outputs}
        self._lead(given, results, (n, h, w), threading.Event())
        return results

    def _translate(self, b: np.ndarray, out: np.ndarray, stop: threading.Event) -> None:
        self._lead({INPUT: b}, {self.generator.layers[-1].name: out}, b.shape[:3], stop)

    def _close(self) -> None:
        self._leader.shutdown()
        self._layers.clear()
        self._workspaces.clear()
        self._memory = np.empty(0, np.float32)

    # -- the walk ---------------------------------------------------------------------------------------------

    def _lead(self, given: Maps, results: Maps, size: tuple[int, ...], stop: threading.Event) -> None:
        """Do the work in the engine's own thread. If the wait for it is interrupted, it is given up after a layer."""
        future = self._leader.submit(self._run_chunks, given, results, size, stop)
        try:
            future.result()
        except BaseException:
            stop.set()
            future.exception()
            raise

    def _run_chunks(self, given: Maps, results: Maps, size: tuple[int, ...], stop: threading.Event) -> None:
        """Fill ``results`` from ``given``, both of (n, h, w), as many images at a time as fit ``pixels_at_once``."""
        n, h, w = size
        step = max(1, self.pixels_at_once // (h * w))
        for first in range(0, n, step):
            images = slice(first, min(first + step, n))
            self._forward(
                {name: value[images] for name, value in given.items()},
                {name: value[images] for name, value in results.items()},
                self._workspace(images.stop - first, h, w),
                stop,
            )

    def _forward(self, given: Maps, results: Maps, space: Workspace, stop: threading.Event) -> None:
        """Compute ``results`` from the given layers, in place, or give up before a layer when ``stop`` is set."""
        last = self.generator.layers[-1].name
        program = lower(self._folded)
        constants = program.unaffected(space.constants, given)
        maps: dict[str, Any] = {name: space.constants[name] for name in constants}
        wanted = tuple(name for name in results if name not in given)
        layers = [self._folded[op.name] for op in program.needed(wanted, {**maps, **given})]
        read = {source.layer for layer in layers for source in layer.inputs}
        maps |= {name: self._as_map(value) for name, value in given.items() if name in read and name != INPUT}
        for layer in layers:
            if stop.is_set():
                return
            packed = self._layers[layer.name]
            sources: Any
            if layer.inputs[0].layer == INPUT:
                sources = given[INPUT]
            else:
                sources = [(maps[source.layer], source.slope) for source in layer.inputs]
            if layer.name == last:
                packed.run(sources, results[last], self.generator.output_scale, space.scratch, self.threads)
            else:
                maps[layer.name] = space.maps[layer.name]
                packed.run(sources, maps[layer.name], space.scratch, self.threads)
        for name, result in results.items():
            if name in given:
                result[...] = given[name]
            elif name != last:
                maps[name].write_value(result, self.threads)

    def _as_map(self, value: np.ndarray) -> Any:
        """A layer's given value as other layers read it."""
        n, h, w, channels = value.shape
        stride = self._kernels.padded(channels)
        raw = self._kernels.aligned(n * h * w * stride).reshape(n, h, w, stride)
        zeros, ones = np.zeros((n, stride), np.float32), np.ones((n, stride), np.float32)
        result = self._kernels.Map(raw, zeros, ones, zeros[0])
        result.set_raw(value, self.threads)
        return result

    # -- memory -----------------------------------------------------------------------------------------------

    def _workspace(self, n: int, h: int, w: int) -> Workspace:
        """The maps and scratch for n images of h x w, in the memory that all sizes share."""
        key = (n, h, w)
        if key in self._workspaces:
            self._workspaces.move_to_end(key)
            return self._workspaces[key]
        needed = Workspace.floats(self, n, h, w)
        if needed > self._memory.size:
            self._workspaces.clear()
            self._memory = np.empty(0, np.float32)
            self._memory = self._kernels.aligned(needed)
        space = Workspace(self, n, h, w, self._memory)
        space.constants = self._constants(h, w)
        self._workspaces[key] = space
        while len(self._workspaces) > SIZES_KEPT:
            self._workspaces.popitem(last=False)
        return space

    def _constants(self, h: int, w: int) -> dict[str, Any]:
        """The maps of those layers of this engine that are the same for every h x w picture.

        What they read is either constant too, or makes no difference: zeros do.
        """
        shapes, constants = self._folded.shapes(h, w), lower(self._folded).constants(h, w)
        read = {source.layer for name in constants for source in self._folded[name].inputs}
        zeros = {name: np.zeros((1, *shapes[name]), np.float32) for name in read.difference(constants)}
        known = {*zeros}
        for name in constants:
            if name in self.layers and known.issuperset(source.layer for source in self._folded[name].inputs):
                known.add(name)
        values = {name: np.empty((1, *shapes[name]), np.float32) for name in known.difference(zeros)}
        if values:
            self._forward(zeros, values, Workspace(self, 1, h, w, self._memory), threading.Event())
        return {name: self._as_map(value) for name, value in values.items()}


class Workspace:
    """Where the maps and the scratch of n images of one size lie, and the layers that are constant at that size."""

    def __init__(self, engine: CpuEngine, n: int, h: int, w: int, memory: np.ndarray) -> None:
        self.constants: dict[str, object] = {}
        self.maps = {}
        at = 0
        for name, shape in self._shapes(engine, n, h, w).items():
            size = int(np.prod(shape))
            raw = memory[at : at + size].reshape(shape)
            mean, scale = np.zeros((n, shape[3]), np.float32), np.ones((n, shape[3]), np.float32)
            self.maps[name] = engine._kernels.Map(raw, mean, scale, engine._layers[name].shift)
            at += size
        self.scratch = memory[at:]

    @staticmethod
    def _shapes(engine: CpuEngine, n: int, h: int, w: int) -> dict[str, tuple[int, int, int, int]]:
        shapes = engine._folded.shapes(h, w)
        padded = engine._kernels.padded
        inner = (layer.name for layer in engine._folded.layers[:-1] if layer.name in engine.layers)
        return {name: (n, *shapes[name][:2], padded(shapes[name][2])) for name in inner}

    @staticmethod
    def floats(engine: CpuEngine, n: int, h: int, w: int) -> int:
        """Floats that a workspace needs."""
        shapes = engine._folded.shapes(h, w)
        maps = sum(int(np.prod(shape)) for shape in Workspace._shapes(engine, n, h, w).values())
        scratch = max(
            engine._layers[layer.name].scratch(n, *shapes[layer.inputs[0].layer][:2], engine.threads)
            for layer in engine._folded.layers
            if layer.name in engine.layers
        )
        return maps + scratch
