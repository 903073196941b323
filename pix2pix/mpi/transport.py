"""Requests from rank 0 to the engines of other ranks.

A thread of rank 0 sends requests and receives responses, and is the only one to call MPI meanwhile.
"""

from __future__ import annotations

import itertools
import queue
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import RanksLostError
from .messages import POLL_SECONDS, CancelRequest, EngineRequest, EngineResponse, ServeRequests

if TYPE_CHECKING:
    from .ranks import RankTable


@dataclass(eq=False)
class PendingRequest:
    """A request to the engine of ``rank``: translate ``b`` into ``out``, uint8 C-contiguous (N,H,W,C), or run it.

    ``result`` is set when ``out`` is filled, or to what :meth:`Engine.run` returns, or to an error: RuntimeError if the
    engine or the rank failed, otherwise what the engine raises.
    """

    rank: int
    b: np.ndarray | None = None
    out: np.ndarray | None = None
    inputs: Mapping[str, np.ndarray] | None = None
    outputs: Sequence[str] = ()
    result: Future[Any] = field(default_factory=Future)
    number: int = -1  # once it is sent
    cancelled: bool = False


class Transport:
    """Carries requests of any threads to ranks, which serve them until :meth:`close`."""

    def __init__(self, ranks: RankTable) -> None:
        self._ranks, self._comm = ranks, ranks.comm
        self._outgoing: queue.SimpleQueue[PendingRequest] = queue.SimpleQueue()
        self._closing = threading.Event()
        self._failure: Exception | None = None  # of the thread; later requests fail with it
        # The thread alone uses these:
        self._uncommanded = set(self._comm.others)  # ranks that have not been sent the command to serve requests
        self._unanswered: dict[int, PendingRequest] = {}  # by number
        self._numbers = itertools.count()
        self._thread = threading.Thread(target=self._run, name="pix2pix-mpi")
        self._thread.start()

    def submit(self, pending: PendingRequest) -> Future[Any]:
        """Send a request; returns its result to come."""
        self._outgoing.put(pending)
        if self._failure is not None:  # the thread may have ended before it could see the request
            self._fail_all(self._failure)
        return pending.result

    def cancel(self, pending: PendingRequest) -> None:
        """Have the rank stop computing. The result is set soon, and ``out`` is not changed after that."""
        pending.cancelled = True
        self.submit(pending)

    def close(self) -> None:
        """End the command when every request has been answered."""
        self._closing.set()
        self._thread.join()

    # -- in the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            while self._unanswered or not self._closing.is_set():
                try:
                    if not self._step():
                        time.sleep(POLL_SECONDS)
                except RanksLostError as loss:
                    self._resend_after(loss.ranks)
            self._ranks.command(None)
        except Exception as error:
            self._failure = error
            self._fail_all(error)

    def _step(self) -> bool:
        """Send or receive one message; False if there is none."""
        if self._uncommanded:
            self._comm.send(ServeRequests(), rank := min(self._uncommanded))
            self._uncommanded.discard(rank)
        elif message := self._comm.poll():
            self._receive(*message)
        elif not self._outgoing.empty():
            self._send(self._outgoing.get())
        else:
            return False
        return True

    def _send(self, pending: PendingRequest) -> None:
        if pending.cancelled:
            if not pending.result.done():
                if pending.number in self._unanswered:
                    self._comm.send(CancelRequest(pending.number), pending.rank)
                pending.result.set_result(None)
        elif pending.rank in self._comm.members:
            pending.number = next(self._numbers)
            self._unanswered[pending.number] = pending
            shape = None if pending.b is None else pending.b.shape
            request = EngineRequest(pending.number, shape, pending.inputs, pending.outputs)
            self._comm.send(request, pending.rank, pending.b)
        else:
            pending.result.set_exception(RuntimeError(self._ranks.lost[pending.rank]))

    def _receive(self, rank: int, response: EngineResponse) -> None:
        pending = self._unanswered[response.number]
        cancelled = pending.result.done()
        if pending.out is not None and response.images:
            self._comm.receive_array(np.empty_like(pending.out) if cancelled else pending.out, rank)
        del self._unanswered[response.number]
        if isinstance(response.error, RuntimeError):
            self._ranks.lose(rank, str(response.error))
        if cancelled:
            return
        if response.error is not None:
            pending.result.set_exception(response.error)
        else:
            self._ranks.done[rank] += 0 if pending.b is None else len(pending.b)
            pending.result.set_result(response.values)

    def _resend_after(self, lost: Sequence[int]) -> None:
        """Go on without some ranks. Messages of the others were lost too, so their requests are sent again."""
        for rank in lost:
            self._uncommanded.discard(rank)
            self._ranks.lose(rank, "lost")
        for pending in self._unanswered.values():
            self._outgoing.put(pending)
        self._unanswered.clear()

    def _fail_all(self, error: Exception) -> None:
        unsent = []
        with suppress(queue.Empty):
            while True:
                unsent.append(self._outgoing.get_nowait())
        for pending in [*self._unanswered.values(), *unsent]:
            if not pending.result.done():
                pending.result.set_exception(error)
