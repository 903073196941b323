"""Which processors and GPUs of its node a rank uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from .. import devices
from ..cpu.openmp import requested_threads
from ..cpu.topology import allowed_cpus, available_cores
from ..factory import EngineOptions

if TYPE_CHECKING:
    from mpi4py import MPI

Visible = tuple[frozenset[int], tuple[str, ...]]  # numbers of processors, and unique names of GPUs in CUDA's order


@dataclass(frozen=True)
class NodeShare:
    """A rank's share of its node. ``node`` is what each rank of the node sees, by local rank; ``rank`` is this one."""

    node: Sequence[Visible]
    rank: int

    @classmethod
    def of(cls, comm: MPI.Intracomm, device: str) -> NodeShare:
        """This rank's share. Collective over ``comm``. GPUs are looked for if ``device`` may name some."""
        from mpi4py import MPI

        node = comm.Split_type(MPI.COMM_TYPE_SHARED)
        share = cls(node.allgather((allowed_cpus(), () if device == "cpu" else _visible_gpus())), node.rank)
        node.Free()
        return share

    def threads(self, cores: int) -> int:
        """How many threads this rank runs if it may use ``cores``.

        Some launchers bind each rank to its own processors, others let all ranks use all. Ranks that may use the same
        processors divide them.
        """
        own = self.node[self.rank][0]
        return max(1, cores // sum(bool(own & cpus) for cpus, _ in self.node))

    def device(self, device: str) -> str:
        """What ``device`` is on this rank: ranks that see the same GPUs divide them, and each gets at least one."""
        own = self.node[self.rank][1]
        if not own:
            return device
        wanted = devices.parse(device, lambda: len(own))
        indices = [gpu.index for gpu in wanted if gpu.kind == "cuda"]
        sharers = [rank for rank, (_, gpus) in enumerate(self.node) if set(gpus) & set(own)]
        position = sharers.index(self.rank)
        mine = indices[position :: len(sharers)] or [indices[position % len(indices)]] if indices else []
        return ",".join(str(d) for d in wanted if d.kind == "cpu" or d.index in mine)

    def options(self, options: EngineOptions) -> EngineOptions:
        """The options of this rank, given those of all ranks together."""
        threads = options.threads
        if threads is None and requested_threads() is None:  # else the engine asks for those
            threads = self.threads(available_cores())
        return replace(options, device=self.device(options.device), threads=threads)


def _visible_gpus() -> tuple[str, ...]:
    """Unique names of the GPUs that this process can use, read without initialising them."""
    try:
        devices.count_gpus()
    except RuntimeError:  # an engine on a GPU will raise it again
        return ()
    from numba import cuda

    return tuple(getattr(gpu, "uuid", "the simulator's") for gpu in cuda.gpus)
