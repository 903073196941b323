"""What kernels are told: named tuples, made by launches (:mod:`pix2pix.gpu.forward`), read in kernels field by field.

All fields are int64, except that slopes and eps are float32. Maps are in packed words of the kernel's kind, so their
strides and offsets count words; columns count elements.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np


class Source(NamedTuple):
    """Maps (images, h, w, words) that a product reads: activated, with channels padded."""

    h: int
    w: int
    words: int


class Axis(NamedTuple):
    """What a row of a product reads along one axis: tap i of `taps` reads pixel stride * y + first + i for pixel y.

    `taps2` and `first2` are those of the second phase of a transposed convolution.
    """

    stride: int
    taps: int
    first: int
    taps2: int
    first2: int


class Window(NamedTuple):
    """Which pixels of the source one row of a product reads, and zeros outside. W has rows for `taps` of each phase."""

    y: Axis
    x: Axis
    taps: int


class Grid(NamedTuple):
    """The rows of a product: the pixels (h, w) of images, in order.

    Rows come in groups of `rows`, each of which `tiles` tiles cover: an image, where tiles may not cross its border.
    """

    h: int
    w: int
    rows: int
    tiles: int


class BoxGrid(NamedTuple):
    """The rows of a product whose tiles are boxes of pixels (images, 2**log_box_h, 2**log_box_w).

    `images` from `first_image` of the source on are computed; results begin with the first of them.
    """

    h: int
    w: int
    first_image: int
    images: int
    log_box_h: int
    log_box_w: int


class Gemm(NamedTuple):
    """A product out = A @ W: A's rows are a grid, its columns a window of the source's pixels.

    `phases` is 4 for a transposed convolution of stride 2, each of whose phases (py, px) is a product of its own, else
    1. `splits` blocks share a sum, each with a part of A's columns.
    """

    source: Source
    window: Window
    grid: Any  # a Grid, or of hopper_gemm a BoxGrid
    columns: int
    phases: int
    splits: int


class Target(NamedTuple):
    """Where a value is written for one reader: words from `first` of each pixel's `stride`, through a leaky ReLU."""

    stride: int
    first: int
    slope: np.float32


class Targets(NamedTuple):
    """The two readers that a value may have. A stride of 0 says that there is no second one."""

    out: Target
    out2: Target


class Inserted(NamedTuple):
    """Maps (images, h, w, words) in which pixel (i, j) of a source lies at (stride * i + top, stride * j + left)."""

    h: int
    w: int
    stride: int
    top: int
    left: int


class Values(NamedTuple):
    """A layer's value (period, h, w, channels) for `images` images: image i is number i % period of it."""

    images: int
    period: int
    channels: int


class Frame(NamedTuple):
    """A map of a value of h x w pixels: each is repeated `factor` times along both axes, `border` pixels are around.

    `fill` says what the border holds: ZEROS, or pixels by REFLECT or REPLICATE.
    """

    h: int
    w: int
    factor: int
    border: int
    fill: int


class Images(NamedTuple):
    """The shape of images, (images, h, w, channels), and how they are made of sums.

    Sums have 4**log_phases phases, or are those of each of `taps` columns of taps. `tanh` is 1 where values go through
    tanh, else 0.
    """

    images: int
    h: int
    w: int
    channels: int
    log_phases: int
    taps: int
    tanh: int


class Norm(NamedTuple):
    """How a map of `pixels` was cut for its statistics: `tiles` tiles of `tile` pixels for each of `phases`.

    The last tile of a phase has what is left.
    """

    pixels: int
    phases: int
    tiles: int
    tile: int
    columns: int
    eps: np.float32


class Sums(NamedTuple):
    """Partial sums (splits, phases, images * h * w, columns) of a product; blocks finish `share` pixels each.

    `slope` is that of a leaky ReLU before the norm.
    """

    h: int
    w: int
    phases: int
    splits: int
    columns: int
    share: int
    eps: np.float32
    slope: np.float32


class Residual(NamedTuple):
    """Where a residual is read: words from `first` of each pixel's `stride`, in a map with a border.

    A stride of 0 says that there is none.
    """

    stride: int
    first: int
    border: int


class Padding(NamedTuple):
    """How a value becomes one reader's map."""

    frame: Frame
    target: Target
    residual: Residual


class Resizing(NamedTuple):
    """How a value in packed words (images, h, w, words) becomes a bilinearly enlarged map.

    Pixel y of the map within its border lies at step_y * y + offset of the value, but not before 0; likewise x.
    """

    frame: Frame
    target: Target
    words: int
    step_y: np.float32
    step_x: np.float32
    offset: np.float32


ZEROS, REFLECT, REPLICATE = range(3)  # what a border holds
NO_TARGET = Target(0, 0, np.float32(1))
