"""Where the time of the CPU engine goes: layer by layer beside what its products and its weights take at the least, by
one thread and by all, and stage by stage (multiplying, transforming, reading maps, waiting, ...).

    python -m bench.cpu.stages [--precision float32] [--batches 1,8] [--blocks 5]

A layer's products are the multiplications that its algorithm does for whole tiles, at the measured peak of the
precision; its weights are read once from memory for each call, at the measured rate. No layer can be faster than the
greater of the two, but where caches hold weights from one call to the next.

Stages are shares of the samples that Linux's `perf` takes of a process; without `perf`, they are left out.
"""

from __future__ import annotations

import argparse
import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pix2pix.cpu.engine import PRECISIONS, CpuEngine
from pix2pix.cpu.topology import available_cores
from pix2pix.model.generator import INPUT, Layer

from .. import common
from ..common import inputs, model
from .kernels import Timed

SAMPLED = 5  # seconds
STAGES = {  # by the functions' names
    "multiply": r"^(floats|bfloat16)_\d+x\d",
    "read maps": r"read_row",
    "transform input": r"read_tile|read_parities|read_block",
    "transform output, write": r"write_tile|write_block|place_patches",
    "statistics": r"merge_tile|finish_norm",
    "last layer's sums, tanh": r"OutputConvolution|tanh",
}


def products(layer: Layer, algorithm: str, grid: int) -> tuple[int, int]:
    """Multiplications of a layer for one picture whose base grid is grid x grid, and its packed weights."""
    filters = layer.filters
    if algorithm == "direct":
        weights = 16 * layer.in_channels * filters
        return weights * grid * grid, weights
    m = int(algorithm[-1])
    points = (m + 1) ** 2
    if layer.transposed:
        tiles = math.ceil((2 * grid + 1) / (2 * m)) if "shared" in algorithm else math.ceil(grid / m)
        weights = 4 * points * layer.in_channels * filters
    else:
        tiles, weights = math.ceil(grid / m), points * 4 * layer.in_channels * filters
    return tiles * tiles * weights, weights


def start(n: int, precision: str, threads: int) -> tuple[CpuEngine, dict[str, Timed]]:
    """An engine that has run, and its layers."""
    engine = CpuEngine(*model(), tune="latency" if n == 1 else "throughput", precision=precision, threads=threads)
    layers = {name: Timed(packed) for name, packed in engine.convolutions.items()}
    engine.convolutions.update(layers)
    common.time_calls(partial(engine.run, inputs(n)), 3)
    return engine, layers


def time_layers(n: int, precision: str, thread_counts: list[int], blocks: int) -> dict[str, Any]:
    """Medians of milliseconds per picture for each number of threads, in alternating blocks, and the peaks."""
    x, calls = inputs(n), max(2, 16 // n)
    engines = {threads: start(n, precision, threads) for threads in thread_counts}
    whole: dict[int, list[float]] = {threads: [] for threads in thread_counts}
    peaks: dict[int, list[dict[str, float]]] = {threads: [] for threads in thread_counts}
    for _, layers in engines.values():
        for layer in layers.values():
            layer.seconds.clear()
    for _ in range(blocks):
        for threads, (engine, _) in engines.items():
            peaks[threads].append(common.peak(threads, precision))
            whole[threads] += common.time_calls(partial(engine.run, x), calls)
    result: dict[str, Any] = {"plan": engines[thread_counts[0]][0].plan.to_dict()["layers"], "threads": {}}
    for threads, (engine, layers) in engines.items():
        ran = {name: layer.seconds for name, layer in layers.items() if layer.seconds} | {"network": whole[threads]}
        milliseconds = {name: round(1e3 * float(np.median(seconds)) / n, 4) for name, seconds in ran.items()}
        result["threads"][threads] = {"peak": common.median_peak(peaks[threads]), "ms": milliseconds}
        engine.close()
    return result


def bounds(n: int, precision: str, plan: dict[str, str], peak: dict[str, float]) -> dict[str, dict[str, float]]:
    """What each layer takes at the least, in ms per picture: its products, and reading its weights. The picture's
    layer is in float32, whose peak is half of bfloat16's."""
    generator, _ = model()
    shapes = generator.shapes(256, 256)
    result = {}
    for layer in generator.layers:
        picture = layer.inputs[0].layer == INPUT
        half = precision == "bfloat16" and not picture
        grid = shapes[layer.name][0] // (2 if layer.transposed else 1)
        multiplications, weights = products(layer, plan[layer.name], grid)
        rate = peak["fma_gflops"] / (2 if precision == "bfloat16" and picture else 1)
        megabytes = (2 if half else 4) * weights / 1e6
        result[layer.name] = {
            "products_ms": round(2 * multiplications / rate / 1e6, 4),
            "weights_mb": round(megabytes, 2),
            "weights_ms": round(megabytes / peak["bandwidth_gbs"] / n, 4),
        }
    return result


def sample(n: int, precision: str, threads: int) -> dict[str, float] | None:
    """The share (%) of each stage in a process that does nothing but run; None without perf."""
    if not shutil.which("perf"):
        return None
    options = f"--precision {precision} --batches {n} --run {threads}".split()
    command = [sys.executable, "-m", "bench.cpu.stages", *options]
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        file = str(Path(folder, "perf.data"))
        try:
            assert process.stdout is not None
            process.stdout.readline()  # it runs now
            perf = f"perf record -q -F 999 -p {process.pid} -o".split()
            subprocess.run([*perf, file, "--", "sleep", str(SAMPLED)], check=True, capture_output=True)
        finally:
            process.kill()
        report = ["perf", "report", "-q", "-i", file, "--stdio", "--no-children", "--sort", "dso,sym", "-t", ";"]
        lines = subprocess.run(report, check=True, capture_output=True, text=True).stdout.splitlines()
    shares = dict.fromkeys((*STAGES, "waiting", "other"), 0.0)
    for line in lines:
        if line.count(";") >= 2:
            percent, library, symbol = (field.strip() for field in line.split(";", 2))
            shares[_stage(library, symbol.split("] ")[-1])] += float(percent.rstrip("%"))
    return {stage: round(share, 1) for stage, share in shares.items()}


def _stage(library: str, symbol: str) -> str:
    if "gomp" in library:
        return "waiting"
    return next((stage for stage, pattern in STAGES.items() if re.search(pattern, symbol)), "other")


def report(n: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """Measure, print and return all about ``n`` pictures per call."""
    precision, counts = arguments.precision, sorted({1, available_cores()})
    measured = time_layers(n, precision, counts, arguments.blocks)
    most, one = measured["threads"][counts[-1]], measured["threads"][1]
    least = measured["bounds"] = bounds(n, precision, measured["plan"], most["peak"])
    print(f"\n{precision}, N={n}, ms/image; {counts[-1]} threads: {most['peak']}; 1 thread: {one['peak']}")
    print("layer        algorithm         1 thread    all   gain  products  of it  weights, MB  their reading")
    ran = {name: least[name] for name in most["ms"] if name != "network"}
    measured["bounds"]["network"] = {key: round(sum(e[key] for e in ran.values()), 4) for key in least["encoder_1"]}
    for name in (*ran, "network"):
        ms, alone, entry = most["ms"][name], one["ms"][name], least[name]
        print(
            f"{name:12s} {measured['plan'].get(name, ''):16s} {alone:9.3f} {ms:6.3f} {alone / ms:6.2f} "
            f"{entry['products_ms']:9.3f} {entry['products_ms'] / ms:6.0%} {entry['weights_mb']:12.1f} "
            f"{entry['weights_ms']:14.3f}"
        )
    measured["stages"] = {threads: sample(n, precision, threads) for threads in counts}
    for threads, shares in measured["stages"].items():
        found = ", ".join(f"{stage} {share} %" for stage, share in shares.items()) if shares else "no perf here"
        print(f"{threads} threads: {found}")
    return measured


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = common.argument_parser("bench.cpu.stages", __doc__)
    parser.add_argument("--precision", choices=PRECISIONS, default="bfloat16", help="(%(default)s)")
    parser.add_argument("--batches", default="1,8", help="numbers of pictures per call (%(default)s)")
    parser.add_argument("--blocks", type=int, default=5, help="alternating blocks (%(default)s)")
    parser.add_argument("--run", type=int, metavar="THREADS", help="run for perf to sample, and measure nothing")
    arguments = parser.parse_args(argv)
    batches = [int(n) for n in arguments.batches.split(",")]
    if arguments.run:
        x = inputs(batches[0])
        engine, _ = start(batches[0], arguments.precision, arguments.run)
        print("running", flush=True)
        deadline = time.monotonic() + 2 * SAMPLED
        while time.monotonic() < deadline:
            engine.run(x)
        return 0
    record = {"precision": arguments.precision, "batches": {n: report(n, arguments) for n in batches}}
    common.save("stages" if arguments.precision == "bfloat16" else f"stages-{arguments.precision}", record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
