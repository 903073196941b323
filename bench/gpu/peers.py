"""The whole network on one GPU, beside PyTorch on the same GPU, in all precisions.

    python -m bench.gpu.peers [--batches 64] [--precisions float32,tf32,float16,bfloat16] [--no-compile] [--name gpu-64]
                              [--blocks 5] [--images 0] [--device cuda:0]

For each batch size, this project's engine and PyTorch (eager, as a CUDA graph, and compiled) run in alternating blocks
of calls, in three ways: from and to the GPU's memory ("resident"), from and to pinned host memory with overlapped
copies ("stream"), and from and to pinned host memory one call at a time ("translate"). Every output is compared with
the float64 oracle before anything is timed. With ``--images``, the command line then translates a raw file of so many.
Writes NAME.json, and gpu.md with the tables of all such files. Without a GPU, nothing is measured, and the program says
so.

Compiling takes PyTorch minutes: after COMPILE_UNTIL seconds nothing more is compiled, and after BEGIN_UNTIL seconds no
further batch size is begun. The tables list what was left out or failed. The exit status is 1 if one of this project's
engines was wrong.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pix2pix import checkpoints
from pix2pix.engines.base import Engine
from pix2pix.factory import EngineOptions, make_engine
from pix2pix.files import metrics

from .. import common
from ..checks import LEAST_PSNR, Oracle, check_images, required_psnr, to_bytes, verify
from ..clock import seconds_of
from ..common import model
from ..peers.engines import Unavailable
from ..peers.tables import OURS
from . import tables
from .contenders import PRECISIONS, Contender, resident
from .tables import WAYS

BLOCK_SECONDS = 0.25  # a block has as many calls as fit, and at least 2
COMPILE_UNTIL, BEGIN_UNTIL = 170, 330
COMPILE_FIRST = ("float16", "tf32", "bfloat16", "float32")

Makers = Mapping[str, Callable[[], Contender]]


def verify_both(name: str, contender: Contender, expected: dict[int, np.ndarray]) -> dict[str, float]:
    """Distance of the output from the oracle's. RuntimeError if it is too far off, or if the translated images are."""
    off = verify(name, contender.precision, contender.output(), expected)
    least = required_psnr(contender.precision) if name.startswith(OURS) else 0
    if off.get("psnr_db", least) < least:
        raise RuntimeError(f"{name} has {off['psnr_db']} dB against the oracle (at least {least:.0f}): not timed")
    result, truth = contender.translate()[list(expected)], to_bytes(np.stack(list(expected.values())))
    if contender.precision == "float32":
        check_images(f"{name}, translating,", result, truth)
    elif not metrics.psnr(result, truth) >= (least or LEAST_PSNR[contender.precision]):
        raise RuntimeError(f"{name}, translating, has {metrics.psnr(result, truth):.1f} dB: not timed")
    return off


def take_turns(calls: Mapping[str, Callable[[int], Any]], blocks: int) -> dict[str, list[float]]:
    """Seconds of one call of each, by block. Each takes the number of calls; the order is reversed after each block."""
    counts: dict[str, int] = {}
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for name, call in calls.items():
        call(2)
        counts[name] = max(2, round(BLOCK_SECONDS / seconds_of(partial(call, 2)) * 2))
    for block in range(blocks):
        for name in list(calls)[:: 1 if block % 2 == 0 else -1]:
            seconds[name].append(seconds_of(partial(calls[name], counts[name])) / counts[name])
    return seconds


class Comparison:
    """The contenders over one batch, verified, and their blocks. One that cannot run, or is wrong, is left out."""

    def __init__(self, b: np.ndarray, makers: Makers, oracle: Oracle) -> None:
        self.n, self.oracle = len(b), oracle(b)
        self.unavailable: dict[str, str] = {}
        self.contenders: dict[str, Contender] = {}
        self.entries: dict[str, dict[str, Any]] = {}
        for name, make in makers.items():
            self._add(name, make)

    def _add(self, name: str, make: Callable[[], Contender]) -> None:
        try:
            contender = make()
            off = verify_both(name, contender, self.oracle)
        except Exception as error:  # whatever it is, the results of the others are worth having
            why = str(error).splitlines() or [type(error).__name__]
            self.unavailable[f"{name}, N={self.n}"] = why[0]
            print(f"N={self.n} {name}: SKIPPED: {error}", flush=True)
            return
        self.contenders[name] = contender
        self.entries[name] = {"precision": contender.precision, "settings": contender.settings, **off}

    @property
    def wrong(self) -> list[str]:
        """This project's engines that were left out."""
        return [f"{name}: {why}" for name, why in self.unavailable.items() if name.startswith(OURS)]

    def time(self, blocks: int, flops: int, peaks: Mapping[str, float]) -> dict[str, Any]:
        """Run the alternating blocks of every way; the rates of all contenders. ``peaks`` are GFLOP/s by precision."""
        for way in WAYS:
            calls = {name: self._call(contender, way) for name, contender in self.contenders.items()}
            for name, seconds in take_turns(calls, blocks).items():
                entry = self.entries[name]
                entry[way] = common.rates(seconds, self.n, flops, peaks[entry["precision"]])
                entry[way]["block_images_per_s"] = [round(self.n / s, 3) for s in seconds]
        return {"n": self.n, "engines": self.entries}

    @staticmethod
    def _call(contender: Contender, way: str) -> Callable[[int], Any]:
        def translate(calls: int) -> None:
            for _ in range(calls):
                contender.translate()

        return {"resident": contender.run, "stream": contender.stream, "translate": translate}[way]


def command_line(arguments: argparse.Namespace, precision: str) -> dict[str, float]:
    """Images/s of ``pix2pix translate`` over a raw file: of the whole process, and by its own count."""
    with tempfile.TemporaryDirectory() as folder:
        model_file, source, target, summary = (
            Path(folder, name) for name in ("model.safetensors", "in.rgb", "out.rgb", "summary.json")
        )
        checkpoints.write(model_file, *model())
        common.varied_images(arguments.images).tofile(source)
        call = ["translate", source, "-o", target, "-m", model_file, "--quiet", "--overwrite", "--json", summary]
        call += ["--device", arguments.device, "--batch-size", "64", "--precision", precision]
        common.command_line(*call)  # fills the cache of compiled kernels, and of files
        seconds = common.command_line(*call)
        said = json.loads(summary.read_text(encoding="utf-8"))["images_per_second"]
    return {
        "images": arguments.images,
        "seconds": round(seconds, 3),
        "images_per_s": round(arguments.images / seconds, 3),
        "says_images_per_s": said,
    }


class Benchmark:
    """All batch sizes, one after the other, and what they share; ``record`` is what is saved."""

    def __init__(self, arguments: argparse.Namespace, folder: Path, stack: ExitStack) -> None:
        from ..peers import torch_network
        from . import peak as gpu_peak

        self.begun = time.perf_counter()
        self.arguments, self.stack = arguments, stack
        self.generator, self.weights = model()
        self.oracle = Oracle(self.generator, self.weights)
        self.torch_file = folder / "model.pt"
        torch_network.write(self.torch_file, self.generator, self.weights)
        self.engines: dict[tuple[str, str], Engine] = {}
        first = self.engine(arguments.precisions[0], common.tune_for(arguments.batches[0]))
        peak = gpu_peak.all_of(first, arguments.precisions)
        print(peak, flush=True)
        self.wrong: list[str] = []
        self.record: dict[str, Any] = {"gpu": common.gpu(), "engine": first.info.description, "peak": peak}
        self.record |= {"plans": {}, "unavailable": {}, "runs": []}

    @property
    def seconds(self) -> float:
        """Since the beginning."""
        return time.perf_counter() - self.begun

    def engine(self, precision: str, tune: str) -> Any:
        """This project's engine; each is made once."""
        key = precision, tune
        if key not in self.engines:
            device = self.arguments.device
            engine = make_engine(self.generator, self.weights, EngineOptions(device, precision, tune))
            self.engines[key] = self.stack.enter_context(engine)
        return self.engines[key]

    def makers(self, b: np.ndarray) -> Iterator[tuple[str, Callable[[], Contender]]]:
        """Names of contenders, and the functions that make them; compiled ones last."""
        tune = common.tune_for(len(b))
        for precision in self.arguments.precisions:
            yield f"{OURS}-{precision}", lambda p=precision: resident(self.engine(p, tune), b)
        for way in ("eager", "graph"):
            for precision in self.arguments.precisions:
                yield f"torch-{way}-{precision}", partial(self._torch, b, precision, way)
        for precision in COMPILE_FIRST if not self.arguments.no_compile else ():
            if precision in self.arguments.precisions:
                yield f"torch-compile-{precision}", partial(self._torch, b, precision, "compile")

    def _torch(self, b: np.ndarray, precision: str, way: str) -> Contender:
        from .pytorch import torch_on_gpu

        if way == "compile" and self.seconds > COMPILE_UNTIL:
            raise Unavailable(f"not compiled: {COMPILE_UNTIL} s had passed")
        contender = torch_on_gpu(self.torch_file, b, self.arguments.device, precision, way)
        print(f"N={len(b)} torch-{way}-{precision} is ready after {self.seconds:.0f} s", flush=True)
        return contender

    def run(self, n: int) -> None:
        """Measure one batch size, and save."""
        from .pytorch import release

        if self.seconds > BEGIN_UNTIL:
            self.record["unavailable"][f"N={n}"] = f"not begun: {BEGIN_UNTIL} s had passed"
            self.save()
            return
        b = common.images(n)
        comparison = Comparison(b, dict(self.makers(b)), self.oracle)
        peaks = self.record["peak"]["cublas_gflops"]
        self.record["runs"].append(comparison.time(self.arguments.blocks, self.generator.flops(), peaks))
        self.record["unavailable"] |= comparison.unavailable
        self.record["plans"] |= {f"{p}, {tune}": e.info.plan.to_dict() for (p, tune), e in self.engines.items()}
        self.wrong += comparison.wrong
        print(tables.run_table(self.record["runs"][-1]), flush=True)
        self.save()
        del comparison
        release()

    def save(self) -> None:
        """Write the record so far, and the tables."""
        self.record["minutes"] = round(self.seconds / 60, 1)
        common.save(self.arguments.name, self.record)
        tables.write()


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = common.argument_parser("bench.gpu.peers", __doc__)
    parser.add_argument("--batches", default="64", help="images per call (%(default)s)")
    parser.add_argument("--precisions", default=",".join(PRECISIONS), help="(%(default)s)")
    parser.add_argument("--no-compile", action="store_true", help="leave torch.compile out")
    parser.add_argument("--name", help="of the file with the results, without .json (gpu-BATCHES)")
    parser.add_argument("--blocks", type=int, default=5, help="blocks of calls per contender (%(default)s)")
    parser.add_argument("--images", type=int, default=0, help="for the command line (%(default)s)")
    parser.add_argument("--device", default="cuda:0", help="(%(default)s)")
    arguments = parser.parse_args(argv)
    arguments.name = arguments.name or f"gpu-{arguments.batches.replace(',', '-')}"
    arguments.batches = [int(n) for n in arguments.batches.split(",")]
    arguments.precisions = arguments.precisions.split(",")
    if unknown := set(arguments.precisions) - set(PRECISIONS):
        parser.error(f"unknown precisions {sorted(unknown)}, expected {', '.join(PRECISIONS)}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark; exit status 1 if one of this project's engines was wrong."""
    arguments = parse(argv)
    if missing := common.missing_device(arguments.device):
        print(f"not measured: no CUDA device ({missing})")
        return 0
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        benchmark = Benchmark(arguments, Path(folder), stack)
        for n in arguments.batches:
            benchmark.run(n)
        if arguments.images:
            found = {precision: command_line(arguments, precision) for precision in arguments.precisions}
            benchmark.record["command_line"] = found
            benchmark.save()
    for line in benchmark.wrong:
        print(f"WRONG: {line}")
    return 1 if benchmark.wrong else 0


if __name__ == "__main__":
    raise SystemExit(main())
