"""Rank 0, which commands the other ranks and computes as they do."""

from __future__ import annotations

from collections.abc import Collection, Generator, Sequence
from dataclasses import replace
from pathlib import Path

from ..engines.base import Engine
from ..errors import RanksLostError
from ..factory import EngineOptions, make_engine
from ..files.fitting import Fitting
from ..files.jobs import Job
from ..files.outcome import Outcome
from ..files.stream import BATCH_SIZE, split, translate_files
from ..model.generator import Generator as Network
from ..model.generator import Weights
from .engine import RanksEngine
from .files import FileLeader
from .messages import MakeEngine, RankInfo, ReceiveModel, Shutdown, TranslateFiles
from .ranks import RankTable
from .resources import NodeShare


class Ranks(RankTable):
    """What all ranks of a job do together at rank 0's command."""

    def shut_down(self) -> None:
        """End the other ranks."""
        try:
            if not self.comm.heartbeat.failure:
                self.command(Shutdown())
                self.comm.flush()
        except RanksLostError:
            return self.shut_down()
        self.comm.close()

    def make_engine(
        self, generator: Network, weights: Weights, options: EngineOptions = EngineOptions(), *, release: bool = False
    ) -> Engine:
        """:func:`pix2pix.factory.make_engine` on every rank; returns this rank's own engine.

        The other ranks receive the model, and the plan that this rank's engine has chosen. Raises RuntimeError that
        names the ranks which cannot make an engine.
        """
        shapes = {name: array.shape for name, array in weights.items()}
        self.command(ReceiveModel(generator, shapes, options.device))
        self.comm.broadcast(shapes, weights)
        with self.comm.survivable():
            share = NodeShare.of(self.comm.comm, options.device)
        engine = make_engine(generator, weights, share.options(options), release=release)
        if plan := engine.info.plan:
            options = replace(options, plan=plan, gpu_layers=None)  # the plan holds the placement
        try:
            self.command(MakeEngine(options))
            self.info = {self.comm.rank: RankInfo(engine=engine.info), **self._receive_info()}
        except RuntimeError:
            engine.close()
            raise
        return engine

    def _receive_info(self) -> dict[int, RankInfo]:
        """The other ranks' responses. Raises RuntimeError that names those with an error."""
        infos = dict(self.comm.receive() for _ in self.comm.others)
        errors = [f"rank {rank} on {info.host}: {info.error}" for rank, info in sorted(infos.items()) if info.error]
        if errors:
            raise RuntimeError("; ".join(errors))
        return infos

    def one_engine(self, engine: Engine) -> RanksEngine:
        """The engine of all ranks, ``engine`` being this rank's. Until it is closed the other ranks do nothing else."""
        return RanksEngine(self, engine)

    def translate_files(
        self,
        engine: Engine,
        jobs: Sequence[Job],
        fitting: Fitting,
        lock: Path,
        *,
        finished: Collection[Path] = (),
        batch_size: int = BATCH_SIZE,
        thumbnail_edge: int | None = None,
    ) -> Generator[Outcome, None, None]:
        """:func:`pix2pix.files.stream.translate_files` by all ranks: each reads and writes the files of its own jobs.

        ``lock`` is a file that this rank has written where the outputs go. Raises errors of a rank that other ranks
        cannot make up for, e.g. RuntimeError if a rank doesn't see that file.
        """
        todo, skipped = split(jobs, finished)
        if not todo:
            return translate_files(engine, jobs, fitting, finished=finished, thumbnail_edge=thumbnail_edge)
        seen = lock, lock.read_bytes()
        command = TranslateFiles(fitting, batch_size, thumbnail_edge, seen, todo[0].source)
        return FileLeader(self, command, todo).outcomes(engine, skipped)
