"""What ranks send each other: commands from rank 0, requests and their responses.

Rank 0 sends commands. While a command is carried out, the other ranks request jobs (:class:`TranslateFiles`), or
rank 0 requests results of their engines (:class:`ServeRequests`).
"""

from __future__ import annotations

import platform
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..atomic import process_name
from ..engines.base import Engine, EngineInfo
from ..factory import EngineOptions
from ..files.fitting import Fitting
from ..files.jobs import Job
from ..files.outcome import Outcome
from ..files.stream import translate_stream
from ..model.generator import Generator as Network

ROOT = 0
POLL_SECONDS = 0.001


@dataclass(frozen=True)
class ReceiveModel:
    """Command: take part in the broadcast of the weights, of ``shapes`` by name, and in :meth:`NodeShare.of`."""

    generator: Network
    shapes: Mapping[str, tuple[int, ...]]
    device: str


@dataclass(frozen=True)
class MakeEngine:
    """Command: make an engine of the model. The response is a :class:`RankInfo`."""

    options: EngineOptions


@dataclass(frozen=True)
class TranslateFiles:
    """Command: request jobs and do them, until the response is None.

    ``lock`` is a file (path, content) that rank 0 has written, ``source`` an input: each rank must see them.
    """

    fitting: Fitting
    batch_size: int
    thumbnail_edge: int | None
    lock: tuple[Path, bytes]
    source: Path

    def outcomes(
        self, engine: Engine, jobs: Iterator[Job], skipped: Sequence[Job] = ()
    ) -> Generator[Outcome, None, None]:
        """:func:`pix2pix.files.stream.translate_stream` as this command says."""
        options: dict[str, Any] = {"batch_size": self.batch_size, "thumbnail_edge": self.thumbnail_edge}
        return translate_stream(engine, jobs, self.fitting, skipped=skipped, **options)


@dataclass(frozen=True)
class ServeRequests:
    """Command: answer every :class:`EngineRequest` until None comes in its place."""


@dataclass(frozen=True)
class Shutdown:
    """Command, which may also come in place of a response: end."""


@dataclass(frozen=True)
class RankInfo:
    """Where a rank runs and what its engine computes with, or why it has none."""

    host: str = field(default_factory=platform.node)
    writer: str = field(default_factory=process_name)
    engine: EngineInfo = EngineInfo()
    error: str = ""


@dataclass(frozen=True)
class JobRequest:
    """A rank requests more jobs, and reports outcomes of earlier ones. The response is :data:`Jobs` or None.

    ``held`` are the names of its jobs without an outcome. An ``idle`` rank has none, so the response may take a while.
    ``failure`` is why the rank cannot go on; if ``fatal``, no other rank can either.
    """

    outcomes: Sequence[tuple[Any, ...]] = ()
    held: frozenset[str] = frozenset()
    idle: bool = False
    failure: str = ""
    fatal: bool = False


PackedJob = tuple[str, str, str, str | None]
Jobs = list[PackedJob]  # empty if there are none for now; None in its place ends the command


@dataclass(frozen=True)
class EngineRequest:
    """Rank 0 requests a translation of images, of ``shape`` (N,H,W,C), that follow; or :meth:`Engine.run`."""

    number: int
    shape: tuple[int, ...] | None
    inputs: Mapping[str, np.ndarray] | None
    outputs: Sequence[str]


@dataclass(frozen=True)
class CancelRequest:
    """Rank 0 no longer needs the response to a request, which comes all the same."""

    number: int


@dataclass(frozen=True)
class EngineResponse:
    """``values`` of layers, or ``images`` that follow, or the error; nothing for a cancelled request."""

    number: int
    values: Mapping[str, np.ndarray] | None = None
    images: bool = False
    error: Exception | None = None


def packed_job(job: Job) -> PackedJob:
    """A job as strings. Paths take long to pickle, and the time of rank 0 limits the number of ranks."""
    return str(job.source), str(job.output), job.name, None if job.instances is None else str(job.instances)


def unpacked_job(packed: PackedJob) -> Job:
    """The inverse of :func:`packed_job`."""
    source, output, name, instances = packed
    return Job(Path(source), Path(output), name, None if instances is None else Path(instances))


def packed_outcome(outcome: Outcome) -> tuple[Any, ...]:
    """An outcome with the job's name in place of the job. Its output is on the disk when it is sent."""
    return outcome.job.name, outcome.status, outcome.reason, outcome.metrics, outcome.thumbnails, outcome.made, True


def message_of(error: Exception) -> str:
    """The message of an exception, or its type's name if it has none."""
    return str(error) or type(error).__name__
