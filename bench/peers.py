"""The whole network, float32, on all cores: this project's engine beside PyTorch, ONNX Runtime and OpenVINO.

    python -m bench.peers [--engines pix2pix,openvino] [--batches 1,8] [--blocks 7] [--plan direct]

Every engine's output is compared with the float64 oracle before anything is timed. Then blocks of calls alternate
between the engines, in one group of processes, over the same pictures with the same number of threads. Inputs and
outputs are floats in memory: neither decoding nor conversion counts.

A run is void if a peer stays under 90 % of its reference rate: then the machine was busy, or the peer misconfigured.
"""

from __future__ import annotations

import argparse
import time

import numpy as np

from pix2pix import cpu
from pix2pix.reference import ReferenceEngine

from . import common
from .contenders import PEERS, Contender, inputs, model

OURS = "pix2pix"
BLOCK_SECONDS = 1.2  # a block has as many calls as fit
REFERENCE_PEAK = 233.0  # FMA GFLOP/s of the two cores on which the reference rates were measured
REFERENCE_RATES = {  # images/s at N = 1 and N = 8
    "torch-eager": {1: 7.5, 8: 10.2},
    "onnxruntime": {1: 12.9, 8: 13.4},
    "torch-compile": {1: 14.9, 8: 13.0},
    "openvino": {1: 15.7, 8: 15.8},
}
VOID_BELOW = 0.9


def oracle(n: int) -> dict[int, np.ndarray]:
    """What the first and the last of the ``n`` pictures should give, by index: float32 (256,256,3)."""
    generator, weights = model()
    x = inputs(n)
    with ReferenceEngine(generator, weights) as engine:
        return {index: engine.run(x[index]) for index in {0, n - 1}}


def time_engines(names: list[str], n: int, arguments: argparse.Namespace) -> tuple[dict[str, dict], dict[str, float]]:
    """Start, verify, warm up and time the engines: block times in seconds per call, error and set-up of each; and the
    machine's peak, measured before each round of blocks."""
    expected = oracle(n)
    contenders: dict[str, Contender] = {}
    report: dict[str, dict] = {}
    peaks = []
    try:
        for name in names:
            contender = contenders[name] = Contender(name, n, arguments.threads, arguments.plan)
            errors = [common.check_close(name, contender.output[i], y) for i, y in expected.items()]
            report[name] = {"max_abs_error": max(errors), "setup_s": round(contender.setup, 2), "blocks": []}
            print(f"N={n} {name}: {max(errors):.1e} off the oracle, ready after {contender.setup:.1f} s", flush=True)
        repetitions = {}
        for name, contender in contenders.items():
            contender.time(2)
            repetitions[name] = max(2, round(BLOCK_SECONDS / min(contender.time(2))))
        for block in range(arguments.blocks):
            peaks.append(common.peak(arguments.threads))
            order = list(contenders) if block % 2 == 0 else list(contenders)[::-1]
            for name in order:
                time.sleep(0.2)  # thread pools spin for a while after their last call
                report[name]["blocks"].append(contenders[name].time(repetitions[name]))
    finally:
        for contender in contenders.values():
            contender.close()
    return report, common.median_peak(peaks)


def summarise(timed: dict[str, dict], n: int, peak_gflops: float) -> None:
    """Add the rates to what was timed, and how each engine does beside its reference rate and beside ours."""
    generator, _ = model()
    for name, entry in timed.items():
        blocks = entry.pop("blocks")
        entry |= common.rates([s for block in blocks for s in block], n, generator.flops(), peak_gflops)
        entry["block_images_per_s"] = [round(n / float(np.median(block)), 3) for block in blocks]
        reference = REFERENCE_RATES.get(name, {}).get(n)
        if reference:
            scaled = reference * peak_gflops / REFERENCE_PEAK
            entry["reference_images_per_s"] = round(scaled, 2)
            entry["of_reference"] = round(entry["median_images_per_s"] / scaled, 3)
    if OURS in timed:
        ours = np.array(timed[OURS]["block_images_per_s"])
        for entry in timed.values():
            entry["ours_over_this"] = round(float(np.median(ours / entry["block_images_per_s"])), 3)


def print_table(timed: dict[str, dict], n: int) -> None:
    """One line per engine."""
    print(f"\nN={n}            images/s (median, best)   GFLOP/s  of peak   of reference   ours / this")
    for name, entry in timed.items():
        print(
            f"{name:14s} {entry['median_images_per_s']:14.2f} {entry['min_images_per_s']:8.2f} "
            f"{entry['median_gflops']:11.1f} {entry['median_fraction_of_peak']:8.0%} "
            f"{format(entry['of_reference'], '.0%') if 'of_reference' in entry else '':>14s} "
            f"{entry.get('ours_over_this', ''):>13}"
        )
    print(flush=True)


def main(argv: list[str] | None = None) -> int:
    """Run the comparison; exit status 1 if it is void."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__.split("\n\n")[0])
    parser.add_argument("--engines", default=",".join([OURS, *PEERS]), help="which to run (%(default)s)")
    parser.add_argument("--batches", default="1,8", help="numbers of pictures per call (%(default)s)")
    parser.add_argument("--blocks", type=int, default=7, help="blocks of calls per engine (%(default)s)")
    parser.add_argument("--plan", default="direct", help="plan of this project's engine (%(default)s)")
    parser.add_argument("--threads", type=int, default=cpu.available_cores(), help="for every engine (%(default)s)")
    arguments = parser.parse_args(argv)
    names = arguments.engines.split(",")
    unknown = set(names) - {OURS, *PEERS}
    if unknown:
        parser.error(f"unknown engines {sorted(unknown)}, expected {', '.join([OURS, *PEERS])}")

    record: dict = {"threads": arguments.threads, "plan": arguments.plan, "blocks": arguments.blocks, "batches": {}}
    void = []
    for n in map(int, arguments.batches.split(",")):
        timed, peak = time_engines(names, n, arguments)
        summarise(timed, n, peak["fma_gflops"])
        print_table(timed, n)
        slow = [name for name, entry in timed.items() if entry.get("of_reference", 1) < VOID_BELOW]
        void += [f"{name} at N={n}" for name in slow]
        record["batches"][str(n)] = {"peak": peak, "engines": timed}
    record["void"] = void
    common.save("peers", record)
    if void:
        print(f"VOID: under {VOID_BELOW:.0%} of the reference rate: {', '.join(void)}")
    return 1 if void else 0


if __name__ == "__main__":
    raise SystemExit(main())
