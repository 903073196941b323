"""The whole network beside PyTorch (eager, inductor), ONNX Runtime and OpenVINO, in float32, bfloat16 and int8.

    python -m bench.peers [--engines pix2pix,openvino] [--batches 1,8,16] [--threads 1,2] [--blocks 7] [--plan NAME]

Every engine's output is compared with the float64 oracle before anything is timed. Then blocks of calls alternate
between the engines, in one group of processes, over the same pictures with the same number of threads. Inputs and
outputs are floats in memory: neither decoding nor conversion counts. Then every engine is started from nothing, and
those of lower precision run real weights. Writes peers.json, and peers.md, which has the tables.

A run is void if a float32 peer stays under 90 % of its reference rate: then the machine was busy, or the peer
misconfigured.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from pix2pix.cpu.topology import available_cores
from pix2pix.engines.reference import ReferenceEngine

from . import common, files, quality, start, tables
from .contenders import Contender, calibration, inputs, model
from .engines import ENGINES, Task, Unavailable
from .tables import OURS, OURS_BFLOAT16, SINGLE

BLOCK_SECONDS = 1.0  # a block has as many calls as fit, and at least 2
# dB against the oracle; another network has about 10.
LEAST_PSNR = {"tf32": 35.0, "float16": 35.0, "bfloat16": 35.0, "int8": 15.0}
REFERENCE_PEAK = 233.0  # FMA GFLOP/s of the two cores on which the reference rates were measured
REFERENCE_RATES = {  # images/s at N = 1 and N = 8
    "torch-eager": {1: 7.5, 8: 10.2},
    "onnxruntime": {1: 12.9, 8: 13.4},
    "torch-compile": {1: 14.9, 8: 13.0},
    "openvino": {1: 15.7, 8: 15.8},
}
VOID_BELOW = 0.9


def export(folder: Path, names: list[str], n: int) -> None:
    """Write the files that the engines read for ``n`` pictures."""
    files.export(folder, *model(), n, {ENGINES[name].file for name in names}, calibration())


@cache
def oracle(n: int) -> dict[int, np.ndarray]:
    """What the first and the last of the ``n`` pictures should give, by index: float32 (256,256,3)."""
    generator, weights = model()
    x = inputs(n)
    with ReferenceEngine(generator, weights) as engine:
        return {index: engine.run(x[index]) for index in {0, n - 1}}


def verify(name: str, precision: str, output: np.ndarray, expected: dict[int, np.ndarray]) -> dict[str, float]:
    """How far the output is from the oracle's: ``max_abs_error``, or ``psnr_db`` for less than float32."""
    result, truth = output[list(expected)], np.stack(list(expected.values()))
    if len(np.unique(output[:, 0, 0, 0])) == 1 < len(output):
        raise RuntimeError(f"{name} gave the same for different pictures: not timed")
    if precision == "float32":
        return {"max_abs_error": common.check_close(name, result, truth)}
    return {"psnr_db": round(common.check_psnr(name, result, truth, LEAST_PSNR[precision]), 1)}


class Comparison:
    """One number of pictures and of threads: the engines that take part, and blocks of their calls."""

    def __init__(self, n: int, threads: int, most_threads: int, names: list[str]) -> None:
        self.n, self.threads = n, threads
        self.headline = threads == most_threads and n <= 8
        every = threads == most_threads or n <= 8
        self.names = [name for name in names if every or ENGINES[name].ours or name.startswith("openvino")]
        self.left_out = [name for name in names if name not in self.names]
        self.entrants = {name: (name, threads) for name in self.names}
        if self.headline and threads > 1 and OURS in names:
            self.entrants[SINGLE] = (OURS, 1)
        self.unavailable: dict[str, str] = {}
        self._contenders: dict[str, Contender] = {}

    def run(self, folder: Path, blocks: int, plan: str | None) -> dict[str, Any]:
        """Start, verify, warm up and time the engines; what was measured."""
        if self.left_out:
            print(f"N={self.n}, threads: {self.threads}: left out to save time: {', '.join(self.left_out)}")
        try:
            engines = self._start(folder, plan)
            peak = self._time(engines, blocks if self.headline else max(1, blocks // 2))
        finally:
            for contender in self._contenders.values():
                contender.close()
        self._summarise(engines, peak["fma_gflops"])
        return {"n": self.n, "threads": self.threads, "peak": peak, "left_out": self.left_out, "engines": engines}

    def _start(self, folder: Path, plan: str | None) -> dict[str, dict[str, Any]]:
        expected, x = oracle(self.n), inputs(self.n)
        engines = {}
        for key, (name, threads) in self.entrants.items():
            try:
                contender = self._contenders[key] = Contender(name, Task(folder, x, threads, plan))
            except Unavailable as error:
                self.unavailable[name] = str(error)
                print(f"N={self.n} {key}: SKIPPED: {error}", flush=True)
                continue
            precision = ENGINES[name].precision
            off = verify(key, precision, contender.output, expected)
            engines[key] = {"precision": precision, "threads": threads, **off, "setup_s": round(contender.setup, 2)}
            print(f"N={self.n} {key}: {tables.distance(off)} off the oracle, ready after {contender.setup:.1f} s")
        return engines

    def _time(self, engines: dict[str, dict[str, Any]], blocks: int) -> dict[str, float]:
        """Add the seconds of calls, by block, and the memory; the machine's peak, measured before each round."""
        repetitions, peaks = {}, []
        for key, contender in self._contenders.items():
            repetitions[key] = max(2, round(BLOCK_SECONDS / min(contender.time(2))))
            engines[key]["blocks"] = []
        for block in range(blocks):
            peaks.append(common.peak(self.threads))
            for key in list(self._contenders)[:: 1 if block % 2 == 0 else -1]:
                time.sleep(0.2)  # thread pools spin for a while after their last call
                engines[key]["blocks"].append(self._contenders[key].time(repetitions[key]))
        for key, contender in self._contenders.items():
            engines[key]["peak_memory_mib"] = contender.memory
        return common.median_peak(peaks)

    def _summarise(self, engines: dict[str, dict[str, Any]], peak_gflops: float) -> None:
        """Turn seconds into rates, and say how each engine does beside its reference rate and beside ours."""
        generator, _ = model()
        for key, entry in engines.items():
            blocks = entry.pop("blocks")
            entry |= common.rates([s for block in blocks for s in block], self.n, generator.flops(), peak_gflops)
            entry["block_images_per_s"] = [round(self.n / float(np.median(block)), 3) for block in blocks]
            reference = REFERENCE_RATES.get(key, {}).get(self.n)
            if reference and self.threads == available_cores():
                scaled = reference * peak_gflops / REFERENCE_PEAK
                entry["reference_images_per_s"] = round(scaled, 2)
                entry["of_reference"] = round(entry["median_images_per_s"] / scaled, 3)
        for ours, field in ((OURS, "ours_over_this"), (OURS_BFLOAT16, "ours_bfloat16_over_this")):
            for entry in engines.values() if ours in engines else ():
                entry[field] = tables.block_ratio(engines[ours], entry)


def measure(folder: Path, arguments: argparse.Namespace) -> dict[str, Any]:
    """All comparisons, then the starts and the quality; what is saved."""
    names, most = arguments.engines, max(arguments.threads)
    record: dict[str, Any] = {"plan": arguments.plan, "blocks": arguments.blocks, "unavailable": {}, "runs": []}
    for threads in sorted(arguments.threads, reverse=True):
        for n in arguments.batches:
            export(folder, names, n)
            comparison = Comparison(n, threads, most, names)
            run = comparison.run(folder, arguments.blocks, arguments.plan)
            print("\n" + tables.details(run), flush=True)
            record["runs"].append(run)
            record["unavailable"] |= comparison.unavailable
    record["ratios"] = tables.ratios(record["runs"])
    present = [name for name in names if name not in record["unavailable"]]
    export(folder, present, 1)
    start.write_picture(folder, inputs(1))
    record["cold_start"] = {name: start.cold_start(name, folder, most, arguments.plan) for name in present}
    record["quality"] = quality.measure(present, most, arguments.plan)
    record["void"] = [
        f"{key} at N={run['n']}"
        for run in record["runs"]
        for key, entry in run["engines"].items()
        if entry.get("of_reference", 1) < VOID_BELOW
    ]
    return record


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__.split("\n\n")[0])

    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    default_threads = ",".join(map(str, sorted({1, available_cores()})))
    parser.add_argument("--engines", default=",".join(ENGINES), help="which to run (%(default)s)")
    parser.add_argument("--batches", type=numbers, default="1,8,16", help="pictures per call (%(default)s)")
    parser.add_argument("--threads", type=numbers, default=default_threads, help="for every engine (%(default)s)")
    parser.add_argument(
        "--blocks", type=int, default=7, help="blocks of calls per engine; half of it beyond N=8 and on fewer threads"
    )
    parser.add_argument("--plan", help="plan of this project's engine (its default)")
    arguments = parser.parse_args(argv)
    arguments.engines = arguments.engines.split(",")
    unknown = set(arguments.engines) - set(ENGINES)
    if unknown:
        parser.error(f"unknown engines {sorted(unknown)}, expected {', '.join(ENGINES)}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; exit status 1 if it is void."""
    arguments = parse(argv)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        record = measure(Path(folder), arguments)
    record["minutes"] = round((time.perf_counter() - begun) / 60, 1)
    path = common.save("peers", record)
    print(f"\n{tables.write(path)}\ntook {record['minutes']} minutes")
    if record["void"]:
        print(f"VOID: under {VOID_BELOW:.0%} of the reference rate: {', '.join(record['void'])}")
    return 1 if record["void"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
