"""The program that :mod:`.scaling` starts under mpiexec: rank 0's time per chunk of jobs and per batch of images.

    mpiexec -n 2 python -m bench.mpi.rank_costs FILE

Rank 1 computes nothing and reads no file. What remains is rank 0's own time, and the time that rank 1 waits for a
response.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from pix2pix import mpi
from pix2pix.engines.base import EngineInfo
from pix2pix.files.fitting import Fitting
from pix2pix.files.jobs import Job
from pix2pix.files.outcome import Outcome
from pix2pix.files.stream import BATCH_SIZE
from pix2pix.mpi.communicator import Communicator
from pix2pix.mpi.files import BATCHES_PER_CHUNK, FileLeader
from pix2pix.mpi.messages import ROOT, JobRequest, RankInfo, TranslateFiles, packed_outcome, unpacked_job
from pix2pix.mpi.root import Ranks
from pix2pix.mpi.transport import PendingRequest, Transport
from pix2pix.mpi.worker import Worker

from .. import common

CHUNKS, BATCHES = 2000, 400


# -- rank 1 -------------------------------------------------------------------------------------------------------


class IdleEngine:
    """An engine that returns its input."""

    info = EngineInfo()

    def translate_until(self, stop: threading.Event, b: np.ndarray) -> np.ndarray:
        """Return ``b``."""
        return b


def request_chunks(comm: Communicator) -> float:
    """Request jobs and report them as done, until there are none; seconds from a request to its response."""
    start, chunks, outcomes = time.perf_counter(), 0, []
    while True:
        comm.send(JobRequest(outcomes, idle=True), ROOT)
        _, jobs = comm.receive()
        if jobs is None:
            return (time.perf_counter() - start) / chunks
        outcomes = [packed_outcome(Outcome(unpacked_job(job), "done")) for job in jobs]
        chunks += 1


def serve(comm: Communicator) -> None:
    """Carry out the two commands of rank 0."""
    comm.receive()  # to translate files
    comm.send(request_chunks(comm), ROOT)
    worker: Any = Worker(comm)
    worker.engine = IdleEngine()
    worker.serve()  # the requests of a transport


# -- rank 0 -------------------------------------------------------------------------------------------------------


def own_seconds(work: Callable[[], None]) -> float:
    """Processor time that this process spends on ``work``."""
    start = time.process_time()
    work()
    return time.process_time() - start


def chunk_costs(ranks: Ranks) -> dict[str, float]:
    """Seconds per chunk of the usual size."""
    folder, size = Path("/a/folder/of/images"), BATCHES_PER_CHUNK * BATCH_SIZE
    jobs = [Job(folder / f"{i}.png", folder / "out" / f"{i}.png", f"{i}.png") for i in range(CHUNKS * size)]
    command = TranslateFiles(Fitting.of(common.model()[0]), BATCH_SIZE, None, (folder, b""), folder)
    leader = FileLeader(ranks, command, jobs)
    chunks = CHUNKS + 2 * size  # the last ones are smaller
    rank_0_s = own_seconds(leader.lead) / chunks
    _, round_trip_s = ranks.comm.receive()
    return {"rank_0_s": rank_0_s, "round_trip_s": round_trip_s}


def batch_costs(ranks: Ranks) -> dict[str, float]:
    """Seconds per batch of 8 images of 256x256, sent and received, with two batches in flight."""
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
    rank_0_s = own_seconds(exchange) / BATCHES
    elapsed_s = (time.perf_counter() - start) / BATCHES
    transport.close()
    return {"rank_0_s": rank_0_s, "elapsed_s": elapsed_s}


def main() -> None:
    """Measure; rank 0 writes the results."""
    comm = MPI.COMM_WORLD
    if comm.rank != ROOT:
        serve(Communicator(comm))
        return
    with mpi.leading(comm) as ranks:
        ranks.info = {0: RankInfo(), 1: RankInfo()}
        Path(sys.argv[1]).write_text(json.dumps({"chunk": chunk_costs(ranks), "batch": batch_costs(ranks)}))


if __name__ == "__main__":
    main()
