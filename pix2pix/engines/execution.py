"""The forward pass, written once for every engine: what to compute, in which order, on how many images at a time.

A backend supplies memory and arithmetic: a :class:`Context` holds the values of n images of one size and runs one
operation at a time. This module decides which operations are needed for what was asked for, which of them are constants
of a size and computed once, how a batch is cut into chunks, and what is let go of when memory ends.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import numpy as np

from ..model.lowering import Op, Program

Maps = Mapping[str, np.ndarray]  # values by the name of their operation, (N,H,W,C)
NEVER = threading.Event()  # of work that nobody stops
SCHEDULES_KEPT = 64

log = logging.getLogger(__name__)


class Context(Protocol):
    """Buffers for some images of one size, with a value for each operation and for the input. A subclass may leave out
    what has a body here.

    ``constants`` are results that are the same for all images of the size, in the backend's own form.
    """

    constants: dict[str, Any]

    def set_value(self, name: str, value: np.ndarray) -> None:
        """Make ``value`` (N,H,W,C), float32, the result of an operation, or the input, which may be uint8."""

    def make_constant(self, value: np.ndarray) -> Any:
        """One image's ``value`` (1,H,W,C), float32, in the form of ``constants``."""
        return None

    def set_constant(self, name: str) -> None:
        """Make the constant of that name the result of its operation for all images."""
        return

    def bind_output(self, out: np.ndarray) -> None:
        """Have the network's output written to ``out`` (N,H,W,C), float32 or uint8."""
        return

    def run(self, op: Op, wanted: bool) -> None:
        """Run one operation, whose operands are there. Its value will be asked for only if ``wanted``."""

    def replay(self, key: Any, launch: Callable[[threading.Event], None], stop: threading.Event) -> None:
        """Do ``launch(stop)``, which runs the same operations whenever it comes with the same key."""

    def get_value(self, name: str, out: np.ndarray) -> None:
        """Copy the result of an operation to ``out`` (N,H,W,C), float32; the network's output where it was bound."""

    def unbind(self) -> None:
        """Let go of the arrays that callers gave. Values are undefined from then on."""
        return


C = TypeVar("C", bound=Context)
CMade = TypeVar("CMade", bound=Context, covariant=True)


class Backend(Protocol[CMade]):
    """Memory and arithmetic of one device. Memory is one piece that the contexts of all sizes share."""

    most_images: int  # of a context

    def size(self, n: int, h: int, w: int) -> int:
        """Elements of memory that a context for n images of h x w needs."""

    def allocate(self, size: int) -> Any:
        """That many elements. Raises MemoryError."""

    def context(self, n: int, h: int, w: int, memory: Any) -> CMade:
        """A context without constants, in ``memory``."""

    def synchronize(self) -> None:
        """Wait until nothing uses the memory any more."""

    def release(self) -> None:
        """Give back memory that has been let go of."""


class Schedule(NamedTuple):
    """Operations to run in order, constants of the size that they use or that are asked for, and all that they read."""

    ops: tuple[Op, ...]
    constants: tuple[str, ...]
    reads: frozenset[str]


class Runner(Generic[C]):
    """Runs a program in contexts that callers make. For one thread at a time."""

    def __init__(self, program: Program) -> None:
        self.program = program
        self._schedules: dict[Any, Schedule] = {}

    def compute_in(
        self,
        context: C,
        given: Maps,
        results: Maps,
        stop: threading.Event = NEVER,
        *,
        kept: Collection[str] = (),
        keep: Collection[str] = (),
    ) -> None:
        """Fill ``results`` and the context's values ``keep`` from ``given`` and the values that it has ``kept``.

        Arrays are float32, or uint8 for the input and the output, of as many images as the context has. Gives up before
        an operation when ``stop`` is set.
        """
        output = self.program.output.name
        known, asked = frozenset((*given, *kept)), dict.fromkeys((*results, *keep))
        wanted = frozenset(name for name in asked if name not in known)
        schedule = self._schedule(context, known, wanted)
        for name, value in given.items():
            if name in schedule.reads or name in keep:
                context.set_value(name, value)
        if output in results and output in wanted:
            context.bind_output(results[output])
        context.replay((known, wanted), lambda stop: self.launch(context, known, wanted, stop), stop)
        if stop.is_set():
            return
        for name in sorted(results, key=lambda name: name != output):  # the output first: it may lie where others go
            if name in given:
                results[name][...] = given[name]
            else:
                context.get_value(name, results[name])

    def launch(
        self, context: C, known: Collection[str], wanted: Collection[str], stop: threading.Event = NEVER
    ) -> None:
        """Run the operations that compute ``wanted`` from the values ``known``, which the context has."""
        schedule = self._schedule(context, frozenset(known), frozenset(wanted))
        for name in schedule.constants:
            context.set_constant(name)
        for op in schedule.ops:
            if stop.is_set():
                return
            context.run(op, op.name in wanted)

    def _schedule(self, context: C, known: frozenset[str], wanted: frozenset[str]) -> Schedule:
        """What to do for ``wanted``; remembered, for small networks take less time than finding it out."""
        key = frozenset(context.constants), known, wanted
        if key not in self._schedules:
            if len(self._schedules) >= SCHEDULES_KEPT:
                self._schedules.clear()
            constants = self.program.unaffected(context.constants, known)
            ops = self.program.needed(tuple(wanted), constants.union(known))
            reads = frozenset(name for op in ops for name in op.reads)
            used = tuple(name for name in context.constants if name in constants and name in reads | wanted)
            self._schedules[key] = Schedule(ops, used, reads)
        return self._schedules[key]


class ForwardPass(Runner[C]):
    """Runs a program on a backend that has the weights of ``layers``. For one thread at a time."""

    def __init__(self, program: Program, layers: Collection[str], backend: Backend[C], contexts_kept: int) -> None:
        super().__init__(program)
        self._layers, self._backend, self._kept = layers, backend, contexts_kept
        self.contexts: OrderedDict[tuple[int, int, int], C] = OrderedDict()
        self.memory: Any = None
        self._size = 0

    def compute(self, given: Maps, results: Maps, stop: threading.Event) -> None:
        """:meth:`compute_in` the context for that many images of that size."""
        context = self.context(*self.program.batch_of(given))
        self.compute_in(context, given, results, stop)
        context.unbind()

    def context(self, n: int, h: int, w: int) -> C:
        """The context for n images of h x w. Raises MemoryError."""
        key = (n, h, w)
        if key in self.contexts:
            self.contexts.move_to_end(key)
            return self.contexts[key]
        if n > self._backend.most_images:
            raise MemoryError(f"got {n} images to hold at once, this engine takes {self._backend.most_images}")
        needed = self._backend.size(n, h, w)
        if self.memory is None or needed > self._size:
            self.forget()
            self.memory, self._size = self._backend.allocate(needed), needed
        context = self._backend.context(n, h, w, self.memory)
        context.constants.update(self._constants(h, w))
        self.contexts[key] = context
        while len(self.contexts) > self._kept:
            self.contexts.popitem(last=False)
        return context

    def forget(self) -> None:
        """Let go of all contexts and their memory."""
        self._backend.synchronize()
        self.contexts.clear()
        self.memory, self._size = None, 0
        self._backend.release()

    def _constants(self, h: int, w: int) -> dict[str, Any]:
        """The results of those operations of this engine that are the same for every h x w image.

        They may read values that are not constant but cannot affect them: zeros are fed in their place.
        """
        shapes, names = self.program.shapes(h, w), self.program.constants(h, w)
        reads = {name: self.program[name].reads for name in names}
        zeros = {read for name in names for read in reads[name]}.difference(names)
        known = set(zeros)
        found = []
        for name in names:
            if name in self._layers and known.issuperset(reads[name]):
                known.add(name)
                found.append(name)
        if not found:
            return {}
        context = self._backend.context(1, h, w, self.memory)
        for name in zeros:
            context.set_value(name, np.zeros((1, *shapes[name]), np.float32))
        self.launch(context, zeros, found)
        values = {name: np.empty((1, *shapes[name]), np.float32) for name in found}
        for name, value in values.items():
            context.get_value(name, value)
        return {name: context.make_constant(value) for name, value in values.items()}


class Chunks:
    """How much of a batch is computed at once: ``pixels`` of input, and at most ``most_images``.

    When memory ends, what was kept for other sizes is let go of and half as many images are tried from then on, down to
    one, which is tried once more.
    """

    def __init__(self, pixels: int, most_images: int = sys.maxsize) -> None:
        self.pixels, self.most_images = pixels, most_images

    def run(self, shape: tuple[int, ...], work: Callable[[slice], None], forget: Callable[[], None]) -> None:
        """``work`` for all images of (n, h, w), some at a time. Raises MemoryError if one image doesn't fit."""
        n, h, w = shape
        first, is_last_try = 0, False
        while first < n:
            step = min(n - first, max(1, self.pixels // (h * w)), self.most_images)
            try:
                work(slice(first, first + step))
            except MemoryError as error:
                if is_last_try:
                    raise
                forget()  # waits for what uses the memory, before that of the error's frames is freed, too
                is_last_try = step == 1
                if step > 1:
                    self.pixels = step // 2 * h * w
                    reason = str(error)  # as text, for handlers that keep records
                    log.warning("%s: going on with %d images at a time", reason, step // 2)
                continue
            first, is_last_try = first + step, False
