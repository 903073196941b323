"""What :mod:`.mode_d` starts with mpiexec: ranks that share pictures, and the same ranks each by itself.

    mpiexec -n 4 python -m bench.ranks FOLDER OPTIONS

``FOLDER`` has network.bin and in.rgb, and gets ranks.json and ranks.rgb. ``OPTIONS`` are those of ``pix2pix.load``, as
JSON. By itself means that each rank has its part of the pictures from the start: what is missing to that rate when they
share is what sharing costs.
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

from .mode_a import run_in_memory

BATCH, ROUNDS = 8, 3


def apart(comm: MPI.Intracomm, network: Path, b: np.ndarray, options: dict[str, Any]) -> float:
    """Seconds until all ranks have translated their parts of ``b``, each alone."""
    mine = b[comm.rank :: comm.size]
    out = np.empty_like(mine)
    with pix2pix.load(network, **options) as engine:
        engine.translate(mine[:BATCH])
        comm.Barrier()
        start = time.perf_counter()
        run_in_memory(engine, mine, out, BATCH)
        comm.Barrier()
        return time.perf_counter() - start


def together(network: Path, b: np.ndarray, out: np.ndarray, options: dict[str, Any]) -> dict[str, float]:
    """On rank 0: seconds that all ranks take for ``b``, handed out in batches, and for their set-up. Fills ``out``."""
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
    """Measure in turns, and let rank 0 write what came of it."""
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
