"""Every rank but rank 0: carries out rank 0's commands until it is shut down."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engines.base import Engine
from ..engines.pool import REQUEST_ERRORS
from ..errors import RankHungError, RanksLostError, RootLostError
from ..factory import make_engine
from ..files.durable import sync
from ..files.jobs import Job
from ..model.generator import Generator, Weights
from .messages import (
    POLL_SECONDS,
    ROOT,
    CancelRequest,
    EngineRequest,
    EngineResponse,
    JobRequest,
    Jobs,
    MakeEngine,
    RankInfo,
    ReceiveModel,
    ServeRequests,
    Shutdown,
    TranslateFiles,
    message_of,
    packed_outcome,
    unpacked_job,
)
from .resources import NodeShare

if TYPE_CHECKING:
    from .communicator import Communicator

SECONDS_TO_APPEAR = 5.0  # how long a file that another host has written may take to be seen

Computed = tuple[EngineResponse, np.ndarray | None]


class _EndOfCommand(Exception):
    """Rank 0 ended a command that is not finished yet."""


class _Shutdown(Exception):
    """Rank 0 ended the job."""


class Worker:
    """One such rank."""

    def __init__(self, comm: Communicator) -> None:
        self.comm = comm
        self.engine: Engine
        self._open = ExitStack()  # closes the engine
        self._model: tuple[Generator, Weights]
        self._share: NodeShare
        self._outcomes: list[tuple[Any, ...]] = []  # packed; not reported yet
        self._not_synced: list[Path] = []  # outputs of these that may not be on the disk yet
        self._held: set[str] = set()  # names of this rank's jobs without an outcome

    def serve(self) -> None:
        """Carry out commands until shut down. Raises RootLostError, and RankHungError if rank 0 hangs."""
        commands: dict[type, Callable[[Any], None]] = {
            ReceiveModel: self._receive_model,
            MakeEngine: self._make_engine,
            TranslateFiles: self._translate_files,
            ServeRequests: self._serve_requests,
        }
        with self._open, suppress(_Shutdown):
            while True:
                with suppress(_EndOfCommand), self._survive():
                    command = self._receive()
                    commands[type(command)](command)
        self.comm.close()

    def _receive(self) -> Any:
        """The next message of rank 0."""
        return self._checked(self.comm.receive())

    @staticmethod
    def _checked(message: tuple[int, Any]) -> Any:
        if isinstance(message[1], Shutdown):
            raise _Shutdown
        return message[1]

    @contextmanager
    def _survive(self) -> Iterator[None]:
        """Leave the block when other ranks are lost, and go on after it: rank 0 redistributes their work."""
        try:
            yield
        except RanksLostError as loss:
            if ROOT in loss.ranks:
                raise RootLostError("rank 0 is lost, which leads the others") from None

    # -- the engine -------------------------------------------------------------------------------------------

    def _receive_model(self, command: ReceiveModel) -> None:
        self._model = command.generator, self.comm.broadcast(command.shapes, None)
        with self.comm.survivable():
            self._share = NodeShare.of(self.comm.comm, command.device)

    def _make_engine(self, command: MakeEngine) -> None:
        try:
            with self.comm.heartbeat.working():
                self.engine = make_engine(*self._model, self._share.options(command.options), release=True)
            self._open.callback(self.engine.close)
            response = RankInfo(engine=self.engine.info)
        except (ValueError, RuntimeError, OSError, MemoryError) as error:
            response = RankInfo(error=message_of(error))
        del self._model  # the engine has packed its own copy
        self.comm.send(response, ROOT)

    # -- files ------------------------------------------------------------------------------------------------

    def _translate_files(self, command: TranslateFiles) -> None:
        """Request jobs and do them, until all are done: jobs of lost ranks may be handed out late."""
        self._outcomes, self._not_synced, self._held = [], [], set()
        try:
            _wait_for_files(command)
            while first := self._request_jobs(idle=True):
                with closing(command.outcomes(self.engine, chain(first, self._later_jobs()))) as outcomes:
                    for outcome in self.comm.heartbeat.watch(outcomes):
                        self._outcomes.append(packed_outcome(outcome))
                        self._not_synced.append(outcome.job.output)
                        self._held.discard(outcome.job.name)
        except (RootLostError, RankHungError):
            raise
        except (OSError, RuntimeError, ValueError, MemoryError) as error:
            self._request_jobs(failure=message_of(error), fatal=not isinstance(error, RuntimeError))

    def _later_jobs(self) -> Iterator[Job]:
        while jobs := self._request_jobs():
            yield from jobs

    def _request_jobs(self, idle: bool = False, failure: str = "", fatal: bool = False) -> list[Job] | None:
        """Report outcomes and request jobs, see :class:`JobRequest`. None at the end, if idle or failed."""
        not_synced, self._not_synced = self._not_synced, []
        with self.comm.heartbeat.working():
            sync(not_synced)
        while True:
            request = JobRequest(self._outcomes, frozenset(self._held), idle, failure, fatal)
            with self._survive():  # the loss of a rank loses messages of all: then the request is sent again
                self.comm.send(request, ROOT)
                packed: Jobs | None = self._receive()
                break
        self._outcomes = []
        if packed is None:
            if idle or failure:
                return None
            raise _EndOfCommand
        jobs = [unpacked_job(job) for job in packed]
        self._held |= {job.name for job in jobs}
        return jobs

    # -- requests to the engine -------------------------------------------------------------------------------

    def _serve_requests(self, command: ServeRequests) -> None:
        """Compute results while images of other requests arrive or leave."""
        running: dict[int, tuple[Future[Computed], threading.Event]] = {}
        with ThreadPoolExecutor(self.engine.info.workers + 1) as executor:
            try:
                while True:
                    with self._survive():
                        if message := self.comm.poll():
                            request = self._checked(message)
                            if request is None:
                                return
                            if isinstance(request, CancelRequest):
                                if request.number in running:
                                    running[request.number][1].set()
                                continue
                            stop = threading.Event()
                            future = executor.submit(self._compute, request, self._images(request), stop)
                            running[request.number] = future, stop
                        elif done := [number for number, (future, _) in running.items() if future.done()]:
                            response, images = running.pop(done[0])[0].result()
                            self.comm.send(response, ROOT, images)
                        else:
                            time.sleep(POLL_SECONDS)
                        continue
                    self._cancel(running)  # rank 0 sends the requests again
            finally:
                self._cancel(running)

    @staticmethod
    def _cancel(running: dict[int, tuple[Future[Computed], threading.Event]]) -> None:
        for _, stop in running.values():
            stop.set()
        running.clear()

    def _images(self, request: EngineRequest) -> np.ndarray | None:
        if request.shape is None:
            return None
        b = np.empty(request.shape, np.uint8)
        self.comm.receive_array(b, ROOT)
        return b

    def _compute(self, request: EngineRequest, b: np.ndarray | None, stop: threading.Event) -> Computed:
        """The response to a request, and images to send after it."""
        try:
            with self.comm.heartbeat.working():
                if b is None:
                    values = self.engine.run(inputs=request.inputs, outputs=request.outputs)
                    return EngineResponse(request.number, values), None
                images = self.engine.translate_until(stop, b)
            if stop.is_set():
                return EngineResponse(request.number), None
            return EngineResponse(request.number, images=True), images
        except REQUEST_ERRORS as error:
            kind = next(kind for kind in REQUEST_ERRORS if isinstance(error, kind))
            return EngineResponse(request.number, error=kind(*error.args[:1])), None
        except Exception as error:
            return EngineResponse(request.number, error=RuntimeError(message_of(error))), None


def _wait_for_files(command: TranslateFiles) -> None:
    """Raise OSError unless this rank sees rank 0's files; on a network's file system they may appear late."""
    path, content = command.lock
    deadline = time.monotonic() + SECONDS_TO_APPEAR
    while not (path.exists() and path.read_bytes() == content and command.source.exists()):
        if time.monotonic() > deadline:
            raise OSError(f"it doesn't see {str(path)!r} and {str(command.source)!r} as rank 0 does: give --io root")
        time.sleep(0.1)
