"""Each layer's GFLOP/s, as a fraction of what this machine's multiply-adds can do, under two plans.

    python -m bench.cpu.kernels [--plan NAME] [--batches 1,8] [--blocks 5]

The plans are ``direct``, whose fraction says how good the kernels are, and the engine's default (or another), whose
rate is effective: GFLOP are those of the direct algorithm, so Winograd may do more of them than the peak has.

The engine walks the whole network, and every layer is timed where it runs: its input is as warm as it will be in
earnest, and norm, activation, padding and statistics are part of the layer. Every layer's value is compared with the
float64 oracle before. Layers that are constants at this size (they take no time) are left out.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass
from typing import Any

import numpy as np

from pix2pix.cpu.engine import CpuEngine
from pix2pix.cpu.topology import available_cores
from pix2pix.engines.reference import ReferenceEngine
from pix2pix.model.generator import INPUT

from .. import common
from ..checks import check_close
from ..common import inputs, model

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
        errors[name] = check_close(name, results[name] / scale, expected[name] / scale, RELATIVE_TOLERANCE)
    return errors


@dataclass(frozen=True, slots=True)
class Times:
    """What was measured of one plan: seconds of each layer's runs and of the whole network's, relative errors,
    algorithms, and the machine's peak."""

    layers: dict[str, list[float]]
    network: list[float]
    errors: dict[str, float]
    algorithms: dict[str, str]
    peak: dict[str, float]


def time_layers(n: int, plan: str | None, arguments: argparse.Namespace) -> Times:
    """Time the layers for ``n`` pictures per call."""
    x = inputs(n)
    tune = "latency" if n == 1 else "throughput"
    with CpuEngine(*model(), tune=tune, plan=plan, threads=arguments.threads) as engine:
        errors, algorithms = verify(engine, x), {name: str(a) for name, a in engine.plan.layers.items()}
        layers = {name: Timed(packed) for name, packed in engine.convolutions.items()}
        engine.convolutions.update(layers)
        common.time_calls(lambda: engine.run(x), 3)  # warm up
        for layer in layers.values():
            layer.seconds.clear()
        whole, peaks = [], []
        for _ in range(arguments.blocks):
            peaks.append(common.peak(arguments.threads))
            whole += common.time_calls(lambda: engine.run(x), CALLS)
    seconds = {name: layer.seconds for name, layer in layers.items() if layer.seconds}
    return Times(seconds, whole, errors, algorithms, common.median_peak(peaks))


def compulsory_bytes(n: int) -> dict[str, int]:
    """Float32 bytes that each layer must read and write for ``n`` pictures: its weights once, its maps."""
    generator, weights = model()
    shapes = generator.shapes(256, 256) | {INPUT: (256, 256, generator.in_channels)}
    result = {}
    for layer in generator.layers:
        maps = sum(int(np.prod(shapes[name])) for name in (*(source.layer for source in layer.inputs), layer.name))
        result[layer.name] = 4 * (weights[f"{layer.name}.kernel"].size + n * maps)
    return result


def report(n: int, plan: str | None, arguments: argparse.Namespace) -> dict[str, Any]:
    """Time, print and return all layers for ``n`` pictures per call."""
    generator, _ = model()
    times = time_layers(n, plan, arguments)
    macs, shapes, traffic = generator.macs(256, 256), generator.shapes(256, 256), compulsory_bytes(n)
    peak = times.peak["fma_gflops"]
    print(f"\nN={n}, plan: {plan or 'default'}, peak {peak:.0f} GFLOP/s")
    print(f"{'layer':12s} ms/image  GFLOP/s  of peak  algorithm         output")
    layers = {}
    for name, seconds in times.layers.items():
        entry = layers[name] = common.rates(seconds, n, 2 * macs[name], peak)
        entry |= {"algorithm": times.algorithms[name], "relative_error": times.errors[name]}
        entry |= {"output": list(shapes[name]), "flops_per_byte": round(2 * n * macs[name] / traffic[name], 2)}
        _print_line(name, entry, f"{entry['algorithm']:16s}  {'x'.join(map(str, shapes[name]))}")
    total = common.rates(times.network, n, generator.flops(), peak)
    total["median_ms_outside_layers"] = round(total["median_ms_per_image"] - _sum_of_medians(layers), 4)
    _print_line("network", total, f"{total['median_ms_outside_layers']:.3f} ms/image outside layers")
    left_out = [layer.name for layer in generator.layers if layer.name not in layers]
    return {"peak": times.peak, "layers": layers, "network": total, "constant": left_out}


def _sum_of_medians(layers: dict[str, dict[str, Any]]) -> float:
    return sum(entry["median_ms_per_image"] for entry in layers.values())


def _print_line(name: str, entry: dict[str, Any], remark: str) -> None:
    print(
        f"{name:12s} {entry['median_ms_per_image']:8.3f} {entry['median_gflops']:8.1f} "
        f"{entry['median_fraction_of_peak']:8.0%}  {remark}"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = common.argument_parser("bench.cpu.kernels", __doc__)
    parser.add_argument("--plan", help="plan to measure beside direct (the engine's default)")
    parser.add_argument("--batches", default="1,8", help="numbers of pictures per call (%(default)s)")
    parser.add_argument("--blocks", type=int, default=5, help=f"blocks of {CALLS} calls (%(default)s)")
    parser.add_argument("--threads", type=int, default=available_cores(), help="(%(default)s)")
    arguments = parser.parse_args(argv)
    plans = {"direct": "direct", arguments.plan or "default": arguments.plan}
    batches = {
        n: {name: report(int(n), plan, arguments) for name, plan in plans.items()} for n in arguments.batches.split(",")
    }
    common.save("kernels", {"threads": arguments.threads, "batches": batches})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
