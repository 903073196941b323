"""Films and numbered images as frames, in order, with their times."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from fractions import Fraction
from heapq import heappop, heappush
from pathlib import Path
from typing import Protocol

import av
from av.container import InputContainer
from PIL import Image

from ..errors import ImageError, InputError
from ..files import codecs
from ..files.limits import Limits
from .colours import LIMITED, UNSPECIFIED, Colours, to_rgb, usual_matrix
from .matroska import missing_bytes
from .names import numbered

COPIED = ("audio", "subtitle")  # kinds of streams


@dataclass(frozen=True, slots=True)
class Frame:
    """A frame, upright, and when it is shown: ``pts`` and ``duration`` count the source's ``time_base``."""

    image: Image.Image
    pts: int
    duration: int


class Source(Protocol):
    """Where frames come from. ``frames`` ends where the source does, or where it is damaged: ``damage`` says so then.

    ``first`` is the first frame; ``total`` how many there are, as far as that is known, else 0. ``time_base`` is in
    seconds; ``rate`` is the mean number of frames per second. ``aspect`` is that of a pixel.
    """

    first: Frame
    total: int
    time_base: Fraction
    rate: Fraction
    aspect: Fraction
    colours: Colours
    damage: str

    def frames(self) -> Iterator[Frame | av.Packet]:
        """All frames, and between them the packets of streams that are copied, as they come."""

    def close(self) -> None:
        """Let go of the files."""


class Film:
    """The first video stream of a file, but for cover art. Raises InputError if the file has none or isn't readable."""

    def __init__(self, path: Path) -> None:
        self.path, self.damage = path, ""
        try:
            self.container: InputContainer = av.open(str(path))
        except (av.FFmpegError, OSError) as error:
            raise InputError(f"cannot read {str(path)!r} as a film: {error.strerror or error}") from None
        try:
            self._open()
        except BaseException:
            self.container.close()
            raise

    def _open(self) -> None:
        streams = [s for s in self.container.streams.video if not s.disposition & av.stream.Disposition.attached_pic]
        if not streams:
            raise InputError(f"{str(self.path)!r} has no video stream")
        self.stream = video = streams[0]
        video.thread_type = "AUTO"
        video.codec_context.options = {"err_detect": "explode"}  # damage is told, not painted over
        self.copied = [s for s in self.container.streams if s.type in COPIED and s.codec_context is not None]
        self.left_out = [s for s in self.container.streams if s is not video and s not in self.copied]
        if video.time_base is None:
            raise InputError(f"{str(self.path)!r} has no time base for its video stream")
        self.time_base, self.rate = video.time_base, video.average_rate or video.guessed_rate or Fraction(25)
        self.aspect = video.sample_aspect_ratio or Fraction(1)
        seconds = (self.container.duration or 0) / av.time_base
        self.total = video.frames or round(seconds * self.rate)
        self._one = max(1, round(1 / self.rate / self.time_base))  # the usual duration of a frame
        # AVI says when frames are decoded, not when they are shown: each takes the earliest time that is left.
        self._times: list[int] | None = [] if self.container.format.name == "avi" else None
        self._size: tuple[int, int] | None = None
        self._last = 0
        self._items = self._read()
        self._head: deque[Frame | av.Packet] = deque()
        for item in self._items:
            self._head.append(item)
            if isinstance(item, Frame):
                self.first = item
                return
        raise InputError(f"{str(self.path)!r} has no frame that can be decoded{self.damage and ': ' + self.damage}")

    def frames(self) -> Iterator[Frame | av.Packet]:
        while self._head:
            yield self._head.popleft()
        yield from self._items

    def close(self) -> None:
        self.container.close()

    def _read(self) -> Iterator[Frame | av.Packet]:
        """What is decoded. A frame lasts until the next one; what containers say of that is often of the order in which
        frames are stored."""
        held: Frame | None = None
        for item in self._decoded():
            if isinstance(item, Frame):
                if held is not None:
                    yield replace(held, duration=item.pts - held.pts)
                held = item
            else:
                yield item
        if held is not None:
            yield replace(held, duration=self._last_duration(held))

    def _last_duration(self, frame: Frame) -> int:
        """How long the last frame lasts: until the stream ends, where that is said."""
        length = self.stream.duration
        if self.damage or length is None:
            return self._one
        left = (self.stream.start_time or 0) + length - frame.pts
        return left if left > 0 else self._one

    def _decoded(self) -> Iterator[Frame | av.Packet]:
        try:
            for packet in self._packets():
                if packet.stream is self.stream:
                    self._note_time(packet)
                    for frame in self.stream.decode(packet):
                        yield self._frame(frame)
                else:
                    yield packet
        except av.FFmpegError as error:
            self._note(f"a frame cannot be decoded ({error.strerror or error})")
        except ImageError as error:
            self._note(str(error))

    def _packets(self) -> Iterator[av.Packet]:
        """The packets of the streams that are used, up to the damage; and empty ones that flush the decoder."""
        try:
            for packet in self.container.demux(self.stream, *self.copied):
                if packet.is_corrupt:
                    self._note("the file is cut off or damaged")
                    break
                if packet.size or packet.stream is self.stream:
                    yield packet
        except av.FFmpegError as error:
            self._note(f"the file cannot be read on ({error.strerror or error})")
        if self.damage:
            flush = av.Packet()
            flush.stream = self.stream
            yield flush
        elif missing := missing_bytes(self.path):
            self._note(f"the file is cut off: {missing:,} bytes are missing")

    def _note_time(self, packet: av.Packet) -> None:
        """Remember the time of a packet where frames take these in order."""
        time = packet.dts if packet.pts is None else packet.pts
        if self._times is not None and packet.size and time is not None:
            heappush(self._times, time)

    def _frame(self, frame: av.VideoFrame) -> Frame:
        image = codecs.image_of(to_rgb(frame))
        pts = heappop(self._times) if self._times else frame.pts
        if self._size is None:
            self._size, self.colours = image.size, Colours.of(frame)
            pts = pts if pts is not None else 0
        else:
            pts = max(pts if pts is not None else self._last + self._one, self._last + 1)
            if image.size != self._size:
                raise ImageError(f"frames change from {self._size} to {image.size} pixels")
        self._last = pts
        return Frame(image, pts, self._one)

    def _note(self, damage: str) -> None:
        """Remember the first damage, and how far the film was whole."""
        if not self.damage:
            shown = "" if self._size is None else f", after {float(self._last * self.time_base):.3f} s"
            self.damage = f"{damage}{shown}"


class NumberedImages:
    """Image files that a name such as ``frames/%05d.png`` stands for. Raises InputError if there is none, or the first
    one cannot be read."""

    def __init__(self, pattern: Path, fps: Fraction, limits: Limits) -> None:
        self._files = numbered(pattern)
        if not self._files:
            raise InputError(f"there is no file {str(pattern)!r}, such as {str(pattern.parent / '00001.png')!r}")
        self._limits, self.damage = limits, ""
        self.total, self.rate, self.time_base, self.aspect = len(self._files), fps, 1 / fps, Fraction(1)
        number, path = next(iter(self._files.items()))
        try:
            self.first = self._frame(0, path)
        except ImageError as error:
            raise InputError(f"cannot read {str(path)!r}: {error}") from None
        self.colours = Colours(usual_matrix(self.first.image.height), LIMITED, UNSPECIFIED, UNSPECIFIED)

    @property
    def numbers(self) -> list[int]:
        """The numbers of the images."""
        return list(self._files)

    def frames(self) -> Iterator[Frame | av.Packet]:
        for index, path in enumerate(self._files.values()):
            try:
                frame = self._frame(index, path)
                if frame.image.size != self.first.image.size:
                    raise ImageError(f"it has {frame.image.size} pixels, the first one has {self.first.image.size}")
            except ImageError as error:
                self.damage = f"{str(path)!r}: {error}"
                return
            yield frame

    def close(self) -> None:
        """Nothing is open."""

    def _frame(self, index: int, path: Path) -> Frame:
        with codecs.decoded(path, seconds=self._limits.seconds) as image:
            return Frame(image.copy(), index, 1)
