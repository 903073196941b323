"""Translating files on all ranks, as rank 0 directs it.

A thread of rank 0 hands out jobs and collects outcomes while the main thread computes too. That thread is the only one
to call MPI meanwhile. It needs the GIL, which the engine releases while it computes. Outcomes of other ranks reach the
main thread through a queue.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from itertools import chain
from typing import TYPE_CHECKING

from ..atomic import remove_abandoned
from ..engines.base import Engine
from ..errors import RanksLostError
from ..files.jobs import Job
from ..files.outcome import Outcome
from .messages import POLL_SECONDS, ROOT, JobRequest, TranslateFiles, message_of, packed_job
from .work_queue import WorkQueue

if TYPE_CHECKING:
    from .ranks import RankTable

BATCHES_PER_CHUNK = 4  # at most
SECONDS_BETWEEN_CHECKS = 0.05  # of whether jobs of a failed rank came back, while rank 0 waits for others

log = logging.getLogger(__name__)


class FileLeader:
    """One run over files: :meth:`outcomes` yields what all ranks make of ``jobs``."""

    def __init__(self, ranks: RankTable, command: TranslateFiles, jobs: Sequence[Job]) -> None:
        self._ranks, self._comm, self._command = ranks, ranks.comm, command
        self._jobs = {job.name: job for job in jobs}
        self._queue = WorkQueue(self._jobs, len(ranks.comm.members), BATCHES_PER_CHUNK * command.batch_size)
        self._collected: queue.SimpleQueue[Outcome | Exception] = queue.SimpleQueue()
        self._stop = threading.Event()
        self._engine_works = True  # this rank's own
        # The thread alone uses these:
        self._uncommanded = set(self._comm.others)  # ranks that have not been sent the command
        self._working = set(self._comm.others)  # ranks that have not been told the end
        self._idle = set[int]()  # ranks whose request is not answered yet

    def outcomes(self, engine: Engine, skipped: Sequence[Job]) -> Generator[Outcome, None, None]:
        """The outcomes of all jobs as they come, and those of ``skipped``, whose outputs exist."""
        leader = threading.Thread(target=self.lead, name="pix2pix-mpi")
        leader.start()
        try:
            yield from self._compute(engine, skipped)
            while self._queue.unfinished:
                if not self._engine_works or not self._queue.queued:
                    yield from self._collect(SECONDS_BETWEEN_CHECKS)
                if self._engine_works:
                    yield from self._compute(engine)
                elif not leader.is_alive():
                    raise RuntimeError(f"no rank is left that can compute: {'; '.join(self._ranks.lost.values())}")
        finally:
            self._stop.set()
            leader.join()
            if self._ranks.lost:
                dead = {self._ranks.info[rank].writer for rank in self._ranks.lost}
                remove_abandoned((job.output for job in self._jobs.values()), dead)
        yield from self._collect()

    # -- in the main thread -----------------------------------------------------------------------------------

    def _compute(self, engine: Engine, skipped: Sequence[Job] = ()) -> Iterator[Outcome]:
        """Do jobs on this rank while there are any; yields their outcomes, and those collected meanwhile."""
        first = self._take(ROOT)
        if not first and not skipped:
            return
        outcomes = self._command.outcomes(engine, chain(first, self._later_jobs()), skipped)
        watched = self._comm.heartbeat.watch(outcomes)
        with closing(outcomes):
            while True:
                try:
                    outcome = next(watched, None)
                except RuntimeError as error:
                    self._engine_works = False
                    self._lose(ROOT, message_of(error))
                    return
                if outcome is None:
                    return
                self._complete(outcome, ROOT)
                yield outcome
                yield from self._collect()

    def _later_jobs(self) -> Iterator[Job]:
        while jobs := self._take(ROOT):
            yield from jobs

    def _collect(self, timeout: float = 0.0) -> Iterator[Outcome]:
        """Outcomes of other ranks; waits up to ``timeout`` seconds for the first. Raises errors that end the run."""
        while True:
            try:
                item = self._collected.get(timeout=timeout) if timeout else self._collected.get_nowait()
            except queue.Empty:
                return
            timeout = 0.0
            if isinstance(item, Exception):
                raise item
            yield item

    # -- in the leading thread --------------------------------------------------------------------------------

    def lead(self) -> None:
        """Answer the other ranks until all have been told the end."""
        try:
            while self._working:
                try:
                    if not self._step():
                        time.sleep(POLL_SECONDS)
                except RanksLostError as loss:
                    self._idle.clear()  # the other ranks will repeat their requests
                    for rank in loss.ranks:
                        self._lose(rank, "lost")
        except Exception as error:
            self._collected.put(error)

    def _step(self) -> bool:
        """Send or answer one message; False if there is nothing to do."""
        if self._uncommanded:
            self._comm.send(self._command, rank := min(self._uncommanded))
            self._uncommanded.discard(rank)
        elif message := self._comm.poll():
            self._answer(*message)
        elif self._idle and (self._stop.is_set() or not self._queue.unfinished):
            self._end(min(self._idle))
        elif self._idle and (jobs := self._take(rank := min(self._idle))):
            self._idle.discard(rank)
            self._send(jobs, rank)
        else:
            return False
        return True

    def _answer(self, rank: int, request: JobRequest) -> None:
        for name, *fields in request.outcomes:
            outcome = Outcome(self._jobs[name], *fields)
            if self._complete(outcome, rank):
                self._collected.put(outcome)
        self._queue.reclaim(rank, request.held)
        if request.failure:
            self._lose(rank, request.failure)
            self._comm.send(None, rank)
            if request.fatal:
                self._collected.put(RuntimeError(self._ranks.lost[rank]))
        elif self._stop.is_set():
            self._end(rank)
        elif request.idle:
            self._idle.add(rank)
        else:
            self._send(self._take(rank), rank)

    def _send(self, jobs: Sequence[Job], rank: int) -> None:
        self._comm.send([packed_job(job) for job in jobs], rank)

    def _end(self, rank: int) -> None:
        self._idle.discard(rank)
        self._working.discard(rank)
        self._comm.send(None, rank)

    # -- in both ----------------------------------------------------------------------------------------------

    def _complete(self, outcome: Outcome, rank: int) -> bool:
        """Whether this is the first outcome of its job."""
        first = self._queue.complete(outcome.job.name, rank)
        self._ranks.done[rank] += first
        return first

    def _take(self, rank: int) -> list[Job]:
        return [self._jobs[name] for name in self._queue.take(rank)]

    def _lose(self, rank: int, reason: str) -> None:
        """Go on without a rank: others will do the jobs that it has."""
        self._uncommanded.discard(rank)
        self._idle.discard(rank)
        self._working.discard(rank)
        self._ranks.lose(rank, reason)
        log.warning("%s; %d images go to other ranks", self._ranks.lost[rank], self._queue.reclaim(rank))
