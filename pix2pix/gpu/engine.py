"""The GPU engine: walks the generator's layers with kernels written in Numba, on one GPU.

All of an engine's work is done by one thread of its own, which has the GPU selected: callers in many threads neither
need a CUDA context nor get in each other's way, and Ctrl-C interrupts a wait at once. Pictures travel as bytes through
pinned memory on streams of their own, so that a batch is computed while its neighbours are copied; the launches of a
batch are recorded as a CUDA graph when a size is first seen, and replayed from then on.

Results don't depend on how images are batched: each output is summed in an order that the plan alone says.
"""

from __future__ import annotations

import dataclasses
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from collections.abc import Generator as Stream
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from ..devices import gpu_name
from ..engines.base import BaseEngine, EngineInfo, Session
from ..model.generator import INPUT, Generator, Weights
from ..model.lowering import lower
from ..plans.heuristics import choose
from ..plans.plan import Plan
from .device import Device, simulator
from .forward import TensorForward
from .launches import MOST_IMAGES
from .packing import DeviceWeights

PIXELS_AT_ONCE = 64 * 256 * 256  # of a batch: more images than this gain nothing
SIZES_KEPT = 6  # numbers and sizes of images whose graphs are kept
T = TypeVar("T")


@dataclass(slots=True)
class Slot:
    """Memory through which one batch at a time travels, on its way in and out."""

    staged: np.ndarray  # pinned: (n, h, w, channels)
    result: np.ndarray
    b: Any  # the same in the GPU's memory, flat
    out: Any
    copied: Any  # events: the batch is there, the results are computed, the results are back
    computed: Any
    fetched: Any
    translate: Callable[[], None]  # all launches between b and out


@dataclass(slots=True)
class Size:
    """What is kept for n images of h x w."""

    forward: TensorForward
    free: list[Slot] = field(default_factory=list)
    graphs: dict[Any, Callable[[], None]] = field(default_factory=dict)


@dataclass(slots=True)
class Ticket:
    """A batch, or part of one, on its way: where it travels, and where its results go."""

    size: Size
    slot: Slot
    out: np.ndarray


class GpuEngine(BaseEngine):
    """Runs a generator on one GPU. See :class:`pix2pix.Engine` for the methods.

    ``precision`` is float32, or one that tensor cores compute in: tf32, float16 or bfloat16, all with sums in float32.
    ``index`` is the GPU's number. Under a plan that places layers elsewhere too, the engine holds and runs those on
    the GPU alone: it then can ``run`` from given layers to others, but not ``translate``. :meth:`share` makes more
    engines with the same weights.

    Raises ValueError for weights that don't fit the generator, for a plan that doesn't, and for layers that are not
    those of a U-Net; RuntimeError where there is no such GPU, or it lacks something, which is named.
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
        self.precision, self.index = precision, index
        self._leader = ThreadPoolExecutor(1, thread_name_prefix=f"pix2pix-cuda-{index}")
        self._thread = 0  # the leader's, once it has begun
        try:
            self._do(self._open, weights)
        except BaseException:
            self._leader.shutdown()
            raise

    def share(self) -> GpuEngine:
        """Another engine on the same GPU: with memory and streams of its own, but the same weights."""
        with self._usable():
            return GpuEngine(self.generator, self._weights, precision=self.precision, plan=self.plan, index=self.index)

    @property
    def info(self) -> EngineInfo:
        """The GPU, and how kernels are launched."""
        launches = "CUDA graphs" if self._device.has_graphs else "plain launches"
        description = f"cuda:{self.index} ({self._device.name}), {launches}"
        return dataclasses.replace(super().info, description=description)

    def _open(self, weights: Weights | DeviceWeights) -> None:
        self._thread = threading.get_ident()
        self._device = Device(self.index)
        if not isinstance(weights, DeviceWeights):
            weights = DeviceWeights(self.generator, weights, self.plan, self._device)
        self._weights = weights
        self._stream, self._inward, self._outward = (self._device.stream() for _ in range(3))
        self._no_memory = self._memory = self._device.empty(1)
        self._sizes: OrderedDict[tuple[int, int, int], Size] = OrderedDict()
        self.chunks.most_images = MOST_IMAGES

    # -- what BaseEngine asks for -----------------------------------------------------------------------------

    def _run(self, given: dict[str, np.ndarray], outputs: tuple[str, ...]) -> dict[str, np.ndarray]:
        h, w = self.image_size(given)
        n = next(iter(given.values())).shape[0]
        shapes = self.generator.shapes(h, w)
        results = {name: np.empty((n, *shapes[name]), np.float32) for name in outputs}

        def run_images(images: slice) -> None:
            part = {name: value[images] for name, value in given.items()}
            size = self._size(images.stop - images.start, h, w)
            self._compute(size, part, part, {name: value[images] for name, value in results.items()})

        self._do(self.chunks.run, (n, h, w), run_images, self.forget)
        return results

    def _translate(self, b: np.ndarray, out: np.ndarray, stop: threading.Event) -> None:
        try:
            self._do(lambda: self._finish(self._begin(b, out, stop)))
        except BaseException:
            stop.set()
            raise

    def stream(self, batches: Iterable[np.ndarray]) -> Stream[np.ndarray, None, None]:
        """Translate an iterable of uint8 batches, in order; while one is computed, its neighbours are copied.

        Each batch is copied when it comes, so that one array may be filled again and again. Closing the stream, or an
        interrupt, gives up what is not being computed yet.
        """
        stop = threading.Event()

        def begin(batch: np.ndarray) -> tuple[deque[Ticket], np.ndarray]:
            pictures, results, out = self._checked_batch(batch, None)
            with simulator():
                return self._begin(pictures, results, stop) if out.size else deque(), out

        pending: deque[Future[tuple[deque[Ticket], np.ndarray]]] = deque()
        try:
            for batch in batches:
                with self._usable():
                    pending.append(self._leader.submit(begin, batch))
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

    def _finished(self, future: Future[tuple[deque[Ticket], np.ndarray]]) -> np.ndarray:
        tickets, out = future.result()
        with self._usable():
            self._do(self._finish, tickets)
        return out

    def empty(self, n: int, h: int, w: int) -> np.ndarray:
        """An uninitialised uint8 (n,h,w,Cin) array in pinned memory."""
        self.generator.check_size(h, w)
        with self._usable():
            return self._do(self._device.pinned, (n, h, w, self.generator.in_channels), np.uint8)

    def session(self) -> Session:
        """Several runs over the same pictures, between which values stay in the GPU's memory."""
        return GpuSession(self)

    def _close(self) -> None:
        self._do(self._release)
        self._thread = 0
        self._leader.shutdown()

    # -- in the engine's own thread ---------------------------------------------------------------------------

    def _do(self, work: Callable[..., T], *arguments: Any) -> T:
        """``work`` in the engine's own thread. An interrupt leaves it to come to its end there."""
        if threading.get_ident() == self._thread:
            return work(*arguments)

        def do() -> T:
            with simulator():
                return work(*arguments)

        return self._leader.submit(do).result()

    def _release(self) -> None:
        self._let_go()
        del self._weights, self._memory, self._no_memory
        self._device.release()

    def _begin(self, b: np.ndarray, out: np.ndarray, stop: threading.Event) -> deque[Ticket]:
        """Send a batch on its way; returns what isn't back yet, at most two parts of it."""
        tickets: deque[Ticket] = deque()

        def begin(images: slice) -> None:
            if not stop.is_set():
                tickets.append(self._send(b[images], out[images]))
                if len(tickets) > 2:
                    self._fetch(tickets.popleft())

        try:
            self.chunks.run(b.shape[:3], begin, self.forget)
        except BaseException:
            self._finish(tickets)  # the GPU is still writing there
            raise
        return tickets

    def _send(self, b: np.ndarray, out: np.ndarray) -> Ticket:
        """Copy pictures to the GPU and start translating them."""
        size = self._size(*b.shape[:3])
        slot = size.free.pop() if size.free else self._slot(size)
        np.copyto(slot.staged, b)
        slot.b.copy_to_device(slot.staged.reshape(-1), stream=self._inward)
        slot.copied.record(self._inward)
        slot.copied.wait(self._stream)
        slot.translate()
        slot.computed.record(self._stream)
        slot.computed.wait(self._outward)
        slot.out.copy_to_host(slot.result.reshape(-1), stream=self._outward)
        slot.fetched.record(self._outward)
        return Ticket(size, slot, out)

    def _finish(self, tickets: deque[Ticket]) -> None:
        while tickets:
            self._fetch(tickets.popleft())

    def _fetch(self, ticket: Ticket) -> None:
        """Wait for results, and put them where they belong."""
        ticket.slot.fetched.synchronize()
        np.copyto(ticket.out, ticket.slot.result)
        ticket.size.free.append(ticket.slot)

    def _compute(
        self,
        size: Size,
        given: Mapping[str, np.ndarray],
        known: Collection[str],
        results: Mapping[str, np.ndarray],
        keep: Collection[str] = (),
    ) -> None:
        """Fill ``results``, and the maps ``keep``, from those of ``known``, of which ``given`` are still to be set."""
        forward, last = size.forward, self.generator.layers[-1].name
        wanted = frozenset(name for name in (*results, *keep) if name not in known)
        needed = {source.layer for layer in self.program.needed(tuple(wanted), known) for source in layer.sources}
        for name, value in given.items():
            if name in needed or name in keep:
                part = forward.transfer[: value.size]
                part.copy_to_device(np.ascontiguousarray(value).reshape(-1), stream=self._stream)
                forward.set_map(name, part, forward.n)
        picture = forward.transfer[: forward.n * forward.h * forward.w * self.generator.out_channels]
        key = frozenset(known), wanted
        if key not in size.graphs:
            size.graphs[key] = self._device.graph(lambda: forward.compute(*key, picture), self._stream)
        size.graphs[key]()
        for name in sorted(results, key=lambda name: name != last):  # the picture first: it lies where others go
            if name in given:
                results[name][...] = given[name]
                continue
            part = forward.transfer[: results[name].size]
            if name != last:
                forward.get_map(name, part, forward.n)
            part.copy_to_host(results[name].reshape(-1), stream=self._stream)
        self._stream.synchronize()

    # -- memory -----------------------------------------------------------------------------------------------

    def _size(self, n: int, h: int, w: int) -> Size:
        """What is kept for n images of h x w, in the memory that all sizes share. Raises MemoryError."""
        key = (n, h, w)
        if key in self._sizes:
            self._sizes.move_to_end(key)
            return self._sizes[key]
        if n > MOST_IMAGES:
            raise MemoryError(f"got {n} images to keep in the GPU's memory, it takes {MOST_IMAGES} at a time")
        needed = TensorForward.floats(self._weights, n, h, w)
        if needed > self._memory.size:
            self._let_go()
            self._memory = self._device.empty(needed)
        size = Size(TensorForward(self._weights, n, h, w, self._memory, self._stream))
        self._add_constants(size.forward)
        self._sizes[key] = size
        while len(self._sizes) > SIZES_KEPT:
            self._sizes.popitem(last=False)
        return size

    def forget(self) -> None:
        """Free what is kept for the sizes that the engine has seen."""
        self._do(self._let_go)

    def _let_go(self) -> None:
        self._stream.synchronize()
        self._outward.synchronize()
        self._sizes.clear()
        self._memory = self._no_memory
        self._device.release()

    def _add_constants(self, forward: TensorForward) -> None:
        """The values of those layers of this engine that are the same for every picture of the size.

        What they read is either constant too, or makes no difference: zeros do.
        """
        shapes = self.generator.shapes(forward.h, forward.w)
        constants = lower(self._weights.generator).constants(forward.h, forward.w)
        read = {source.layer for name in constants for source in self.generator[name].inputs}
        zeros = read.difference(constants)
        known = {*zeros}
        for name in constants:
            if name in self.layers and known.issuperset(source.layer for source in self.generator[name].inputs):
                known.add(name)
        found = known - zeros
        if not found:
            return
        for name in zeros:
            forward.set_map(name, self._device.upload(np.zeros(shapes[name], np.float32)), 1)
        forward.compute(zeros, found, None)
        values = {name: self._device.empty(int(np.prod(shapes[name]))) for name in found}
        for name, value in values.items():
            forward.get_map(name, value, 1)
        self._stream.synchronize()
        forward.constants = values

    def _slot(self, size: Size) -> Slot:
        """Memory for one more batch on its way."""
        forward, last = size.forward, self.generator.layers[-1].name
        n, h, w = forward.n, forward.h, forward.w
        staged = self._device.pinned((n, h, w, self.generator.in_channels), np.uint8)
        result = self._device.pinned((n, h, w, self.generator.out_channels), np.uint8)
        b, out = self._device.empty(staged.size, np.uint8), self._device.empty(result.size, np.uint8)

        def work() -> None:
            forward.set_pictures(b)
            forward.compute({INPUT}, (last,), out)

        copied, computed, fetched = (self._device.event() for _ in range(3))
        return Slot(staged, result, b, out, copied, computed, fetched, self._device.graph(work, self._stream))


class GpuSession(Session):
    """A session that keeps values in the GPU's memory, and the engine to itself from its beginning to its end.

    ``run`` raises MemoryError for more images than the GPU has memory for.
    """

    def __init__(self, engine: GpuEngine) -> None:
        self._gpu = engine
        self._known: frozenset[str] = frozenset()
        self._stack = ExitStack()

    def __enter__(self) -> GpuSession:
        self._stack.enter_context(self._gpu._usable())
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stack.close()

    def run(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], keep: Collection[str] = ()
    ) -> dict[str, np.ndarray]:
        """See :meth:`pix2pix.engines.base.Session.run`."""
        return self._gpu._do(self._run, inputs, outputs, keep)

    def _run(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], keep: Collection[str]
    ) -> dict[str, np.ndarray]:
        if inputs:
            h, w = self._gpu.image_size(inputs)
            self._size = self._gpu._size(next(iter(inputs.values())).shape[0], h, w)
        forward = self._size.forward
        shapes = self._gpu.generator.shapes(forward.h, forward.w)
        results = {name: np.empty((forward.n, *shapes[name]), np.float32) for name in outputs}
        self._gpu._compute(self._size, inputs, self._known.union(inputs), results, keep)
        self._known = frozenset(keep)
        return results
