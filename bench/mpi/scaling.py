"""Simulates how far MPI ranks scale, up to 256, from costs that are measured between two.

    python -m bench.mpi.scaling

The simulation uses the package's own work queue. Ranks request jobs from rank 0, or receive batches from it, compute,
and wait while rank 0 is busy. All ranks are equally fast. The simulation ignores the network, reading the model, and
reading and writing the files.
"""

from __future__ import annotations

import heapq
import json
import math
import tempfile
from pathlib import Path
from typing import Any

from pix2pix.cli import info
from pix2pix.files.stream import BATCH_SIZE
from pix2pix.mpi.files import BATCHES_PER_CHUNK
from pix2pix.mpi.messages import ROOT
from pix2pix.mpi.work_queue import WorkQueue

from .. import common
from ..common import mpiexec

RANKS = (1, 2, 4, 8, 16, 32, 64, 128, 256)
IMAGES = (1600, 100_000)
AHEAD = 3 * BATCH_SIZE  # jobs that a rank still has when it requests more: being decoded, in the engine, waiting
IN_FLIGHT = 2  # batches that a rank has been sent
ASSUMED = {"GPU ranks, 1000 images/s each": 1e-3, "GPU ranks, 4000 images/s each": 2.5e-4}


def simulate_files(ranks: int, images: int, image_s: float, costs: dict[str, float]) -> dict[str, float]:
    """Ranks that take ``image_s`` for an image request jobs; rank 0 responds to one after the other."""
    work = WorkQueue(map(str, range(images)), ranks, BATCHES_PER_CHUNK * BATCH_SIZE)
    trip, served, ends = costs["round_trip_s"] - costs["rank_0_s"], 0.0, [0.0] * ranks
    answered, asked, has = 0.0, [(0.0, rank) for rank in range(ranks)], [list[str]() for _ in range(ranks)]
    while asked:
        now, rank = heapq.heappop(asked)
        if rank != ROOT:
            answered = max(answered, now + trip / 2) + costs["rank_0_s"]
            served += costs["rank_0_s"]
            now = answered + trip / 2
        in_hand = max(0, math.ceil((ends[rank] - now) / image_s - 1e-9))
        while len(has[rank]) > in_hand:
            work.complete(has[rank].pop(0), rank)
        if jobs := work.take(rank):
            has[rank] += jobs
            ends[rank] = max(ends[rank], now) + len(jobs) * image_s
            heapq.heappush(asked, (max(now, ends[rank] - AHEAD * image_s), rank))
        elif work.queued:  # the rank has its share, and requests more when that is done
            heapq.heappush(asked, (ends[rank], rank))
    return summary(max(*ends, answered), served, ranks, images, image_s)


def simulate_batches(ranks: int, images: int, image_s: float, costs: dict[str, float]) -> dict[str, float]:
    """Ranks receive batches, two at a time; rank 0 receives one result after the other, and sends the next batch."""
    batches, end, exchanged, served = images // BATCH_SIZE, 0.0, 0.0, 0.0
    busy = [0.0] * ranks  # the time until which each rank computes
    done = [(0.0, rank) for _ in range(IN_FLIGHT) for rank in range(ranks)]  # heap: when a rank can take another batch
    for _ in range(batches):
        now, rank = heapq.heappop(done)
        if rank != ROOT:
            exchanged = now = max(exchanged, now) + costs["rank_0_s"]
            served += costs["rank_0_s"]
        busy[rank] = max(busy[rank], now) + BATCH_SIZE * image_s
        end = max(end, busy[rank])
        heapq.heappush(done, (busy[rank], rank))
    return summary(end, served, ranks, batches * BATCH_SIZE, image_s)


def summary(seconds: float, served: float, ranks: int, images: int, image_s: float) -> dict[str, float]:
    """The rate, its fraction of the ideal rate, and the fraction of the time that rank 0 spent on the others."""
    ideal = images * image_s / ranks
    return {
        "images_per_s": round(images / seconds, 1),
        "efficiency": round(ideal / seconds, 4),
        "rank_0_busy": round(served / seconds, 4),
    }


def main(argv: list[str] | None = None) -> int:
    """Measure the costs, simulate, print a table."""
    common.argument_parser("bench.mpi.scaling", __doc__).parse_args(argv)
    with tempfile.NamedTemporaryFile() as file:
        mpiexec(2, "bench.mpi.rank_costs", file.name)
        costs: dict[str, Any] = json.loads(Path(file.name).read_text())
    measured = common.read("mode_d")["cpu_ranks"]["1 ranks, 1 thread"]
    kinds = {"CPU ranks of 1 thread, as measured": 1 / measured["memory"]["images_per_s"], **ASSUMED}
    record: dict[str, Any] = {"costs": costs, "seconds_per_image": kinds, "efficiency": {}}
    ways = {"files": (simulate_files, costs["chunk"]), "images over MPI": (simulate_batches, costs["batch"])}
    rows = [["", "", "images", *map(str, RANKS)]]
    for kind, image_s in kinds.items():
        for way, (simulate, cost) in ways.items():
            for images in IMAGES:
                results = {str(n): simulate(n, images, image_s, cost) for n in RANKS}
                record["efficiency"].setdefault(kind, {}).setdefault(way, {})[str(images)] = results
                rows.append([kind, way, f"{images:,}", *(f"{r['efficiency']:.1%}" for r in results.values())])
    print(info.table(rows, right=range(2, len(rows[0]))))
    common.save("scaling", record)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
