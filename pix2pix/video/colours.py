"""Frames of films <-> RGB, by the matrix and the range that the film says.

Where a film says no matrix, it is BT.709 from 720 lines on and BT.601 below, as players take it; where it says no
range, it is the limited one, but for formats that are always full. Chroma that is stored for 2 x 2 pixels is given to
each of them and averaged over them, so that an unchanged image stays what it is.

Rec. ITU-T H.273 has the numbers of matrices, ranges, primaries and transfers.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import av
import numpy as np
from av.video.reformatter import Interpolation

from ..errors import ImageError

LIMITED, FULL = 1, 2
UNSPECIFIED, BT709, BT601 = 2, 1, 6
HD_LINES = 720
# swscale's number of each matrix.
MATRICES = {BT709: 1, 4: 4, 5: 5, BT601: 5, 7: 7, 9: 9}
WHOLE_CHROMA = Interpolation.FULL_CHR_H_INT | Interpolation.FULL_CHR_H_INP
ACCURATE, AVERAGED = Interpolation.POINT | Interpolation.ACCURATE_RND | WHOLE_CHROMA, Interpolation.AREA | WHOLE_CHROMA
ONE_THREAD = 1  # more would take the engine's cores away, several times a frame
# Formats that keep both chroma planes in one, or all values, and those that hold the same in three.
PLANAR = {"nv12": "yuv420p", "nv21": "yuv420p", "p010le": "yuv420p10le", "yuyv422": "yuv422p", "uyvy422": "yuv422p"}


@dataclass(frozen=True, slots=True)
class Colours:
    """How a film's YCbCr values mean colours: H.273's numbers of matrix and range, of primaries and transfer."""

    matrix: int
    range: int
    primaries: int
    transfer: int

    @classmethod
    def of(cls, frame: av.VideoFrame) -> Colours:
        """Those of a frame. Those of an RGB frame are what its film is best stored in. Raises ImageError for a matrix
        that is none of RGB, such as that of YCgCo."""
        matrix, range_ = int(frame.colorspace), int(frame.color_range)
        if frame.format.is_rgb or matrix in (0, UNSPECIFIED):
            matrix = usual_matrix(frame.height)
        if matrix not in MATRICES:
            raise ImageError(f"the colour matrix {matrix} (H.273) is not supported: convert the film to BT.709 first")
        if frame.format.is_rgb:
            range_ = LIMITED
        elif range_ not in (LIMITED, FULL):
            range_ = FULL if frame.format.name.startswith(("yuvj", "gray")) else LIMITED
        return cls(matrix, range_, int(frame.color_primaries), int(frame.color_trc))


def usual_matrix(height: int) -> int:
    """The matrix of films of so many lines that don't say theirs."""
    return BT709 if height >= HD_LINES else BT601


def to_rgb(frame: av.VideoFrame) -> np.ndarray:
    """A frame, upright: uint8 (H,W,3), or (H,W,4) if it has transparency. Raises ImageError as :meth:`Colours.of`."""
    colours = Colours.of(frame)
    converted = with_whole_chroma(frame).reformat(
        format="rgba" if any(component.is_alpha for component in frame.format.components) else "rgb24",
        src_colorspace=MATRICES[colours.matrix],
        dst_colorspace=MATRICES[colours.matrix],
        src_color_range=FULL if frame.format.is_rgb else colours.range,
        dst_color_range=FULL,
        interpolation=ACCURATE,
        threads=ONE_THREAD,
    )
    return np.ascontiguousarray(upright(converted.to_ndarray(), display_matrix(frame)))


def with_whole_chroma(frame: av.VideoFrame) -> av.VideoFrame:
    """A frame whose chroma has a value for each pixel: that which it had for several, repeated.

    Frames that are stored so, or in another way than YCbCr in three planes, come back as they are. swscale would
    interpolate between the places that a decoder says chroma was sampled at; then an unchanged image would not stay so.
    """
    kind = frame.format
    if kind.name in PLANAR:
        frame = frame.reformat(format=PLANAR[kind.name])
        kind = frame.format
    is_planar = [component.plane for component in kind.components] == [0, 1, 2] and not kind.is_rgb
    width, height = kind.chroma_width(frame.width), kind.chroma_height(frame.height)
    if not is_planar or kind.is_big_endian or (width, height) == (frame.width, frame.height):
        return frame
    bits = kind.components[0].bits
    whole = av.VideoFrame(frame.width, frame.height, "yuv444p" if bits == 8 else f"yuv444p{bits}le")
    for source, target in zip(frame.planes, whole.planes, strict=True):
        values = _values(source, bits)
        across, down = -(-frame.width // source.width), -(-frame.height // source.height)
        repeated = values.repeat(across, axis=1).repeat(down, axis=0) if across * down > 1 else values
        _values(target, bits)[...] = repeated[: frame.height, : frame.width]
    whole.colorspace, whole.color_range = frame.colorspace, frame.color_range
    return whole


def _values(plane: av.video.plane.VideoPlane, bits: int) -> np.ndarray:
    """What a plane holds, (H,W), as a view."""
    values = np.frombuffer(plane, np.uint8 if bits == 8 else np.uint16)
    return values.reshape(plane.height, -1)[:, : plane.width]


def from_rgb(pixels: np.ndarray, format: str, colours: Colours) -> av.VideoFrame:
    """RGB pixels, uint8 (H,W,3), as a frame of a pixel format that a film's encoder takes."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), format="rgb24")
    converted = frame.reformat(
        format=format,
        src_colorspace=MATRICES[colours.matrix],
        dst_colorspace=MATRICES[colours.matrix],
        src_color_range=FULL,
        dst_color_range=FULL if av.VideoFormat(format).is_rgb else colours.range,
        interpolation=AVERAGED,
        threads=ONE_THREAD,
    )
    return converted


def display_matrix(frame: av.VideoFrame) -> tuple[int, int, int, int]:
    """(a, b, c, d): a pixel at (x, y) is shown at (ax + cy, bx + dy), but for scale and position."""
    for data in frame.side_data:
        if data.type.name == "DISPLAYMATRIX":
            a, b, _, c, d = struct.unpack("=5i", bytes(data)[:20])
            return a, b, c, d
    return 1, 0, 0, 1


def upright(pixels: np.ndarray, matrix: tuple[int, int, int, int]) -> np.ndarray:
    """(H,W,C) turned and mirrored as a display matrix says, to the nearest right angle."""
    a, b, c, d = matrix
    if abs(b) + abs(c) > abs(a) + abs(d):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1]
