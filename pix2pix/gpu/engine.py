"""The GPU engine: runs the forward pass with kernels written in Numba, on one GPU.

All of an engine's work is done by one thread of its own, which has the GPU selected: callers in many threads neither
need a CUDA context nor get in each other's way, and Ctrl-C interrupts a wait at once. The launches for a size are
recorded as a CUDA graph when that size is first seen, and replayed from then on.

Results don't depend on how images are batched: each output is summed in an order that the plan alone determines.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Generator as Stream
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from ..devices import gpu_name
from ..engines.base import BaseEngine, EngineInfo, Session
from ..engines.execution import ForwardPass, Maps
from ..model.generator import Generator, Weights
from ..plans.heuristics import choose
from ..plans.plan import Plan
from .device import SIMULATOR, Device, detached, selected
from .forward import MOST_IMAGES, GpuBackend, GpuContext
from .packing import DeviceWeights
from .staging import InFlight, Pipeline

PIXELS_AT_ONCE = 64 * 256 * 256  # of a batch: more images than this gain nothing
CONTEXTS_KEPT = 6  # of different sizes or numbers of images, with their graphs
T = TypeVar("T")

log = logging.getLogger(__name__)


class Outcome(NamedTuple, Generic[T]):
    """What work gave in the engine's thread: one result, or an error."""

    results: list[T]
    error: Exception | None = None

    def get(self) -> T:
        """The result. Raises the error."""
        if self.error is not None:
            raise self.error
        return self.results[0]


class GpuEngine(BaseEngine):
    """Runs a generator on one GPU. See :class:`pix2pix.Engine` for the methods.

    ``precision`` is float32, or one that tensor cores compute in: tf32, float16 or bfloat16, all with sums in float32.
    ``index`` is the GPU's number. Under a plan that places layers elsewhere too, the engine holds and runs those on
    the GPU alone: it then can ``run`` from given layers to others, but not ``translate``. :meth:`share` makes more
    engines with the same weights.

    For benchmarks and sessions: ``device``, ``weights``, ``forward_pass``, ``pipeline`` and ``compute_stream`` are to
    be used within :meth:`do` alone.

    Raises ValueError for weights that don't fit the generator, for a plan that doesn't, and for layers that the engine
    has no kernel for; RuntimeError where there is no such GPU, or it lacks something, which is named. Methods raise
    RuntimeError if the driver reports an error; a GPU that was lost gives one for every call until the process ends.
    """

    def __init__(
        self,
        generator: Generator,
        weights: Weights | DeviceWeights,
        *,
        precision: str = "float32",
        tune: str = "throughput",
        plan: Plan | str | os.PathLike[str] | None = None,
        index: int = 0,
    ) -> None:
        self.plan = choose(generator, tune, plan, precision, "cuda", gpu_name(index))
        info = EngineInfo(f"cuda:{index}", precision=precision, plan=self.plan, pixels_at_once=PIXELS_AT_ONCE)
        super().__init__(generator, self.plan.layers_on("cuda"), info)
        if not isinstance(weights, DeviceWeights):
            generator.check_weights(weights)
        self.index = index
        self.chunks.most_images = MOST_IMAGES
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"pix2pix-cuda-{index}")
        self._thread = 0  # the executor's, once it has begun
        self._deferring: Callable[[], AbstractContextManager[None]] = nullcontext  # the device's, once there is one
        self._flying: dict[int, deque[InFlight]] = {}  # batches of streams: callers may keep them, not what they hold
        try:
            self.do(self._open, weights)
        except BaseException:
            self._executor.shutdown()
            raise

    def share(self) -> GpuEngine:
        """Another engine on the same GPU: with memory and streams of its own, but the same weights."""
        with self._usable():
            precision = self._info.precision
            return GpuEngine(self.generator, self.weights, precision=precision, plan=self.plan, index=self.index)

    @property
    def info(self) -> EngineInfo:
        """The GPU, and how kernels are launched."""
        launches = "CUDA graphs" if self.device.has_graphs else "plain launches"
        return dataclasses.replace(super().info, description=f"cuda:{self.index} ({self.device.name}), {launches}")

    def do(self, work: Callable[..., T], *arguments: Any) -> T:
        """``work`` in the engine's own thread. If the wait is interrupted, the work still runs to its end there."""
        if threading.get_ident() == self._thread:
            return work(*arguments)

        return self._submit(work, *arguments).result().get()

    def _submit(self, work: Callable[..., T], *arguments: Any) -> Future[Outcome[T]]:
        """Have ``work`` done in the engine's own thread."""

        def do() -> Outcome[T]:
            with SIMULATOR:
                try:
                    return Outcome([work(*arguments)])
                except Exception as error:
                    with self._deferring():
                        return Outcome([], detached(error, f"cuda:{self.index}"))

        return self._executor.submit(do)

    def _open(self, weights: Weights | DeviceWeights) -> None:
        self._thread = threading.get_ident()
        self.device = Device(self.index)
        self._deferring = self.device.deferring
        if not isinstance(weights, DeviceWeights):
            weights = DeviceWeights(self.generator, weights, self.plan, self.device)
        self.weights = weights
        self.compute_stream, inward, outward = (self.device.stream() for _ in range(3))
        backend = GpuBackend(weights, self.device, self.compute_stream, outward)
        self.forward_pass = ForwardPass(weights.program, self.layers, backend, CONTEXTS_KEPT)
        self.pipeline = Pipeline(self.device, self.forward_pass, self.compute_stream, (inward, outward))

    # -- what BaseEngine asks for -----------------------------------------------------------------------------

    def _compute(self, given: Maps, results: Maps, stop: threading.Event) -> None:
        self.do(super()._compute, given, results, stop)

    def _compute_chunk(self, given: Maps, results: Maps, stop: threading.Event) -> None:
        self.forward_pass.compute(given, results, stop)

    def _translate(self, b: np.ndarray, out: np.ndarray, stop: threading.Event) -> None:
        try:
            self.do(lambda: self.pipeline.finish(self.pipeline.begin(b, out, self.chunks, stop)))
        except BaseException:
            stop.set()
            raise

    def stream(self, batches: Iterable[np.ndarray]) -> Stream[np.ndarray, None, None]:
        """See :meth:`BaseEngine.stream`. While a batch is computed, its neighbours are copied."""
        stop = threading.Event()

        def begin(batch: np.ndarray) -> tuple[deque[InFlight], np.ndarray]:
            images, results, out = self._checked_batch(batch, None)
            flying = self.pipeline.begin(images, results, self.chunks, stop) if out.size else deque()
            self._flying[id(flying)] = flying
            return flying, out

        pending: deque[Future[Outcome[tuple[deque[InFlight], np.ndarray]]]] = deque()
        try:
            for batch in batches:
                with self._usable():
                    pending.append(self._submit(begin, batch))
                wait(pending)
                if len(pending) > 1:
                    yield self._finished(pending.popleft())
            while pending:
                yield self._finished(pending.popleft())
        finally:
            stop.set()
            for future in pending:  # what is being computed comes to its end before its memory is given up
                with suppress(Exception):
                    self._finished(future)

    def _finished(self, future: Future[Outcome[tuple[deque[InFlight], np.ndarray]]]) -> np.ndarray:
        flying, out = future.result().get()
        with self._usable():
            self.do(self._finish, flying)
        return out

    def _finish(self, flying: deque[InFlight]) -> None:
        try:
            self.pipeline.finish(flying)
        finally:
            self._flying.pop(id(flying)).clear()

    def empty(self, n: int, h: int, w: int) -> np.ndarray:
        """An uninitialised uint8 (n,h,w,Cin) array in pinned memory."""
        self.generator.check_size(h, w)
        with self._usable():
            return self.do(self.device.lent, (n, h, w, self.generator.in_channels), np.uint8)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """See :class:`GpuSession`."""
        with self._usable():
            session = GpuSession(self)
            try:
                yield session
            finally:
                self.do(session.close)

    def forget(self) -> None:
        self.do(self.forward_pass.forget)

    def _close(self) -> None:
        self.do(self._release)
        self._thread = 0
        self._executor.shutdown()

    def __del__(self) -> None:
        """Free what an engine holds that nobody closed: here, for the garbage collector may not wait for a thread."""
        with suppress(Exception):  # the engine was not made, or the process ends
            if not self._closed and os.getpid() == self._pid:
                self._closed = True
                with selected(self.index):
                    self._release()

    def _release(self) -> None:
        """Free everything. A lost GPU frees nothing more, which is logged."""
        with self._deferring():
            self._attempt(self.forward_pass.forget)
            for flying in self._flying.values():
                flying.clear()
            del self.weights, self.forward_pass, self.pipeline, self.compute_stream
        self._attempt(self.device.close)

    def _attempt(self, call: Callable[[], None]) -> None:
        try:
            call()
        except Exception as error:
            log.warning("%s, and its memory is not freed", detached(error, f"cuda:{self.index}"))


class GpuSession(Session):
    """A session that keeps values in the GPU's memory, and the engine to itself from its beginning to its end.

    ``run`` raises MemoryError for more images than the GPU has memory for.
    """

    def __init__(self, engine: GpuEngine) -> None:
        self._gpu = engine
        self._context: GpuContext | None = None
        self._known: frozenset[str] = frozenset()

    def run(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], keep: Collection[str] = ()
    ) -> dict[str, np.ndarray]:
        """See :meth:`pix2pix.engines.base.Session.run`."""
        forward_pass = self._gpu.forward_pass

        def compute() -> dict[str, np.ndarray]:
            context = forward_pass.context(*forward_pass.program.batch_of(inputs)) if inputs else self._context
            if context is None:
                raise ValueError("got no inputs in the first run of a session")
            self._context = context
            results = {name: np.empty((context.n, *context.shapes[name]), np.float32) for name in outputs}
            forward_pass.compute_in(context, inputs, results, kept=self._known, keep=keep)
            self._known = frozenset(keep)
            return results

        return self._gpu.do(compute)

    def close(self) -> None:
        """Let go of the values, in the engine's thread."""
        self._context = None
