"""Mode A, CPU only: 1600 raw images of 256x256 through the course program's network (ngf=64).

    python -m bench.mode_a [--images 1600] [--batch 8]

:mod:`.modes` says what is measured.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import pix2pix
from pix2pix.cpu.topology import available_cores

from . import common, modes

COURSE_RATE = 5.5  # images/s of the course program on CPUs, counted like "memory" below


def measure(files: modes.RawFiles, batch: int, threads: int) -> dict[str, Any]:
    """The rates from memory to memory and of the command line."""
    b, out = files.b, np.empty_like(files.b)
    peak = common.median_peak([common.peak(threads) for _ in range(5)])
    options = {"device": "cpu", "threads": threads}
    start = time.perf_counter()
    with pix2pix.load(files.network, **options) as engine:
        setup = time.perf_counter() - start
        ends = [0, len(b) - 1]
        out[ends] = engine.translate(b[ends])
        files.verify(out)
        engine.translate(b[:batch])  # warm up
        start = time.perf_counter()
        seconds = modes.run_in_batches(engine, b, out, batch)
        memory = {"images_per_s": round(len(b) / (time.perf_counter() - start), 3), "setup_s": round(setup, 3)}
        batches = common.rates(seconds, batch, engine.generator.flops(), peak["fma_gflops"])
    return {
        "images": len(b),
        "batch": batch,
        "threads": threads,
        "peak": peak,
        "course_images_per_s": COURSE_RATE,
        "memory": {**memory, "batches": batches},
        "command_line": files.time_command_line(common.command_line, {**options, "batch_size": batch}, out),
    }


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = common.argument_parser("bench.mode_a", __doc__)
    parser.add_argument("--images", type=int, default=1600, help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="images per call (%(default)s)")
    parser.add_argument("--threads", type=int, default=available_cores(), help="(%(default)s)")
    arguments = parser.parse_args(argv)
    if arguments.images < arguments.batch:
        parser.error(f"got {arguments.images} images, expected at least a batch of {arguments.batch}")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run the measurement."""
    arguments = parse(argv)
    with tempfile.TemporaryDirectory() as folder:
        files = modes.write_raw_files(Path(folder), arguments.images)
        record = measure(files, arguments.batch, arguments.threads)
    memory, command = record["memory"], record["command_line"]
    print(f"from memory to memory: {memory['images_per_s']:7.2f} images/s (set-up took {memory['setup_s']:.2f} s)")
    print(f"whole command line:    {command['images_per_s']:7.2f} images/s ({command['seconds']:.1f} s)")
    print(f"the course program:    {COURSE_RATE:7.2f} images/s")
    common.save("mode_a", record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
