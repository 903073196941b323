"""How this process was started: alone, or as one of several ranks; and which of a node's cores are its own.

mpi4py is imported only if the environment says that a launcher started several processes, or if somebody has imported
it already (``python -m mpi4py -m pix2pix ...``, for launchers that are not known here).
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING

from ..cpu import available_cores

if TYPE_CHECKING:
    from mpi4py import MPI

# (rank, number of ranks) in the environment: Open MPI; MPICH, Intel MPI and Slurm's PMI; any other job step of Slurm.
VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)


def launched(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(rank, number of ranks) that a launcher gave this process; (0, 1) if there was none."""
    for rank, size in VARIABLES:
        if environment.get(rank, "").isdecimal() and environment.get(size, "").isdecimal():
            return int(environment[rank]), int(environment[size])
    return 0, 1


def world() -> MPI.Intracomm | None:
    """All ranks of this job; None if this process is alone.

    Raises RuntimeError if several processes were started that cannot find each other: without this, each of them would
    do all of the work.
    """
    _, size = launched()
    if size == 1 and "mpi4py.MPI" not in sys.modules:
        return None
    try:
        MPI = _imported()
    except ImportError as error:
        raise RuntimeError(
            f"started as {size} processes, which need mpi4py to share the work ({error}): pip install 'pix2pix[mpi]'"
        ) from None
    found = MPI.COMM_WORLD.size
    if size > 1 and found != size:
        library = MPI.Get_library_version().split("\n")[0].split(",")[0].strip("\0")
        raise RuntimeError(
            f"started as {size} processes, but mpi4py finds {found}: it uses {library}, and another MPI's mpiexec "
            f"started them; with the mpi extra, use {os.path.join(sys.prefix, 'bin', 'mpiexec')}"
        )
    if found == 1:
        return None
    if MPI.Query_thread() < MPI.THREAD_SERIALIZED:
        raise RuntimeError("this MPI takes calls from one thread alone: pix2pix needs MPI_THREAD_SERIALIZED")
    return MPI.COMM_WORLD


def _imported() -> ModuleType:
    """mpi4py's MPI, initialised; this module sees to its end unless somebody else has begun it."""
    if "mpi4py.MPI" not in sys.modules:
        import mpi4py

        mpi4py.rc.finalize = False
        from mpi4py import MPI

        atexit.register(_finalize, MPI)
    return sys.modules["mpi4py.MPI"]


def _finalize(MPI: ModuleType) -> None:
    """End MPI, but not after the loss of a rank, for which Open MPI's MPI_Finalize may wait for ever."""
    with suppress(MPI.Exception, NotImplementedError):  # an MPI that cannot tell has ended with the rank
        if MPI.COMM_WORLD.Get_failed().size:
            return
    MPI.Finalize()


def own_threads(comm: MPI.Intracomm) -> int:
    """How many CPU threads this rank may have: ranks of one node divide the cores. All ranks of ``comm`` call it."""
    from mpi4py import MPI

    node, mine = comm.Split_type(MPI.COMM_TYPE_SHARED), _allowed_cpus()
    everyone = node.allgather(mine)
    node.Free()
    return max(1, available_cores() // sharing(mine, everyone))


def sharing(mine: frozenset[int], everyone: Sequence[frozenset[int]]) -> int:
    """How many of a node's ranks may use some of the processors that this one may use; itself among them.

    Launchers either bind ranks, each to its own processors, or leave all to all.
    """
    return sum(bool(mine & other) for other in everyone)


def _allowed_cpus() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))
