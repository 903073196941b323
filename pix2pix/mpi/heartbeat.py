"""Signs of life: a rank that hangs ends the job, and is named, instead of blocking it for ever.

A thread of each rank sends signs over a communicator of its own, whatever the other threads do: rank 0 to all others,
these to rank 0. It also notices calls of this rank that don't return, such as those of a GPU that hangs. MPI must allow
calls from several threads at once.
"""

from __future__ import annotations

import logging
import platform
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple, TypeVar

from .launch import RANK_TIMEOUT, abort
from .messages import POLL_SECONDS, ROOT

if TYPE_CHECKING:
    from mpi4py import MPI

LONGEST_PERIOD = 1.0  # seconds between two signs
FIRST_PERIOD = 0.05  # signs come sooner at first: they tell each rank's name, and the timeout of rank 0
SECONDS_AFTER_INTERRUPT = 10.0  # the timeout from then on
SECONDS_TO_END = 10.0  # that other threads have to report a failure and end the job

log = logging.getLogger(__name__)
T = TypeVar("T")


class Sign(NamedTuple):
    """What a rank sends: its name, its timeout, which the others take over from rank 0, and what is wrong with it."""

    name: str
    timeout: float
    problem: str
    last: bool


class Heartbeat:
    """Watches over this rank and those that it exchanges signs with over ``comm``.

    ``failure`` says which rank hangs, once one has for ``timeout`` seconds. Other threads then have SECONDS_TO_END to
    call :meth:`close`, or the job is aborted.
    """

    def __init__(self, comm: MPI.Intracomm, timeout: float = RANK_TIMEOUT) -> None:
        self.timeout, self.failure = timeout, ""
        self._comm, self._name = comm, f"rank {comm.rank} on {platform.node()}"
        self._clock = 0.0  # seconds for which the thread has run: a job that is suspended does not hang
        self._calls: dict[object, float] = {}  # when each watched call began, by the clock
        self._peers = list(range(1, comm.size)) if comm.rank == ROOT else [ROOT]
        self._names = {rank: f"rank {rank}" for rank in self._peers}
        self._heard = dict.fromkeys(self._peers, 0.0)  # when, by the clock; without those whose last sign has come
        self._problem = ""
        self._sending: list[MPI.Request] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pix2pix-heartbeat", daemon=True)

    def start(self) -> None:
        """Begin to send signs."""
        self._thread.start()

    def close(self) -> bool:
        """Exchange last signs. False if a rank hangs."""
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        return not self.failure

    def hurry(self) -> None:
        """The user has interrupted the job: wait for no rank for long."""
        self.timeout = min(self.timeout, SECONDS_AFTER_INTERRUPT)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Surrounds a call, of the engine or the disk, which must return within the timeout."""
        call = object()
        self._calls[call] = self._clock
        try:
            yield
        finally:
            del self._calls[call]

    def watch(self, iterator: Iterator[T]) -> Iterator[T]:
        """The items of an iterator, each of which must come within the timeout."""
        while True:
            with self.working():
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    # -- in the thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        before = time.monotonic()
        while not self._closing.wait(period := min(LONGEST_PERIOD, self.timeout / 8, FIRST_PERIOD + self._clock)):
            now = time.monotonic()
            self._clock += min(now - before, 2 * period)
            before = now
            self._send()
            self._receive()
            self.failure = self._find_failure()
            if self.failure:
                if not self._closing.wait(SECONDS_TO_END):
                    log.critical("%s", self.failure)
                    abort(self._comm, 1)
                return
        self._exchange_last()

    def _exchange_last(self) -> None:
        """MPI can be finalised when no sign is on its way."""
        self._send(last=True)
        start = time.monotonic()
        while self._heard and not self.failure:
            self._receive()
            if time.monotonic() - start > self.timeout:
                self.failure = f"{self._names[min(self._heard)]} does not end"
            time.sleep(POLL_SECONDS)

    def _send(self, last: bool = False) -> None:
        self._sending = [request for request in self._sending if not request.test()[0]]
        for rank in list(self._peers):
            try:
                self._sending.append(self._comm.isend(Sign(self._name, self.timeout, self._problem, last), rank))
            except RuntimeError:  # MPI's: the rank has died, which others notice
                self._forget(rank)

    def _receive(self) -> None:
        for rank in list(self._peers):
            try:
                while self._comm.iprobe(source=rank):
                    sign: Sign = self._comm.recv(source=rank)
                    self._names[rank], self._heard[rank] = sign.name, self._clock
                    if rank == ROOT:
                        self.timeout = sign.timeout
                    else:
                        self.failure = self.failure or sign.problem
                    if sign.last:
                        del self._heard[rank]
            except RuntimeError:
                self._forget(rank)

    def _forget(self, rank: int) -> None:
        self._peers.remove(rank)
        self._heard.pop(rank, None)

    def _find_failure(self) -> str:
        """What is wrong with this rank or others; rank 0 also ends the job for what others report."""
        longest = self._clock - min(list(self._calls.values()), default=self._clock)
        if longest > self.timeout:
            self._problem = f"{self._name} gave no result for {longest:.0f} s (--rank-timeout)"
        for rank, heard in self._heard.items():
            if self._clock - heard > self.timeout:
                return f"{self._names[rank]} gave no sign of life for {self._clock - heard:.0f} s (--rank-timeout)"
        return self.failure or (self._problem if self._comm.rank == ROOT else "")
