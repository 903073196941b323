"""Frames and copied packets -> a film; frames -> numbered images."""

from __future__ import annotations

import io
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path
from typing import Protocol

import av
import numpy as np
from PIL import Image

from ..atomic import write_atomically
from ..errors import InputError
from ..files import codecs
from .colours import from_rgb
from .encoding import PALETTE, Encoding
from .names import name_of
from .reading import Film, Source

BRANDS = ("major_brand", "minor_version", "compatible_brands", "encoder")  # of the input's container, not of the film
MOVIE_CONTAINERS = ("mp4", "mov")
MATROSKA = ("matroska", "webm")  # have no times below 0: FFmpeg would let the whole film begin later instead
DELAYED = ("opus", "libopus")  # codecs whose delay Matroska stores apart
HUNDREDTHS = Fraction(1, 100)  # of a second: what a GIF counts
LARGEST_TIMESCALE = 1 << 31
FRAME_DURATION = av.codec.context.Flags.frame_duration


class Sink(Protocol):
    """Where frames go. Its methods are called by one thread at a time."""

    def write(self, pixels: np.ndarray, pts: int, duration: int) -> None:
        """Take the next frame, uint8 (H,W,C), shown at ``pts`` in the source's time base."""

    def copy(self, packet: av.Packet) -> None:
        """Take a packet of a stream that is copied."""

    def finish(self) -> None:
        """Everything was given: make the output whole."""

    def close(self) -> None:
        """Let go of what is open."""


class FilmWriter:
    """A film in the file ``path``, whatever its name. ``size`` is (H, W) of its frames.

    Raises InputError if the container takes no such streams or the encoder no such frames.
    """

    def __init__(self, path: Path, encoding: Encoding, source: Source, size: tuple[int, int]) -> None:
        self._encoding, self._colours, self._source_base = encoding, source.colours, source.time_base
        self._base = HUNDREDTHS if encoding.container == "gif" else source.time_base
        self._last: int | None = None
        self._end = 0
        self._container = av.open(str(path), "w", format=encoding.container, container_options=self._options(source))
        try:
            self._add_video(source, size)
            self._copies = dict(self._add_copied(source)) if isinstance(source, Film) else {}
            self._container.start_encoding()
        except (av.FFmpegError, ValueError) as error:
            self._container.close()
            why = getattr(error, "strerror", None) or error
            raise InputError(
                f"cannot write {size[1]}x{size[0]} pixels with the encoder {encoding.codec!r} in {encoding.container}: "
                f"{why}"
            ) from None

    def write(self, pixels: np.ndarray, pts: int, duration: int) -> None:
        if pixels.shape[2] == 1:
            pixels = pixels.repeat(3, axis=2)
        if self._encoding.pixel_format == PALETTE:
            frame = _with_palette(pixels)
        else:
            frame = from_rgb(pixels, self._encoding.pixel_format, self._colours)
        start, end = (round(time * self._source_base / self._base) for time in (pts, pts + duration))
        if self._last is not None:
            start = max(start, self._last + 1)
        self._last, self._end = start, max(start + 1, end)
        frame.pts, frame.duration, frame.time_base = start, self._end - start, self._base
        with _told():
            self._container.mux(self._video.encode(frame))

    def copy(self, packet: av.Packet) -> None:
        stream = self._copies.get(packet.stream.index)
        if stream is not None:
            packet.stream = stream
            if self._encoding.container in MATROSKA and stream.codec_context.name not in DELAYED:
                packet.pts, packet.dts = (None if t is None else max(0, t) for t in (packet.pts, packet.dts))
            with _told():
                self._container.mux(packet)

    def finish(self) -> None:
        with _told():
            packets = self._video.encode()
            if packets and self._encoding.container in MOVIE_CONTAINERS:
                # These films end no later than the packet that is stored last, which need not be the last frame's.
                packets[-1].duration = self._end - packets[-1].pts
            self._container.mux(packets)
            self._container.close()

    def close(self) -> None:
        self._container.close()

    def _options(self, source: Source) -> dict[str, str]:
        """The index comes first, so that films play while they are loaded; and times of the film as a whole are as
        fine as those of its streams, so that one that does not begin at 0 begins when it should."""
        if self._encoding.container not in MOVIE_CONTAINERS:
            return {}
        bases = [source.time_base, *(_base(stream) for stream in getattr(source, "copied", ()))]
        scale = math.lcm(*(base.denominator for base in bases))
        fine = {"movie_timescale": str(scale)} if scale < LARGEST_TIMESCALE else {}
        return {"movflags": "+faststart", **fine}

    def _add_video(self, source: Source, size: tuple[int, int]) -> None:
        encoding = self._encoding
        self._video = self._container.add_stream(encoding.codec, rate=source.rate, options=dict(encoding.options))
        self._video.height, self._video.width = size
        self._video.pix_fmt = encoding.pixel_format
        self._video.time_base = self._base
        context = self._video.codec_context
        context.time_base = self._base
        context.flags |= FRAME_DURATION
        context.sample_aspect_ratio = source.aspect
        if encoding.is_halved:
            colours = source.colours
            context.colorspace, context.color_range = colours.matrix, colours.range
            context.color_primaries, context.color_trc = colours.primaries, colours.transfer

    def _add_copied(self, source: Film) -> Iterator[tuple[int, av.stream.Stream]]:
        """The output's stream for each of the input's that is copied, by the latter's number."""
        self._container.metadata.update({k: v for k, v in source.container.metadata.items() if k not in BRANDS})
        if chapters := source.container.chapters():
            self._container.set_chapters(chapters)
        self._video.metadata.update(_language(source.stream))
        for stream in copied_into(self._encoding, source):
            copy = self._container.add_stream_from_template(stream)
            copy.time_base = stream.time_base
            copy.metadata.update(_language(stream))
            copy.disposition = stream.disposition
            yield stream.index, copy


class NumberedWriter:
    """Image files named by ``pattern``, with the numbers that are given, then the following ones."""

    def __init__(self, pattern: Path, numbers: Sequence[int]) -> None:
        self._pattern, self._numbers = pattern, iter(numbers)
        self._next = 1

    def write(self, pixels: np.ndarray, pts: int, duration: int) -> None:
        number = next(self._numbers, self._next)
        self._next = number + 1
        path = name_of(self._pattern, number)
        write_atomically(path, codecs.encode(pixels, path.suffix), sync=False)

    def copy(self, packet: av.Packet) -> None:
        """Images have no sound."""

    def finish(self) -> None:
        """Each image is whole already."""

    def close(self) -> None:
        """Nothing is open."""


def copied_into(encoding: Encoding, source: Film) -> list[av.stream.Stream]:
    """The streams that are copied: all with sound and subtitles, none into a GIF.

    Raises InputError if the container does not take one of them.
    """
    if encoding.container == "gif":
        return []
    with av.open(io.BytesIO(), "w", format=encoding.container) as container:
        taken = container.supported_codecs
    for stream in source.copied:
        name = stream.codec_context.codec.canonical_name
        if name not in taken:
            raise InputError(
                f"{encoding.container} holds no {name} {stream.type}, and streams are copied as they are: "
                f"give an --output ending in .mkv"
            )
    return source.copied


def _with_palette(pixels: np.ndarray) -> av.VideoFrame:
    """RGB pixels (H,W,3) in the 256 colours that suit them best."""
    image = Image.fromarray(pixels).quantize(256, dither=Image.Dither.NONE)
    colours = np.array(image.getpalette("RGB"), np.uint8).reshape(-1, 3)
    palette = np.zeros((256, 4), np.uint8)  # alpha, red, green, blue
    palette[:, 0] = 255
    palette[: len(colours), 1:] = colours
    return av.VideoFrame.from_ndarray((np.asarray(image), palette), format=PALETTE)


@contextmanager
def _told() -> Iterator[None]:
    """Raise RuntimeError for what keeps a film from being written."""
    try:
        yield
    except av.FFmpegError as error:
        raise RuntimeError(f"cannot write the film: {error.strerror or error}") from error


def _language(stream: av.stream.Stream) -> dict[str, str]:
    """What says of a stream which language it is in, and what people call it."""
    return {name: stream.metadata[name] for name in ("language", "title") if name in stream.metadata}


def _base(stream: av.stream.Stream) -> Fraction:
    return stream.time_base or Fraction(1)
