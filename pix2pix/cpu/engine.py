"""The CPU engine: packs weights and runs the forward pass on them; the arithmetic is in _cpu.pyx.

One engine has `threads` OpenMP threads, whoever calls it: all work is done by one thread of its own that leads them,
so callers in many threads don't multiply them, and Ctrl-C interrupts a wait at once.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ..engines.base import BaseEngine, EngineInfo
from ..engines.execution import ForwardPass, Maps
from ..engines.sensitivity import plan_for_weights
from ..model.generator import Generator, Weights
from ..model.lowering import lower
from ..model.map_units import Expectations
from ..model.quantisation import quantise, ranges
from ..model.weights import fold_parts, folded
from ..plans.algorithms import shares_tiles
from ..plans.heuristics import choose
from ..plans.plan import Plan
from ..plans.precisions import PRECISIONS, check_precision
from .convolution import ConvolutionSpec, widened_to_four
from .instruction_sets import chosen, extension
from .openmp import requested_threads
from .topology import default_threads, use_allowed_cpus
from .workspace import CpuBackend

CONTEXTS_KEPT = 4  # of different sizes or numbers of images
MAX_THREADS = 1024


class CpuEngine(BaseEngine):
    """Runs a generator on the processor's cores. See :class:`pix2pix.Engine` for the methods.

    ``precision`` bfloat16 multiplies numbers of 8 bits' precision and adds them up in float32; without AMX, not in the
    first layer. int8 multiplies integers of 8 bits in those layers for which the plan says so, with ranges that follow
    from the weights and from each image by itself (see :mod:`pix2pix.model.quantisation`); the other layers are
    computed in bfloat16 where the processor has it, else in float32. Unless a plan is given, layers that would lose too
    much stay in floating point too (:mod:`pix2pix.engines.sensitivity`). Fixed filters are always computed in float32.
    With AMX, maps are float16 in units that follow from the weights (:mod:`pix2pix.model.map_units`); a number that is
    2^15 times as large as they let expect becomes infinite.

    ``threads`` defaults to what OMP_NUM_THREADS says, else to the physical cores that this process may use. ``isa``
    forces an instruction set, as the environment variable PIX2PIX_ISA does. Under a plan that places layers elsewhere
    too, the engine packs and runs those on the CPU alone: it then can ``run`` from given layers to others, but not
    ``translate``. With ``release``, ``weights`` is a dict that the engine empties tensor by tensor while it packs, so
    that memory for all of them is never needed twice.

    Raises ValueError for weights that don't fit the generator, for a plan that doesn't, and for layers that the engine
    has no kernel for; RuntimeError if the extension is not built, or the processor lacks what the precision needs.
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
        check_precision(precision, "cpu")
        isa = chosen(isa, precision)
        generator.check_weights(weights)
        source = "OMP_NUM_THREADS" if threads is None and requested_threads() else ""
        if threads is None:
            threads = default_threads()
        if type(threads) is not int or not 1 <= threads <= MAX_THREADS:
            raise ValueError(f"got {threads!r} threads, expected a whole number from 1 to {MAX_THREADS}")
        self._kernels = extension(isa)
        facts = self._kernels.build_facts()
        self.threads = 1 if facts["openmp"] == "no" else threads
        if PRECISIONS[precision].cpu_needs and facts[precision] != "yes":
            raise RuntimeError(
                f"precision {precision!r} needs a processor with {PRECISIONS[precision].cpu_needs}, this is "
                f"{facts['processor']} using {isa}: use float32"
            )
        self._bfloat16 = precision == "bfloat16" or (precision == "int8" and facts["bfloat16"] == "yes")
        self._vnni = facts["vnni"] == "yes"
        remaining = weights if release and isinstance(weights, dict) else dict(weights)
        # OpenMP keeps a team for each thread that ever led one. The caller's must have none: a process that it forks
        # would wait for that team for ever.
        self._executor = ThreadPoolExecutor(1, "pix2pix-cpu", use_allowed_cpus)
        try:
            if precision == "int8" and plan is None:
                self.plan = self._executor.submit(plan_for_weights, generator, weights, tune, isa).result()
            else:
                self.plan = choose(generator, tune, plan, precision, processor=isa)
            info = EngineInfo("cpu", "", precision, isa, self.threads, source, self.plan)
            super().__init__(generator, self.plan.layers_on("cpu"), info)
            self.convolutions = self._executor.submit(self._pack_all, remaining).result()
        except BaseException:
            self._executor.shutdown()
            raise
        program = lower(folded(generator))
        backend = CpuBackend(program, self._kernels, self.convolutions, self.threads, precision == "int8")
        self._forward = ForwardPass(program, self.layers, backend, CONTEXTS_KEPT)

    @np.errstate(all="ignore")  # of damaged weights
    def _pack_all(self, remaining: dict[str, np.ndarray]) -> dict[str, Any]:
        """The convolutions of all layers on this engine; ``remaining`` is empty afterwards."""
        self._ranges = ranges(self.generator, remaining) if self._info.precision == "int8" else {}
        self._expectations = Expectations(self.generator.in_channels)
        packed = {layer.name: self._pack(layer.name, remaining) for layer in self.generator.layers}
        remaining.clear()  # of what nothing reads
        return {name: packed[name] for name in packed if name in self.layers}

    def _pack(self, name: str, remaining: dict[str, np.ndarray]) -> Any:
        """The convolution of a layer with its weights packed, which are taken out of ``remaining``.

        None for a layer on another engine, of which only what to expect of its map is found out, for AMX.
        """
        given, tiles = self.generator[name], self._info.instruction_set == "amx"
        if not tiles and name not in self.layers:
            return None
        op, tensors = lower(folded(self.generator))[name], given.tensors(self.generator.statistics)
        parts = fold_parts(self.generator, given, {key.rpartition(".")[2]: remaining.pop(key) for key in tensors})
        units = self._expectations.units(op, parts) if tiles else None
        if name not in self.layers:
            return None
        norm, sources, algorithm = op.epilogue.norm, op.sources, self.plan.layers[name]
        kernel, quantised = parts.get("kernel"), None
        if algorithm.integers:
            quantised = quantise(op, parts["kernel"], self._ranges, algorithm.m)
            kernel = kernel if quantised.is_transformed else quantised.kernel
        spec = ConvolutionSpec(
            np.empty((0, 0, 0, 0), np.float32) if kernel is None else np.ascontiguousarray(kernel),
            op.sampling,
            [op.in_channels] if op.reads_image else [self.generator[source.layer].filters for source in sources],
            parts.get("bias"),
            parts.get("gamma"),
            parts.get("beta"),
            eps=norm.eps if norm and not norm.fixed else None,
            group=op.filters // norm.groups if norm and norm.groups else 1,
            bfloat16=self._bfloat16 and (tiles or not op.reads_image),
            vnni=self._vnni,
            tiles=tiles,
            reads_image=op.reads_image,
            adds=op.join == "add",
            inner_slope=op.epilogue.inner_slope,
            quantised=quantised,
            finds_range=self._info.precision == "int8",
            map_units=units,
        )
        if op.depthwise:
            return self._kernels.DepthwiseConvolution(spec, op.depthwise)
        if op.makes_image:
            return self._kernels.OutputConvolution(spec, op.epilogue.activation == "tanh")
        if algorithm.kind in ("direct", "int8"):
            return self._kernels.DirectConvolution(spec, self.threads)
        if op.sampling.kernel == 3 and op.sampling.stride == 2:
            spec = widened_to_four(spec)
        return self._kernels.WinogradConvolution(spec, algorithm.m, shares_tiles(op, algorithm), self.threads)

    def _compute(self, given: Maps, results: Maps, stop: threading.Event) -> None:
        """Compute in the engine's own thread. If the wait for it is interrupted, it is given up after an operation."""
        future = self._executor.submit(super()._compute, given, results, stop)
        try:
            future.result()
        except BaseException:
            stop.set()
            future.exception()
            raise

    def _compute_chunk(self, given: Maps, results: Maps, stop: threading.Event) -> None:
        self._forward.compute(given, results, stop)

    def forget(self) -> None:
        """Free the memory that all sizes share."""
        self._forward.forget()

    def _close(self) -> None:
        self._executor.shutdown()
        self.convolutions.clear()
        self._forward.forget()
