"""Where the CPU engine spends its time: by layer, beside lower bounds, and by stage.

    python -m bench.cpu.stages [--network resnet_9blocks] [--size 512x512] [--precision int8] [--batches 1,8]
                               [--blocks 5]

A layer has two lower bounds. Its products are the multiplications of its algorithm, in whole tiles, at the measured
peak of the precision (of int8 without VNNI: the rate of a micro-kernel in the first-level cache). Its weights are read
from memory once per call, at the measured bandwidth. A layer can be faster than the greater of the two only if caches
keep weights from one call to the next. One thread and all threads are measured in alternating blocks.

Writes stages.json, or stages-PRECISION-NETWORK-WxH.json with those parts that are not the usual ones.

Stages (multiplying, transforming, reading maps, waiting, ...) are shares of the samples that Linux's ``perf`` takes of
a process. Without ``perf`` they are left out.
"""

from __future__ import annotations

import math
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pix2pix.cpu.instruction_sets import chosen, extension
from pix2pix.cpu.peaks import MEASURED
from pix2pix.cpu.topology import available_cores
from pix2pix.factory import EngineOptions
from pix2pix.model.lowering import Op, lower
from pix2pix.plans.algorithms import Algorithm, shares_tiles

from .. import common, networks
from ..networks import Workload
from .timing import TimedEngine

SAMPLED = 5  # seconds
Peaks = Mapping[str, Mapping[str, float]]  # what common.peak measures, by precision
STAGES = {  # by the functions' names
    "multiply": r"^(floats|bfloat16|int8|int16)_\d+x\d|multiply_tiles|shape_tiles",
    "read maps": r"read_row|join_pixel",
    "transform input": r"read_tile|read_phases|read_block",
    "transform output, write": r"write_tile|write_block|place_",
    "epilogue, statistics": r"merge_|finish_|multiply_in_",  # inlined in the loop around the products
    "last layer's sums, tanh": r"OutputConvolution|tanh",
}


def products(op: Op, algorithm: Algorithm, h: int, w: int) -> tuple[int, int]:
    """Multiplications of an operation over one h x w map, in whole tiles, and the number of its packed weights."""
    grid, stride = op.sampling.base_grid(h, w), op.sampling.stride
    pairs = (1 if op.depthwise else op.in_channels) * op.filters
    if algorithm.kind in ("direct", "int8"):
        weights = sum(len(phase.taps) for phase in op.sampling.phases) * pairs
        return weights * grid[0] * grid[1], weights
    m, scale = algorithm.m, op.sampling.scale
    taps = -(-op.sampling.kernel // stride)  # r of F(m x m, r x r): with stride 2, a kernel is four smaller ones
    weights = stride**2 * (m + taps - 1) ** 2 * pairs
    if shares_tiles(op, algorithm):  # a tile covers all phases of its outputs, and starts one output before the first
        tiles = [math.ceil((scale * edge + 1) / (scale * m)) for edge in grid]
    else:
        tiles = [math.ceil(edge / m) for edge in grid]
    return tiles[0] * tiles[1] * weights, weights


def computed_in(op: Op, algorithm: Algorithm, precision: str) -> str:
    """The precision of an operation's products, under a plan for ``precision``."""
    if op.depthwise:
        return "float32"
    if precision == "int8" and not algorithm.integers:
        precision = "bfloat16" if extension().build_facts()["bfloat16"] == "yes" else "float32"
    return "float32" if op.reads_image and chosen(precision=precision) != "amx" else precision


def weight_bytes(precision: str) -> int:
    """Bytes of a packed weight: without VNNI, integers of 8 bits have 16."""
    return 2 if precision == "int8" and extension().build_facts()["vnni"] == "no" else common.element_bytes(precision)


def bounds(
    workload: Workload, n: int, precisions: Mapping[str, str], algorithms: Mapping[str, Algorithm], peaks: Peaks
) -> dict[str, dict[str, float]]:
    """Lower bounds of each layer in ms per image: of its products, and of reading its weights.

    ``precisions`` are those of the layers' products, ``peaks`` the machine's in each.
    """
    program = lower(workload.generator)
    shapes = program.shapes(workload.height, workload.width)
    result = {}
    for op in program.ops:
        used = precisions[op.name]
        multiplications, weights = products(op, algorithms[op.name], *shapes[op.sources[0].layer][:2])
        megabytes = weight_bytes(used) * weights / 1e6
        result[op.name] = {
            "products_ms": round(2 * multiplications / peaks[used]["fma_gflops"] / 1e6, 4),
            "weights_mb": round(megabytes, 2),
            "weights_ms": round(megabytes / peaks[used]["bandwidth_gbs"] / n, 4),
        }
    return result


def time_layers(
    workload: Workload, n: int, precision: str, thread_counts: list[int], blocks: int
) -> dict[int, TimedEngine]:
    """Engines for each number of threads, timed in alternating blocks."""
    engines = {t: TimedEngine(workload, n, EngineOptions("cpu", precision, threads=t)) for t in thread_counts}
    for timed in engines.values():
        timed.start()
    for _ in range(blocks):
        for timed in engines.values():
            timed.time_block(max(2, 16 // n))
    for timed in engines.values():
        timed.engine.close()
    return engines


def sample(workload: Workload, n: int, precision: str, threads: int) -> dict[str, float] | None:
    """The share (%) of each stage in a process that only runs the engine; None without perf."""
    if not shutil.which("perf"):
        return None
    network = f"--network {workload.name} --size {workload.width}x{workload.height}"
    options = f"{network} --precision {precision} --batches {n} --run {threads}".split()
    command = [sys.executable, "-m", "bench.cpu.stages", *options]
    with tempfile.TemporaryDirectory() as folder, subprocess.Popen(command, stdout=subprocess.PIPE) as process:
        file = str(Path(folder, "perf.data"))
        try:
            assert process.stdout is not None
            process.stdout.readline()  # printed when it begins to run
            perf = f"perf record -q -F 999 -p {process.pid} -o".split()
            subprocess.run([*perf, file, "--", "sleep", str(SAMPLED)], check=True, capture_output=True)
        finally:
            process.kill()
        report = ["perf", "report", "-q", "-i", file, "--stdio", "--no-children", "--sort", "dso,sym", "-t", ";"]
        return shares(subprocess.run(report, check=True, capture_output=True, text=True).stdout.splitlines())


def shares(lines: list[str]) -> dict[str, float]:
    """The share (%) of each stage in a report of perf, whose lines are ``percent;library;symbol``."""
    result = dict.fromkeys((*STAGES, "waiting", "other"), 0.0)
    for line in lines:
        if line.count(";") >= 2:
            percent, library, symbol = (field.strip() for field in line.split(";", 2))
            result[stage(library, symbol.split("] ")[-1])] += float(percent.rstrip("%"))
    return {name: round(share, 1) for name, share in result.items()}


def stage(library: str, symbol: str) -> str:
    """The stage that a function of a library belongs to."""
    if "gomp" in library:
        return "waiting"
    return next((name for name, pattern in STAGES.items() if re.search(pattern, symbol)), "other")


def report(workload: Workload, n: int, precision: str, blocks: int) -> dict[str, Any]:
    """Measure, print and return everything for ``n`` images per call."""
    counts = sorted({1, available_cores()})
    engines = time_layers(workload, n, precision, counts, blocks)
    medians = {
        threads: {
            name: round(1e3 * float(np.median(seconds)) / n, 4)
            for name, seconds in {**timed.layers, "network": timed.network}.items()
        }
        for threads, timed in engines.items()
    }
    algorithms, peak = engines[1].algorithms, engines[counts[-1]].peak
    precisions = {op.name: computed_in(op, algorithms[op.name], precision) for op in lower(workload.generator).ops}
    peaks = {used: common.peak(counts[-1], used) for used in set(precisions.values())} | {precision: peak}
    lower_bounds = bounds(workload, n, precisions, algorithms, peaks)
    ran = [lower_bounds[name] for name in engines[1].layers]
    lower_bounds["network"] = {key: round(sum(entry[key] for entry in ran), 4) for key in ran[0]}
    print(f"\n{precision}, N={n}, ms/image; {counts[-1]} threads: {peak}; 1 thread: {engines[1].peak}")
    print_layers(algorithms, medians[1], medians[counts[-1]], lower_bounds)
    stages = {threads: sample(workload, n, precision, threads) for threads in counts}
    for threads, found in stages.items():
        text = ", ".join(f"{name} {share} %" for name, share in found.items()) if found else "no perf here"
        print(f"{threads} threads: {text}")
    return {
        "plan": {name: str(algorithm) for name, algorithm in algorithms.items()},
        "threads": {t: {"peak": timed.peak, "ms": medians[t]} for t, timed in engines.items()},
        "bounds": lower_bounds,
        "stages": stages,
    }


def print_layers(
    algorithms: Mapping[str, Algorithm],
    one: Mapping[str, float],
    most: Mapping[str, float],
    lower_bounds: Mapping[str, Mapping[str, float]],
) -> None:
    """Print the table of layers: ms per image with one thread and with all, beside the lower bounds."""
    print("layer        algorithm         1 thread    all   gain  products  of it  weights, MB  their reading")
    for name, ms in most.items():
        entry = lower_bounds[name]
        print(
            f"{name:12s} {str(algorithms.get(name, '')):16s} {one[name]:9.3f} {ms:6.3f} {one[name] / ms:6.2f} "
            f"{entry['products_ms']:9.3f} {entry['products_ms'] / ms:6.0%} {entry['weights_mb']:12.1f} "
            f"{entry['weights_ms']:14.3f}"
        )


def run(workload: Workload, n: int, precision: str, threads: int, seconds: float) -> None:
    """Run the engine for some seconds, for perf to sample; prints a line when it begins."""
    timed = TimedEngine(workload, n, EngineOptions("cpu", precision, threads=threads))
    print("running", flush=True)
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        timed.run()


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    parser = common.argument_parser("bench.cpu.stages", __doc__)
    parser.add_argument("--precision", choices=MEASURED, default="bfloat16", help="(%(default)s)")
    networks.add_options(parser, batches="1,8")
    parser.add_argument("--blocks", type=int, default=5, help="alternating blocks (%(default)s)")
    parser.add_argument("--run", type=int, metavar="THREADS", help="run for perf to sample, and measure nothing")
    arguments = parser.parse_args(argv)
    workload, precision = networks.chosen(parser, arguments), arguments.precision
    if arguments.run:
        run(workload, arguments.batches[0], precision, arguments.run, 2 * SAMPLED)
        return 0
    batches = {n: report(workload, n, precision, arguments.blocks) for n in arguments.batches}
    record = workload.record() | {"precision": precision, "batches": batches}
    common.save(("stages" if precision == "bfloat16" else f"stages-{precision}") + workload.suffix, record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
