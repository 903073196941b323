"""Which tile and split is fastest for each layer on this GPU: the table that plans on such GPUs go by.

    python -m bench.gpu.tune [--precisions float16,tf32,bfloat16,float32] [--tune throughput,latency] [--device cuda:0]
                         [--seconds 400] [--hopper] [--output DIR]

Every candidate runs the whole network and is compared with the float64 oracle; then each of its layers is timed by
itself. A candidate that fails or is wrong is left out, and the exit status is 1. Writes three kinds of file:

- pix2pix/plans/measured/NAME-OF-THE-GPU.json, from which later plans take their algorithms (pix2pix.plans.tables),
- plan-cuda-PRECISION-TUNE.json, for ``--plan``,
- tune.json, with all times and the candidates left out because ``--seconds`` had passed.

With ``--hopper``, the candidates are the algorithms of compute capability 9.0 alone, compared with the times of the
others in tune.json. They run in a separate process because a faulting kernel ends the process for all candidates after
it. Without a GPU, nothing is measured, and the program says so.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pix2pix.engines.reference import to_float
from pix2pix.factory import EngineOptions, make_engine
from pix2pix.model.generator import Generator, Weights
from pix2pix.model.lowering import lower
from pix2pix.plans import tables as tuned
from pix2pix.plans.algorithms import algorithms
from pix2pix.plans.heuristics import choose
from pix2pix.plans.plan import Plan

from .. import common
from ..checks import Oracle, verify
from ..common import model
from . import kernels

IMAGES = {"throughput": 32, "latency": 1}  # of the batches that are timed
PRECISIONS = ("float16", "tf32", "bfloat16", "float32")  # what is tuned first has all its candidates timed
READABLE = "im2col"  # a form that is kept for its readers, never the fastest

Times = dict[str, dict[str, float]]  # seconds by layer, then by algorithm


class Tuning:
    """Candidates of one precision, timed over a batch for each aim."""

    def __init__(
        self,
        generator: Generator,
        weights: Weights,
        batches: Mapping[str, np.ndarray],
        precision: str,
        oracle: Oracle,
    ) -> None:
        self.generator, self.weights, self.batches, self.precision = generator, weights, batches, precision
        self.expected = {tune: oracle(b) for tune, b in batches.items()}
        self.times: dict[str, Times] = {tune: {layer.name: {} for layer in generator.layers} for tune in batches}
        self.failed: dict[str, str] = {}
        self.left_out: list[str] = []

    def run(self, candidates: Iterable[str], device: str, until: float) -> None:
        """Time the candidates; those that would begin after ``until`` (of ``time.perf_counter``) are left out."""
        for candidate in candidates:
            if time.perf_counter() > until:
                self.left_out.append(candidate)
                continue
            try:
                self._time(candidate, device)
            except Exception as error:  # whatever it is, the others' times are worth having
                self.failed[candidate] = str(error)
                print(f"{self.precision} {candidate}: FAILED: {error}", flush=True)

    def _time(self, candidate: str, device: str) -> None:
        with make_engine(self.generator, self.weights, EngineOptions(device, self.precision, plan=candidate)) as engine:
            for tune, b in self.batches.items():
                verify(candidate, self.precision, engine.run(to_float(b)), self.expected[tune])
            for tune, b in self.batches.items():
                seconds = kernels.layer_seconds(engine, b)
                for name, taken in self.times[tune].items():
                    if str(engine.plan.layers[name]) == candidate and name in seconds:
                        taken[candidate] = seconds[name]
                total = 1e3 * sum(seconds.values())
                print(f"{self.precision} N={len(b)} {candidate:24s} {total:8.3f} ms", flush=True)

    def add(self, report: Mapping[str, Any]) -> None:
        """Take over what :meth:`report` has of another process."""
        for tune, layers in report.get("us", {}).items():
            for name, taken in layers.items():
                self.times.setdefault(tune, {}).setdefault(name, {}).update({a: 1e-6 * us for a, us in taken.items()})
        self.failed |= report.get("failed", {})
        self.left_out += report.get("left_out", [])

    def plan(self, tune: str) -> Plan:
        """What took the least for each layer; layers that were not timed have what they have by rule."""
        layers = {n: str(a) for n, a in choose(self.generator, tune, None, self.precision, "cuda").layers.items()}
        layers |= {name: min(taken, key=taken.__getitem__) for name, taken in self._timed(tune).items()}
        return Plan(layers, "cuda", self.precision, tune)

    def table(self, tune: str) -> dict[str, str]:
        """The same for the package: algorithms by shape, of layers that were timed."""
        plan = self.plan(tune)
        program = lower(self.generator)
        return {tuned.shape(self.generator, program[name]): str(plan.layers[name]) for name in self._timed(tune)}

    def _timed(self, tune: str) -> Times:
        """Times of those layers that are computed for every picture."""
        constant = lower(self.generator).constants(self.generator.size, self.generator.size)
        return {name: taken for name, taken in self.times[tune].items() if taken and name not in constant}

    def report(self) -> dict[str, Any]:
        """What is saved of it: microseconds, and what there are none of."""
        times = {
            tune: {name: {a: round(1e6 * s, 2) for a, s in taken.items()} for name, taken in layers.items()}
            for tune, layers in self.times.items()
        }
        return {"us": times, "failed": self.failed, "left_out": self.left_out}


def candidates(generator: Generator, precision: str, of_hopper: bool) -> list[str]:
    """All algorithms of Hopper's own, or of all GPUs, that are worth timing; those first whose sums no blocks share."""
    found = dict.fromkeys(str(a) for op in lower(generator).ops for a in algorithms(op, "cuda", precision))
    names = [name for name in found if name != READABLE and of_hopper == name.startswith("hopper")]
    return sorted(names, key=lambda name: int(name.partition("-split")[2] or 1))


def measure(arguments: argparse.Namespace) -> int:
    """Tune all precisions, and write what came of it after each; the exit status."""
    from pix2pix.devices import gpu_name

    until = time.perf_counter() + arguments.seconds
    generator, weights = model()
    oracle = Oracle(generator, weights)
    batches = {tune: common.images(IMAGES[tune]) for tune in arguments.tune.split(",")}
    told = common.gpu()
    gpu = gpu_name(_index(arguments.device))
    record: dict[str, Any] = {"gpu": told, "precisions": {}}
    if arguments.hopper:
        record = json.loads((common.RESULTS / "tune.json").read_text(encoding="utf-8"))
    failed = 0
    for precision in arguments.precisions.split(","):
        tuning = Tuning(generator, weights, batches, precision, oracle)
        if arguments.hopper:
            tuning.add(record["precisions"].get(precision, {}))
        before = len(tuning.failed)
        tuning.run(candidates(generator, precision, arguments.hopper), arguments.device, until)
        for tune in batches:
            path = arguments.output / f"plan-cuda-{precision}-{tune}.json"
            tuning.plan(tune).save(path)
            print(f"wrote {path}")
        facts = {"commit": common.commit(), "driver": told["driver"]}
        file = tuned.save(gpu, facts, {precision: {tune: tuning.table(tune) for tune in batches}})
        record["precisions"][precision] = tuning.report()
        common.save("tune", record)
        news = len(tuning.failed) - before
        failed += news
        print(f"{precision}: {len(tuning.left_out)} candidates left out, {news} failed; wrote {file}")
    return 1 if failed else 0


def _index(device: str) -> int:
    return int(device.removeprefix("cuda:"))


def _lacks(arguments: argparse.Namespace) -> str:
    """What isn't there for this to be measured; nothing if all is."""
    if missing := common.missing_device(arguments.device):
        return f"no CUDA device ({missing})"
    from pix2pix.gpu.device import HOPPER, capability_of

    if arguments.hopper and capability_of(_index(arguments.device)) != HOPPER:
        return "no GPU of compute capability 9.0"
    if arguments.hopper and not (common.RESULTS / "tune.json").exists():
        return "no times of what all GPUs can do: run it without --hopper first"
    return ""


def main(argv: list[str] | None = None) -> int:
    """Time the candidates; write the table and the plans."""
    parser = common.argument_parser("bench.gpu.tune", __doc__)
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="(%(default)s)")
    parser.add_argument("--tune", default=",".join(IMAGES), help="what for (%(default)s)")
    parser.add_argument("--device", default="cuda:0", help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=400, help="after which none is begun (%(default)s)")
    parser.add_argument("--hopper", action="store_true", help="Hopper's own algorithms, beside what was timed before")
    parser.add_argument("--output", type=Path, default=common.RESULTS, help="where plans go (%(default)s)")
    arguments = parser.parse_args(argv)
    if lacks := _lacks(arguments):
        print(f"not measured: {lacks}")
        return 0
    return measure(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
