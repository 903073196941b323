"""Mode D, several nodes: 1600 raw images shared over MPI ranks.

    python -m bench.mode_d [--images 1600] [--nodes 4] [--device cuda] [--cpu-images 96]

With GPUs: one rank per node on all its GPUs, under the course program's plan and placement and under the default ones.
Start it where mpiexec reaches that many nodes, e.g. inside a Slurm job. Without GPUs, the record says that nothing was
measured there. Then the cost of sharing, on this machine's CPU: 1, 2 and 4 ranks of one thread that share the images,
beside the same ranks with a fixed part each. All outputs are verified, and must be the same bytes.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from . import common, modes

SETTINGS = {"im2col, seed-c": {"plan": "im2col", "gpu_layers": "seed-c"}, "default": {}}
COURSE = {"the course, 4 nodes of 4 GPUs": 72.0, "the best of that course": 258.5}  # images/s, counted like "memory"
CPU_RANKS = (1, 2, 4)


def measure(files: modes.RawFiles, ranks: int, options: modes.Options) -> dict[str, Any]:
    """All rates of so many ranks."""
    common.mpiexec(ranks, "bench.mpi.ranks", files.folder, json.dumps(options))
    rounds = json.loads((files.folder / "ranks.json").read_text())
    seconds = {name: float(np.median([entry[name] for entry in rounds])) for name in rounds[0]}
    costs = float(np.median([1 - entry["apart_s"] / entry["together_s"] for entry in rounds]))
    out = np.fromfile(files.folder / "ranks.rgb", np.uint8).reshape(files.b.shape)
    files.verify(out)
    n, together = len(files.b), seconds["together_s"]
    return {
        "ranks": ranks,
        **options,
        "setup_s": round(seconds["setup_s"], 3),
        "memory": modes.rate_in_memory(n, together),
        "apart": modes.rate(n, seconds["apart_s"]),
        "sharing_costs": round(costs, 4),
        "command_line": files.time_command_line(partial(common.mpiexec, ranks, "pix2pix"), options, out),
    }


def measure_all(images: int, measurements: Mapping[str, tuple[int, modes.Options]]) -> dict[str, Any]:
    """Several measurements (ranks, options) over ``images`` images. Each is printed when it is done."""
    results = {}
    with tempfile.TemporaryDirectory() as folder:
        files = modes.write_raw_files(Path(folder), images)
        for title, (ranks, options) in measurements.items():
            entry = results[title] = measure(files, ranks, options)
            rates = ", ".join(f"{way} {entry[way]['images_per_s']:.2f}" for way in ("memory", "apart", "command_line"))
            print(f"{title:20s} images/s: {rates}; sharing costs {entry['sharing_costs']:.1%}", flush=True)
    return results


def main(argv: list[str] | None = None) -> int:
    """Run the measurements."""
    parser = common.argument_parser("bench.mode_d", __doc__)
    parser.add_argument("--images", type=int, default=1600, help="over GPUs (%(default)s)")
    parser.add_argument("--nodes", type=int, default=4, help="(%(default)s)")
    parser.add_argument("--device", default="cuda", help="of each node (%(default)s)")
    parser.add_argument("--cpu-images", type=int, default=96, help="over ranks of one CPU thread (%(default)s)")
    arguments = parser.parse_args(argv)
    record: dict[str, Any] = {"images": arguments.images, "nodes": arguments.nodes, "device": arguments.device}
    record |= {"course_images_per_s": COURSE, "not_measured": None, "settings": {}}
    if missing := common.missing_device(arguments.device):
        record["not_measured"] = f"no CUDA device ({missing})"
        print(f"mode_d: not measured: {record['not_measured']}")
    else:
        record["gpu"] = common.gpu()
        settings = {
            title: (arguments.nodes, {"device": arguments.device, **setting}) for title, setting in SETTINGS.items()
        }
        record["settings"] = measure_all(arguments.images, settings)
    ranks = {f"{n} ranks, 1 thread": (n, {"device": "cpu", "threads": 1}) for n in CPU_RANKS}
    record |= {"cpu_images": arguments.cpu_images, "cpu_ranks": measure_all(arguments.cpu_images, ranks)}
    for who, rate in COURSE.items():
        print(f"{who:32s} {rate:9.2f} images/s")
    common.save("mode_d", record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
