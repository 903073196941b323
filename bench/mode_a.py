"""Mode A, CPU only: the seed's measurement, 1600 pictures of 256 x 256 through the course's network (ngf=64).

    python -m bench.mode_a [--images 1600] [--batch 8]

Writes a raw weight file and a raw picture file as the course program took them, random weights and varied pictures,
and runs them twice: as the course counted, from memory to memory, with set-up and files excluded; and through the
real command line, from the start of the process to its end. Both outputs are verified, and must be the same bytes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np

import pix2pix
from pix2pix.checkpoints import course
from pix2pix.cpu.topology import available_cores
from pix2pix.engines.reference import ReferenceEngine
from pix2pix.model.generator import Generator
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights

from . import common

COURSE_RATE = 5.5  # images/s of the course's CPU-only mode, counted like "memory" below


def write_network(path: Path) -> None:
    """Write an ngf=64 network with random weights as the course's raw file."""
    generator = unet(ngf=64, depth=8)
    weights = random_weights(generator.with_statistics("running"))
    with path.open("wb") as file:
        for name in course.tensors(generator):
            weights[name].astype("<f4").tofile(file)


def verify(path: Path, b: np.ndarray, result: np.ndarray) -> None:
    """RuntimeError unless the first and the last result are the oracle's."""
    generator, weights = pix2pix.checkpoints.read(path)
    with ReferenceEngine(generator, weights) as oracle:
        ends = [0, len(b) - 1]
        common.check_pictures("the engine", result[ends], oracle.translate(b[ends]))


def run_in_memory(engine: pix2pix.Engine, b: np.ndarray, out: np.ndarray, batch: int) -> list[float]:
    """Translate all of ``b`` into ``out``; seconds of each whole batch."""
    seconds = []
    for first in range(0, len(b), batch):
        part = slice(first, first + batch)
        start = time.perf_counter()
        engine.translate(b[part], out[part])
        seconds.append(time.perf_counter() - start)
    return seconds[: len(b) // batch]


def measure(folder: Path, arguments: argparse.Namespace) -> dict:
    """Both measurements, with files in ``folder``."""
    network, source, target = folder / "network.bin", folder / "in.rgb", folder / "out.rgb"
    write_network(network)
    b = common.varied_pictures(arguments.images)
    b.tofile(source)
    out = np.empty_like(b)
    peak = common.median_peak([common.peak(arguments.threads) for _ in range(5)])

    start = time.perf_counter()
    engine = pix2pix.load(network, device="cpu", threads=arguments.threads)
    setup = time.perf_counter() - start
    generator: Generator = engine.generator
    with engine:
        ends = [0, len(b) - 1]
        out[ends] = engine.translate(b[ends])
        verify(network, b, out)
        engine.translate(b[: arguments.batch])  # warm up
        start = time.perf_counter()
        seconds = run_in_memory(engine, b, out, arguments.batch)
        memory = time.perf_counter() - start

    elapsed = common.command_line(
        *("translate", "--model", network, source, "--output", target),
        *("--threads", str(arguments.threads), "--batch-size", str(arguments.batch), "--device", "cpu"),
    )
    if not np.array_equal(np.fromfile(target, np.uint8), out.ravel()):
        raise RuntimeError("the command line's output is not the engine's: its time counts for nothing")
    batches = common.rates(seconds, arguments.batch, generator.flops(), peak["fma_gflops"])
    return {
        "images": arguments.images,
        "batch": arguments.batch,
        "threads": arguments.threads,
        "peak": peak,
        "course_images_per_s": COURSE_RATE,
        "memory": {"images_per_s": round(len(b) / memory, 3), "setup_s": round(setup, 3), "batches": batches},
        "command_line": {"images_per_s": round(len(b) / elapsed, 3), "seconds": round(elapsed, 3)},
    }


def main(argv: list[str] | None = None) -> int:
    """Run the measurement."""
    parser = argparse.ArgumentParser(prog="python -m bench.mode_a", description=__doc__.split("\n\n")[0])
    parser.add_argument("--images", type=int, default=1600, help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="pictures per call (%(default)s)")
    parser.add_argument("--threads", type=int, default=available_cores(), help="(%(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.images < arguments.batch:
        parser.error(f"got {arguments.images} images, expected at least a batch of {arguments.batch}")
    with tempfile.TemporaryDirectory() as folder:
        record = measure(Path(folder), arguments)
    memory, command = record["memory"], record["command_line"]
    print(f"from memory to memory: {memory['images_per_s']:7.2f} images/s (set-up took {memory['setup_s']:.2f} s)")
    print(f"whole command line:    {command['images_per_s']:7.2f} images/s ({command['seconds']:.1f} s)")
    print(f"the course:            {COURSE_RATE:7.2f} images/s")
    common.save("mode_a", record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
