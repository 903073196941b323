"""One run over a film or numbered images, from its options to its report: :func:`translate_video`.

A thread reads, decodes and fits frames, a batch ahead of the engine; another encodes and writes, a batch behind it.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Generator, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import av
import numpy as np

from ..atomic import open_atomically, remove_abandoned
from ..engines.base import Engine
from ..errors import ImageError, InputError, RecordError
from ..files.codecs import SUFFIXES, WRITABLE, check_writable
from ..files.fitting import FittedImage, Fitting
from ..files.limits import Limits
from ..files.outcome import NOT_FINITE, is_finite, is_suspicious
from ..files.raw import frames_at_once
from ..files.report import Report
from ..files.sharing import Ranks
from ..files.stream import batch_capacity
from ..files.translate import Listener, Run
from .encoding import Encoding
from .names import CONTAINERS, is_numbered, numbered, output_kind
from .options import VideoOptions
from .reading import Film, Frame, NumberedImages, Source
from .threads import Behind, ahead
from .writing import FilmWriter, NumberedWriter, Sink, copied_into


def translate_video(options: VideoOptions, listener: Listener | None = None, ranks: Ranks | None = None) -> Report:
    """Do a run. ``ranks``, of which this process is the first, share the work.

    Raises ValueError, RuntimeError or OSError, with a message for people, if the run cannot start. What ends it later
    is said in the report: where a film is damaged, its output has what was whole before; an interrupt leaves none.
    """
    options.run.engine.check()
    run = _VideoRun(options, listener or Listener(), ranks)
    with closing(run.source):
        return run.run()


@dataclass(slots=True)
class _Fitted:
    """A frame as the generator takes it, and the packets that came before it. The last one has no image."""

    image: FittedImage | None = None
    pts: int = 0
    duration: int = 0
    packets: list[av.Packet] = field(default_factory=list)


class _VideoRun(Run):
    by_root = True

    def __init__(self, options: VideoOptions, listener: Listener, ranks: Ranks | None) -> None:
        run = options.run
        if len(run.inputs) > 1:
            raise InputError("a film is translated alone: give one input")
        if run.pair or run.gallery or run.format or run.instances or run.no_instance:
            raise InputError("a film takes no --pair, --instances, --no-instance, --format or --gallery")
        source = run.inputs[0]
        if not is_numbered(source) and source.suffix.lower() in SUFFIXES and source.suffix.lower() != ".gif":
            names = ", ".join(WRITABLE)
            raise InputError(f"{str(source)!r} is an image, {str(run.output)!r} not: expected a name ending in {names}")
        self.output = _output(source, run.output, run.to_folder)
        self.folder = self.output.parent
        super().__init__(replace(run, fit=run.fit or "pad"), listener, ranks)
        self.encoding: Encoding | None = None
        if is_numbered(self.output):
            if options.codec or options.crf is not None:
                raise InputError("numbered images take no --codec and no --crf: these are for films")
            check_writable(self.output, 1)
        else:
            self.encoding = Encoding.of(self.output, options.codec, options.crf)
        self._check_output()
        self.source: Source = _opened(run.inputs[0], options, self.limits)
        try:
            self.told = self._left_out()
        except BaseException:
            self.source.close()
            raise

    def translate(self, engine: Engine) -> None:
        generator, options = engine.generator, self.options
        if generator.takes == "labels":
            raise InputError("this generator takes label maps: a film has none")
        fitting = Fitting.of(generator, options.fit or "pad", options.size, None, self.limits)
        if self.encoding is not None and fitting.out_channels == 4:
            raise InputError("this generator makes images with transparency: films have none, numbered .png files do")
        if self.encoding is not None and self.encoding.is_halved:
            fitting = replace(fitting, multiple=math.lcm(2, fitting.multiple))
        if self.encoding is None:
            check_writable(self.output, fitting.out_channels)
        frames = self._frames(engine, fitting)
        next(frames)  # what the encoder cannot take is refused here
        self.listener.started(self.source.total)

        def take(count: int) -> None:
            self.report.counts["done"] += count
            self.listener.progressed(count)

        self.consume(frames, take, None)

    def _frames(self, engine: Engine, fitting: Fitting) -> Generator[int, None, None]:
        """Make the output. Yields 0 when it is begun, then the number of frames of each batch that is translated.

        Raises ImageError in the end if the source is damaged.
        """
        first = fitting.apply(self.source.first.image)
        height, width = first.pixels.shape[:2]
        batch_size = batch_capacity(engine, self.batch_size, height, width)
        batch_size = frames_at_once(engine, height, width, batch_size, self.limits)
        size = self._size(first)
        with self._sink(size) as sink:
            yield 0
            yield from _Pipeline(engine, fitting, self.source, sink, batch_size, size).counts()
            sink.finish()
        if self.source.damage:
            raise ImageError(f"{str(self.options.inputs[0])!r}: {self.source.damage}; the output has what was whole")

    def _size(self, first: FittedImage) -> tuple[int, int]:
        """(H, W) of the output's frames: even, where chroma is stored for 2 x 2 pixels."""
        height, width = first.height, first.width
        if self.encoding is None or not self.encoding.is_halved:
            return height, width
        even = height + height % 2, width + width % 2
        if even[0] > first.pixels.shape[0] or even[1] > first.pixels.shape[1]:
            raise InputError(f"got --size {width}x{height}, expected even sides for {self.encoding.codec}")
        return even

    @contextmanager
    def _sink(self, size: tuple[int, int]) -> Iterator[Sink]:
        """What takes the frames. A film appears under its name when it is whole, or not at all."""
        if self.encoding is None:
            yield NumberedWriter(self.output, self.source.numbers if isinstance(self.source, NumberedImages) else ())
            return
        remove_abandoned([self.output])
        with open_atomically(self.output) as file:  # FFmpeg opens it by its name, and more than once
            with closing(FilmWriter(Path(file.name), self.encoding, self.source, size)) as writer:
                yield writer

    def _check_output(self) -> None:
        source, output = self.options.inputs[0], self.output
        if output.exists() and source.exists() and output.samefile(source):
            raise InputError(f"the output {str(output)!r} would replace the input: give another name")
        existing = list(numbered(output).values()) if self.encoding is None else [output] if output.exists() else []
        if is_numbered(source) and set(existing) & set(numbered(source).values()):
            raise InputError(f"the output {str(output)!r} would replace inputs: give another name")
        if existing and not self.options.overwrite:
            raise RecordError(f"{str(existing[0])!r} exists already: give another output, or --overwrite to replace it")

    def _left_out(self) -> list[str]:
        """What of a film is not in the output, in words. Raises InputError for streams that cannot be copied."""
        if not isinstance(self.source, Film):
            return []
        copied = copied_into(self.encoding, self.source) if self.encoding else []
        left = [s for s in (*self.source.copied, *self.source.left_out) if s not in copied]
        kinds = ", ".join(f"{stream.type} stream {stream.index}" for stream in left)
        return [f"left out: {kinds}"] if left else []

    def _size_told(self, engine: Engine) -> list[str]:
        return [*super()._size_told(engine), *self.told]


class _Pipeline:
    """Source -> fitted frames -> batches -> engine -> sink."""

    def __init__(
        self, engine: Engine, fitting: Fitting, source: Source, sink: Sink, batch_size: int, size: tuple[int, int]
    ) -> None:
        self.engine, self.fitting, self.source, self.sink = engine, fitting, source, sink
        self.batch_size, self.size = batch_size, size
        self.running: deque[list[_Fitted]] = deque()  # batches given to the engine
        self.last = _Fitted()  # the packets after the last frame

    def counts(self) -> Generator[int, None, None]:
        """Give everything to the sink; yields the number of frames of each batch."""
        with ExitStack() as stack:
            behind = stack.enter_context(Behind(self._put, 2 * self.batch_size))
            fitted = stack.enter_context(closing(ahead(self._fitted(), 2 * self.batch_size)))
            results = stack.enter_context(closing(self.engine.stream(self._batches(fitted))))
            for result in results:
                for item, pixels in zip(self.running.popleft(), result, strict=True):
                    behind.put((item, pixels))
                yield len(result)
            behind.put((self.last, None))
            behind.finish()

    def _fitted(self) -> Iterator[_Fitted]:
        packets: list[av.Packet] = []
        for item in self.source.frames():
            if not isinstance(item, Frame):
                packets.append(item)
                continue
            yield _Fitted(self.fitting.apply(item.image), item.pts, item.duration, packets)
            packets = []
        yield _Fitted(packets=packets)

    def _batches(self, fitted: Iterator[_Fitted]) -> Iterator[np.ndarray]:
        batch: list[_Fitted] = []
        for item in fitted:
            if item.image is None:
                self.last = item
                break
            batch.append(item)
            if len(batch) == self.batch_size:
                yield self._stacked(batch)
                batch = []
        if batch:
            yield self._stacked(batch)

    def _stacked(self, batch: list[_Fitted]) -> np.ndarray:
        images = [item.image.pixels for item in batch if item.image is not None]
        array = self.engine.empty(len(images), *images[0].shape[:2])
        np.stack(images, out=array)
        self.running.append(batch)
        return array

    def _put(self, made: tuple[_Fitted, np.ndarray | None]) -> None:
        """Give a translated frame to the sink, and the packets before it."""
        item, pixels = made
        for packet in item.packets:
            self.sink.copy(packet)
        if pixels is None or item.image is None:
            return
        if is_suspicious(pixels) and not is_finite(self.engine, item.image.pixels):
            raise ValueError(NOT_FINITE)
        self.sink.write(pixels[: self.size[0], : self.size[1]], item.pts, item.duration)


def _output(source: Path, output: Path, to_folder: bool) -> Path:
    """The film to write: ``output``, or one of the input's name in that folder. Raises InputError for another name."""
    if to_folder or output.is_dir():
        output = output / source.name
    if output_kind(output) is None:
        raise InputError(
            f"cannot write {str(output)!r}: expected a name ending in {', '.join(CONTAINERS)}, one such as "
            f"frames/%05d.png, or a folder: {str(output) + '/'!r}"
        )
    return output


def _opened(path: Path, options: VideoOptions, limits: Limits) -> Source:
    if is_numbered(path):
        return NumberedImages(path, options.fps, limits)
    if not path.is_file():
        raise InputError(f"there is no file {str(path)!r}: expected a film, or numbered images: frames/%05d.png")
    return Film(path)
