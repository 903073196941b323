"""Each layer's GFLOP/s, as a fraction of what this machine's multiply-adds can do.

    python -m bench.kernels [--plan direct] [--batches 1,8] [--blocks 5]

The engine walks the whole network, and every layer is timed where it runs: its input is as warm as it will be in
earnest, and norm, activation, padding and statistics are part of the layer. Every layer's value is compared with the
float64 oracle before. Layers that are constants at this size (they take no time) are left out.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

import numpy as np

from pix2pix import cpu
from pix2pix.cpu import CpuEngine
from pix2pix.reference import ReferenceEngine

from . import common
from .contenders import inputs, model

CALLS = 5  # whole networks per block
RELATIVE_TOLERANCE = 1e-4  # of a layer's largest value


class Timed:
    """A packed layer of the engine that notes the seconds of each of its runs."""

    def __init__(self, packed: Any) -> None:
        self._packed = packed
        self.seconds: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._packed, name)

    def run(self, *arguments: Any) -> None:
        """Run the layer."""
        start = time.perf_counter()
        self._packed.run(*arguments)
        self.seconds.append(time.perf_counter() - start)


def verify(engine: CpuEngine, x: np.ndarray) -> dict[str, float]:
    """Largest error of each layer, relative to its largest value. RuntimeError if one is wrong."""
    generator, weights = model()
    names = [layer.name for layer in generator.layers]
    with ReferenceEngine(generator, weights) as oracle:
        expected = oracle.run(x[:1], outputs=names)
    results = engine.run(x[:1], outputs=names)
    errors = {}
    for name in names:
        scale = float(np.abs(expected[name]).max())
        errors[name] = common.check_close(name, results[name] / scale, expected[name] / scale, RELATIVE_TOLERANCE)
    return errors


def time_layers(
    n: int, arguments: argparse.Namespace
) -> tuple[dict[str, list[float]], list[float], dict[str, float], dict[str, float]]:
    """For ``n`` pictures per call: seconds of each layer's runs, of the whole network's, errors, and the peak."""
    x = inputs(n)
    tune = "latency" if n == 1 else "throughput"
    with CpuEngine(*model(), tune=tune, plan=arguments.plan, threads=arguments.threads) as engine:
        errors = verify(engine, x)
        layers = {name: Timed(packed) for name, packed in engine._layers.items()}
        engine._layers.update(layers)
        common.time_calls(lambda: engine.run(x), 3)  # warm up
        for layer in layers.values():
            layer.seconds.clear()
        whole, peaks = [], []
        for _ in range(arguments.blocks):
            peaks.append(common.peak(arguments.threads))
            whole += common.time_calls(lambda: engine.run(x), CALLS)
    seconds = {name: layer.seconds for name, layer in layers.items() if layer.seconds}
    return seconds, whole, errors, common.median_peak(peaks)


def report(n: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time, print and return all layers for ``n`` pictures per call."""
    generator, _ = model()
    seconds, whole, errors, peak = time_layers(n, arguments)
    macs, shapes = generator.macs(256, 256), generator.shapes(256, 256)
    print(f"\nN={n}, peak {peak['fma_gflops']:.0f} GFLOP/s\n{'layer':12s} ms/image  GFLOP/s  of peak  output")
    layers = {}
    for name, times in seconds.items():
        entry = layers[name] = common.rates(times, n, 2 * macs[name], peak["fma_gflops"])
        entry |= {"relative_error": errors[name], "output": list(shapes[name])}
        _print_line(name, entry, "x".join(map(str, shapes[name])))
    total = common.rates(whole, n, generator.flops(), peak["fma_gflops"])
    total["median_ms_outside_layers"] = round(total["median_ms_per_image"] - _sum_of_medians(layers), 4)
    _print_line("network", total, f"{total['median_ms_outside_layers']:.3f} ms/image outside layers")
    left_out = [layer.name for layer in generator.layers if layer.name not in seconds]
    return {"peak": peak, "layers": layers, "network": total, "constant": left_out}


def _sum_of_medians(layers: dict[str, dict[str, Any]]) -> float:
    return sum(entry["median_ms_per_image"] for entry in layers.values())


def _print_line(name: str, entry: dict[str, Any], remark: str) -> None:
    print(
        f"{name:12s} {entry['median_ms_per_image']:8.3f} {entry['median_gflops']:8.1f} "
        f"{entry['median_fraction_of_peak']:8.0%}  {remark}"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(prog="python -m bench.kernels", description=__doc__.split("\n\n")[0])
    parser.add_argument("--plan", default="direct", help="plan of the engine (%(default)s)")
    parser.add_argument("--batches", default="1,8", help="numbers of pictures per call (%(default)s)")
    parser.add_argument("--blocks", type=int, default=5, help=f"blocks of {CALLS} calls (%(default)s)")
    parser.add_argument("--threads", type=int, default=cpu.available_cores(), help="(%(default)s)")
    arguments = parser.parse_args(argv)
    batches = {n: report(int(n), arguments) for n in arguments.batches.split(",")}
    common.save("kernels", {"threads": arguments.threads, "plan": arguments.plan, "batches": batches})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
