"""The same work shared over the ranks of an MPI job: ``mpiexec -n 4 pix2pix translate ...``.

Rank 0 runs the command, the others do what it orders. Where all see the same folders, each reads and writes its own
files, and rank 0 hands out their names alone.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .launch import launched, world

if TYPE_CHECKING:
    from mpi4py import MPI

    from .root import Ranks

__all__ = ["launched", "leading", "serve", "world"]


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
