"""Mode D, several nodes: the seed's measurement over ranks of MPI.

    python -m bench.mode_d [--images 1600] [--nodes 4] [--device cuda] [--cpu-images 96]

With GPUs, one rank per node on all its GPUs, in the course's way and in this package's own; run it where mpiexec starts
processes on as many nodes, e.g. inside a job of Slurm. Without, it says that nothing was measured. Then what sharing
costs, on this machine's CPU: 1, 2 and 4 ranks of one thread, beside the same ranks that each have their part from the
start. All outputs are verified, and must be the same bytes.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from pix2pix.factory import EngineOptions
from pix2pix.model.unet import unet

from . import common
from .mode_a import verify, write_network

SETTINGS = {"im2col, seed-c": {"plan": "im2col", "gpu_layers": "seed-c"}, "default": {}}
COURSE = {"the course, 4 nodes of 4 GPUs": 72.0, "the best of that course": 258.5}  # images/s, counted like "memory"
CPU_RANKS = (1, 2, 4)


def mpiexec(ranks: int, *program: str | Path) -> float:
    """Run a Python module by so many ranks; seconds from start to end. RuntimeError if it fails."""
    launcher = Path(sys.executable).with_name("mpiexec")
    start = time.perf_counter()
    call = [launcher if launcher.exists() else "mpiexec", "-n", str(ranks), sys.executable, "-m", *program]
    done = subprocess.run(list(map(str, call)), capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{ranks} ranks of {program[0]} ended with {done.returncode}: {done.stderr}")
    return time.perf_counter() - start


def measure(folder: Path, b: np.ndarray, ranks: int, options: Mapping[str, Any]) -> dict[str, Any]:
    """All rates of so many ranks; ``folder`` has network.bin, and in.rgb with the pictures ``b``."""
    mpiexec(ranks, "bench.ranks", folder, json.dumps(options))
    rounds = json.loads((folder / "ranks.json").read_text())
    seconds = {name: float(np.median([turn[name] for turn in rounds])) for name in rounds[0]}
    costs = float(np.median([1 - turn["apart_s"] / turn["together_s"] for turn in rounds]))
    out = np.fromfile(folder / "ranks.rgb", np.uint8).reshape(b.shape)
    verify(folder / "network.bin", b, out)
    words = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    files = ("--model", folder / "network.bin", folder / "in.rgb", "--output", folder / "out.rgb", "--overwrite")
    elapsed = mpiexec(ranks, "pix2pix", "translate", *files, *words)
    if not np.array_equal(np.fromfile(folder / "out.rgb", np.uint8), out.ravel()):
        raise RuntimeError("the command line's output is not the engine's: its time counts for nothing")
    together = seconds["together_s"]
    return {
        "ranks": ranks,
        **options,
        "setup_s": round(seconds["setup_s"], 3),
        "memory": {
            "images_per_s": round(len(b) / together, 3),
            "seconds": round(together, 3),
            "gflops": round(len(b) * unet(ngf=64, depth=8).flops() / together / 1e9, 1),
        },
        "apart": {"images_per_s": round(len(b) / seconds["apart_s"], 3), "seconds": round(seconds["apart_s"], 3)},
        "sharing_costs": round(costs, 4),
        "command_line": {"images_per_s": round(len(b) / elapsed, 3), "seconds": round(elapsed, 3)},
    }


def with_files(images: int, measurements: Mapping[str, tuple[int, Mapping[str, Any]]]) -> dict[str, Any]:
    """The results of several measurements (ranks, options) of so many images; each is printed when it is there."""
    results = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_network(folder / "network.bin")
        b = common.varied_pictures(images)
        b.tofile(folder / "in.rgb")
        for title, (ranks, options) in measurements.items():
            entry = results[title] = measure(folder, b, ranks, options)
            rates = ", ".join(f"{way} {entry[way]['images_per_s']:.2f}" for way in ("memory", "apart", "command_line"))
            print(f"{title:20s} images/s: {rates}; sharing costs {entry['sharing_costs']:.1%}", flush=True)
    return results


def main(argv: list[str] | None = None) -> int:
    """Run the measurements."""
    parser = argparse.ArgumentParser(prog="python -m bench.mode_d", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--images", type=int, default=1600, help="over GPUs (%(default)s)")
    parser.add_argument("--nodes", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--device", default="cuda", help="of each node (%(default)s)")
    parser.add_argument("--cpu-images", type=int, default=96, help="over ranks of one CPU thread (%(default)s)")
    arguments = parser.parse_args(argv)
    record: dict[str, Any] = {"images": arguments.images, "nodes": arguments.nodes, "device": arguments.device}
    record |= {"course_images_per_s": COURSE, "not_measured": None, "settings": {}}
    try:
        EngineOptions(arguments.device).check()
    except RuntimeError as error:
        record["not_measured"] = f"no CUDA device ({error})"
        print(f"mode_d: not measured: {record['not_measured']}")
    else:
        record["gpu"] = common.gpu()
        settings = {
            title: (arguments.nodes, {"device": arguments.device, **setting}) for title, setting in SETTINGS.items()
        }
        record["settings"] = with_files(arguments.images, settings)
    ranks = {f"{n} ranks, 1 thread": (n, {"device": "cpu", "threads": 1}) for n in CPU_RANKS}
    record |= {"cpu_images": arguments.cpu_images, "cpu_ranks": with_files(arguments.cpu_images, ranks)}
    for who, rate in COURSE.items():
        print(f"{who:32s} {rate:9.2f} images/s")
    common.save("mode_d", record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
