"""What a run needs of other processes that share its work. :class:`pix2pix.mpi.root.Ranks` provides it."""

from __future__ import annotations

from collections.abc import Collection, Generator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from ..engines.base import Engine
from ..factory import EngineOptions
from ..model.generator import Generator as Network
from ..model.generator import Weights
from .fitting import Fitting
from .jobs import Job
from .outcome import Outcome


class Ranks(Protocol):
    """All ranks of an MPI job, as the first of them sees them."""

    @property
    def lost(self) -> Mapping[int, str]:
        """Why ranks were given up, by their number."""

    @property
    def per_host(self) -> int:
        """The most ranks that one host has, once they have engines."""

    def make_engine(self, generator: Network, weights: Weights, options: EngineOptions, *, release: bool) -> Engine:
        """Make an engine on every rank; returns this rank's own."""

    def one_engine(self, engine: Engine) -> Engine:
        """The engine of all ranks together, ``engine`` being this one's."""

    def translate_files(
        self,
        engine: Engine,
        jobs: Sequence[Job],
        fitting: Fitting,
        lock: Path,
        *,
        finished: Collection[Path] = (),
        batch_size: int,
        thumbnail_edge: int | None = None,
    ) -> Generator[Outcome, None, None]:
        """:func:`.stream.translate_files` by all ranks, which must all see the file ``lock``."""

    def described(self) -> list[str]:
        """What all ranks compute with, in lines."""

    def summary(self) -> list[dict[str, Any]]:
        """What the ranks were and did, as JSON can hold it."""
