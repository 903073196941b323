"""The seed's measurement on GPUs, which :mod:`.mode_b` and others make with their own settings.

1600 pictures of 256 x 256 go through the course's network (ngf=64), from a raw weight file and a raw picture file: as
the course counted, from memory to memory, with set-up and files excluded; and through the real command line, from the
start of the process to its end. Both outputs are verified, and must be the same bytes.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

import pix2pix
from pix2pix.factory import EngineOptions

from . import common
from .mode_a import verify, write_network


def options(arguments: argparse.Namespace, setting: Mapping[str, str]) -> list[str]:
    """The command line's options for a setting, which are those of :func:`pix2pix.load` by the same names."""
    given = {"device": arguments.device, "workers": arguments.workers, "batch_size": arguments.batch, **setting}
    return [word for name, value in given.items() for word in (f"--{name.replace('_', '-')}", str(value))]


def measure(folder: Path, b: np.ndarray, setting: Mapping[str, str], arguments: argparse.Namespace) -> dict[str, Any]:
    """Both rates of one setting; ``folder`` has the files network.bin, and in.rgb with the pictures ``b``."""
    network, target = folder / "network.bin", folder / "out.rgb"
    out = np.empty_like(b)
    start = time.perf_counter()
    engine = pix2pix.load(network, arguments.device, workers=arguments.workers, **setting)
    setup = time.perf_counter() - start
    with engine:
        warm = arguments.batch * arguments.workers
        engine.translate(b[:warm], out[:warm])
        start = time.perf_counter()
        engine.translate(b, out)
        memory = time.perf_counter() - start
        flops = engine.generator.flops()
    verify(network, b, out)
    call = ("translate", "--model", network, folder / "in.rgb", "--output", target, "--overwrite")
    elapsed = common.command_line(*call, *options(arguments, setting))
    if not np.array_equal(np.fromfile(target, np.uint8), out.ravel()):
        raise RuntimeError("the command line's output is not the engine's: its time counts for nothing")
    return {
        **setting,
        "setup_s": round(setup, 3),
        "memory": {
            "images_per_s": round(len(b) / memory, 3),
            "seconds": round(memory, 3),
            "gflops": round(len(b) * flops / memory / 1e9, 1),
        },
        "command_line": {"images_per_s": round(len(b) / elapsed, 3), "seconds": round(elapsed, 3)},
    }


def parser(name: str, description: str, device: str) -> argparse.ArgumentParser:
    """The options that all these measurements take."""
    result = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=description)
    result.add_argument("--images", type=int, default=1600, help="(%(default)s)")
    result.add_argument("--batch", type=int, default=8, help="pictures per batch of the command line (%(default)s)")
    result.add_argument("--workers", type=int, default=16, help="(%(default)s)")
    result.add_argument("--device", default=device, help="(%(default)s)")
    return result


def run(
    name: str,
    settings: Mapping[str, Mapping[str, str]],
    course: Mapping[str, float],
    arguments: argparse.Namespace,
    hardware: str = "CUDA device",
) -> int:
    """Measure all ``settings``, print them beside the ``course``'s images/s, and save NAME.json. Returns 0.

    Where the ``hardware`` isn't there, what is printed and saved is that nothing was measured, and why.
    """
    record: dict[str, Any] = {"images": arguments.images, "workers": arguments.workers, "device": arguments.device}
    record |= {"course_images_per_s": dict(course), "not_measured": None, "settings": {}}
    try:
        EngineOptions(arguments.device, workers=arguments.workers).check()
    except RuntimeError as error:
        record["not_measured"] = f"no {hardware} ({error})"
        print(f"{name}: not measured: {record['not_measured']}")
    else:
        record["gpu"] = common.gpu()
        with tempfile.TemporaryDirectory() as folder:
            write_network(Path(folder, "network.bin"))
            b = common.varied_pictures(arguments.images)
            b.tofile(Path(folder, "in.rgb"))
            for title, setting in settings.items():
                entry = record["settings"][title] = measure(Path(folder), b, setting, arguments)
                for way in ("memory", "command_line"):
                    print(f"{title:24s} {way:14s} {entry[way]['images_per_s']:9.2f} images/s", flush=True)
    for who, rate in course.items():
        print(f"{who:39s} {rate:9.2f} images/s")
    common.save(name, record)
    return 0
