"""The ranks of a job as rank 0 knows them: who takes part, with what, and how much each has done."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from .messages import RankInfo

if TYPE_CHECKING:
    from .communicator import Communicator


class RankTable:
    """All ranks of a job, as rank 0 sees them.

    ``lost`` says why some ranks no longer take part; ``done`` counts the images that each rank dealt with.
    """

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm
        self.info: dict[int, RankInfo] = {}
        self.lost: dict[int, str] = {}
        self.done = Counter[int]()

    @property
    def per_host(self) -> int:
        """The most ranks that one host has, once they have engines."""
        return max(Counter(info.host for info in self.info.values()).values())

    def command(self, command: object) -> None:
        """Send a command to all other ranks."""
        for rank in self.comm.others:
            self.comm.send(command, rank)

    def name(self, rank: int) -> str:
        """What messages call a rank."""
        return f"rank {rank} on {self.info[rank].host}"

    def lose(self, rank: int, reason: str) -> None:
        """Note that a rank no longer takes part."""
        self.lost[rank] = f"{self.name(rank)}: {reason}"

    def described(self) -> list[str]:
        """What the ranks compute with, a line for each host and device."""
        groups: dict[tuple[str, str], list[str]] = {}
        for rank, info in sorted(self.info.items()):
            groups.setdefault((str(info.engine), info.host), []).append(str(rank))
        return [f"device: {device} (rank {', '.join(ranks)} on {host})" for (device, host), ranks in groups.items()]

    def summary(self) -> list[dict[str, Any]]:
        """Where each rank ran and what it did, for JSON."""
        return [
            {"rank": rank, "host": info.host, "device": str(info.engine), "pictures": self.done[rank]}
            for rank, info in sorted(self.info.items())
        ]
