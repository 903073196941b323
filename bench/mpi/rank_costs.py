"""What :mod:`.scaling` starts by two ranks: what a chunk of jobs, and a batch of pictures, costs rank 0.

    mpiexec -n 2 python -m bench.mpi.rank_costs FILE

The engines do nothing, and the jobs are never read: what is left is rank 0's own time for each, and how long the other
rank waits for an answer.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

import numpy as np
from mpi4py import MPI

from pix2pix import mpi
from pix2pix.engines.base import EngineInfo
from pix2pix.files.fitting import Fitting
from pix2pix.files.jobs import Job
from pix2pix.files.stream import BATCH_SIZE, Outcome
from pix2pix.model.unet import unet
from pix2pix.mpi.communicator import Communicator
from pix2pix.mpi.files import BATCHES_PER_CHUNK, FileLeader
from pix2pix.mpi.messages import ROOT, JobRequest, Jobs, RankInfo, TranslateFiles, packed_outcome, unpacked_job
from pix2pix.mpi.root import Ranks
from pix2pix.mpi.transport import PendingRequest, Transport
from pix2pix.mpi.worker import Worker

CHUNKS, BATCHES = 2000, 400


class IdleWorker(Worker):
    """A rank that reports every job as done at once, and returns every image as its own translation."""

    def _translate_files(self, command: TranslateFiles) -> None:
        start, chunks, outcomes = time.perf_counter(), 0, []
        while jobs := self._next(outcomes):
            outcomes = [packed_outcome(Outcome(unpacked_job(job), "done")) for job in jobs]
            chunks += 1
        self.comm.send((time.perf_counter() - start) / chunks, ROOT)

    def _next(self, outcomes: list[tuple]) -> Jobs | None:
        self.comm.send(JobRequest(outcomes, idle=True), ROOT)
        return self._receive()


class IdleEngine:
    """An engine that returns images as they are."""

    info = EngineInfo()

    def translate_until(self, stop: threading.Event, b: np.ndarray) -> np.ndarray:
        """What it is given."""
        return b


def per_piece(do: Callable[[], None], pieces: int) -> float:
    """Seconds of this process's own time for each of so many pieces."""
    start = time.process_time()
    do()
    return (time.process_time() - start) / pieces


def ask(ranks: Ranks) -> dict[str, float]:
    """What a chunk of the usual size costs."""
    folder, size = Path("/a/folder/of/pictures"), BATCHES_PER_CHUNK * BATCH_SIZE
    jobs = [Job(folder / f"{i}.png", folder / "out" / f"{i}.png", f"{i}.png") for i in range(CHUNKS * size)]
    command = TranslateFiles(Fitting.of(unet(ngf=64, depth=8)), BATCH_SIZE, None, (folder, b""), folder)
    leader = FileLeader(ranks, command, jobs)
    chunks = CHUNKS + 2 * size  # the last ones are smaller
    rank_0_s = per_piece(leader.lead, chunks)
    _, round_trip_s = ranks.comm.receive()
    return {"rank_0_s": rank_0_s, "round_trip_s": round_trip_s}


def batch(ranks: Ranks) -> dict[str, float]:
    """What a batch of 8 pictures of 256 x 256 costs, there and back."""
    b = np.random.default_rng(0).integers(0, 256, (BATCH_SIZE, 256, 256, 3), dtype=np.uint8)
    transport = Transport(ranks)

    def exchange() -> None:
        in_flight = deque(transport.submit(PendingRequest(1, b, np.empty_like(b))) for _ in range(2))
        for _ in range(BATCHES - 2):
            in_flight.popleft().result()
            in_flight.append(transport.submit(PendingRequest(1, b, np.empty_like(b))))
        for result in in_flight:
            result.result()

    start = time.perf_counter()
    rank_0_s = per_piece(exchange, BATCHES)
    elapsed = (time.perf_counter() - start) / BATCHES
    transport.close()
    return {"rank_0_s": rank_0_s, "elapsed_s": elapsed}


def main() -> None:
    """Measure, and let rank 0 write what came of it."""
    comm = MPI.COMM_WORLD
    if comm.rank:
        worker = IdleWorker(Communicator(comm))
        worker.engine = IdleEngine()
        worker.serve()
        return
    with mpi.leading(comm) as ranks:
        ranks.info = {0: RankInfo(), 1: RankInfo()}
        Path(sys.argv[1]).write_text(json.dumps({"chunk": ask(ranks), "batch": batch(ranks)}))


if __name__ == "__main__":
    main()
