"""The whole network on one GPU, beside PyTorch on the same GPU; from host to host; and kernel by kernel.

    python -m bench.gpu [--batches 1,8,32,64,128] [--compiled 1,64] [--kernels 1,64] [--blocks 5] [--device cuda:0]

For each number of pictures, this project's engine and PyTorch (eager and compiled, channels last, float32 with and
without TF32) run in turns, in blocks of calls over a batch that lies in the GPU's memory. Every output is compared with
the float64 oracle before. Then our engine's ``stream`` and ``translate`` run over the same pictures from the host's
memory to the host's memory, and the command line over a raw file. Writes gpu.json, and gpu.md, which has the tables.
Without a GPU, it says that nothing was measured.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pix2pix import checkpoints
from pix2pix.engine import BaseEngine, check_device, make_engine
from pix2pix.generator import Generator, Weights
from pix2pix.reference import ReferenceEngine, to_float

from . import common, gpu_kernels, gpu_tables
from .contenders import model
from .gpu_contenders import Contender, resident, torch_network
from .peers import verify

OURS = gpu_tables.OURS
BLOCK_SECONDS = 0.4  # a block has as many calls as fit, and at least 2
TORCH = {
    "torch-eager": {},
    "torch-eager-tf32": {"tf32": True},
    "torch-compile": {"compiled": True},
    "torch-compile-tf32": {"compiled": True, "tf32": True},
}


def seconds_of(call: Callable[[], Any]) -> float:
    """Seconds that one call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


class Oracle:
    """What the generator makes of the first and the last picture of a batch."""

    def __init__(self, generator: Generator, weights: Weights) -> None:
        self._engine = ReferenceEngine(generator, weights)
        self._known: dict[bytes, np.ndarray] = {}

    def __call__(self, b: np.ndarray) -> dict[int, np.ndarray]:
        """By index: float32 (H,W,C)."""
        for index in (0, len(b) - 1):
            if b[index].tobytes() not in self._known:
                self._known[b[index].tobytes()] = self._engine.run(to_float(b[index]))
        return {index: self._known[b[index].tobytes()] for index in (0, len(b) - 1)}


class Comparison:
    """One batch: the contenders, verified, and their blocks. A peer that cannot run, or is wrong, is left out."""

    def __init__(self, b: np.ndarray, makers: Mapping[str, Callable[[], Contender]], oracle: Oracle) -> None:
        self.n, self.oracle = len(b), oracle(b)
        self.unavailable: dict[str, str] = {}
        self.contenders: dict[str, Contender] = {}
        self.entries: dict[str, dict[str, Any]] = {}
        for name, make in makers.items():
            self._add(name, make)

    def _add(self, name: str, make: Callable[[], Contender]) -> None:
        try:
            contender = make()
            off = verify(name, contender.precision, contender.output(), self.oracle)
        except (ImportError, RuntimeError) as error:  # Unavailable is one, and so is PyTorch's lack of memory
            if name == OURS:
                raise
            self.unavailable[name] = f"{error} (N={self.n})"
            print(f"N={self.n} {name}: SKIPPED: {error}", flush=True)
            return
        self.contenders[name] = contender
        self.entries[name] = {"precision": contender.precision, **off}

    def time(self, blocks: int, flops: int, peak_gflops: float) -> dict[str, Any]:
        """Run the blocks in turns; rates of all contenders, and the median over blocks of ours against each."""
        calls: dict[str, int] = {}
        seconds: dict[str, list[float]] = {name: [] for name in self.contenders}
        for name, contender in self.contenders.items():
            contender.run(2)
            calls[name] = max(2, round(BLOCK_SECONDS / seconds_of(partial(contender.run, 1))))
        for block in range(blocks):
            for name in list(self.contenders)[:: 1 if block % 2 == 0 else -1]:
                whole = seconds_of(partial(self.contenders[name].run, calls[name]))
                seconds[name].append(whole / calls[name])
        for name, entry in self.entries.items():
            entry |= common.rates(seconds[name], self.n, flops, peak_gflops)
            entry["block_images_per_s"] = [round(self.n / s, 3) for s in seconds[name]]
        for entry in self.entries.values() if OURS in self.entries else ():
            ratios = np.array(self.entries[OURS]["block_images_per_s"]) / entry["block_images_per_s"]
            entry["ours_over_this"] = round(float(np.median(ratios)), 3)
        return {"n": self.n, "engines": self.entries}


def host_to_host(engine: BaseEngine, b: np.ndarray, blocks: int) -> dict[str, dict[str, float]]:
    """Images/s of ``stream`` over many such batches, and of single calls of ``translate``, copies included."""
    out = engine.translate(b)
    calls = max(4, round(2 * BLOCK_SECONDS / seconds_of(lambda: engine.translate(b, out))))

    def stream() -> None:
        for result in engine.stream(itertools.repeat(b, calls)):
            if result.shape != out.shape:
                raise RuntimeError(f"stream gave {result.shape} for {b.shape}")

    streamed = [seconds_of(stream) / calls for _ in range(blocks)]
    if not np.array_equal(next(iter(engine.stream([b]))), out):
        raise RuntimeError("stream and translate differ: not timed")
    called = common.time_calls(lambda: engine.translate(b, out), calls)
    return {
        name: {
            "median_images_per_s": round(len(b) / float(np.median(seconds)), 3),
            "best_images_per_s": round(len(b) / min(seconds), 3),
            "median_ms": round(1e3 * float(np.median(seconds)), 4),
        }
        for name, seconds in (("stream", streamed), ("translate", called))
    }


def command_line(arguments: argparse.Namespace) -> dict[str, float]:
    """Images/s of ``pix2pix translate`` over a raw file: of the whole process, and by its own count."""
    with tempfile.TemporaryDirectory() as folder:
        model_file, source, target, summary = (
            Path(folder, name) for name in ("model.safetensors", "in.rgb", "out.rgb", "summary.json")
        )
        checkpoints.write(model_file, *model())
        common.varied_pictures(arguments.images).tofile(source)
        call = ["translate", source, "-o", target, "-m", model_file, "--quiet", "--overwrite", "--json", summary]
        call += ["--device", arguments.device, "--batch-size", "64"]
        if arguments.plan:
            call += ["--plan", arguments.plan]
        common.command_line(*call)  # fills the cache of compiled kernels, and of files
        seconds = common.command_line(*call)
        said = json.loads(summary.read_text(encoding="utf-8"))["images_per_second"]
    return {
        "images": arguments.images,
        "seconds": round(seconds, 3),
        "images_per_s": round(arguments.images / seconds, 3),
        "says_images_per_s": said,
    }


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    """Everything; what is saved."""
    from . import gpu_peak

    generator, weights = model()
    oracle = Oracle(generator, weights)
    record: dict[str, Any] = {"gpu": common.gpu(), "unavailable": {}, "runs": []}
    with make_engine(generator, weights, arguments.device, plan=arguments.plan) as engine:
        record |= {"engine": engine.description, "plan": engine.plan.to_dict(), "peak": gpu_peak.measure(engine)}
        for n in arguments.batches:
            b = common.pictures(n)
            makers: dict[str, Callable[[], Contender]] = {OURS: partial(resident, engine, b)}
            for name, options in TORCH.items():
                if not options.get("compiled") or n in arguments.compiled:
                    makers[name] = partial(torch_network, generator, weights, b, arguments.device, **options)
            comparison = Comparison(b, makers, oracle)
            run = comparison.time(arguments.blocks, generator.flops(), record["peak"]["fma_gflops"])
            run["host"] = host_to_host(engine, b, arguments.blocks)
            record["runs"].append(run)
            record["unavailable"] |= comparison.unavailable
            print(gpu_tables.run_table(run), flush=True)
        record["kernels"] = {str(n): gpu_kernels.measure(engine, common.pictures(n)) for n in arguments.kernels}
    record["command_line"] = command_line(arguments)
    return record


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""

    def numbers(text: str) -> list[int]:
        return [int(number) for number in text.split(",")]

    parser = argparse.ArgumentParser(prog="python -m bench.gpu", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--batches", type=numbers, default="1,8,32,64,128", help="pictures per call (%(default)s)")
    parser.add_argument("--compiled", type=numbers, default="1,64", help="those with torch.compile too (%(default)s)")
    parser.add_argument("--kernels", type=numbers, default="1,64", help="those to time by kernel (%(default)s)")
    parser.add_argument("--blocks", type=int, default=5, help="blocks of calls per contender (%(default)s)")
    parser.add_argument("--images", type=int, default=1600, help="of the raw file (%(default)s)")
    parser.add_argument("--plan", help="plan of this project's engine (its default)")
    parser.add_argument("--device", default="cuda:0", help="(%(default)s)")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Run the benchmark."""
    arguments = parse(argv)
    try:
        check_device(arguments.device, "float32", None, None)
    except RuntimeError as error:
        print(f"not measured: no CUDA device ({error})")
        return 0
    begun = time.perf_counter()
    record = measure(arguments)
    record["minutes"] = round((time.perf_counter() - begun) / 60, 1)
    print(f"{gpu_tables.write(common.save('gpu', record))}\ntook {record['minutes']} minutes")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
