"""The hybrid engine: each layer on the engine that a placement names, a CPU's or a GPU's.

The forward pass is cut into segments: consecutive layers on one engine. A value goes to the other engine once, after
the segment that computes it, and only if a layer there reads it: a skip between two layers on the GPU stays in the
GPU's memory while the CPU computes the layers between them. Values cross as ``run`` takes and returns them: float32,
after the norm, before the activation of the layers that read them.

Several hybrid engines may share one CPU engine, which serves them in turn: while one computes on its GPU, another has
the cores.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np

from ..model.lowering import Program
from ..plans.plan import Plan
from .base import BaseEngine, EngineInfo
from .execution import Maps
from .reference import to_float, to_uint8

PIXELS_AT_ONCE = 32 * 256 * 256  # of a batch: keeps busy any GPU, and bounds the memory that crossing values take


@dataclass(frozen=True, slots=True)
class Segment:
    """Consecutive layers on one engine: what it is given, what leaves it, and what its later segments read."""

    on_gpu: bool
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    keep: tuple[str, ...]


def segments(
    program: Program, gpu_layers: Collection[str], given: Collection[str], outputs: Sequence[str]
) -> list[Segment]:
    """The forward pass from the values ``given``, in host memory, to ``outputs``, cut by placement."""
    parts: list[tuple[bool, list[str]]] = []
    reads = {op.name: op.reads for op in program.ops}
    for op in program.needed(outputs, given):
        on_gpu = op.name in gpu_layers
        if not parts or parts[-1][0] != on_gpu:
            parts.append((on_gpu, []))
        parts[-1][1].append(op.name)
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
        self, cpu: BaseEngine, gpu: BaseEngine, plan: Plan, close_cpu: Callable[[], None] | None = None
    ) -> None:
        info = dataclasses.replace(
            cpu.info,
            device=f"{gpu.info.device}+{cpu.info.device}",
            precision=plan.precision,
            plan=plan,
            pixels_at_once=PIXELS_AT_ONCE,
        )
        super().__init__(cpu.generator, info=info)
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

    @property
    def info(self) -> EngineInfo:
        """What both engines compute with; threads and instruction set are the CPU's."""
        count, gpu = f"{len(self.gpu_layers)} of {len(self.layers)} layers", self.gpu.info
        description = f"{count} on {gpu.description or gpu.device}, the others on {self.cpu.info.device}"
        return dataclasses.replace(super().info, description=description)

    def _compute_chunk(self, given: Maps, results: Maps, stop: threading.Event) -> None:
        values = {name: to_float(value) if value.dtype == np.uint8 else value for name, value in given.items()}
        with self.gpu.session() as on_gpu, self.cpu.session() as on_cpu:
            for segment in segments(self.program, self.gpu_layers, given, tuple(results)):
                if stop.is_set():
                    return
                inputs = {name: values[name] for name in segment.inputs}
                session = on_gpu if segment.on_gpu else on_cpu
                values |= session.run(inputs, segment.outputs, segment.keep)
        for name, result in results.items():
            is_bytes = result.dtype == np.uint8
            result[...] = to_uint8(values[name], self.generator.output_scale) if is_bytes else values[name]

    def _close(self) -> None:
        self.gpu.close()
        self._close_cpu()

    def forget(self) -> None:
        self.gpu.forget()


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
