"""All ranks as one engine: rank 0 sends the others uint8 pictures, and gets uint8 pictures back.

For raw files, for ranks that share no folder, and for programs in Python. It is a pool of this rank's engine and of
stand-ins for the others': what a pool does when a device fails is what is done when a rank is lost.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engines.base import BaseEngine, Engine, EngineInfo
from ..engines.pool import PoolEngine, WorkerGroup
from ..errors import RanksLostError
from .messages import POLL_SECONDS, ROOT, Answer, DoBatches, Question

if TYPE_CHECKING:
    from .root import Ranks

SECONDS_TO_LOOK = 0.05  # how long to wait for an answer before looking whether it is wanted any more


class RanksEngine(PoolEngine):
    """Runs a generator on all ranks; rank 0 has it, and the others serve it until it is closed.

    See :class:`pix2pix.Engine` for the methods, and :class:`pix2pix.engines.pool.PoolEngine` for what happens when ranks fail.
    """

    def __init__(self, ranks: Ranks, engine: Engine) -> None:
        info = engine.info
        self._courier = _Courier(ranks)
        groups = [WorkerGroup(ranks.name(ROOT), partial(_Own, engine, ranks), ranks.facts[ROOT].workers)]
        for rank in ranks.link.others:
            make = partial(_StandIn, engine, self._courier, rank)
            workers = ranks.facts[rank].workers + 1  # one batch more than it computes is on its way
            groups.append(WorkerGroup(ranks.name(rank), make, workers))
        super().__init__(engine.generator, groups)
        self._info = replace(self._info, device=info.device, threads=info.threads)

    def _close(self) -> None:
        super()._close()
        self._courier.close()


class _Own(BaseEngine):
    """This rank's engine, for one worker of the pool."""

    def __init__(self, engine: Engine, ranks: Ranks) -> None:
        super().__init__(engine.generator, info=engine.info)
        self._engine, self._ranks = engine, ranks

    def _translate(self, b: np.ndarray, out: np.ndarray, stop: threading.Event) -> None:
        self._engine.translate_until(stop, b, out)
        self._ranks.done[ROOT] += len(b)

    def _run(self, given: dict[str, np.ndarray], outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
        return self._engine.run(inputs=given, outputs=outputs)

    def _close(self) -> None:
        self._engine.close()


class _StandIn(BaseEngine):
    """Another rank's engine, for one worker of the pool."""

    def __init__(self, own: Engine, courier: _Courier, rank: int) -> None:
        super().__init__(own.generator, info=EngineInfo(precision=own.info.precision, plan=own.info.plan))
        self._courier, self._rank = courier, rank

    def _translate(self, b: np.ndarray, out: np.ndarray, stop: threading.Event) -> None:
        errand = self._courier.send(self._rank, b=b, out=out)
        while not stop.is_set():
            try:
                return errand.answer.result(SECONDS_TO_LOOK)
            except TimeoutError:
                continue

    def _run(self, given: dict[str, np.ndarray], outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
        return self._courier.send(self._rank, given=given, outputs=outputs).answer.result()


@dataclass(frozen=True)
class _Errand:
    """A question on its way to a rank, with pictures ``b``, and the answer to come, whose pictures go to ``out``."""

    rank: int
    question: Question
    b: np.ndarray | None
    out: np.ndarray | None
    answer: Future[Any] = field(default_factory=Future)


class _Courier:
    """A thread that carries questions and answers. It alone calls MPI while it is there."""

    def __init__(self, ranks: Ranks) -> None:
        self.ranks, self.link = ranks, ranks.link
        self.numbers = itertools.count()
        self.outgoing: queue.SimpleQueue[_Errand] = queue.SimpleQueue()
        self.closing = threading.Event()
        self.broken: Exception | None = None  # why nothing can be carried any more
        # Of the thread alone:
        self.to_order = set(self.link.others)  # ranks that are to be told to answer questions
        self.waiting: dict[int, _Errand] = {}  # by number: those who have not been answered
        self.thread = threading.Thread(target=self._carry, name="pix2pix-mpi")
        self.thread.start()

    def send(
        self,
        rank: int,
        *,
        b: np.ndarray | None = None,
        out: np.ndarray | None = None,
        given: dict[str, np.ndarray] | None = None,
        outputs: tuple[str, ...] = (),
    ) -> _Errand:
        """Have ``rank`` translate pictures ``b`` into ``out``, or run its engine. RuntimeError answers if it fails."""
        shape = None if b is None else b.shape
        errand = _Errand(rank, Question(next(self.numbers), shape, given, outputs), b, out)
        self.outgoing.put(errand)
        if self.broken is not None:
            self._fail_all(self.broken)
        return errand

    def close(self) -> None:
        """Tell the ranks that no more questions come."""
        self.closing.set()
        self.thread.join()

    def _carry(self) -> None:
        try:
            while self.waiting or not self.closing.is_set():
                try:
                    if not self._step():
                        time.sleep(POLL_SECONDS)
                except RanksLostError as loss:
                    self._lose(loss.ranks)
            self.ranks.order(None)
        except Exception as error:
            self.broken = error
            self._fail_all(error)

    def _fail_all(self, error: Exception) -> None:
        for number in list(self.waiting):
            self.waiting.pop(number).answer.set_exception(error)
        with suppress(queue.Empty):
            while True:
                self.outgoing.get_nowait().answer.set_exception(error)

    def _step(self) -> bool:
        """Do one thing, if there is one to do."""
        if self.to_order:
            self.link.send(DoBatches(), rank := min(self.to_order))
            self.to_order.discard(rank)
        elif message := self.link.poll():
            self._take(*message)
        elif not self.outgoing.empty():
            self._send(self.outgoing.get())
        else:
            return False
        return True

    def _send(self, errand: _Errand) -> None:
        if errand.rank in self.link.members:
            self.waiting[errand.question.number] = errand
            self.link.send(errand.question, errand.rank, errand.b)
        else:
            errand.answer.set_exception(RuntimeError(self.ranks.lost[errand.rank]))

    def _take(self, rank: int, answer: Answer) -> None:
        errand = self.waiting[answer.number]
        if errand.out is not None and answer.pictures:
            self.link.receive_array(errand.out, rank)
        del self.waiting[answer.number]
        if isinstance(answer.error, RuntimeError):
            self.ranks.give_up(rank, str(answer.error))
        if answer.error is not None:
            errand.answer.set_exception(answer.error)
        else:
            self.ranks.done[rank] += 0 if errand.b is None else len(errand.b)
            errand.answer.set_result(answer.values)

    def _lose(self, ranks: Sequence[int]) -> None:
        """Give up these ranks; what was on its way to or from the others is sent again."""
        for rank in ranks:
            self.to_order.discard(rank)
            self.ranks.give_up(rank, "lost")
        for errand in self.waiting.values():
            self.outgoing.put(errand)
        self.waiting.clear()
