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


class Window(NamedTuple):
    """Which pixels of the source one row of a product reads.

    Tap (i, j) of kernel_h x kernel_w reads pixel (y * stride_h - padding + dilation * i, x * stride_w - padding +
    dilation * j) for pixel (y, x) of the product's grid; zeros outside. For phase (py, px) of a transposed convolution,
    py and px are added.
    """

    kernel_h: int
    kernel_w: int
    stride_h: int
    stride_w: int
    padding: int
    dilation: int


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


class Values(NamedTuple):
    """A layer's value (period, h, w, channels) for `images` images: image i is number i % period of it."""

    images: int
    period: int
    h: int
    w: int
    channels: int


class Images(NamedTuple):
    """The shape of images, (images, h, w, channels)."""

    images: int
    h: int
    w: int
    channels: int


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
    """Partial sums (splits, phases, images * h * w, columns) of a product; blocks finish `share` pixels each."""

    h: int
    w: int
    phases: int
    splits: int
    columns: int
    share: int
    eps: np.float32


NO_TARGET = Target(0, 0, np.float32(1))
