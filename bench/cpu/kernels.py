"""GFLOP/s of every layer on the CPU, as a fraction of the measured peak, under two plans.

    python -m bench.cpu.kernels [--plan NAME] [--batches 1,8] [--blocks 5]

The plans are ``direct``, whose fraction shows how good the kernels are, and the engine's default plan (or another one).
FLOP are those of direct convolution, so the rate of a Winograd layer is an effective rate, and can exceed the peak.
Each layer's value is compared with the float64 oracle before anything is timed. Layers that are constants at this image
size are left out.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pix2pix.cpu.topology import available_cores
from pix2pix.engines.reference import ReferenceEngine
from pix2pix.factory import EngineOptions

from .. import common
from ..checks import check_close
from ..common import model
from .timing import TimedEngine

CALLS = 5  # per block
RELATIVE_TOLERANCE = 1e-4  # of a layer's largest value


def verify(timed: TimedEngine) -> dict[str, float]:
    """The largest error of each layer, relative to its largest value. RuntimeError if it exceeds the tolerance."""
    generator, weights = model()
    names = [layer.name for layer in generator.layers]
    with ReferenceEngine(generator, weights) as oracle:
        expected = oracle.run(timed.x[:1], outputs=names)
    results = timed.engine.run(timed.x[:1], outputs=names)
    errors = {}
    for name in names:
        scale = float(np.abs(expected[name]).max())
        errors[name] = check_close(name, results[name] / scale, expected[name] / scale, RELATIVE_TOLERANCE)
    return errors


def report(n: int, plan: str | None, threads: int, blocks: int) -> dict[str, Any]:
    """Time, print and return all layers for ``n`` images per call."""
    generator, _ = model()
    timed = TimedEngine(n, EngineOptions("cpu", plan=plan, threads=threads))
    with timed.engine:
        errors = verify(timed)
        timed.start()
        for _ in range(blocks):
            timed.time_block(CALLS)
    macs, shapes = generator.macs(256, 256), generator.shapes(256, 256)
    traffic = common.traffic(generator, n, 256, 256, "float32")
    peak = timed.peak["fma_gflops"]
    print(f"\nN={n}, plan: {plan or 'default'}, peak {peak:.0f} GFLOP/s")
    print(f"{'layer':12s} ms/image  GFLOP/s  of peak  algorithm         output")
    layers = {}
    for name, seconds in timed.layers.items():
        entry = layers[name] = common.rates(seconds, n, 2 * macs[name], peak)
        entry |= {"algorithm": str(timed.algorithms[name]), "relative_error": errors[name]}
        entry |= {"output": list(shapes[name]), "flops_per_byte": round(2 * n * macs[name] / traffic[name], 2)}
        print_line(name, entry, f"{entry['algorithm']:16s}  {'x'.join(map(str, shapes[name]))}")
    total = common.rates(timed.network, n, generator.flops(), peak)
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
    parser.add_argument("--batches", default="1,8", help="images per call (%(default)s)")
    parser.add_argument("--blocks", type=int, default=5, help=f"blocks of {CALLS} calls (%(default)s)")
    parser.add_argument("--threads", type=int, default=available_cores(), help="(%(default)s)")
    arguments = parser.parse_args(argv)
    threads, blocks = arguments.threads, arguments.blocks
    plans = {"direct": "direct", arguments.plan or "default": arguments.plan}
    batches = {
        n: {name: report(int(n), plan, threads, blocks) for name, plan in plans.items()}
        for n in arguments.batches.split(",")
    }
    common.save("kernels", {"threads": threads, "batches": batches})
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
