"""The program that :mod:`bench.mode_d` starts under mpiexec: ranks that share images, and the same ranks apart.

    mpiexec -n 4 python -m bench.mpi.ranks FOLDER OPTIONS

``FOLDER`` has network.bin and in.rgb, and gets ranks.json and ranks.rgb. ``OPTIONS`` are those of ``pix2pix.load`` as
JSON. Apart, each rank has a fixed part of the images from the start. The difference of the two rates is the cost of
sharing.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

import pix2pix
from pix2pix import mpi

from ..modes import run_in_batches

BATCH, ROUNDS = 8, 3


def apart(comm: MPI.Intracomm, network: Path, b: np.ndarray, options: dict[str, Any]) -> float:
    """Seconds until every rank has translated its own part of ``b``."""
    mine = b[comm.rank :: comm.size]
    out = np.empty_like(mine)
    with pix2pix.load(network, **options) as engine:
        engine.translate(mine[:BATCH])
        comm.Barrier()
        start = time.perf_counter()
        run_in_batches(engine, mine, out, BATCH)
        comm.Barrier()
        return time.perf_counter() - start


def together(network: Path, b: np.ndarray, out: np.ndarray, options: dict[str, Any]) -> dict[str, float]:
    """On rank 0: seconds of set-up, and seconds in which all ranks translate ``b`` into ``out``; elsewhere nothing."""
    start = time.perf_counter()
    with mpi.load(network, **options) as engine:
        if engine is None:
            return {}
        setup = time.perf_counter() - start
        engine.translate(b[: BATCH * 2 * MPI.COMM_WORLD.size])  # warm up all of them
        start = time.perf_counter()
        first = 0
        for result in engine.stream(b[i : i + BATCH] for i in range(0, len(b), BATCH)):
            out[first : first + len(result)] = result
            first += len(result)
        return {"together_s": time.perf_counter() - start, "setup_s": setup}


def main() -> None:
    """Alternate between the two; rank 0 writes the results."""
    comm, folder, options = MPI.COMM_WORLD, Path(sys.argv[1]), json.loads(sys.argv[2])
    network = folder / "network.bin"
    b = np.fromfile(folder / "in.rgb", np.uint8).reshape(-1, 256, 256, 3)
    out = np.empty_like(b)
    seconds = [
        {"apart_s": apart(comm, network, b, options), **together(network, b, out, options)} for _ in range(ROUNDS)
    ]
    if comm.rank == 0:
        out.tofile(folder / "ranks.rgb")
        (folder / "ranks.json").write_text(json.dumps(seconds))


if __name__ == "__main__":
    main()
