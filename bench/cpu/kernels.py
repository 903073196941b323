"""GFLOP/s of every layer on the CPU, as a fraction of the measured peak, under two plans.

    python -m bench.cpu.kernels [--network resnet_9blocks] [--size 512x512] [--plan NAME] [--batches 1,8] [--blocks 5]

The plans are ``direct``, whose fraction shows how good the kernels are, and the engine's default plan (or another one).
FLOP are those of direct convolution, so the rate of a Winograd layer is an effective rate, and can exceed the peak.
Each layer's value is compared with the float64 oracle before anything is timed. Layers that are constants at this image
size are left out. Writes kernels.json; of other networks and sizes, kernels-NETWORK-WxH.json.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from pix2pix.cpu.topology import available_cores
from pix2pix.engines.reference import ReferenceEngine
from pix2pix.factory import EngineOptions

from .. import common, networks
from ..checks import check_close
from ..networks import Workload
from .timing import TimedEngine

CALLS = 5  # per block
RELATIVE_TOLERANCE = 1e-4  # of a layer's largest value


def oracle_values(workload: Workload) -> dict[str, np.ndarray]:
    """The oracle's value of each layer, (1,H,W,C), for the first image."""
    names = [layer.name for layer in workload.generator.layers]
    with ReferenceEngine(workload.generator, workload.weights) as oracle:
        return oracle.run(workload.inputs(1), outputs=names)


def verify(timed: TimedEngine, expected: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The largest error of each layer, relative to its largest value. RuntimeError if it exceeds the tolerance."""
    names = list(expected)
    results = timed.engine.run(timed.x[:1], outputs=names)
    errors = {}
    for name in names:
        scale = float(np.abs(expected[name]).max())
        errors[name] = check_close(name, results[name] / scale, expected[name] / scale, RELATIVE_TOLERANCE)
    return errors


def report(
    workload: Workload, expected: Mapping[str, np.ndarray], n: int, options: EngineOptions, blocks: int
) -> dict[str, Any]:
    """Time, print and return all layers for ``n`` images per call; ``expected`` are the oracle's values."""
    generator, size = workload.generator, (workload.height, workload.width)
    timed = TimedEngine(workload, n, options)
    with timed.engine:
        errors = verify(timed, expected)
        timed.start()
        for _ in range(blocks):
            timed.time_block(CALLS)
    macs, shapes = generator.macs(*size), generator.shapes(*size)
    traffic = common.traffic(generator, n, *size, "float32")
    peak = timed.peak["fma_gflops"]
    print(f"\nN={n}, plan: {options.plan or 'default'}, peak {peak:.0f} GFLOP/s")
    print(f"{'layer':12s} ms/image  GFLOP/s  of peak  algorithm         output")
    layers = {}
    for name, seconds in timed.layers.items():
        entry = layers[name] = common.rates(seconds, n, 2 * macs[name], peak)
        entry |= {"algorithm": str(timed.algorithms[name]), "relative_error": errors[name]}
        entry |= {"output": list(shapes[name]), "flops_per_byte": round(2 * n * macs[name] / traffic[name], 2)}
        print_line(name, entry, f"{entry['algorithm']:16s}  {'x'.join(map(str, shapes[name]))}")
    total = common.rates(timed.network, n, workload.flops, peak)
    outside = total["median_ms_per_image"] - sum(entry["median_ms_per_image"] for entry in layers.values())
    total["median_ms_outside_layers"] = round(outside, 4)
    print_line("network", total, f"{outside:.3f} ms/image outside layers")
    constant = [layer.name for layer in generator.layers if layer.name not in layers]
    return {"peak": timed.peak, "layers": layers, "network": total, "constant": constant}


def print_line(name: str, entry: dict[str, Any], remark: str) -> None:
    """Print one line of the table."""
    print(
        f"{name:12s} {entry['median_ms_per_image']:8.3f} {entry['median_gflops']:8.1f} "
        f"{entry['median_fraction_of_peak']:8.0%}  {remark}"
    )


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = common.argument_parser("bench.cpu.kernels", __doc__)
    parser.add_argument("--plan", help="plan to measure beside direct (the engine's default)")
    networks.add_options(parser, batches="1,8")
    parser.add_argument("--blocks", type=int, default=5, help=f"blocks of {CALLS} calls (%(default)s)")
    parser.add_argument("--threads", type=int, default=available_cores(), help="(%(default)s)")
    arguments = parser.parse_args(argv)
    workload, threads = networks.chosen(parser, arguments), arguments.threads
    plans = {"direct": "direct", arguments.plan or "default": arguments.plan}
    options = {name: EngineOptions("cpu", plan=plan, threads=threads) for name, plan in plans.items()}
    expected = oracle_values(workload)
    batches = {
        n: {name: report(workload, expected, n, each, arguments.blocks) for name, each in options.items()}
        for n in arguments.batches
    }
    record = workload.record() | {"threads": threads, "batches": batches}
    common.save(f"kernels{workload.suffix}", record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
