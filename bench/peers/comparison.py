"""The whole network beside PyTorch (eager, inductor), ONNX Runtime and OpenVINO, in float32, bfloat16 and int8.

    python -m bench.peers [--network resnet_9blocks] [--size 512x512] [--engines pix2pix,openvino] [--batches 1,8,16]
                          [--threads 1,2] [--blocks 7] [--plan NAME]

Every engine's output is compared with the float64 oracle before anything is timed. Then blocks of calls alternate
between the engines, each in its own process, over the same images with the same number of threads. Inputs and outputs
are floats in memory: neither decoding nor conversion counts. Then the cold start of every engine is timed, and for the
U-Net, engines of lower precision run real weights. Writes peers.json, and peers.md with the tables; of other networks
and sizes, peers-NETWORK-WxH.json.

A run is void if float32 peers stay under 90 % of their reference rates (:mod:`.references`): the machine was busy, or
they were misconfigured.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from pix2pix.cpu.topology import available_cores

from .. import common, networks, real_models
from ..checks import PEER_TOLERANCE, TOLERANCE, Oracle, verify
from ..networks import Workload
from . import model_files, quality, tables
from .contenders import Contender
from .engines import ENGINES, Task, Unavailable
from .references import VOID_BELOW, reference_rate, too_slow
from .tables import OURS, OURS_BFLOAT16, SINGLE

BLOCK_SECONDS = 1.0  # a block has as many calls as fit, and at least 2
COLD_STARTS = 3


def export(folder: Path, workload: Workload, names: list[str], n: int) -> None:
    """Write the files that the engines read for ``n`` images."""
    formats = {ENGINES[name].file for name in names}
    calibration = model_files.calibration(workload)
    model_files.export(folder, workload.generator, workload.weights, n, formats, calibration)


def cold_start(name: str, folder: Path, threads: int, plan: str | None) -> dict[str, float]:
    """Seconds of whole processes of :mod:`.start`, with files in the page cache: minimum and median."""
    command = [sys.executable, "-m", "bench.peers.start", name, folder, str(threads), *([plan] if plan else [])]
    seconds = [common.run_process(*command) for _ in range(COLD_STARTS)]
    return {"min_s": round(min(seconds), 3), "median_s": round(float(np.median(seconds)), 3)}


class Comparison:
    """One batch size and number of threads: the engines that take part, and blocks of their calls.

    At N > 8 with fewer than all threads, only OpenVINO and this project's engines run, to save time.
    """

    def __init__(self, workload: Workload, n: int, threads: int, most_threads: int, names: list[str]) -> None:
        self.workload, self.n, self.threads = workload, n, threads
        self.headline = threads == most_threads and n <= 8
        every = threads == most_threads or n <= 8
        self.names = [name for name in names if every or ENGINES[name].ours or name.startswith("openvino")]
        self.left_out = [name for name in names if name not in self.names]
        self.entrants = {name: (name, threads) for name in self.names}
        if self.headline and threads > 1 and OURS in names:
            self.entrants[SINGLE] = (OURS, 1)
        self.unavailable: dict[str, str] = {}
        self._contenders: dict[str, Contender] = {}

    def run(self, folder: Path, oracle: Oracle, blocks: int, plan: str | None) -> dict[str, Any]:
        """Start, verify, warm up and time the engines; the record of the run."""
        if self.left_out:
            print(f"N={self.n}, threads: {self.threads}: left out to save time: {', '.join(self.left_out)}")
        try:
            engines = self._start(folder, oracle, plan)
            peak = self._time(engines, blocks if self.headline else max(1, blocks // 2))
        finally:
            for contender in self._contenders.values():
                contender.close()
        self._summarise(engines, peak["fma_gflops"])
        return {"n": self.n, "threads": self.threads, "peak": peak, "left_out": self.left_out, "engines": engines}

    def _start(self, folder: Path, oracle: Oracle, plan: str | None) -> dict[str, dict[str, Any]]:
        expected, x = oracle(self.workload.images(self.n)), self.workload.inputs(self.n)
        engines = {}
        for key, (name, threads) in self.entrants.items():
            try:
                contender = self._contenders[key] = Contender(name, Task(folder, x, threads, plan))
            except Unavailable as error:
                self.unavailable[name] = str(error)
                print(f"N={self.n} {key}: SKIPPED: {error}", flush=True)
                continue
            precision, tolerance = ENGINES[name].precision, TOLERANCE if ENGINES[name].ours else PEER_TOLERANCE
            off = verify(key, precision, contender.output, expected, tolerance)
            engines[key] = {"precision": precision, "threads": threads, **off, "setup_s": round(contender.setup, 2)}
            print(f"N={self.n} {key}: {tables.distance(off)} off the oracle, ready after {contender.setup:.1f} s")
        return engines

    def _time(self, engines: dict[str, dict[str, Any]], blocks: int) -> dict[str, float]:
        """Add the seconds of calls by block, and peak memory; returns the machine's peaks, measured between rounds."""
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
        """Turn seconds into rates, and add ratios to the reference rate and to this project's engines."""
        for key, entry in engines.items():
            blocks = entry.pop("blocks")
            entry |= common.rates([s for block in blocks for s in block], self.n, self.workload.flops, peak_gflops)
            entry["block_images_per_s"] = [round(self.n / float(np.median(block)), 3) for block in blocks]
            reference = reference_rate(self.workload, key, self.n, peak_gflops)
            if reference and self.threads == available_cores():
                entry["reference_images_per_s"] = round(reference, 3)
                entry["of_reference"] = round(entry["median_images_per_s"] / reference, 3)
        for ours, field in ((OURS, "ours_over_this"), (OURS_BFLOAT16, "ours_bfloat16_over_this")):
            for entry in engines.values() if ours in engines else ():
                entry[field] = tables.block_ratio(engines[ours], entry)


def measure(folder: Path, workload: Workload, arguments: argparse.Namespace) -> dict[str, Any]:
    """All comparisons, then cold starts and quality; the record that is saved."""
    names, most = arguments.engines, max(arguments.threads)
    oracle = Oracle(workload.generator, workload.weights)
    record: dict[str, Any] = {
        **workload.record(),
        "plan": arguments.plan,
        "blocks": arguments.blocks,
        "unavailable": {},
        "runs": [],
    }
    for threads in sorted(arguments.threads, reverse=True):
        for n in arguments.batches:
            export(folder, workload, names, n)
            comparison = Comparison(workload, n, threads, most, names)
            run = comparison.run(folder, oracle, arguments.blocks, arguments.plan)
            print("\n" + tables.details(run), flush=True)
            record["runs"].append(run)
            record["unavailable"] |= comparison.unavailable
    record["ratios"] = tables.ratios(record["runs"], workload.name)
    record["memory"] = tables.memory(record["runs"])
    present = [name for name in names if name not in record["unavailable"]]
    export(folder, workload, present, 1)
    np.save(folder / "image.npy", workload.inputs(1))
    record["cold_start"] = {name: cold_start(name, folder, most, arguments.plan) for name in present}
    record["quality"] = {}
    if workload.name == networks.UNET:
        demo = real_models.demo_model()
        expected = quality.expected_images(demo)
        record["quality"], left_out = quality.measure(demo, expected, present, most, arguments.plan)
        record["unavailable"] |= left_out
    record["void"] = [slow for run in record["runs"] for slow in too_slow(run, workload.name)]
    return record


def parse(argv: list[str] | None) -> tuple[Workload, argparse.Namespace]:
    """The command line."""
    parser = common.argument_parser("bench.peers", __doc__)
    threads = ",".join(map(str, sorted({1, available_cores()})))
    networks.add_options(parser)
    parser.add_argument("--engines", default=",".join(ENGINES), help="which to run (%(default)s; int8 for a U-Net)")
    parser.add_argument("--threads", type=common.numbers, default=threads, help="for every engine (%(default)s)")
    parser.add_argument(
        "--blocks", type=int, default=7, help="blocks of calls per engine; half of it beyond N=8 and on fewer threads"
    )
    parser.add_argument("--plan", help="plan of this project's engine (its default)")
    arguments = parser.parse_args(argv)
    arguments.engines = arguments.engines.split(",")
    unknown = set(arguments.engines) - set(ENGINES)
    if unknown:
        parser.error(f"unknown engines {sorted(unknown)}, expected {', '.join(ENGINES)}")
    if arguments.network != networks.UNET:  # the only one that int8 was tuned for
        arguments.engines = [name for name in arguments.engines if ENGINES[name].precision != "int8"]
    return networks.chosen(parser, arguments), arguments


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; exit status 1 if it is void."""
    workload, arguments = parse(argv)
    begun = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        record = measure(Path(folder), workload, arguments)
    record["minutes"] = round((time.perf_counter() - begun) / 60, 1)
    path = common.save(f"peers{workload.suffix}", record)
    print(f"\n{tables.write(path)}\ntook {record['minutes']} minutes")
    if record["void"]:
        print(f"VOID: under {VOID_BELOW:.0%} of the reference rate: {', '.join(record['void'])}")
    return 1 if record["void"] else 0
