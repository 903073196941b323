"""CUDA kernels between a layer's value and its maps, and between 8-bit images and either: bound by memory.

A map holds a layer's value as one reader reads it: activated, in packed words of a kind, with channels padded, side by
side with what it is concatenated with. A value is rounded before its activation and again after it, so it is the same
whether a kernel computed it or the caller gave it.
"""

from __future__ import annotations

import math
from typing import Any

from numba import cuda, float32, uint8

from ..jit import Array, int32, kernel
from ..ptx.packed_words import ELEMENTS
from ..ptx.simt import quotient
from ..ptx.vectors import load_word, pack, store_word, unpack
from .gather import inner
from .parameters import Frame, Images, Target, Values

ZERO, ONE = float32(0), float32(1)


def make_write_map(threads: int, kind: int, as_bytes: bool) -> Any:
    """A layer's value in float32, or 8-bit images, into a map."""
    PER_WORD = ELEMENTS[kind]

    @kernel(threads)
    def write_map(value: Array, out: Array, shape: Values, frame: Frame, width: int, target: Target) -> None:
        """out's words [first, first + width) of every pixel = leaky_relu(value); zeros in padding.

        value (period, h, w, channels): float32, or uint8 x as x / 255 * 2 - 1. Image i is value[i % period]. out:
        packed words (images, factor * h + 2 * border, factor * w + 2 * border, stride). The kernel fills the border,
        and writes zeros into channels from `channels` on.
        """
        channels, border = shape.channels, int32(frame.border)
        h, w = int32(frame.h * frame.factor), int32(frame.w * frame.factor)
        out_h, out_w = h + 2 * border, w + 2 * border
        for i in range(cuda.grid(1), shape.images * out_h * out_w * width, cuda.gridsize(1)):
            pixel = i // width
            c = (i - pixel * width) * PER_WORD
            line = pixel // out_w
            image = line // out_h
            y = inner(int32(line - image * out_h - border), h, frame.fill)
            x = inner(int32(pixel - line * out_w - border), w, frame.fill)
            low, high = ZERO, ZERO
            if 0 <= y and y < h and 0 <= x and x < w:
                line = image % shape.period * frame.h + quotient(y, frame.factor)
                at = (line * frame.w + quotient(x, frame.factor)) * channels + c
                if c < channels:
                    low = float32(value[at])
                    if as_bytes:
                        low = low / float32(255) * float32(2) - ONE
                if PER_WORD == 2 and c + 1 < channels:
                    high = float32(value[at + 1])
                    if as_bytes:
                        high = high / float32(255) * float32(2) - ONE
            word = pack(max(low, low * target.slope), max(high, high * target.slope), kind)
            store_word(out, pixel * target.stride + target.first + i - pixel * width, word)

    return write_map


def make_read_map(threads: int, kind: int) -> Any:
    """A map's packed words as float32."""
    PER_WORD = ELEMENTS[kind]

    @kernel(threads)
    def read_map(a: Array, out: Array, pixels: int, channels: int, stride: int, first: int) -> None:
        """out (pixels, channels), float32 = the elements of packed words a (pixels, stride), from word `first` on."""
        width = (channels + PER_WORD - 1) // PER_WORD
        for i in range(cuda.grid(1), pixels * width, cuda.gridsize(1)):
            pixel = i // width
            word = i - pixel * width
            low, high = unpack(load_word(a, pixel * stride + first + word), kind)
            c = word * PER_WORD
            out[pixel * channels + c] = low
            if PER_WORD == 2 and c + 1 < channels:
                out[pixel * channels + c + 1] = high

    return read_map


def make_copy_values(threads: int) -> Any:
    """A value to another array: given and asked-for layers, constants."""

    @kernel(threads)
    def copy_values(value: Array, out: Array, size: int, period: int) -> None:
        """out[i] = value[i % period] for i < size, float32."""
        for i in range(cuda.grid(1), size, cuda.gridsize(1)):
            out[i] = value[i % period]

    return copy_values


def make_to_image(threads: int, taps: bool, as_bytes: bool) -> Any:
    """The last layer's epilogue: bias, tanh, and the conversion to 8 bits if `as_bytes`.

    It reads the layer's partial sums, or with `taps` those of the products of each source pixel with all 16 taps of a
    4x4 transposed convolution of stride 2 and padding 1, of which each pixel of the image adds the 2x2 that reach it.
    """

    @kernel(threads)
    def to_image(
        partial: Array, bias: Array, out: Array, shape: Images, columns: int, splits: int, scale: float
    ) -> None:
        """out (images, h, w, channels) = y = tanh(bias + sums), or uint8 trunc(clip((y + 1) / 2 * scale, 0, 255)).

        partial, float32: with taps (splits, images, h / 2, w / 2, columns), the columns being (4, 4, channels), else
        (splits, phases, images, h / u, w / u + shape.taps - 1, columns), the columns being (shape.taps, channels), with
        u * u phases.
        """
        h, w, channels, log = shape.h, shape.w, shape.channels, shape.log_phases
        pixels, unit = shape.images * h * w, 1 << log
        for pixel in range(cuda.grid(1), pixels, cuda.gridsize(1)):
            line = pixel // w
            x = pixel - line * w
            image = line // h
            y = line - image * h
            for c in range(channels):
                total = bias[c]
                for split in range(splits):
                    if taps:
                        for dy in range(2):
                            i, tap_y = (y + 1) // 2 - dy, 1 - y % 2 + 2 * dy
                            for dx in range(2):
                                j, tap_x = (x + 1) // 2 - dx, 1 - x % 2 + 2 * dx
                                if 0 <= i and i < h // 2 and 0 <= j and j < w // 2:
                                    at = split * (pixels // 4) + (image * (h // 2) + i) * (w // 2) + j
                                    total += partial[at * columns + (tap_y * 4 + tap_x) * channels + c]
                    else:
                        phase = (y & (unit - 1)) * unit + (x & (unit - 1))
                        at = ((split * unit * unit + phase) * shape.images + image) * (h >> log) + (y >> log)
                        at = at * ((w >> log) + shape.taps - 1) + (x >> log)
                        for tap in range(shape.taps):
                            total += partial[(at + tap) * columns + tap * channels + c]
                v = float32(math.tanh(total)) if shape.tanh else total
                if as_bytes:
                    v = min(max((v + float32(1)) * float32(0.5) * scale, ZERO), float32(255))
                    out[pixel * channels + c] = uint8(v)
                else:
                    out[pixel * channels + c] = v

    return to_image
