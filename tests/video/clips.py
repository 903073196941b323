"""Films that PyAV makes for the tests, what is in a film, and what should be made of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from pix2pix.engines.base import Engine
from pix2pix.files.fitting import pad

WEIGHTS = {1: (0.2126, 0.0722), 5: (0.299, 0.114), 6: (0.299, 0.114)}  # of red and blue in luma, by H.273's matrix
EVEN = tuple(range(0, 36_000, 3600))
UNEVEN = (0, 3003, 6006, 12012, 13000, 21000, 22000, 40000, 43003, 46000)


@dataclass(frozen=True)
class Clip:
    """How a test's film is made. ``pts`` count 1/90000 s; ``size`` is (H, W)."""

    name: str = "in.mp4"
    codec: str = "libx264"
    pts: Sequence[int] = EVEN
    size: tuple[int, int] = (48, 64)
    format: str = "yuv420p"
    matrix: int = 6
    range: int = 1
    rotation: int = 0
    audio: str = ""
    subtitles: str = ""
    options: tuple[tuple[str, str], ...] = (("crf", "12"),)


@lru_cache(100)
def pixels(size: tuple[int, int], number: int) -> np.ndarray:
    """What frame ``number`` shows before it is encoded: smooth, and different in each frame and corner."""
    h, w = size
    y, x = np.mgrid[:h, :w]
    waves = [np.sin(x / (9 + c) + y / (7 + 2 * c) + c + number / 2) for c in range(3)]
    return (128 + 90 * np.stack(waves, axis=-1)).astype(np.uint8)


def make(clip: Clip, folder: Path) -> Path:
    """Write the film; returns its path."""
    path = folder / clip.name
    base = Fraction(1, 90_000)
    with av.open(str(path), "w") as container:
        video = container.add_stream(clip.codec, rate=25, options=dict(clip.options))
        video.height, video.width = clip.size
        video.pix_fmt = clip.format
        video.codec_context.time_base = video.time_base = base
        video.codec_context.colorspace, video.codec_context.color_range = clip.matrix, clip.range
        if clip.rotation:
            video.set_display_rotation(clip.rotation)
        sound = container.add_stream(clip.audio, rate=48_000, layout="mono") if clip.audio else None
        words = container.add_mux_stream(clip.subtitles) if clip.subtitles else None
        for number, pts in enumerate(clip.pts):
            frame = av.VideoFrame.from_ndarray(pixels(clip.size, number % 60), format="rgb24")
            swscale = 5 if clip.matrix == 6 else clip.matrix
            frame = frame.reformat(
                format=clip.format, dst_colorspace=swscale, src_color_range=2, dst_color_range=clip.range
            )
            frame.pts, frame.time_base = pts, base
            container.mux(video.encode(frame))
        container.mux(video.encode())
        if sound is not None:
            _add_sound(container, sound)
        if words is not None:
            for second in range(2):
                text = f"line {second}".encode()
                packet = av.Packet(len(text).to_bytes(2) + text if clip.subtitles == "mov_text" else text)
                packet.stream, packet.time_base = words, Fraction(1, 1000)
                packet.pts = packet.dts = 150 * second
                packet.duration = 100
                container.mux(packet)
    return path


def _add_sound(container: av.container.OutputContainer, stream: av.AudioStream) -> None:
    rng = np.random.default_rng(0)
    for start in range(0, 24_000, 960):
        samples = rng.normal(0, 0.1, (1, 960)).astype(np.float32)
        frame = av.AudioFrame.from_ndarray(samples, format="flt", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = 48_000, start, Fraction(1, 48_000)
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


@dataclass
class Content:
    """What is in a film: the frames' times in seconds, and the packets of the other streams, by kind."""

    times: list[Fraction]
    frames: list[av.VideoFrame]
    packets: dict[str, list[tuple[Fraction, bytes]]]


def content(path: Path) -> Content:
    """Decode a film, frame by frame and without threads."""
    found = Content([], [], {})
    with av.open(str(path)) as container:
        video = container.streams.video[0]
        video.thread_type = "NONE"
        for packet in container.demux():
            if packet.stream is video:
                for frame in packet.decode():
                    found.times.append(frame.pts * frame.time_base)
                    found.frames.append(frame)
            elif packet.size:
                kind = packet.stream.type
                found.packets.setdefault(kind, []).append((packet.pts * packet.time_base, bytes(packet)))
    return found


def rgb(frame: av.VideoFrame, matrix: int, full: bool) -> np.ndarray:
    """A planar frame's colours by the equations of BT.601 and BT.709: float (H,W,3), 0 to 255."""
    bits = frame.format.components[0].bits
    top = (1 << bits) - 1 if full else 255 << bits - 8
    planes = []
    for number, plane in enumerate(frame.planes):
        kind = np.uint8 if bits == 8 else np.uint16
        rows = np.frombuffer(plane, kind).reshape(plane.height, -1)[:, : plane.width].astype(float)
        rows = rows.repeat(frame.height // plane.height, 0).repeat(frame.width // plane.width, 1)
        if number:
            planes.append((rows - (1 << bits - 1)) / (top if full else 224 << bits - 8))
        else:
            planes.append(rows / top if full else (rows - (16 << bits - 8)) / (219 << bits - 8))
    y, u, v = planes
    red, blue = WEIGHTS[matrix]
    r, b = y + 2 * (1 - red) * v, y + 2 * (1 - blue) * u
    g = (y - red * r - blue * b) / (1 - red - blue)
    return np.clip(np.stack([r, g, b], axis=-1) * 255, 0, 255)


def translated(engine: Engine, image: np.ndarray) -> np.ndarray:
    """What a model makes of an image of any size: uint8 (H,W,3), with even sides."""
    h, w = image.shape[:2]
    padded = pad(np.rint(image).astype(np.uint8), engine.generator.multiple)
    return engine.translate(padded)[: h + h % 2, : w + w % 2]


def halved(image: np.ndarray, matrix: int, full: bool) -> list[np.ndarray]:
    """Luma (H,W) and the two chroma planes (H/2,W/2) of RGB by the same equations, as 8 bits store them."""
    red, blue = WEIGHTS[matrix]
    r, g, b = np.moveaxis(image / 255.0, -1, 0)
    y = red * r + (1 - red - blue) * g + blue * b
    h, w = y.shape
    chroma = [(b - y) / 2 / (1 - blue), (r - y) / 2 / (1 - red)]
    chroma = [plane.reshape(h // 2, 2, w // 2, 2).mean((1, 3)) for plane in chroma]
    stored = [y * (255 if full else 219) + (0 if full else 16), *(c * (255 if full else 224) + 128 for c in chroma)]
    return [np.rint(plane).clip(0, 255) for plane in stored]


def planes(frame: av.VideoFrame) -> list[np.ndarray]:
    """The planes of a frame of 8 bits, as they are stored."""
    found = [np.frombuffer(p, np.uint8).reshape(p.height, -1)[:, : p.width] for p in frame.planes]
    return [plane.astype(float) for plane in found]
