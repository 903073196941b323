"""The engine contract, and what all engines have in common.

An engine runs one generator. Subclasses of :class:`BaseEngine` supply the arithmetic alone: everything that a caller
can get wrong is checked here, once, and reported in the same words whatever the hardware.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import os
import threading
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Generator as Stream
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ..model.generator import INPUT, Generator, Layer
from ..model.lowering import lower
from ..plans.plan import Plan
from .execution import Chunks, Maps

log = logging.getLogger(__name__)


BATCH_PIXELS = 8 * 256 * 256  # what an engine on a CPU does best at once
SIZES_KEPT = 64  # of images, that an engine remembers to have checked


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """What an engine computes with.

    ``device`` is what ``--device`` calls it; ``description`` says more, for people. ``instruction_set`` and
    ``threads`` are the CPU's, where it has a part; ``threads_from`` is the environment variable that set them, if one
    did. ``workers`` share the work, ``pixels_at_once`` is how much of a batch is best done at once: more costs memory
    and gains no speed.
    """

    device: str = "cpu"
    description: str = ""
    precision: str = "float32"
    instruction_set: str = ""
    threads: int | None = None
    threads_from: str = ""
    plan: Plan | None = None
    workers: int = 1
    pixels_at_once: int = BATCH_PIXELS

    @property
    def best_batch(self) -> int:
        """Images of 256x256 that are best translated at once, at least 1."""
        return max(1, self.pixels_at_once // (256 * 256))

    def __str__(self) -> str:
        threads = f"{self.threads} thread{'s' if self.threads > 1 else ''}" if self.threads else ""
        if self.threads_from:
            threads += f" ({self.threads_from})"
        return ", ".join(filter(None, (self.description or self.device, threads, self.instruction_set)))


@runtime_checkable
class Engine(Protocol):
    """A generator ready to run on some hardware. Thread-safe; results don't depend on how images are batched."""

    generator: Generator

    @property
    def info(self) -> EngineInfo:
        """What the engine computes with."""

    def run(
        self,
        x: np.ndarray | None = None,
        *,
        inputs: Mapping[str, np.ndarray] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> Any:
        """float32 (N,H,W,Cin) in [-1,1] -> float32 (N,H,W,Cout) in [-1,1], or named layers."""

    def translate(self, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """uint8 (N,H,W,Cin) -> uint8 (N,H,W,Cout)."""

    def translate_until(self, stop: threading.Event, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """``translate``, given up soon after ``stop`` is set: the content of ``out`` is undefined then."""

    def stream(self, batches: Iterable[np.ndarray]) -> Stream[np.ndarray, None, None]:
        """An iterable of uint8 batches -> their results, in order."""

    def empty(self, n: int, h: int, w: int) -> np.ndarray:
        """An uninitialised uint8 (n,h,w,Cin) array in the memory that this engine reads fastest."""

    def close(self) -> None:
        """Free what the engine holds. Later calls raise RuntimeError."""


class Session:
    """Several runs over the same images, between which the values of some layers stay with the engine.

    This one keeps them as arrays of its own, and other callers may use the engine between two runs; an engine that
    has its own memory overrides :meth:`BaseEngine.session`.
    """

    def __init__(self, engine: BaseEngine) -> None:
        self._engine = engine
        self._kept: dict[str, np.ndarray] = {}

    def run(
        self, inputs: Mapping[str, np.ndarray], outputs: Sequence[str], keep: Collection[str] = ()
    ) -> dict[str, np.ndarray]:
        """Values (N,H,W,C) of ``outputs`` from ``inputs`` and what was kept, as :meth:`BaseEngine.run` gives them.

        ``keep`` names all values that later runs of this session read: given, computed now, or kept before.
        """
        values = {**self._kept, **inputs}
        if wanted := [name for name in dict.fromkeys((*outputs, *keep)) if name not in values]:
            values |= self._engine.run(inputs=values, outputs=wanted)
        self._kept = {name: values[name] for name in keep}
        return {name: values[name] for name in outputs}


class BaseEngine:
    """Checks, ranks, locking and streaming; subclasses implement ``_compute``.

    ``layers`` names those that this engine has weights for, and runs; by default all.
    """

    def __init__(
        self, generator: Generator, layers: Collection[str] | None = None, info: EngineInfo = EngineInfo()
    ) -> None:
        self.generator, self.program, self._info = generator, lower(generator), info
        self.chunks = Chunks(info.pixels_at_once)
        self.layers = frozenset(layer.name for layer in generator.layers) if layers is None else frozenset(layers)
        self._check_size = functools.lru_cache(SIZES_KEPT)(generator.check_size)  # as slow as a small layer
        self._lock = threading.Lock()
        self._closed = False
        self._pid = os.getpid()

    # -- for subclasses, with all arrays C-contiguous (N,H,W,C), N >= 1 ------------------------------------------

    def _compute_chunk(self, given: Maps, results: Maps, stop: threading.Event) -> None:
        """Fill ``results`` from ``given``: float32, or uint8 for the input and the output. Give up soon after ``stop``
        is set."""
        raise NotImplementedError

    def _compute(self, given: Maps, results: Maps, stop: threading.Event) -> None:
        """:meth:`_compute_chunk`, for as many images at once as ``chunks`` says."""

        def compute(images: slice) -> None:
            part, result = ({name: v[images] for name, v in values.items()} for values in (given, results))
            self._compute_chunk(part, result, stop)

        self.chunks.run(self.program.batch_of(given), compute, self.forget)

    def _run(self, given: Maps, results: Maps) -> None:
        """Fill ``results`` from the values of the given layers, all float32."""
        self._compute(given, results, threading.Event())

    def _translate(self, b: np.ndarray, out: np.ndarray, stop: threading.Event) -> None:
        """Fill ``out`` from ``b``, both uint8. Give up soon after ``stop`` is set."""
        self._compute({INPUT: b}, {self.program.output.name: out}, stop)

    def _close(self) -> None:
        """Free what the subclass holds; called once."""

    def forget(self) -> None:
        """Free what is kept for the sizes that the engine has seen. The caller has the engine to itself."""

    # -- the protocol -----------------------------------------------------------------------------------------

    @property
    def info(self) -> EngineInfo:
        """What the engine computes with."""
        return dataclasses.replace(self._info, pixels_at_once=self.chunks.pixels)

    def run(
        self,
        x: np.ndarray | None = None,
        *,
        inputs: Mapping[str, np.ndarray] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> Any:
        """Run the generator on float32 images.

        ``x`` is (N,H,W,Cin) or (H,W,Cin) in [-1,1]; the result has the same rank, in [-1,1]. With ``outputs``, a
        sequence of layer names, the result is a dict of those layers' values: after the norm, before the activation
        of the layers that read them. ``inputs`` gives the values of some layers, which are then not computed; ``x``
        may be left out if nothing needs it any more. No images (N = 0) give empty arrays.

        Raises TypeError for another dtype than float32 and for ``outputs`` that are one bare name, ValueError for a
        shape that the generator cannot take or a name that it doesn't have, RuntimeError after :meth:`close`.
        """
        given = dict(inputs or {})
        if x is not None:
            given[INPUT] = x
        single = any(np.ndim(value) == 3 for value in given.values())
        if not given:
            raise ValueError("got neither an image nor the value of any layer")
        given = {name: self._checked_map(name, value, single) for name, value in given.items()}
        if isinstance(outputs, str):
            raise TypeError(f"got outputs {outputs!r}, expected a sequence of layer names: [{outputs!r}]")
        wanted = (self.program.output.name,) if outputs is None else tuple(outputs)
        for name in wanted:
            self._layer(name)
        n, h, w = self._checked_size(given)
        self._check_served(op.name for op in self.program.needed(wanted, given))
        shapes = self.program.shapes(h, w)
        results = {name: np.empty((n, *shapes[name]), np.float32) for name in wanted}
        with self._usable():
            if n:
                self._run(given, results)
        if single:
            results = {name: value[0] for name, value in results.items()}
        return results if outputs is not None else results[wanted[0]]

    def translate(self, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Translate uint8 images: (N,H,W,Cin) -> (N,H,W,Cout), or (H,W,Cin) -> (H,W,Cout).

        Fills and returns ``out`` if given: uint8, of the result's shape, C-contiguous, not overlapping ``b``.
        Raises TypeError for another dtype than uint8, ValueError for a shape that the generator cannot take,
        RuntimeError after :meth:`close`.
        """
        return self.translate_until(threading.Event(), b, out)

    def translate_until(self, stop: threading.Event, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """:meth:`translate`, but given up soon after ``stop`` is set: then nobody knows what ``out`` holds."""
        images, results, out = self._checked_batch(b, out)
        self.translate_part(stop, images, results)
        return out

    def translate_part(self, stop: threading.Event, b: np.ndarray, out: np.ndarray) -> None:
        """:meth:`translate_until` of images that another engine of this generator and these layers has checked."""
        with self._usable():
            if out.size:
                self._translate(b, out, stop)

    def stream(self, batches: Iterable[np.ndarray]) -> Stream[np.ndarray, None, None]:
        """Translate an iterable of uint8 batches, in order; the next batch is fetched while this one is computed.

        Each batch is copied when it comes, so that one array may be filled again and again. Closing the stream, or an
        interrupt, gives up what is being computed.
        """
        executor = ThreadPoolExecutor(1, thread_name_prefix="pix2pix-stream")
        stop = threading.Event()
        try:
            pending = None
            for batch in batches:
                following = executor.submit(self.translate_until, stop, np.array(batch))
                if pending is not None:
                    yield pending.result()
                pending = following
            if pending is not None:
                yield pending.result()
        finally:
            stop.set()
            executor.shutdown(cancel_futures=True)

    def empty(self, n: int, h: int, w: int) -> np.ndarray:
        """An uninitialised uint8 (n,h,w,Cin) array in the memory that this engine reads fastest."""
        self._check_size(h, w)
        return np.empty((n, h, w, self.generator.in_channels), np.uint8)

    @contextmanager
    def session(self) -> Iterator[Session]:
        """Several runs over the same images, between which some values stay with the engine."""
        yield Session(self)

    def close(self) -> None:
        """Free what the engine holds. Later calls raise RuntimeError; closing twice is fine."""
        if os.getpid() != self._pid:
            return  # a fork's copy: its lock may be held for ever, and its threads are not there
        with self._lock:
            if not self._closed:
                self._closed = True
                self._close()

    def __enter__(self) -> BaseEngine:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    # -- checks -----------------------------------------------------------------------------------------------

    @contextmanager
    def _usable(self) -> Iterator[None]:
        """Hold the engine's lock. Raise RuntimeError if it is closed, or was made before the process forked."""
        if os.getpid() != self._pid:  # asked before the lock, which another thread may have held when it forked
            raise RuntimeError(
                "this engine was made before the process forked, and its threads did not survive: "
                "load the model in the child process, or start processes with the 'spawn' method"
            )
        with self._lock:
            if self._closed:
                raise RuntimeError("this engine is closed: load the model again")
            yield

    def _check_image(self, shape: tuple[int, ...]) -> None:
        channels = self.generator.in_channels
        if len(shape) not in (3, 4) or shape[-1] != channels:
            raise ValueError(f"got images of shape {shape}, expected (N,H,W,{channels}) or (H,W,{channels})")
        self._check_size(*shape[-3:-1])

    def _checked_batch(self, b: np.ndarray, out: np.ndarray | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """What translate has been given, as (images, their results, out): the first two (N,H,W,C), C-contiguous."""
        b = np.asarray(b)
        if b.dtype != np.uint8:
            raise TypeError(f"got images of {b.dtype}, translate takes uint8 (run takes float32)")
        self._check_image(b.shape)
        self._check_served(layer.name for layer in self.generator.layers)
        shape = (*b.shape[:-3], *self.program.shapes(*b.shape[-3:-1])[self.program.output.name])
        if out is None:
            out = np.empty(shape, np.uint8)
        else:
            _check_out(out, shape, b)
        images, results = (b[None], out[None]) if b.ndim == 3 else (b, out)
        return np.ascontiguousarray(images), results, out

    def _checked_map(self, name: str, value: np.ndarray, single: bool) -> np.ndarray:
        """``value`` as a C-contiguous (N,H,W,C) array."""
        value = np.asarray(value)
        if value.dtype != np.float32:
            raise TypeError(f"got {name} as {value.dtype}, run takes float32 (translate takes uint8)")
        if name == INPUT:
            self._check_image(value.shape)
        else:
            filters = self._layer(name).filters
            if value.ndim not in (3, 4) or value.shape[-1] != filters:
                raise ValueError(f"got {name} of shape {value.shape}, expected (N,H,W,{filters}) or (H,W,{filters})")
        if (value.ndim == 3) != single:
            raise ValueError("got arrays of rank 3 and of rank 4 together: give all of them N, or none")
        return np.ascontiguousarray(value[None] if single else value)

    def _check_served(self, layers: Iterable[str]) -> None:
        """Raise ValueError unless this engine has the weights of all ``layers``."""
        if absent := [name for name in layers if name not in self.layers]:
            raise ValueError(f"this engine has been given other layers to run: not {', '.join(absent)}")

    def _layer(self, name: str) -> Layer:
        try:
            return self.generator[name]
        except KeyError as error:
            raise ValueError(error.args[0]) from None

    def _checked_size(self, given: Mapping[str, np.ndarray]) -> tuple[int, int, int]:
        """(N, H, W) of the images. Raises ValueError unless all given maps belong to images of one number and size."""
        sizes = {name: self.program.batch_of({name: value}) for name, value in given.items()}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"the given maps belong to images of different (N,H,W): {sizes}")
        n, h, w = next(iter(sizes.values()))
        self._check_size(h, w)
        return n, h, w


def _check_out(out: np.ndarray, shape: tuple[int, ...], b: np.ndarray) -> None:
    if not isinstance(out, np.ndarray) or out.dtype != np.uint8:
        raise TypeError(f"got out of {getattr(out, 'dtype', type(out).__name__)}, expected a uint8 array")
    if out.shape != shape or not out.flags.c_contiguous or not out.flags.writeable:
        raise ValueError(f"got out of shape {out.shape}, expected a writeable C-contiguous array of shape {shape}")
    if np.may_share_memory(out, b):
        raise ValueError("out overlaps the input, which is never changed: give another array")
