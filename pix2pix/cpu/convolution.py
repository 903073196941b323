"""One layer as the CPU's kernels take it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np


class ConvolutionSpec(NamedTuple):
    """A convolution of 4x4 taps, stride 2 and padding 1, or the transpose of one, with what belongs to it.

    A layer without a norm has ``eps`` None, and no ``gamma`` and ``beta``. The kernels keep none of the arrays.
    """

    kernel: np.ndarray  # (4, 4, in, out), or (4, 4, out, in) if transposed; float32, C-contiguous
    transposed: bool
    channels: Sequence[int]  # of each map that the layer reads, in order
    bias: np.ndarray | None = None  # (out,)
    gamma: np.ndarray | None = None  # (out,)
    beta: np.ndarray | None = None  # (out,)
    eps: float | None = None
    bfloat16: bool = False  # whether products are of bfloat16 numbers
    reads_image: bool = False  # whether the layer reads the image itself
