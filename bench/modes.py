"""Shared by the benchmarks of modes A to D: raw images through the network of the course program.

This project started from a C program that was written for a course. It read ngf=64 weights and 1600 images
of 256x256 as raw files, and counted the time from memory to memory: neither set-up nor files. These benchmarks count
the same way, and also time the whole command line, from the start of its process to the end. Both outputs are compared
with the oracle, and must be the same bytes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import pix2pix
from pix2pix.checkpoints import course
from pix2pix.engines.reference import ReferenceEngine
from pix2pix.model.unet import unet
from pix2pix.model.weights import random_weights

from . import common
from .checks import check_images
from .clock import seconds_of

NGF = 64
Options = Mapping[str, Any]  # of pix2pix.load; the command line has them under the same names


@dataclass(frozen=True, slots=True)
class RawFiles:
    """A folder with the network ``network.bin`` and the images ``b``, uint8 (N,256,256,3), as ``in.rgb``."""

    folder: Path
    b: np.ndarray

    @property
    def network(self) -> Path:
        """The raw weight file."""
        return self.folder / "network.bin"

    def verify(self, result: np.ndarray) -> None:
        """RuntimeError unless the first and the last image of ``result`` are the oracle's."""
        generator, weights = pix2pix.checkpoints.read(self.network)
        ends = [0, len(self.b) - 1]
        with ReferenceEngine(generator, weights) as oracle:
            check_images("the engine", result[ends], oracle.translate(self.b[ends]))

    def time_command_line(self, run: Callable[..., float], options: Options, expected: np.ndarray) -> dict[str, float]:
        """The rate of ``translate`` over the raw file; ``run(*words)`` runs it and returns its seconds.

        RuntimeError unless it writes the bytes of ``expected``.
        """
        target = self.folder / "out.rgb"
        words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
        files = ("--model", self.network, self.folder / "in.rgb", "--output", target, "--overwrite")
        seconds = run("translate", *files, *words)
        if not np.array_equal(np.fromfile(target, np.uint8), expected.ravel()):
            raise RuntimeError("the command line's output differs from the engine's: its time is discarded")
        return rate(len(self.b), seconds)


def write_raw_files(folder: Path, n: int) -> RawFiles:
    """Write a network of random weights and ``n`` varied images in the course program's formats."""
    files = RawFiles(folder, common.varied_images(n))
    generator = unet(ngf=NGF, depth=8)
    weights = random_weights(generator.with_statistics("running"))
    with files.network.open("wb") as file:
        for name in course.tensors(generator):
            weights[name].astype("<f4").tofile(file)
    files.b.tofile(folder / "in.rgb")
    return files


def rate(images: int, seconds: float) -> dict[str, float]:
    """The entry of one measurement."""
    return {"images_per_s": round(images / seconds, 3), "seconds": round(seconds, 3)}


def rate_in_memory(images: int, seconds: float) -> dict[str, float]:
    """The same with GFLOP/s."""
    return {**rate(images, seconds), "gflops": round(images * unet(ngf=NGF, depth=8).flops() / seconds / 1e9, 1)}


def run_in_batches(engine: pix2pix.Engine, b: np.ndarray, out: np.ndarray, batch: int) -> list[float]:
    """Translate all of ``b`` into ``out``; seconds of each whole batch."""
    seconds = []
    for first in range(0, len(b), batch):
        part = slice(first, first + batch)
        start = time.perf_counter()
        engine.translate(b[part], out[part])
        seconds.append(time.perf_counter() - start)
    return seconds[: len(b) // batch]


# -- modes B and C: workers on the GPUs of one machine --------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class GpuMode:
    """One of the modes: its settings by title, the images/s of ``course`` programs, and the hardware it needs."""

    name: str
    hardware: str
    settings: Mapping[str, Options]
    course: Mapping[str, float]


def gpu_arguments(mode: GpuMode, docstring: str | None, device: str, argv: list[str] | None) -> argparse.Namespace:
    """The parsed command line of such a mode; ``device`` is the default one."""
    parser = common.argument_parser(f"bench.{mode.name}", docstring)
    parser.add_argument("--images", type=int, default=1600, help="(%(default)s)")
    parser.add_argument("--batch", type=int, default=8, help="images per batch of the command line (%(default)s)")
    parser.add_argument("--workers", type=int, default=16, help="(%(default)s)")
    parser.add_argument("--device", default=device, help="(%(default)s)")
    return parser.parse_args(argv)


def measure_workers(files: RawFiles, setting: Options, arguments: argparse.Namespace) -> dict[str, Any]:
    """Both rates of one setting."""
    b, out = files.b, np.empty_like(files.b)
    options = {"device": arguments.device, "workers": arguments.workers, **setting}
    start = time.perf_counter()
    with pix2pix.load(files.network, **options) as engine:
        setup = time.perf_counter() - start
        warm = arguments.batch * arguments.workers
        engine.translate(b[:warm], out[:warm])
        memory = rate_in_memory(len(b), seconds_of(lambda: engine.translate(b, out)))
    files.verify(out)
    options["batch_size"] = arguments.batch
    command_line = files.time_command_line(common.command_line, options, out)
    return {**setting, "setup_s": round(setup, 3), "memory": memory, "command_line": command_line}


def run(mode: GpuMode, arguments: argparse.Namespace) -> int:
    """Measure all settings, print them beside the course's rates, and save NAME.json. Returns 0.

    Without the hardware, the record says that nothing was measured, and why.
    """
    record: dict[str, Any] = {"images": arguments.images, "workers": arguments.workers, "device": arguments.device}
    record |= {"course_images_per_s": dict(mode.course), "not_measured": None, "settings": {}}
    if missing := common.missing_device(arguments.device, arguments.workers):
        record["not_measured"] = f"no {mode.hardware} ({missing})"
        print(f"{mode.name}: not measured: {record['not_measured']}")
    else:
        record["gpu"] = common.gpu()
        with tempfile.TemporaryDirectory() as folder:
            files = write_raw_files(Path(folder), arguments.images)
            for title, setting in mode.settings.items():
                entry = record["settings"][title] = measure_workers(files, setting, arguments)
                for way in ("memory", "command_line"):
                    print(f"{title:24s} {way:14s} {entry[way]['images_per_s']:9.2f} images/s", flush=True)
    for who, images_per_s in mode.course.items():
        print(f"{who:39s} {images_per_s:9.2f} images/s")
    common.save(mode.name, record)
    return 0
