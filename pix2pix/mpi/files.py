"""Rank 0's part in translating files: a thread hands out jobs while the engine computes here too.

That thread alone calls MPI meanwhile. It is never kept waiting by the engine, which computes without Python's lock.
What it gathers goes through a queue to the caller.
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
from ..files.stream import Outcome, translate_stream
from .messages import POLL_SECONDS, ROOT, Ask, DoFiles, packed_job, reason
from .work_queue import Handout

if TYPE_CHECKING:
    from .root import Ranks

BATCHES_AT_ONCE = 4  # in a chunk of jobs, at most
SECONDS_TO_LOOK = 0.05  # how long rank 0 waits for the others before it looks whether jobs came back

log = logging.getLogger(__name__)


class FileLeader:
    """One run over files: :meth:`outcomes` yields what all ranks make of ``jobs``."""

    def __init__(self, ranks: Ranks, order: DoFiles, jobs: Sequence[Job]) -> None:
        self.ranks, self.link, self.order = ranks, ranks.link, order
        self.jobs = {job.name: job for job in jobs}
        self.handout = Handout(self.jobs, len(self.link.members), BATCHES_AT_ONCE * order.batch_size)
        self.gathered: queue.SimpleQueue[Outcome | Exception] = queue.SimpleQueue()
        self.stop = threading.Event()
        self.able = True  # whether this rank's own engine works
        # Of the thread alone:
        self.to_order = set(self.link.others)  # ranks that are to be given the order
        self.working = set(self.link.others)  # ranks that have not been told that it is over
        self.waiting: set[int] = set()  # idle ranks, whose question is not answered yet

    def outcomes(self, engine: Engine, skipped: Sequence[Job]) -> Generator[Outcome, None, None]:
        """The outcomes of all jobs, as they come, and of ``skipped``, whose outputs are there."""
        leader = threading.Thread(target=self._lead, name="pix2pix-mpi")
        leader.start()
        try:
            yield from self._own(engine, skipped)
            while self.handout.left:
                if not self.able or not self.handout.unclaimed:
                    yield from self._gathered(SECONDS_TO_LOOK)
                if self.able:
                    yield from self._own(engine)
                elif not leader.is_alive():
                    raise RuntimeError(f"no rank is left that can compute: {'; '.join(self.ranks.lost.values())}")
        finally:
            self.stop.set()
            leader.join()
            if self.ranks.lost:
                dead = {self.ranks.facts[rank].writer for rank in self.ranks.lost}
                remove_abandoned((job.output for job in self.jobs.values()), dead)
        yield from self._gathered()

    # -- this rank's own share --------------------------------------------------------------------------------

    def _own(self, engine: Engine, skipped: Sequence[Job] = ()) -> Iterator[Outcome]:
        """What this rank makes of jobs until there are none to take, and what the others have made meanwhile."""
        first = self._take(ROOT)
        if not first and not skipped:
            return
        todo = chain(first, self._more())
        size, edge = self.order.batch_size, self.order.thumbnail_edge
        own = translate_stream(engine, todo, self.order.fitting, skipped=skipped, batch_size=size, thumbnail_edge=edge)
        try:
            with closing(own):
                for outcome in own:
                    self._settle(outcome, ROOT)
                    yield outcome
                    yield from self._gathered()
        except RuntimeError as error:
            self.able = False
            self._give_up(ROOT, reason(error))

    def _more(self) -> Iterator[Job]:
        while jobs := self._take(ROOT):
            yield from jobs

    def _gathered(self, timeout: float = 0.0) -> Iterator[Outcome]:
        """What has come from the others; waits up to ``timeout`` seconds for the first. Raises what stops the run."""
        while True:
            try:
                item = self.gathered.get(timeout=timeout) if timeout else self.gathered.get_nowait()
            except queue.Empty:
                return
            timeout = 0.0
            if isinstance(item, Exception):
                raise item
            yield item

    # -- the others -------------------------------------------------------------------------------------------

    def _lead(self) -> None:
        """Answer the other ranks until all of them know that it is over."""
        try:
            while self.working:
                try:
                    if not self._step():
                        time.sleep(POLL_SECONDS)
                except RanksLostError as loss:
                    self.waiting.clear()  # they know of it, and ask again
                    for rank in loss.ranks:
                        self._give_up(rank, "lost")
        except Exception as error:
            self.gathered.put(error)

    def _step(self) -> bool:
        """Do one thing, if there is one to do."""
        if self.to_order:
            self.link.send(self.order, rank := min(self.to_order))
            self.to_order.discard(rank)
        elif message := self.link.poll():
            self._answer(*message)
        elif self.waiting and (self.stop.is_set() or not self.handout.left):
            self._end(min(self.waiting))
        elif self.waiting and (jobs := self._take(rank := min(self.waiting))):
            self.waiting.discard(rank)
            self.link.send([packed_job(job) for job in jobs], rank)
        else:
            return False
        return True

    def _answer(self, rank: int, ask: Ask) -> None:
        for name, *what in ask.outcomes:
            outcome = Outcome(self.jobs[name], *what)
            if self._settle(outcome, rank):
                self.gathered.put(outcome)
        self.handout.reconcile(rank, ask.holds)
        if ask.failed:
            self._give_up(rank, ask.failed)
            self.link.send(None, rank)
            if ask.fatal:
                self.gathered.put(RuntimeError(self.ranks.lost[rank]))
        elif self.stop.is_set():
            self._end(rank)
        elif ask.idle:
            self.waiting.add(rank)
        else:
            self.link.send([packed_job(job) for job in self._take(rank)], rank)

    def _end(self, rank: int) -> None:
        self.waiting.discard(rank)
        self.working.discard(rank)
        self.link.send(None, rank)

    def _settle(self, outcome: Outcome, rank: int) -> bool:
        """Whether an outcome is the first of its job."""
        first = self.handout.settle(outcome.job.name, rank)
        self.ranks.done[rank] += first
        return first

    def _take(self, rank: int) -> list[Job]:
        return [self.jobs[name] for name in self.handout.take(rank)]

    def _give_up(self, rank: int, why: str) -> None:
        """No more of this rank: what it has is to be done by others."""
        self.to_order.discard(rank)
        self.waiting.discard(rank)
        self.working.discard(rank)
        self.ranks.give_up(rank, why)
        log.warning("%s; %d pictures go to other ranks", self.ranks.lost[rank], self.handout.reconcile(rank, ()))
