"""Which encoder makes a film, and how: from options to values, with all that can be refused before a frame is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import av

from ..errors import InputError
from .names import CONTAINERS

# Constant rate factors at which a generator's output looks as it was, and presets that leave the processor to the
# engine: the encoders' own presets take 6 times as long (libx264), 12 times (libvpx-vp9) and twice (libx265) for films
# that are smaller by 0, 10 and 7 % (720p, textured frames).
DEFAULTS: Mapping[str, Mapping[str, str]] = {
    "libx264": {"crf": "18", "preset": "superfast"},
    "libx265": {"crf": "20", "preset": "superfast", "x265-params": "log-level=error"},
    "libvpx": {"crf": "10", "b": "0"},
    "libvpx-vp9": {"crf": "24", "b": "0", "row-mt": "1", "deadline": "realtime", "cpu-used": "8"},
    "libaom-av1": {"crf": "24", "cpu-used": "6"},
    "libsvtav1": {"crf": "28"},
}
LOSSLESS_RGB = {"ffv1": "bgr0", "png": "rgb24", "qtrle": "rgb24", "rawvideo": "rgb24"}
FORMAT, PALETTE = "yuv420p", "pal8"


@dataclass(frozen=True, slots=True)
class Encoding:
    """How a film is written: FFmpeg's names of the container, the encoder and the pixel format, and the encoder's
    options. ``is_halved`` says that sides must be even, because chroma is stored for 2 x 2 pixels."""

    container: str
    codec: str
    pixel_format: str
    options: Mapping[str, str]

    @property
    def is_halved(self) -> bool:
        return self.pixel_format == FORMAT

    @classmethod
    def of(cls, output: Path, codec: str | None, crf: int | None) -> Encoding:
        """The encoding of a film of that name. Raises InputError for an encoder that is unknown, cannot encode this or
        has no ``crf``."""
        container = CONTAINERS[output.suffix.lower()]
        name = codec or container.codec
        try:
            encoder = av.Codec(name, "w")
        except (av.FFmpegError, ValueError):
            raise InputError(
                f"got --codec {name!r}, expected an encoder of FFmpeg, e.g. {', '.join(DEFAULTS)}"
            ) from None
        if encoder.type != "video":
            raise InputError(f"got --codec {name!r}, which encodes {encoder.type}: expected one for video")
        options = dict(DEFAULTS.get(encoder.name, {}))
        if crf is not None:
            if "crf" not in options:
                raise InputError(f"the encoder {encoder.name!r} takes no --crf: these do: {', '.join(DEFAULTS)}")
            options["crf"] = str(crf)
        formats = [f.name for f in encoder.video_formats or []]
        if container.format == "gif":
            pixel_format = PALETTE
        elif encoder.name in LOSSLESS_RGB:
            pixel_format = LOSSLESS_RGB[encoder.name]
        else:
            pixel_format = FORMAT
        if formats and pixel_format not in formats:
            raise InputError(f"the encoder {encoder.name!r} takes no {pixel_format} pixels: give another --codec")
        return cls(container.format, encoder.name, pixel_format, options)
