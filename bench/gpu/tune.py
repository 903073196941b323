"""The tuner: finds the fastest tile and split of each layer on this GPU, and writes the table that plans use.

    python -m bench.gpu.tune [--precisions float16,tf32,bfloat16,float32] [--tune throughput,latency] [--device cuda:0]
                             [--seconds 400] [--hopper] [--output DIR]

Every candidate runs the whole network and is compared with the float64 oracle; then each of its layers is timed by
itself. The exit status is EX_TEMPFAIL (75) if candidates are left for a later run, because ``--seconds`` had passed or
one broke this process's use of the GPU; else 1 if any failed or was wrong. Writes three kinds of file:

- pix2pix/plans/measured/NAME-OF-THE-GPU.json, from which later plans take their algorithms (pix2pix.plans.tables),
- plan-cuda-PRECISION-TUNE.json, for ``--plan``,
- tune.json, after every candidate, with all times, and the candidates that failed or are left.

A later run on such a GPU goes on from tune.json: it times what is not there, and what was timed with other sources of
the package. A candidate that hangs fails after MOST_SECONDS, and the process ends.

With ``--hopper``, the candidates are the algorithms of compute capability 9.0 alone, compared with the times of the
others in tune.json. They run in a separate process because a faulting kernel ends the process for all candidates after
it. Without a GPU, nothing is measured, and the program says so.
"""

from __future__ import annotations

import argparse
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from pix2pix.devices import gpu_name
from pix2pix.engines.reference import to_float
from pix2pix.factory import EngineOptions, make_engine
from pix2pix.model.generator import Generator, Weights
from pix2pix.model.lowering import lower
from pix2pix.plans import tables as measured_tables
from pix2pix.plans.algorithms import Algorithm, algorithms
from pix2pix.plans.heuristics import choose
from pix2pix.plans.plan import Plan

from .. import common
from ..checks import Oracle, verify
from ..common import model
from ..sources import fingerprint
from . import kernels

IMAGES = {"throughput": 32, "latency": 1}  # of the batches that are timed
PRECISIONS = ("float16", "tf32", "bfloat16", "float32")  # the most useful first: time may run out
MOST_SECONDS = 90  # for one candidate, with the compilation of its kernels
READABLE, HOPPER = "im2col", "hopper"  # kinds: one kept to be read, never the fastest; one of H100 and H200

Times = dict[str, dict[str, float]]  # seconds by layer, then by the algorithm's name


class Tuning:
    """Candidates of one precision, timed over one batch for each ``tune``."""

    def __init__(
        self, generator: Generator, weights: Weights, batches: Mapping[str, np.ndarray], precision: str, oracle: Oracle
    ) -> None:
        self.generator, self.weights, self.batches, self.precision = generator, weights, batches, precision
        self.program = lower(generator)
        self.expected = {tune: oracle(b) for tune, b in batches.items()}
        self.times: dict[str, Times] = {tune: {op.name: {} for op in self.program.ops} for tune in batches}
        self.failed: dict[str, str] = {}
        self.left_out: list[str] = []
        self.timed_with: dict[str, str] = {}  # sources of the package, by candidate

    def run(self, names: Iterable[str], device: str, until: float, save: Callable[[], object]) -> None:
        """Time the candidates of those names, but not again, and ``save`` after each one.

        Those that would begin after ``until`` (of ``time.perf_counter``), or when the GPU does not work any more, are
        left out.
        """
        sources, usable = fingerprint(), True
        for candidate in names:
            if self.timed_with.get(candidate) == sources:
                continue
            if time.perf_counter() > until or not usable:
                self.left_out.append(candidate)
                continue
            try:
                with self._ends_in(MOST_SECONDS, candidate, sources, save):
                    self._time(candidate, device)
                self.failed.pop(candidate, None)
            except Exception as error:  # whatever it is, the times of the others are worth having
                self._fail(candidate, str(error))
                usable = works(device)
            self.timed_with[candidate] = sources
            save()

    def _fail(self, candidate: str, why: str) -> None:
        self.failed[candidate] = why
        print(f"{self.precision} {candidate}: FAILED: {why}", flush=True)

    @contextmanager
    def _ends_in(self, seconds: float, candidate: str, sources: str, save: Callable[[], object]) -> Iterator[None]:
        """End the process if the block takes longer: a kernel that hangs cannot be interrupted."""

        def end() -> None:
            self.timed_with[candidate] = sources
            self._fail(candidate, f"did not end in {seconds} s")
            save()
            os._exit(os.EX_TEMPFAIL)

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def _time(self, candidate: str, device: str) -> None:
        with make_engine(self.generator, self.weights, EngineOptions(device, self.precision, plan=candidate)) as engine:
            plan = engine.info.plan
            for tune, b in self.batches.items():
                verify(candidate, self.precision, engine.run(to_float(b)), self.expected[tune])
            for tune, b in self.batches.items():
                seconds = kernels.layer_seconds(engine, b)
                for name, taken in self.times[tune].items():
                    if str(plan.layers[name]) == candidate and name in seconds:
                        taken[candidate] = seconds[name]
                total = 1e3 * sum(seconds.values())
                print(f"{self.precision} N={len(b)} {candidate:24s} {total:8.3f} ms", flush=True)

    def add(self, report: Mapping[str, Any], names: Collection[str]) -> None:
        """Add the times of a :meth:`report` of an earlier process; of ``names``, none is left out yet."""
        for tune, layers in report.get("us", {}).items():
            for name, taken in layers.items():
                self.times.setdefault(tune, {}).setdefault(name, {}).update({a: 1e-6 * us for a, us in taken.items()})
        self.failed |= report.get("failed", {})
        self.left_out += [name for name in report.get("left_out", []) if name not in names]
        self.timed_with |= report.get("timed_with", {})

    def plan(self, tune: str) -> Plan:
        """The fastest algorithm of each layer; layers that were not timed have the default plan's."""
        default = choose(self.generator, tune, None, self.precision, "cuda").to_dict()["layers"]
        fastest = {name: min(taken, key=taken.__getitem__) for name, taken in self._timed(tune).items()}
        return Plan(default | fastest, "cuda", self.precision, tune)

    def table(self, tune: str) -> dict[str, str]:
        """The plan's algorithms by shape, for the package; of layers that were timed."""
        plan = self.plan(tune)
        shapes = {name: measured_tables.shape(self.generator, self.program[name]) for name in self._timed(tune)}
        return {shape: str(plan.layers[name]) for name, shape in shapes.items()}

    def _timed(self, tune: str) -> Times:
        """Times of those layers that are computed for every image."""
        constant = self.program.constants(self.generator.size, self.generator.size)
        return {name: taken for name, taken in self.times[tune].items() if taken and name not in constant}

    def report(self) -> dict[str, Any]:
        """The entry in tune.json: microseconds, and the candidates that have none."""
        times = {
            tune: {name: {a: round(1e6 * s, 2) for a, s in taken.items()} for name, taken in layers.items()}
            for tune, layers in self.times.items()
        }
        report = {"us": times, "failed": self.failed, "left_out": self.left_out}
        return report | {"timed_with": self.timed_with}


def candidates(generator: Generator, precision: str, of_hopper: bool) -> list[Algorithm]:
    """All algorithms worth timing, of compute capability 9.0 alone or of all GPUs; those without split-K first."""
    found = dict.fromkeys(a for op in lower(generator).ops for a in algorithms(op, "cuda", precision))
    wanted = (a for a in found if a.kind != READABLE and of_hopper == (a.kind == HOPPER))
    return sorted(wanted, key=lambda algorithm: algorithm.splits)


def write(tuning: Tuning, gpu: str, driver: str, folder: Path) -> None:
    """Write the plans of one precision, and its part of the table for GPUs of that name."""
    for tune in tuning.batches:
        path = folder / f"plan-cuda-{tuning.precision}-{tune}.json"
        tuning.plan(tune).save(path)
        print(f"wrote {path}")
    facts = {"commit": common.commit(), "driver": driver}
    found = {tuning.precision: {tune: tuning.table(tune) for tune in tuning.batches}}
    print(f"wrote {measured_tables.save(gpu, facts, found)}")


def measure(arguments: argparse.Namespace) -> int:
    """Tune the precisions one after the other, and write the results of each; the exit status."""
    until = time.perf_counter() + arguments.seconds
    generator, weights = model()
    oracle = Oracle(generator, weights)
    batches = {tune: common.images(IMAGES[tune]) for tune in arguments.tune.split(",")}
    gpu, record = gpu_name(_index(arguments.device)), earlier()
    failures = left_out = 0
    for precision in arguments.precisions.split(","):
        names = [str(candidate) for candidate in candidates(generator, precision, arguments.hopper)]
        tuning = Tuning(generator, weights, batches, precision, oracle)
        tuning.add(record["precisions"].get(precision, {}), names)

        def save(tuning: Tuning = tuning) -> None:
            record["precisions"][tuning.precision] = tuning.report()
            common.save("tune", record)

        tuning.run(names, arguments.device, until, save)
        write(tuning, gpu, record["gpu"]["driver"], arguments.output)
        save()
        failed = sum(name in tuning.failed for name in names)
        print(f"{precision}: {len(tuning.left_out)} candidates left out, {failed} failed")
        failures += failed
        left_out += len(tuning.left_out)
    return os.EX_TEMPFAIL if left_out else 1 if failures else 0


def earlier() -> dict[str, Any]:
    """The record in tune.json if it is of such a GPU, or an empty one."""
    gpu = common.gpu()
    if (common.RESULTS / "tune.json").exists():
        record = common.read("tune")
        if record["gpu"]["name"] == gpu["name"]:
            return {"gpu": gpu, "precisions": record["precisions"]}
    return {"gpu": gpu, "precisions": {}}


def works(device: str) -> bool:
    """Whether this process can still use the GPU: after an illegal access, every call fails."""
    from pix2pix.gpu.device import Device

    try:
        Device(_index(device)).upload(np.zeros(1, np.float32))
    except Exception as error:  # of Numba or of CUDA
        print(f"{device} does not work any more in this process: {error}", flush=True)
        return False
    return True


def _index(device: str) -> int:
    return int(device.removeprefix("cuda:"))


def missing(arguments: argparse.Namespace) -> str:
    """Why nothing can be measured here; an empty string if it can."""
    if reason := common.missing_device(arguments.device):
        return f"no CUDA device ({reason})"
    from pix2pix.gpu.device import HOPPER as CAPABILITY
    from pix2pix.gpu.device import capability_of

    if arguments.hopper and capability_of(_index(arguments.device)) != CAPABILITY:
        return "no GPU of compute capability 9.0"
    if arguments.hopper and not (common.RESULTS / "tune.json").exists():
        return "no times of the other algorithms: run it without --hopper first"
    return ""


def main(argv: list[str] | None = None) -> int:
    """Time the candidates; write the table and the plans."""
    parser = common.argument_parser("bench.gpu.tune", __doc__)
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="(%(default)s)")
    parser.add_argument("--tune", default=",".join(IMAGES), help="(%(default)s)")
    parser.add_argument("--device", default="cuda:0", help="(%(default)s)")
    parser.add_argument("--seconds", type=float, default=400, help="after which no candidate is begun (%(default)s)")
    parser.add_argument("--hopper", action="store_true", help="the algorithms of compute capability 9.0 alone")
    parser.add_argument("--output", type=Path, default=common.RESULTS, help="where plans go (%(default)s)")
    arguments = parser.parse_args(argv)
    if reason := missing(arguments):
        print(f"not measured: {reason}")
        return 0
    return measure(arguments)


if __name__ == "__main__":
    raise SystemExit(main())
