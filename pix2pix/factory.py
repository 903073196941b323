"""From option values to an engine: on which devices, with how many workers, alone, as a hybrid or as a pool.

GPU engines are imported inside functions, so that Numba is loaded only where it is needed.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from . import devices
from .cpu.engine import CpuEngine
from .cpu.topology import default_threads
from .engines.base import BaseEngine, Engine
from .engines.hybrid import SharedCpu
from .engines.measured_placement import find
from .engines.pool import PoolEngine, WorkerGroup
from .model.generator import Generator, Weights
from .plans.algorithms import ALGORITHMS
from .plans.placements import decide
from .plans.plan import Plan
from .plans.precisions import check_precision

if TYPE_CHECKING:
    from .gpu.engine import GpuEngine


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How to run a generator: the options of :func:`pix2pix.load` and of the command line that concern the engine.

    ``device`` names one or several, see :mod:`pix2pix.devices`. ``plan`` is a Plan, the name of an algorithm or a
    file. ``threads`` are OpenMP threads of the CPU engine. ``gpu_layers`` is a placement in words, see
    :mod:`pix2pix.plans.placements`.
    """

    device: str = "auto"
    precision: str = "float32"
    tune: str = "throughput"
    plan: Plan | str | os.PathLike[str] | None = None
    threads: int | None = None
    workers: int | None = None
    gpu_layers: str | None = None

    def shares(self) -> dict[devices.Device, int]:
        """The number of workers of each device. Raises ValueError or RuntimeError for devices that cannot be used."""
        return devices.share_workers(devices.parse(self.device, devices.count_gpus), self.workers)

    def check(self) -> None:
        """Raise ValueError or RuntimeError, before a model is read, for hardware that these options cannot have."""
        shares = self.shares()
        for device in shares:
            check_precision(self.precision, device.kind)
        if self.gpu_layers is not None and all(device.kind == "cpu" for device in shares):
            raise ValueError(
                f"gpu_layers {self.gpu_layers!r} places layers on a GPU, and device {self.device!r} is the CPU here"
            )


def make_engine(
    generator: Generator, weights: Weights, options: EngineOptions = EngineOptions(), *, release: bool = False
) -> Engine:
    """The engine that :func:`pix2pix.load` makes, of a model that is in memory already.

    With ``release``, ``weights`` is a dict that may be emptied: an engine on the CPU alone does so while it packs.
    Raises ValueError for options that contradict each other, RuntimeError for hardware that isn't there.
    """
    shares = options.shares()
    if options.threads is None and len(shares) > 1:  # each GPU's workers need a core
        options = replace(options, threads=default_threads(reserved=len(shares) - 1))
    gpus = [device for device in shares if device.kind == "cuda"]
    on_gpus = EngineFactory.open(generator, weights, options, gpus[0].index) if gpus else None
    if on_gpus and len(gpus) < len(shares) and on_gpus.plan.layers_on("cpu"):
        raise ValueError(f"the plan has layers for the CPU already: leave cpu out of device {options.device!r}")

    def maker(device: devices.Device) -> Callable[[], BaseEngine]:
        """A function that makes an engine on a device, in the thread that calls it; all of them share the weights."""
        if on_gpus and device.kind == "cuda":
            return lambda: on_gpus.make(device.index)
        engine = CpuEngine(
            generator,
            weights,
            precision=options.precision,
            tune=options.tune,
            plan=None if on_gpus and options.plan in ALGORITHMS["cuda"] else options.plan,
            threads=options.threads,
            release=release and on_gpus is None,
        )
        if engine.plan.placement:
            raise ValueError(f"the plan is for a CPU and a GPU, and device {str(device)!r} is a CPU: ask for 'cuda'")
        return lambda: engine

    if list(shares.values()) == [1]:
        return maker(next(iter(shares)))()
    return PoolEngine(generator, [WorkerGroup(str(device), maker(device), count) for device, count in shares.items()])


class EngineFactory:
    """Makes engines for this machine's GPUs under one plan, for as many workers as there are.

    The weights of the layers on a GPU are there once, however many engines it has, and those of the layers on the CPU
    are packed once. Where the plan has no layer on a GPU after all, the engine is the CPU's. Raises as
    :class:`pix2pix.cpu.engine.CpuEngine` and :class:`pix2pix.gpu.engine.GpuEngine` do.
    """

    def __init__(self, generator: Generator, weights: Weights, plan: Plan, threads: int | None = None) -> None:
        self.plan, self._generator, self._weights = plan, generator, weights
        self._cpu: SharedCpu | None = None
        if plan.layers_on("cpu"):
            self._cpu = SharedCpu(CpuEngine(generator, weights, precision=plan.precision, plan=plan, threads=threads))
        self._first: dict[int, GpuEngine] = {}

    @classmethod
    def open(cls, generator: Generator, weights: Weights, options: EngineOptions, index: int) -> EngineFactory:
        """A factory for what ``options`` ask for; the plan is made for GPU ``index``, and ``auto`` measured there."""
        precision, tune = options.precision, options.tune

        def engines() -> tuple[BaseEngine, BaseEngine]:
            from .gpu.engine import GpuEngine

            return (
                CpuEngine(generator, weights, precision=precision, tune=tune, threads=options.threads),
                GpuEngine(generator, weights, precision=precision, tune=tune, index=index),
            )

        try:
            gpu: str | None = devices.gpu_name(index)
        except (ImportError, RuntimeError):  # making an engine there says what is missing
            gpu = None
        if options.gpu_layers == "auto":
            plan = find(generator, options.plan, precision, tune, engines, gpu)
        else:
            plan = decide(generator, options.gpu_layers, options.plan, precision, tune, gpu)
        return cls(generator, weights, plan, options.threads)

    def make(self, index: int) -> BaseEngine:
        """An engine on GPU ``index``, to be called from one thread at a time for each GPU."""
        if self._cpu is None:
            return self._gpu(index)
        if not self.plan.layers_on("cuda"):
            return self._cpu.engine
        return self._cpu.join(self._gpu(index), self.plan)

    def _gpu(self, index: int) -> BaseEngine:
        from .gpu.engine import GpuEngine

        if index not in self._first:
            self._first[index] = GpuEngine(
                self._generator, self._weights, precision=self.plan.precision, plan=self.plan, index=index
            )
            return self._first[index]
        return self._first[index].share()
