"""A CPU engine whose layers are timed where they run: within the forward pass, with inputs as warm as they will be."""

from __future__ import annotations

from functools import partial
from typing import Any

from pix2pix.cpu.engine import CpuEngine
from pix2pix.factory import EngineOptions

from .. import common
from ..clock import seconds_of, time_calls
from ..networks import Workload

WARM_UP = 3  # calls


class TimedConvolution:
    """A packed convolution of the engine that records the seconds of each of its runs."""

    def __init__(self, convolution: Any) -> None:
        self._convolution = convolution
        self.seconds: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._convolution, name)

    def run(self, *arguments: Any) -> None:
        """Run the layer."""
        self.seconds.append(seconds_of(partial(self._convolution.run, *arguments)))


class TimedEngine:
    """An engine for a network, and the times of its calls over ``n`` images.

    Norm, activation, padding and statistics are part of a layer. Layers that are constants of the image size never run.
    """

    def __init__(self, workload: Workload, n: int, options: EngineOptions) -> None:
        self.x = workload.inputs(n)
        self.engine = CpuEngine(
            workload.generator,
            workload.weights,
            precision=options.precision,
            tune=common.tune_for(n),
            plan=options.plan,
            threads=options.threads,
        )
        self.algorithms = self.engine.plan.layers
        self._precision, self._threads = options.precision, self.engine.threads
        self._convolutions = {name: TimedConvolution(c) for name, c in self.engine.convolutions.items()}
        self.engine.convolutions.update(self._convolutions)
        self.network: list[float] = []
        self._peaks: list[dict[str, float]] = []
        time_calls(self.run, WARM_UP)

    def run(self) -> None:
        """One call."""
        self.engine.run(self.x)

    def start(self) -> None:
        """Forget the times of all calls so far."""
        for convolution in self._convolutions.values():
            convolution.seconds.clear()

    def time_block(self, calls: int) -> None:
        """Measure the machine's peaks, then so many calls."""
        self._peaks.append(common.peak(self._threads, self._precision))
        self.network += time_calls(self.run, calls)

    @property
    def layers(self) -> dict[str, list[float]]:
        """Seconds of each run by layer, of layers that run."""
        return {name: c.seconds for name, c in self._convolutions.items() if c.seconds}

    @property
    def peak(self) -> dict[str, float]:
        """The medians of the machine's peaks."""
        return common.median_peak(self._peaks)
