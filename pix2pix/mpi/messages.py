"""What ranks say to each other, and how: orders from rank 0, questions to it, and what happens when a rank is lost.

Waiting is polling, with a sleep in between: MPI's own waiting takes a whole core, which the engines need. Each rank
calls MPI from one thread at a time.
"""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from mpi4py import MPI

from ..atomic import process_name
from ..engines.base import Engine
from ..errors import RanksLostError
from ..factory import EngineOptions
from ..files.fitting import Fitting
from ..files.jobs import Job
from ..files.stream import Outcome
from ..model.generator import Generator, Weights

ROOT = 0
MESSAGE, ARRAY = 0, 1  # tags
POLL_SECONDS = 0.001
LOSSES = {MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED}  # what ULFM raises when a rank is lost


@dataclass(frozen=True)
class TakeModel:
    """An order: take part in the broadcast of the weights, of ``shapes`` (by name), and find this rank's share."""

    generator: Generator
    shapes: Mapping[str, tuple[int, ...]]
    device: str


@dataclass(frozen=True)
class BuildEngine:
    """An order: make an engine of the model, with these options. Answer: Facts."""

    options: EngineOptions


@dataclass(frozen=True)
class DoFiles:
    """An order: ask for jobs, and do them.

    ``record`` is a file (path, content) that rank 0 has written, ``source`` one of the pictures: each rank must see
    them.
    """

    fitting: Fitting
    batch_size: int
    thumbnail_edge: int | None
    record: tuple[Path, bytes]
    source: Path


@dataclass(frozen=True)
class Facts:
    """An answer: where this rank is and what it computes with, or why it cannot."""

    host: str = field(default_factory=platform.node)
    writer: str = field(default_factory=process_name)
    device: str = ""
    workers: int = 1
    error: str = ""

    @classmethod
    def of(cls, engine: Engine) -> Facts:
        """The facts of a rank that computes with ``engine``."""
        return cls(device=str(engine.info), workers=engine.info.workers)


@dataclass(frozen=True)
class Ask:
    """A question: more jobs? It says what became of the earlier ones, and the names of those that are in hand.

    ``idle``: nothing is in hand, the answer may wait. ``failed`` says why this rank cannot go on; ``fatal`` that no
    other can either.
    """

    outcomes: Sequence[tuple[Any, ...]] = ()
    holds: frozenset[str] = frozenset()
    idle: bool = False
    failed: str = ""
    fatal: bool = False


@dataclass(frozen=True)
class DoBatches:
    """An order: answer questions, until None comes."""


@dataclass(frozen=True)
class Question:
    """What becomes of pictures, of ``shape`` (N,H,W,C), that follow; or of values ``given`` to :meth:`Engine.run`?"""

    number: int
    shape: tuple[int, ...] | None
    given: Mapping[str, np.ndarray] | None
    outputs: Sequence[str]


@dataclass(frozen=True)
class Answer:
    """``values`` of layers, or pictures that follow, or why there are none."""

    number: int
    values: Mapping[str, np.ndarray] | None = None
    pictures: bool = False
    error: Exception | None = None


@dataclass(frozen=True)
class Dismissal:
    """An order, which may come instead of any answer: stop."""


PackedJob = tuple[str, str, str]
Jobs = list[PackedJob]  # the answer: empty if there is nothing for now; None instead ends the order


def packed_job(job: Job) -> PackedJob:
    """A job as strings: rank 0's time is what limits the number of ranks, and paths take long to pickle."""
    return str(job.source), str(job.output), job.name


def unpacked_job(packed: PackedJob) -> Job:
    """The inverse."""
    source, output, name = packed
    return Job(Path(source), Path(output), name)


def packed_outcome(outcome: Outcome) -> tuple[Any, ...]:
    """An outcome with the job's name in the place of the job."""
    return outcome.job.name, outcome.status, outcome.reason, outcome.metrics, outcome.thumbnails


@dataclass
class Link:
    """A communicator whose ranks keep their numbers when some of them are lost."""

    comm: MPI.Intracomm
    members: list[int] = field(init=False)  # the numbers of those who are left, in the communicator's order

    def __post_init__(self) -> None:
        self.comm = self.comm.Dup()
        self.members = list(range(self.comm.size))
        self.rank = self.comm.rank
        self._sending: list[MPI.Request] = []

    @property
    def others(self) -> list[int]:
        """All ranks that are left but this one."""
        return [rank for rank in self.members if rank != self.rank]

    def send(self, message: Any, rank: int, array: np.ndarray | None = None) -> None:
        """Send any object, and perhaps a C-contiguous array behind it. Raises RanksLostError.

        It doesn't wait for the other side, which may be sending too. The array must not change until then.
        """
        with self.mending():
            to = self.members.index(rank)
            self._sending.append(self.comm.isend(message, to, MESSAGE))
            if array is not None:
                self._sending.append(self.comm.Isend(array, to, ARRAY))

    def poll(self) -> tuple[int, Any] | None:
        """The next message (from, object) if one has come. Raises RanksLostError."""
        status = MPI.Status()
        with self.mending():
            self._sending = [request for request in self._sending if not request.test()[0]]
            if not self.comm.iprobe(tag=MESSAGE, status=status):
                return None
            return self.members[status.source], self.comm.recv(source=status.source, tag=MESSAGE)

    def receive_array(self, array: np.ndarray, rank: int) -> None:
        """Fill ``array`` with what ``rank`` has sent behind its message. Raises RanksLostError."""
        with self.mending():
            self.comm.Recv(array, self.members.index(rank), ARRAY)

    def flush(self) -> None:
        """Wait until all that was sent has gone. Raises RanksLostError."""
        with self.mending():
            for request in self._sending:
                request.wait()
            self._sending.clear()

    def receive(self) -> tuple[int, Any]:
        """The next message (from, object). Raises RanksLostError."""
        while (message := self.poll()) is None:
            time.sleep(POLL_SECONDS)
        return message

    @contextmanager
    def mending(self) -> Iterator[None]:
        """Around calls of MPI: when ranks are lost in them, the survivors agree on who is left. Raises RanksLostError.

        All survivors come here: whoever notices first revokes the communicator, which the others' next call tells.
        """
        try:
            yield
        except MPI.Exception as error:
            if error.Get_error_class() not in LOSSES:
                raise
            self.comm.Revoke()
            left = self.comm.Shrink()
            members = left.allgather(self.rank)
            lost = [rank for rank in self.members if rank not in members]
            self.comm, self.members = left, members
            self._sending.clear()
            raise RanksLostError(lost) from None


def reason(error: Exception) -> str:
    """What an exception says, or at least its name."""
    return str(error) or type(error).__name__


def broadcast(comm: MPI.Intracomm, shapes: Mapping[str, tuple[int, ...]], weights: Weights | None) -> Weights:
    """The weights of rank 0, on every rank: float32 arrays of ``shapes``. Rank 0 gives them, the others None."""
    result = {}
    for name, shape in shapes.items():
        array = np.empty(shape, np.float32) if weights is None else np.ascontiguousarray(weights[name], np.float32)
        comm.Bcast(array, ROOT)
        result[name] = array
    return result
