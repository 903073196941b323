"""What :mod:`.scaling` starts by two ranks: what a chunk of jobs, and a batch of pictures, costs rank 0.

    mpiexec -n 2 python -m bench.mpi.rank_costs FILE

The engines do nothing, and the jobs are never read: what is left is rank 0's own time for each, and how long the other
rank waits for an answer.
"""

from __future__ import annotations

import json
import sys
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mpi4py import MPI

from pix2pix import mpi
from pix2pix.files.fitting import Fitting
from pix2pix.files.jobs import Job
from pix2pix.files.stream import BATCH_SIZE, Outcome
from pix2pix.model.unet import unet
from pix2pix.mpi.engine import _Courier
from pix2pix.mpi.files import BATCHES_AT_ONCE, FileLeader
from pix2pix.mpi.messages import ROOT, Ask, DoFiles, Facts, Jobs, packed_outcome, unpacked_job
from pix2pix.mpi.root import Ranks
from pix2pix.mpi.worker import Worker

CHUNKS, BATCHES = 2000, 400


class Idle(Worker):
    """A rank that says of every job at once that it is done, and of every picture that it is its own translation."""

    def _do_files(self, order: DoFiles) -> None:
        start, chunks, outcomes = time.perf_counter(), 0, []
        while jobs := self._told(outcomes):
            outcomes = [packed_outcome(Outcome(unpacked_job(job), "done")) for job in jobs]
            chunks += 1
        self.link.send((time.perf_counter() - start) / chunks, ROOT)

    def _told(self, outcomes: list[tuple]) -> Jobs | None:
        self.link.send(Ask(outcomes, idle=True), ROOT)
        return self._receive()

    def translate(self, b: np.ndarray) -> np.ndarray:
        """What an engine would do."""
        return b

    def close(self) -> None:
        """Nothing is held."""


def per_piece(do: Callable[[], None], pieces: int) -> float:
    """Seconds of this process's own time for each of so many pieces."""
    start = time.process_time()
    do()
    return (time.process_time() - start) / pieces


def ask(ranks: Ranks) -> dict[str, float]:
    """What a chunk of the usual size costs."""
    folder, size = Path("/a/folder/of/pictures"), BATCHES_AT_ONCE * BATCH_SIZE
    jobs = [Job(folder / f"{i}.png", folder / "out" / f"{i}.png", f"{i}.png") for i in range(CHUNKS * size)]
    order = DoFiles(Fitting.of(unet(ngf=64, depth=8)), BATCH_SIZE, None, (folder, b""), folder)
    leader = FileLeader(ranks, order, jobs)
    chunks = CHUNKS + 2 * size  # the last ones are smaller
    rank_0_s = per_piece(leader._lead, chunks)
    _, round_trip_s = ranks.link.receive()
    return {"rank_0_s": rank_0_s, "round_trip_s": round_trip_s}


def batch(ranks: Ranks) -> dict[str, float]:
    """What a batch of 8 pictures of 256 x 256 costs, there and back."""
    b = np.random.default_rng(0).integers(0, 256, (BATCH_SIZE, 256, 256, 3), dtype=np.uint8)
    courier = _Courier(ranks)

    def exchange() -> None:
        flying = deque(courier.send(1, b=b, out=np.empty_like(b)) for _ in range(2))
        for _ in range(BATCHES - 2):
            flying.popleft().answer.result()
            flying.append(courier.send(1, b=b, out=np.empty_like(b)))
        for errand in flying:
            errand.answer.result()

    start = time.perf_counter()
    rank_0_s = per_piece(exchange, BATCHES)
    elapsed = (time.perf_counter() - start) / BATCHES
    courier.close()
    return {"rank_0_s": rank_0_s, "elapsed_s": elapsed}


def main() -> None:
    """Measure, and let rank 0 write what came of it."""
    comm = MPI.COMM_WORLD
    if comm.rank:
        worker = Idle(comm)
        worker.engine = worker
        worker.serve()
        return
    with mpi.leading(comm) as ranks:
        ranks.facts = {0: Facts(), 1: Facts()}
        Path(sys.argv[1]).write_text(json.dumps({"chunk": ask(ranks), "batch": batch(ranks)}))


if __name__ == "__main__":
    main()
