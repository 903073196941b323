"""Whether this process was started alone or as one of several MPI ranks.

mpi4py is imported only if the environment shows that a launcher started several processes, or if mpi4py is imported
already: ``python -m mpi4py -m pix2pix ...`` is for launchers that are not listed here.
"""

from __future__ import annotations

import atexit
import os
import sys
import time
from collections.abc import Mapping
from contextlib import suppress
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mpi4py import MPI

# Environment variables of (rank, number of ranks): Open MPI; PMI of MPICH, Intel MPI and Slurm; other steps of Slurm.
VARIABLES = (
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI_RANK", "PMI_SIZE"),
    ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
)

RANK_TIMEOUT = 300.0  # seconds without a sign of life after which a rank is taken to hang
SECONDS_TO_FORWARD = 1.0  # in which a launcher forwards what a rank has written


def launched(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(rank, number of ranks) as a launcher set them; (0, 1) without a launcher."""
    for rank, size in VARIABLES:
        if environment.get(rank, "").isdecimal() and environment.get(size, "").isdecimal():
            return int(environment[rank]), int(environment[size])
    return 0, 1


def world() -> MPI.Intracomm | None:
    """The communicator of all ranks of this job; None if this process is alone.

    Raises RuntimeError if several processes were started that cannot communicate: each would do all of the work.
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
        raise RuntimeError("this MPI can be called from one thread only: pix2pix needs MPI_THREAD_SERIALIZED")
    return MPI.COMM_WORLD


def abort(comm: MPI.Intracomm, status: int) -> None:
    """End the job, all ranks of it, a second later: at once, a launcher may drop what it has not forwarded yet."""
    try:
        time.sleep(SECONDS_TO_FORWARD)
    finally:
        comm.Abort(status)


def _imported() -> ModuleType:
    """The module mpi4py.MPI, initialised. It is finalised by this module unless somebody else imported it before."""
    if "mpi4py.MPI" not in sys.modules:
        import mpi4py

        mpi4py.rc.finalize = False
        from mpi4py import MPI

        atexit.register(_finalize, MPI)
    return sys.modules["mpi4py.MPI"]


def _finalize(MPI: ModuleType) -> None:
    """Finalise MPI unless a rank died: Open MPI's MPI_Finalize may wait for it for ever."""
    with suppress(MPI.Exception, NotImplementedError):  # an MPI that cannot tell ends the job with the rank
        if MPI.COMM_WORLD.Get_failed().size:
            return
    MPI.Finalize()
