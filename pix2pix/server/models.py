"""The models that a server has, and the way of an image through one: decoded, fitted, queued, encoded."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePath
from typing import BinaryIO, NamedTuple, TypeVar

from ..engines.base import Engine
from ..errors import ImageError
from ..files import codecs
from ..files.fitting import FittedImage, Fitting
from ..files.limits import Admission, Limits, Need
from ..files.options import Fit, Pair, ServeOptions
from ..files.outcome import NOT_FINITE, is_finite, is_suspicious
from ..files.stream import io_threads
from .limits import Budget, Held
from .metrics import Metrics
from .negotiation import TYPES, Wanted, suffix_for
from .problems import Problem
from .queue import Claim, Lane, Queue

T = TypeVar("T")


class Encoded(NamedTuple):
    """The bytes of an image file, and the suffix of its format."""

    content: bytes
    suffix: str

    @property
    def media_type(self) -> str:
        """The media type of the file."""
        return TYPES[self.suffix]


class Upload(NamedTuple):
    """An image file that came with a request, and its name, "" if it has none."""

    file: BinaryIO
    name: str = ""

    def suffix(self) -> str:
        """The suffix of its format: by its name, as ``translate`` does, or by its content if it has none."""
        if self.name:
            kind = codecs.WRITABLE.get(PurePath(self.name).suffix.lower())
        else:
            kind = codecs.format_of(self.file)
        return next((suffix for suffix in TYPES if kind == codecs.WRITABLE[suffix]), ".png")


class Model:
    """A generator that is served under a name."""

    def __init__(self, name: str, engine: Engine, options: ServeOptions, metrics: Metrics) -> None:
        self.name, self.engine, self.lane = name, engine, Lane(engine, metrics)
        self._limits = Limits(options.image_timeout, options.memory)
        self.admission = Admission(self._limits, engine, 1, 1)
        self.fitting = functools.lru_cache(64)(self._fitting)
        fitting = self.fitting(options.fit, options.size, options.pair)  # refused now rather than at each request
        if options.format != "same":
            codecs.check_writable(Path(f"x.{options.format}"), fitting.out_channels)

    def _fitting(self, fit: Fit, size: tuple[int, int] | None, pair: Pair | None) -> Fitting:
        return Fitting.of(self.engine.generator, fit, size, pair, self._limits)


class Service:
    """What all routes share: models by name, the queue, the budget of memory, metrics, and threads for image files."""

    def __init__(self, options: ServeOptions, engines: dict[str, Engine]) -> None:
        self.options, self.metrics = options, Metrics()
        self.models = {name: Model(name, engine, options, self.metrics) for name, engine in engines.items()}
        self.queue = Queue(options.max_queue, options.max_delay, self.metrics)
        self.budget = Budget(options.max_bytes)
        self._threads = ThreadPoolExecutor(io_threads(), thread_name_prefix="pix2pix-io")
        self.metrics.gauge("pix2pix_queue_images", "Images that wait for an engine", lambda: self.queue.waiting)
        self.metrics.gauge("pix2pix_held_bytes", "Memory that requests take", lambda: self.budget.used)

    def model(self, name: str | None) -> Model:
        """The model of a name, or the first. Raises Problem 404."""
        if name is None:
            return next(iter(self.models.values()))
        if name not in self.models:
            raise Problem(404, f"there is no model {name!r}, expected one of {', '.join(self.models)}")
        return self.models[name]

    async def in_thread(self, function: Callable[[], T]) -> T:
        """The result of a function that takes long. When cancelled, it is waited for: it holds memory."""
        future = self._threads.submit(function)
        wrapped = asyncio.wrap_future(future)
        try:
            return await asyncio.shield(wrapped)
        except asyncio.CancelledError:
            if not future.cancel():
                await asyncio.wait([wrapped])
            raise

    async def translated(
        self, model: Model, upload: Upload, wanted: Wanted, accept: str | None, claim: Claim, held: Held
    ) -> Encoded:
        """The bytes that ``pix2pix translate`` writes for an image file.

        Raises ImageError for a file that cannot be translated, a Deferred for one that cannot be now, Problem for
        wishes that cannot be met.
        """
        try:
            fitting = model.fitting(wanted.fit, wanted.size, wanted.pair)
        except ValueError as error:
            raise Problem(422, str(error)) from None
        source = await self.in_thread(upload.suffix) if wanted.format == "same" else ".png"
        suffix = suffix_for(wanted, accept, source, fitting.out_channels)
        needed = 0

        def admit(need: Need) -> None:
            nonlocal needed
            held.admit(need, model.admission, self.options.max_pixels)
            needed = need.decoding

        def decode() -> FittedImage:
            with self.metrics.timed("decode"):
                return fitting.read(upload.file, admit)

        image = await self.in_thread(decode)
        held.give_back(needed)
        pixels = await claim.submit(model.lane, image.pixels)

        def encode() -> Encoded:
            with self.metrics.timed("encode"):
                output = pixels[: image.height, : image.width]
                if is_suspicious(output) and not is_finite(model.engine, image.pixels):
                    raise ImageError(NOT_FINITE)
                return Encoded(codecs.encode(output, suffix), suffix)

        return await self.in_thread(encode)

    def close(self) -> None:
        """Wait for what is being computed, and free the engines."""
        self._threads.shutdown(cancel_futures=True)
        for model in self.models.values():
            model.lane.close()
