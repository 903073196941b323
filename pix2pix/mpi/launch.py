"""How this process was started: alone, or as one of several ranks; and what of its node is its own.

mpi4py is imported only if the environment says that a launcher started several processes, or if somebody has imported
it already (``python -m mpi4py -m pix2pix ...``, for launchers that are not known here).
"""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from types import ModuleType
from typing import TYPE_CHECKING

from .. import devices
from ..cpu.topology import available_cores
from ..factory import EngineOptions

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


@dataclass(frozen=True)
class Share:
    """What a rank may use of its node. Made by :meth:`of`."""

    cpus: frozenset[int]
    gpus: tuple[str, ...]  # their unique names, in CUDA's order
    node: Sequence[tuple[frozenset[int], tuple[str, ...]]]  # the same of all ranks of the node, by local rank
    rank: int  # among them

    @classmethod
    def of(cls, comm: MPI.Intracomm, device: str) -> Share:
        """This rank's share; all ranks of ``comm`` call it. GPUs are looked for if ``device`` may name some."""
        from mpi4py import MPI

        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        mine = _allowed_cpus(), () if device == "cpu" else _visible_gpus()
        share = cls(*mine, node.allgather(mine), node.rank)
        node.Free()
        return share

    def threads(self, cores: int) -> int:
        """How many threads on ``cores``: ranks divide the processors that they may use together.

        Launchers either bind ranks, each to its own processors, or leave all to all.
        """
        return max(1, cores // sum(bool(self.cpus & cpus) for cpus, _ in self.node))

    def device(self, device: str) -> str:
        """What ``device`` is for this rank: ranks that see the same GPUs divide them; each has one at least."""
        if not self.gpus:
            return device
        wanted = devices.parse(device, lambda: len(self.gpus))
        numbers = [gpu.index for gpu in wanted if gpu.kind == "cuda"]
        sharers = [rank for rank, (_, gpus) in enumerate(self.node) if set(gpus) & set(self.gpus)]
        position = sharers.index(self.rank)
        own = numbers[position :: len(sharers)] or [numbers[position % len(numbers)]] if numbers else []
        return ",".join(str(d) for d in wanted if d.kind == "cpu" or d.index in own)


def own_options(share: Share, options: EngineOptions) -> EngineOptions:
    """``options``, which are the same for all ranks, as this rank takes them."""
    threads = options.threads or share.threads(available_cores())
    return replace(options, device=share.device(options.device), threads=threads)


def _visible_gpus() -> tuple[str, ...]:
    """The unique names of the GPUs that this process can use, without touching them; none if it can use none."""
    try:
        devices.count_gpus()
    except RuntimeError:  # says why, as it does to whoever asks for a GPU
        return ()
    from numba import cuda

    return tuple(getattr(gpu, "uuid", "the simulator's") for gpu in cuda.gpus)


def _allowed_cpus() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))
