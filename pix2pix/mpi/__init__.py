"""The same work shared over the ranks of an MPI job: ``mpiexec -n 4 pix2pix translate ...``.

Rank 0 runs the command, the others do what it orders. Where all see the same folders, each reads and writes its own
files, and rank 0 hands out their names alone; where they don't, it sends them the pictures.

Programs in Python share work with :func:`load`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from ..engines.base import Engine
from ..factory import EngineOptions, make_engine
from ..loading import read_model
from ..model.generator import Statistics
from .launch import launched, world

if TYPE_CHECKING:
    from mpi4py import MPI

    from .root import Ranks

__all__ = ["launched", "leading", "load", "serve", "world"]


@contextmanager
def load(
    model: str | os.PathLike[str],
    device: str = "auto",
    *,
    statistics: Statistics | None = None,
    key: str | None = None,
    overrides: Mapping[str, Any] | None = None,
    comm: MPI.Intracomm | None = None,
    **options: Any,
) -> Iterator[Engine | None]:
    """:func:`pix2pix.load` for all ranks of ``comm`` (default: the job's) together. Use it as a context manager.

    As with mpi4py.futures.MPICommExecutor, rank 0 gets the engine, whose pictures all ranks translate; the others get
    None, when rank 0 has left the block. Without MPI the engine is this process's own::

        with pix2pix.mpi.load("model.pth") as engine:
            if engine is not None:
                y = engine.translate(x)

    Only rank 0 reads the model file. Raises what :func:`pix2pix.load` raises, on rank 0, and RuntimeError if another
    rank cannot make its engine.
    """
    comm, engine_options = comm or world(), EngineOptions(device, **options)
    if comm is None:
        read = read_model(model, statistics, key, overrides)
        with closing(make_engine(*read, engine_options, release=True)) as own:
            yield own
        return
    if comm.rank:
        serve(comm)
        yield None
        return
    with leading(comm) as ranks:
        read = read_model(model, statistics, key, overrides)
        with closing(ranks.one_engine(ranks.make_engine(*read, engine_options, release=True))) as shared:
            yield shared


@contextmanager
def leading(comm: MPI.Intracomm) -> Iterator[Ranks]:
    """On rank 0 of ``comm``: all ranks, to share work with. The others are in :func:`serve` until the block is left."""
    from .root import Ranks

    ranks = Ranks(comm)
    try:
        yield ranks
    finally:
        ranks.dismiss()


def serve(comm: MPI.Intracomm) -> None:
    """On all other ranks: do what rank 0 asks for until it leaves its block. Raises RuntimeError if rank 0 is lost."""
    from .worker import Worker

    Worker(comm).serve()
