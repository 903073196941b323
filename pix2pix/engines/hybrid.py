"""The hybrid engine: each layer on the engine that a placement names, a CPU's or a GPU's.

The walk over the layers is cut into segments, runs of layers that follow each other on one engine. A value goes from
one engine to the other once, after the segment that computes it, and only if a layer there reads it: a skip between two
layers on the GPU stays in the GPU's memory while the CPU works on those between them. Values cross as they are given
and returned by ``run``: float32, after the norm, before the activation of whoever reads them.

Several hybrid engines may share one CPU engine, which serves them in turn: while one computes on its GPU, another has
the cores.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..cpu.engine import CpuEngine
from ..model.generator import INPUT, Generator, Weights
from ..plans.placements import decide, find
from ..plans.plan import Plan
from .base import BaseEngine
from .reference import to_float, to_uint8

PIXELS_AT_ONCE = 32 * 256 * 256  # of a batch: keeps busy any GPU, and bounds the memory that crossing values take


@dataclass(frozen=True, slots=True)
class Segment:
    """A part of the walk on one engine: what comes from outside, what others need, and what later parts here read."""

    on_gpu: bool
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    keep: tuple[str, ...]


def segments(
    generator: Generator, gpu_layers: Collection[str], given: Collection[str], outputs: Sequence[str]
) -> list[Segment]:
    """The walk that computes ``outputs`` from the values of ``given`` (which lie outside), cut by placement."""
    parts: list[tuple[bool, list[str]]] = []
    reads = {layer.name: [source.layer for source in layer.inputs] for layer in generator.layers}
    for layer in generator.needed(outputs, given):
        on_gpu = layer.name in gpu_layers
        if not parts or parts[-1][0] != on_gpu:
            parts.append((on_gpu, []))
        parts[-1][1].append(layer.name)
    there: dict[bool, set[str]] = {True: set(), False: set()}  # the values that each engine has, or has had
    result = []
    for index, (on_gpu, names) in enumerate(parts):
        read = dict.fromkeys(source for name in names for source in reads[name])
        inputs = tuple(name for name in read if name not in names and name not in there[on_gpu])
        there[on_gpu].update(names, inputs)
        later = {
            side: {s for at, part in parts[index + 1 :] if at == side for n in part for s in reads[n]} for side in there
        }
        leaving = tuple(name for name in names if name in outputs or name in later[not on_gpu])
        keep = tuple(name for name in there[on_gpu] if name in later[on_gpu])
        result.append(Segment(on_gpu, inputs, leaving, keep))
    return result


class HybridEngine(BaseEngine):
    """Runs the layers that ``plan`` places on the CPU on the engine ``cpu``, and the others on ``gpu``.

    The two must be for one generator, and each must have the weights of its layers. The hybrid engine needs ``gpu`` for
    itself, and closes both; ``cpu`` by calling ``close_cpu``, if others use it too (:class:`SharedCpu`). Raises
    ValueError for engines that cannot play their parts.
    """

    def __init__(
        self,
        cpu: BaseEngine,
        gpu: BaseEngine,
        plan: Plan,
        close_cpu: Callable[[], None] | None = None,
    ) -> None:
        super().__init__(cpu.generator)
        self.pixels_at_once = PIXELS_AT_ONCE
        if cpu.generator != gpu.generator:
            raise ValueError("the two engines of a hybrid one must be for the same generator")
        plan.check(self.generator)
        on_cpu = self.layers.intersection(plan.layers_on("cpu"))
        self.gpu_layers = self.layers - on_cpu
        for engine, layers in ((cpu, on_cpu), (gpu, self.gpu_layers)):
            if absent := sorted(layers - engine.layers):
                raise ValueError(f"{type(engine).__name__} has no weights for what it should run: {', '.join(absent)}")
        self.cpu, self.gpu, self.plan = cpu, gpu, plan
        self._close_cpu = close_cpu or cpu.close
        self.device = f"{_device(gpu)}+{_device(cpu)}"
        self.threads, self.isa = getattr(cpu, "threads", None), getattr(cpu, "isa", None)

    @property
    def description(self) -> str:
        """What :func:`pix2pix.engines.base.describe` says of the devices."""
        count = f"{len(self.gpu_layers)} of {len(self.layers)} layers"
        return f"{count} on {getattr(self.gpu, 'description', _device(self.gpu))}, the others on {_device(self.cpu)}"

    def _run(self, given: dict[str, np.ndarray], outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
        h, w = self.picture_size(given)
        n = next(iter(given.values())).shape[0]
        shapes = self.generator.shapes(h, w)
        results = {name: np.empty((n, *shapes[name]), np.float32) for name in outputs}

        def run_images(images: slice) -> None:
            part = {name: value[images] for name, value in given.items()}
            for name, value in self._walk(part, outputs, threading.Event()).items():
                results[name][images] = value

        self._in_parts((n, h, w), run_images)
        return results

    def _translate(self, b: np.ndarray, out: np.ndarray, stop: threading.Event) -> None:
        last = self.generator.layers[-1].name

        def translate_images(images: slice) -> None:
            values = self._walk({INPUT: to_float(b[images])}, (last,), stop)
            if not stop.is_set():
                out[images] = to_uint8(values[last], self.generator.output_scale)

        self._in_parts(b.shape[:3], translate_images)

    def _close(self) -> None:
        self.gpu.close()
        self._close_cpu()

    def _forget(self) -> None:
        self.gpu._forget()

    def _walk(
        self, given: Mapping[str, np.ndarray], outputs: tuple[str, ...], stop: threading.Event
    ) -> dict[str, np.ndarray]:
        """Values of ``outputs``, or of fewer layers if ``stop`` is set meanwhile."""
        values = dict(given)
        with ExitStack() as stack:
            sessions = {True: stack.enter_context(self.gpu.session()), False: stack.enter_context(self.cpu.session())}
            for segment in segments(self.generator, self.gpu_layers, tuple(given), outputs):
                if stop.is_set():
                    break
                inputs = {name: values[name] for name in segment.inputs}
                values |= sessions[segment.on_gpu].run(inputs, segment.outputs, segment.keep)
        return {name: values[name] for name in outputs if name in values}


class SharedCpu:
    """One CPU engine for several hybrid ones; it is closed with the last of them."""

    def __init__(self, engine: BaseEngine) -> None:
        self.engine = engine
        self._lock = threading.Lock()
        self._users = 0

    def join(self, gpu: BaseEngine, plan: Plan) -> HybridEngine:
        """A hybrid engine of this CPU engine and ``gpu``."""
        hybrid = HybridEngine(self.engine, gpu, plan, self._leave)
        with self._lock:
            self._users += 1
        return hybrid

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            is_last = not self._users
        if is_last:
            self.engine.close()


class Workshop:
    """Makes engines for this machine's GPUs under one plan, for as many workers as there are.

    The weights of the layers on a GPU are there once, however many engines it has, and those of the layers on the CPU
    are packed once. Where the plan has no layer on a GPU after all, the engine is the CPU's. Raises as
    :class:`pix2pix.cpu.engine.CpuEngine` and :class:`pix2pix.gpu.engine.GpuEngine` do.
    """

    def __init__(self, generator: Generator, weights: Weights, plan: Plan, threads: int | None = None) -> None:
        self.plan = plan
        self._generator, self._weights = generator, weights
        self._cpu: SharedCpu | None = None
        if plan.layers_on("cpu"):
            self._cpu = SharedCpu(CpuEngine(generator, weights, precision=plan.precision, plan=plan, threads=threads))
        self._first: dict[int, Any] = {}

    @classmethod
    def open(
        cls,
        generator: Generator,
        weights: Weights,
        gpu_layers: str | None,
        plan: Plan | str | os.PathLike[str] | None,
        precision: str,
        tune: str,
        threads: int | None,
        index: int,
        gpu: str | None = None,
    ) -> Workshop:
        """A workshop for what a caller of :func:`pix2pix.load` asks for; ``auto`` is measured on GPU ``index``.

        ``gpu`` is that GPU's name, for which the plan is made.
        """

        def engines() -> tuple[BaseEngine, BaseEngine]:
            from ..gpu.engine import GpuEngine

            return (
                CpuEngine(generator, weights, precision=precision, tune=tune, threads=threads),
                GpuEngine(generator, weights, precision=precision, tune=tune, index=index),
            )

        if gpu_layers == "auto":
            decided = find(generator, plan, precision, tune, engines, gpu)
        else:
            decided = decide(generator, gpu_layers, plan, precision, tune, gpu)
        return cls(generator, weights, decided, threads)

    def make(self, index: int) -> BaseEngine:
        """An engine on GPU ``index``, to be called from one thread at a time for each GPU."""
        if self._cpu is None:
            return self._gpu(index)
        if not self.plan.layers_on("cuda"):
            return self._cpu.engine
        return self._cpu.join(self._gpu(index), self.plan)

    def _gpu(self, index: int) -> BaseEngine:
        from ..gpu.engine import GpuEngine

        if index in self._first:
            return self._first[index].share()
        precision = self.plan.precision
        self._first[index] = GpuEngine(self._generator, self._weights, precision=precision, plan=self.plan, index=index)
        return self._first[index]


def _device(engine: BaseEngine) -> str:
    return getattr(engine, "device", "cpu")
