"""One run shared by the ranks of an MPI job: ``mpiexec -n 4 pix2pix translate ...``.

Rank 0 runs the command, and the other ranks carry out its commands. Where all ranks see the same folders, each reads
and writes files, and rank 0 hands out their names; elsewhere rank 0 sends them the images.

Programs in Python share an engine with :func:`load`.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

from ..engines.base import Engine
from ..factory import EngineOptions, make_engine
from ..loading import read_model
from ..model.generator import Statistics
from .launch import RANK_TIMEOUT, abort, launched, world

if TYPE_CHECKING:
    from mpi4py import MPI

    from .heartbeat import Heartbeat
    from .root import Ranks

__all__ = ["abort", "launched", "leading", "load", "serve", "world"]


@contextmanager
def load(
    model: str | os.PathLike[str],
    device: str = "auto",
    *,
    statistics: Statistics | None = None,
    key: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    comm: MPI.Intracomm | None = None,
    rank_timeout: float = RANK_TIMEOUT,
    **options: Any,
) -> Iterator[Engine | None]:
    """:func:`pix2pix.load` on all ranks of ``comm`` (default: all of the job) together, as a context manager.

    As with mpi4py.futures.MPICommExecutor, rank 0 gets an engine that computes on all ranks. The other ranks get None,
    after rank 0 has left the block. Without MPI, the engine is this process's own::

        with pix2pix.mpi.load("model.pth") as engine:
            if engine is not None:
                y = engine.translate(x)

    Only rank 0 reads the model file. A rank that hangs for ``rank_timeout`` seconds ends the job. Rank 0 raises what
    :func:`pix2pix.load` raises, and RuntimeError if another rank cannot make its engine.
    """
    comm, engine_options = comm or world(), EngineOptions(device, **options)
    if comm is None:
        read = read_model(model, statistics, key, overrides)
        with closing(make_engine(*read, engine_options, release=True)) as own:
            yield own
    elif comm.rank:
        serve(comm)
        yield None
    else:
        with leading(comm, rank_timeout) as ranks:
            read = read_model(model, statistics, key, overrides)
            with closing(ranks.one_engine(ranks.make_engine(*read, engine_options, release=True))) as shared:
                yield shared


@contextmanager
def leading(comm: MPI.Intracomm, rank_timeout: float = RANK_TIMEOUT) -> Iterator[Ranks]:
    """On rank 0: all ranks, to share work with. The other ranks call :func:`serve`, which returns after the block.

    If a rank hangs, RankHungError is raised in the block, and the job is aborted after it.
    """
    from .communicator import Communicator
    from .root import Ranks

    ranks = Ranks(Communicator(comm, rank_timeout))
    try:
        with _hurried_by_signals(ranks.comm.heartbeat):
            yield ranks
    finally:
        ranks.shut_down()


def serve(comm: MPI.Intracomm, ignored: Sequence[int] = ()) -> None:
    """On the other ranks: carry out rank 0's commands until it leaves its block.

    ``ignored`` are signals that reach all ranks and are left to rank 0. Raises RootLostError if rank 0 dies,
    RankHungError if it hangs.
    """
    from .communicator import Communicator
    from .worker import Worker

    worker = Worker(Communicator(comm))
    with _hurried_by_signals(worker.comm.heartbeat, ignored):
        worker.serve()


@contextmanager
def _hurried_by_signals(heartbeat: Heartbeat, ignored: Sequence[int] = ()) -> Iterator[None]:
    """In the block, signals that end a program first shorten the timeout of ranks."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
        before = {n: signal.getsignal(n) for n in numbers if n in ignored or callable(signal.getsignal(n))}

    def handle(number: int, frame: FrameType | None) -> None:
        heartbeat.hurry()
        previous = before[number]
        if callable(previous):
            previous(number, frame)

    for number in before:
        signal.signal(number, handle)
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)
