"""An MPI communicator that survives the loss of ranks, where the MPI implements ULFM.

Waiting is polling with sleeps in between: MPI's own waiting occupies a core, which the engines need. Each rank uses a
communicator from one thread at a time.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import numpy as np
from mpi4py import MPI

from ..errors import RankHungError, RanksLostError
from ..model.generator import Weights
from .heartbeat import Heartbeat
from .launch import RANK_TIMEOUT, abort
from .messages import POLL_SECONDS, ROOT

MESSAGE, ARRAY = 0, 1  # tags
log = logging.getLogger(__name__)
ULFM_ERRORS = {MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED}


class Communicator:
    """Sends objects and arrays between ranks. A rank keeps its number when others are lost.

    All methods raise RanksLostError when ranks have died; ``members`` are those left, in the order of ``comm``. Waiting
    for messages raises RankHungError when ``heartbeat`` finds that a rank hangs.
    """

    def __init__(self, comm: MPI.Intracomm, timeout: float = RANK_TIMEOUT) -> None:
        self.comm = comm.Dup()
        self.members = list(range(comm.size))
        self.rank = comm.rank
        self._sending: list[MPI.Request] = []
        self.heartbeat = Heartbeat(comm.Dup(), timeout)
        if MPI.Query_thread() >= MPI.THREAD_MULTIPLE:
            self.heartbeat.start()
        elif self.rank == ROOT:
            log.warning("this MPI cannot be called from several threads at once: ranks that hang will not be noticed")

    @property
    def others(self) -> list[int]:
        """All members but this rank."""
        return [rank for rank in self.members if rank != self.rank]

    def send(self, message: Any, rank: int, array: np.ndarray | None = None) -> None:
        """Start to send an object, and perhaps a C-contiguous array after it.

        It doesn't wait for the receiver, which may be sending too. The array must not change until it has arrived.
        """
        with self.survivable():
            to = self.members.index(rank)
            self._sending.append(self.comm.isend(message, to, MESSAGE))
            if array is not None:
                self._sending.append(self.comm.Isend(array, to, ARRAY))

    def poll(self) -> tuple[int, Any] | None:
        """The next message as (sender, object), or None if there is none."""
        if self.heartbeat.failure:
            raise RankHungError(self.heartbeat.failure)
        status = MPI.Status()
        with self.survivable():
            self._sending = [request for request in self._sending if not request.test()[0]]
            if not self.comm.iprobe(tag=MESSAGE, status=status):
                return None
            return self.members[status.source], self.comm.recv(source=status.source, tag=MESSAGE)

    def receive(self) -> tuple[int, Any]:
        """Wait for the next message, (sender, object)."""
        while (message := self.poll()) is None:
            time.sleep(POLL_SECONDS)
        return message

    def receive_array(self, array: np.ndarray, rank: int) -> None:
        """Fill ``array`` with the one that ``rank`` sent after its message."""
        with self.survivable():
            self.comm.Recv(array, self.members.index(rank), ARRAY)

    def flush(self) -> None:
        """Wait until everything has been sent."""
        with self.survivable():
            for request in self._sending:
                request.wait()
            self._sending.clear()

    def close(self) -> None:
        """Collective. If a rank hangs, this ends the job, because MPI's own end would wait for that rank."""
        if not self.heartbeat.close():
            log.critical("%s", self.heartbeat.failure)
            sys.stdout.flush()
            sys.stderr.flush()
            abort(self.comm, 1)

    def broadcast(self, shapes: Mapping[str, tuple[int, ...]], weights: Weights | None) -> Weights:
        """The weights of rank 0, float32 of ``shapes`` by name. Collective; the other ranks pass None."""
        result = {}
        with self.survivable():
            for name, shape in shapes.items():
                array = (
                    np.empty(shape, np.float32) if weights is None else np.ascontiguousarray(weights[name], np.float32)
                )
                self.comm.Bcast(array, ROOT)
                result[name] = array
        return result

    @contextmanager
    def survivable(self) -> Iterator[None]:
        """Surrounds calls of MPI. If ranks die meanwhile, the survivors agree on a new communicator.

        All survivors get here: the first one that notices revokes the communicator, so that the next call of every
        other one fails.
        """
        try:
            yield
        except MPI.Exception as error:
            if error.Get_error_class() not in ULFM_ERRORS:
                raise
            self.comm.Revoke()
            shrunk = cast("MPI.Intracomm", self.comm.Shrink())
            members = shrunk.allgather(self.rank)
            lost = [rank for rank in self.members if rank not in members]
            self.comm, self.members = shrunk, members
            self._sending.clear()
            raise RanksLostError(lost) from None
