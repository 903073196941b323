"""Rank 0: leads the others, and computes as they do."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Generator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engines.base import Engine
from ..errors import RanksLostError
from ..factory import EngineOptions, make_engine
from ..files.fitting import Fitting
from ..files.jobs import Job
from ..files.stream import BATCH_SIZE, Outcome, split, translate_files
from ..model.generator import Generator as Network
from ..model.generator import Weights
from .engine import RanksEngine
from .files import FileLeader
from .launch import Share, own_options
from .messages import BuildEngine, Dismissal, DoFiles, Facts, Link, TakeModel, broadcast

if TYPE_CHECKING:
    from mpi4py import MPI


class Ranks:
    """All ranks, as rank 0 leads them. ``lost`` says which ones were given up, and why; ``done`` who did how much."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.link = Link(comm)
        self.facts: dict[int, Facts] = {}
        self.lost: dict[int, str] = {}
        self.done = Counter[int]()  # pictures dealt with, by rank

    def dismiss(self) -> None:
        """Let the others go."""
        try:
            self.order(Dismissal())
            self.link.flush()
        except RanksLostError:
            self.dismiss()

    def make_engine(
        self, generator: Network, weights: Weights, options: EngineOptions = EngineOptions(), *, release: bool = False
    ) -> Engine:
        """:func:`pix2pix.factory.make_engine` on every rank, with the same options; returns this rank's own engine.

        The others take the model from here, and the plan that this rank's engine has chosen. Raises RuntimeError that
        names the ranks that could not.
        """
        shapes = {name: array.shape for name, array in weights.items()}
        self.order(TakeModel(generator, shapes, options.device))
        with self.link.mending():
            broadcast(self.link.comm, shapes, weights)
            share = Share.of(self.link.comm, options.device)
        engine = make_engine(generator, weights, own_options(share, options), release=release)
        if plan := engine.info.plan:
            options = replace(options, plan=plan, gpu_layers=None)  # which the plan holds
        try:
            self.order(BuildEngine(options))
            self.facts = {self.link.rank: Facts.of(engine), **self._answers()}
        except RuntimeError:
            engine.close()
            raise
        return engine

    def one_engine(self, engine: Engine) -> RanksEngine:
        """The engine of all ranks, ``engine`` being this one's. Until it is closed the ranks do nothing else."""
        return RanksEngine(self, engine)

    def name(self, rank: int) -> str:
        """What a rank is called in messages."""
        return f"rank {rank} on {self.facts[rank].host}"

    def give_up(self, rank: int, why: str) -> None:
        """Note for the summary that there was no more of a rank."""
        self.lost[rank] = f"{self.name(rank)}: {why}"

    def described(self) -> list[str]:
        """What all ranks compute with, a line for each kind of host and device."""
        kinds: dict[tuple[str, str], list[str]] = {}
        for rank, facts in sorted(self.facts.items()):
            kinds.setdefault((facts.device, facts.host), []).append(str(rank))
        return [f"device: {device} (rank {', '.join(r)} on {host})" for (device, host), r in kinds.items()]

    def summary(self) -> list[dict[str, Any]]:
        """What the ranks were and did, as JSON can hold it."""
        facts = sorted(self.facts.items())
        return [{"rank": r, "host": f.host, "device": f.device, "pictures": self.done[r]} for r, f in facts]

    def translate_files(
        self,
        engine: Engine,
        jobs: Sequence[Job],
        fitting: Fitting,
        record: Path,
        *,
        finished: Collection[Path] = (),
        batch_size: int = BATCH_SIZE,
        thumbnail_edge: int | None = None,
    ) -> Generator[Outcome, None, None]:
        """:func:`pix2pix.files.stream.translate_files` by all ranks: each reads and writes the files of its own jobs.

        ``record`` is a file that this rank has written where the outputs go. Raises what a rank raises that cannot be
        made good by others, e.g. RuntimeError if one doesn't see that file.
        """
        todo, skipped = split(jobs, finished)
        if not todo:
            return translate_files(engine, jobs, fitting, finished=finished, thumbnail_edge=thumbnail_edge)
        order = DoFiles(fitting, batch_size, thumbnail_edge, (record, record.read_bytes()), todo[0].source)
        return FileLeader(self, order, todo).outcomes(engine, skipped)

    def order(self, order: object) -> None:
        """Send an order to all others."""
        for rank in self.link.others:
            self.link.send(order, rank)

    def _answers(self) -> dict[int, Facts]:
        """What all others answer. Raises RuntimeError that names those who answer with an error."""
        answers = dict(self.link.receive() for _ in self.link.others)
        errors = [
            f"rank {rank} on {facts.host}: {facts.error}" for rank, facts in sorted(answers.items()) if facts.error
        ]
        if errors:
            raise RuntimeError("; ".join(errors))
        return answers
