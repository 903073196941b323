"""Every rank but rank 0: does what rank 0 orders until it is dismissed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager, suppress
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engines.base import Engine
from ..engines.pool import REQUEST_ERRORS
from ..errors import RanksLostError, RootLostError
from ..factory import make_engine
from ..files.jobs import Job
from ..files.stream import translate_stream
from ..model.generator import Generator, Weights
from .launch import Share, own_options
from .messages import (
    POLL_SECONDS,
    ROOT,
    Answer,
    Ask,
    BuildEngine,
    Dismissal,
    DoBatches,
    DoFiles,
    Facts,
    Jobs,
    Link,
    Question,
    TakeModel,
    broadcast,
    packed_outcome,
    reason,
    unpacked_job,
)

if TYPE_CHECKING:
    from mpi4py import MPI

SECONDS_TO_SEE = 5.0  # how long a file that another host has written may take to show


class _OverError(Exception):
    """Rank 0 wants no more of an order that isn't done yet."""


class _DismissedError(Exception):
    """Rank 0 wants nothing more."""


class Worker:
    """One such rank."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.link = Link(comm)
        self.model: tuple[Generator, Weights]
        self.share: Share
        self.engine: Engine
        self.outcomes: list[tuple[Any, ...]] = []  # not told yet
        self.holds: set[str] = set()  # names of jobs given to this rank, without an outcome

    def serve(self) -> None:
        """Follow orders until dismissed. Raises RootLostError."""
        orders: dict[type, Callable[[Any], None]] = {
            TakeModel: self._take_model,
            BuildEngine: self._build_engine,
            DoFiles: self._do_files,
            DoBatches: self._do_batches,
        }
        try:
            while True:
                with suppress(_OverError), self._losses():
                    order = self._receive()
                    orders[type(order)](order)
        except _DismissedError:
            if hasattr(self, "engine"):
                self.engine.close()

    def _receive(self) -> Any:
        """What rank 0 says."""
        return self._heard(self.link.receive())

    @staticmethod
    def _heard(message: tuple[int, Any]) -> Any:
        if isinstance(message[1], Dismissal):
            raise _DismissedError
        return message[1]

    @contextmanager
    def _losses(self) -> Iterator[None]:
        """Go on behind the block when another rank is lost: rank 0 makes it good."""
        try:
            yield
        except RanksLostError as loss:
            if ROOT in loss.ranks:
                raise RootLostError("rank 0 is lost, which leads the others") from None

    # -- orders -----------------------------------------------------------------------------------------------

    def _take_model(self, order: TakeModel) -> None:
        with self.link.mending():
            self.model = order.generator, broadcast(self.link.comm, order.shapes, None)
            self.share = Share.of(self.link.comm, order.device)

    def _build_engine(self, order: BuildEngine) -> None:
        try:
            self.engine = make_engine(*self.model, own_options(self.share, order.options), release=True)
            answer = Facts.of(self.engine)
        except (ValueError, RuntimeError, OSError, MemoryError) as error:
            answer = Facts(error=reason(error))
        del self.model  # the engine has packed what it needs
        self.link.send(answer, ROOT)

    def _do_files(self, order: DoFiles) -> None:
        """Ask for jobs and do them, until there are none and none can come back from lost ranks."""
        self.outcomes, self.holds = [], set()
        try:
            _see(order)
            while first := self._ask(idle=True):
                todo = chain(first, self._more())
                outcomes = translate_stream(
                    self.engine,
                    todo,
                    order.fitting,
                    batch_size=order.batch_size,
                    thumbnail_edge=order.thumbnail_edge,
                )
                with closing(outcomes):
                    for outcome in outcomes:
                        self.outcomes.append(packed_outcome(outcome))
                        self.holds.discard(outcome.job.name)
        except RootLostError:
            raise
        except (OSError, RuntimeError, ValueError, MemoryError) as error:
            self._ask(failed=reason(error), fatal=not isinstance(error, RuntimeError))

    def _more(self) -> Iterator[Job]:
        while jobs := self._ask():
            yield from jobs

    def _ask(self, idle: bool = False, failed: str = "", fatal: bool = False) -> list[Job] | None:
        """Rank 0's answer to a question, which takes the outcomes along. None if idle and there is nothing left."""
        while True:
            ask = Ask(self.outcomes, frozenset(self.holds), idle, failed, fatal)
            with self._losses():  # with them the question or the answer: the next tells again what is in hand
                self.link.send(ask, ROOT)
                packed: Jobs | None = self._receive()
                break
        self.outcomes = []
        if packed is None:
            if idle or failed:
                return None
            raise _OverError
        jobs = [unpacked_job(job) for job in packed]
        self.holds |= {job.name for job in jobs}
        return jobs

    def _do_batches(self, order: DoBatches) -> None:
        """Answer questions while other pictures come or go."""
        running: list[Future[tuple[Answer, np.ndarray | None]]] = []
        with ThreadPoolExecutor(self.engine.info.workers + 1) as executor:
            while True:
                with self._losses():
                    if message := self.link.poll():
                        question = self._heard(message)
                        if question is None:
                            return
                        running.append(executor.submit(self._answer, question, self._pictures(question)))
                    elif ready := next((future for future in running if future.done()), None):
                        running.remove(ready)
                        answer, pictures = ready.result()
                        self.link.send(answer, ROOT, pictures)
                    else:
                        time.sleep(POLL_SECONDS)
                    continue
                running.clear()  # rank 0 asks again

    def _pictures(self, question: Question) -> np.ndarray | None:
        if question.shape is None:
            return None
        b = np.empty(question.shape, np.uint8)
        self.link.receive_array(b, ROOT)
        return b

    def _answer(self, question: Question, b: np.ndarray | None) -> tuple[Answer, np.ndarray | None]:
        try:
            if b is not None:
                return Answer(question.number, pictures=True), self.engine.translate(b)
            return Answer(question.number, self.engine.run(inputs=question.given, outputs=question.outputs)), None
        except REQUEST_ERRORS as error:
            kind = next(kind for kind in REQUEST_ERRORS if isinstance(error, kind))
            return Answer(question.number, error=kind(*error.args[:1])), None
        except Exception as error:
            return Answer(question.number, error=RuntimeError(reason(error))), None


def _see(order: DoFiles) -> None:
    """Raise OSError unless this rank sees the files that rank 0 sees; a network's folder may take a while to show."""
    path, content = order.record
    deadline = time.monotonic() + SECONDS_TO_SEE
    while not (path.exists() and path.read_bytes() == content and order.source.exists()):
        if time.monotonic() > deadline:
            raise OSError(f"it doesn't see {str(path)!r} and {str(order.source)!r} as rank 0 does: give --io root")
        time.sleep(0.1)
