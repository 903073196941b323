"""One layer as the CPU's kernels take it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from ..model.map_units import MapUnits
from ..model.quantisation import Quantised
from ..model.sampling import Sampling


class ConvolutionSpec(NamedTuple):
    """A convolution, or a transposed one, with what belongs to it.

    A layer whose norm has statistics of the image has ``eps``; one with ``gamma`` and no ``eps`` multiplies by it.
    The kernels keep none of the arrays.
    """

    kernel: np.ndarray  # (kh, kw, in, out), or (kh, kw, out, in) if transposed; float32, C-contiguous
    sampling: Sampling
    channels: Sequence[int]  # of each map that the layer reads, in order
    bias: np.ndarray | None = None  # (out,)
    gamma: np.ndarray | None = None  # (out,)
    beta: np.ndarray | None = None  # (out,)
    eps: float | None = None
    bfloat16: bool = False  # whether products are of bfloat16 numbers
    tiles: bool = False  # whether AMX multiplies them; direct convolution then keeps its map as float16
    reads_image: bool = False  # whether the layer reads the image itself
    adds: bool = False  # whether the maps are added up, not joined along their channels
    inner_slope: float = 1.0  # of the leaky ReLU before the norm
    quantised: Quantised | None = None  # how the input becomes 8-bit integers, and the kernel if it is transformed
    vnni: bool = False  # whether 8-bit integers lie as VNNI and AMX take them, four to a word
    finds_range: bool = False  # whether a layer that reads the result needs its least and largest values
    map_units: MapUnits | None = None  # in which float16 is kept; None: units of 1
    group: int = 1  # channels that are normalised together, by one mean and one variance


def widened_to_four(spec: ConvolutionSpec) -> ConvolutionSpec:
    """A stride-2 convolution of 3x3 taps, in either direction, as one of 4x4 taps and padding 1, some of them zero.

    The padding is 1 on all sides, or TensorFlow's, which has none at the top and left.
    """
    after_first = 1 - spec.sampling.padding[0]
    kernel = np.pad(spec.kernel, ((after_first, 1 - after_first),) * 2 + ((0, 0),) * 2)
    sampling = Sampling(4, 2, (1, 1, 1, 1), "zeros", spec.sampling.transposed)
    return spec._replace(kernel=np.ascontiguousarray(kernel), sampling=sampling)
